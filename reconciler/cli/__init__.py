"""The command line: ``reconciler COMMAND``. Exit codes are part of each command's contract."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, Final, NoReturn

from reconciler.cli.interrupts import INTERRUPTED, loading

if TYPE_CHECKING:
    from types import TracebackType


# A wrong desired file may have a line for each of 20,000 records.
_LONGEST: Final = 4_000_000


def main() -> NoReturn:
    """Run the command that the arguments name; never shows a traceback for what a user can mend."""
    try:
        with loading():
            from reconciler.cli.app import group  # noqa: PLC0415 - heeding Ctrl-C comes first

        code = group(standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _leave(INTERRUPTED)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        _leave(0)
    except Exception as error:  # noqa: BLE001 - whatever it is, a user gets a sentence
        sys.exit(_explain(error))
    sys.exit(code if isinstance(code, int) else 0)


def _leave(code: int) -> NoReturn:
    # What is left in the buffers has no reader.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _explain(error: BaseException) -> int:
    import click  # noqa: PLC0415 - as above

    from reconciler.cli.output import say  # noqa: PLC0415 - as above
    from reconciler.core.errors import ManifestError, ReconcilerError  # noqa: PLC0415
    from reconciler.telemetry.redact import redactor  # noqa: PLC0415

    match error:
        case click.exceptions.Abort():
            return INTERRUPTED
        case click.ClickException():
            error.show()
            return error.exit_code
        case ManifestError():
            say(redactor.clean(str(error), _LONGEST), err=True)
        case ReconcilerError():
            say(redactor.clean(f"reconciler: {error}", _LONGEST), err=True)
        case BaseExceptionGroup():
            return _explain(error.exceptions[0])
        case _:
            _own_up(error)
    return 1


def _own_up(error: BaseException) -> None:
    if os.environ.get("RECONCILER_LOG_LEVEL") == "debug":
        traceback.print_exception(error)
    what = f"{type(error).__name__}: {error}"
    message = f"reconciler: a defect of this program: {what} (at {_place(error.__traceback__)})"
    print(f"{message}; RECONCILER_LOG_LEVEL=debug shows more", file=sys.stderr)  # noqa: T201


def _place(trace: TracebackType | None) -> str:
    frames = traceback.extract_tb(trace)
    return f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else "?"  # noqa: PTH119
