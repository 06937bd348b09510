"""Who answers a command: the running daemon, or this process where none runs."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

import click

from reconciler.cli.interrupts import loading
from reconciler.core.errors import ReconcilerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from reconciler.cli.local import Local
    from reconciler.cli.remote import Client
    from reconciler.settings import Settings

NO_DAEMON: Final = "no daemon runs here; this is what this process sees"


def daemon_of(settings: Settings) -> Client | None:
    """The running daemon; None where there is none.

    Raises:
        ReconcilerError: one listens, and may not be asked or does not answer.
    """
    if not _is_there(settings.socket):
        return None
    with loading():
        from reconciler.cli.remote import Client  # noqa: PLC0415 - slow to load, often not needed

    return Client.connect(settings)


@contextmanager
def running_daemon(settings: Settings) -> Iterator[Client | None]:
    """The running daemon, None where there is none; the connection ends with the block.

    Raises:
        ReconcilerError: as ``daemon_of``.
    """
    daemon = daemon_of(settings)
    with daemon or nullcontext():
        yield daemon


def in_its_place(settings: Settings) -> Local:
    """This process."""
    with loading():
        from reconciler.cli.local import Local  # noqa: PLC0415 - it loads the engine's client

    return Local(settings)


@contextmanager
def backend(settings: Settings, *, quiet: bool = False) -> Iterator[Client | Local]:
    """The daemon where one runs, else this process; says so where it is not ``quiet``."""
    with running_daemon(settings) as daemon:
        yield daemon or _this_process(settings, quiet=quiet)


def _this_process(settings: Settings, *, quiet: bool) -> Local:
    if not quiet:
        click.echo(f"reconciler: {NO_DAEMON}", err=True)
    return in_its_place(settings)


def _is_there(socket: Path) -> bool:
    try:
        return socket.exists()
    except OSError as error:
        raise ReconcilerError(
            f"{socket}: {error.strerror}: no right to ask the daemon; be its user, or root",
        ) from error
