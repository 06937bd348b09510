"""The command line: ``reconciler COMMAND``. Exit codes are part of each command's contract."""

from __future__ import annotations

import sys
from typing import Final

import click

from reconciler.cli.app import group
from reconciler.core.errors import ManifestError, ReconcilerError

_INTERRUPTED: Final = 130


def main() -> None:
    """Run the command that the arguments name; never shows a traceback for what a user can mend."""
    try:
        code = group(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(_INTERRUPTED)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ManifestError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    except ReconcilerError as error:
        click.echo(f"reconciler: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        sys.stderr.close()
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)
