"""The command line: ``reconciler COMMAND``. Exit codes are part of each command's contract."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Final, NoReturn

from reconciler.cli.interrupts import INTERRUPTED, loading

# A wrong desired file may have a line for each of 20,000 records.
_LONGEST: Final = 4_000_000


def main() -> NoReturn:
    """Run the command that the arguments name, and exit with its code.

    An error that a user can fix is a sentence on stderr, never a traceback.
    """
    try:
        with loading():
            from reconciler.cli.app import group  # noqa: PLC0415 - after Ctrl-C is handled

        code = group(standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _discard_output_and_exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe.
        _discard_output_and_exit(0)
    except Exception as error:  # noqa: BLE001 - every error is reported in one sentence
        sys.exit(_report(error))
    sys.exit(code if isinstance(code, int) else 0)


def _discard_output_and_exit(code: int) -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _report(error: BaseException) -> int:
    """Print the error on stderr and return the exit code."""
    import click  # noqa: PLC0415 - after Ctrl-C is handled

    from reconciler.cli.output import say  # noqa: PLC0415
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
            return _report(error.exceptions[0])
        case _:
            if os.environ.get("RECONCILER_LOG_LEVEL") == "debug":
                trace = "".join(traceback.format_exception(error))
                say(redactor.clean(trace, _LONGEST), err=True)
            frames = traceback.extract_tb(error.__traceback__)
            place = "?"
            if frames:
                place = f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}"  # noqa: PTH119
            what = f"{type(error).__name__}: {error} (at {place})"
            message = f"reconciler: internal error (please report): {what}"
            message += "; RECONCILER_LOG_LEVEL=debug shows the traceback"
            say(redactor.clean(message, _LONGEST), err=True)
    return 1
