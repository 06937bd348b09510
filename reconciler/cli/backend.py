"""Choose what answers a command: the running daemon, or this process if none runs."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

import click

from reconciler.cli.interrupts import loading
from reconciler.core.errors import ReconcilerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reconciler.cli.local import LocalBackend
    from reconciler.cli.remote import RemoteBackend
    from reconciler.settings import Settings

NO_DAEMON: Final = "no daemon is running; querying the engine directly"


@contextmanager
def running_daemon(settings: Settings) -> Iterator[RemoteBackend | None]:
    """Connect to the running daemon for the block; None if no daemon runs.

    Raises:
        ReconcilerError: a daemon runs, but it refuses this user or does not respond.
    """
    # Not Path.exists: since Python 3.14 it is False if this user may not search the directory.
    try:
        settings.socket.stat()
        exists = True
    except (FileNotFoundError, NotADirectoryError):
        exists = False
    except OSError as error:
        raise ReconcilerError(
            f"{settings.socket}: {error.strerror}; run this as the daemon's user, or as root",
        ) from error
    daemon = None
    if exists:
        with loading():
            from reconciler.cli.remote import RemoteBackend  # noqa: PLC0415 - loads httpx

        daemon = RemoteBackend.connect(settings)
    with daemon or nullcontext():
        yield daemon


def local_backend(settings: Settings) -> LocalBackend:
    """Return a backend that queries the engine from this process."""
    with loading():
        from reconciler.cli.local import LocalBackend  # noqa: PLC0415 - loads the engine's client

    return LocalBackend(settings)


@contextmanager
def backend(settings: Settings, *, quiet: bool = False) -> Iterator[RemoteBackend | LocalBackend]:
    """Use the running daemon, else this process, with a notice on stderr unless ``quiet``.

    Raises:
        ReconcilerError: as ``running_daemon``.
    """
    with running_daemon(settings) as daemon:
        if daemon is None and not quiet:
            click.echo(f"reconciler: {NO_DAEMON}", err=True)
        yield daemon or local_backend(settings)
