"""All errors that this project raises.

ReconcilerError
 ├── SettingsError            a setting is wrong
 ├── ManifestError            the desired file is wrong; has every diagnostic
 ├── LockedError              another daemon holds the state directory
 ├── StoreError               the database cannot be read or written
 ├── ControlSocketError       the control socket cannot be created
 └── EngineError              an engine call failed
      ├── Throttled           not called: too many calls of this verb, or its circuit is open
      ├── EngineUnavailable   no connection; the outcome is unknown
      │    └── EngineTimeout  no response in time; the outcome is unknown
      ├── Unreadable          the response cannot be understood
      ├── CommandTimeout      a command in a container did not end in time
      ├── Forbidden           the engine, or a proxy before it, does not allow the call
      ├── NotFound            the object does not exist
      ├── ImageNotFound       the image is not on this engine
      ├── PullFailed          the registry or the engine refused the image
      ├── NameTaken           another container has the name
      ├── PortTaken           another process uses the host port
      ├── Unstartable         this container can never start again; a new one could
      ├── Busy                the engine is still working on the object; retry soon
      │    └── Removing       the engine is removing the container, which may take long
      └── Refused             the request is wrong, such as a bad mount or option

Messages say what to do. None contains a secret.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

OUT_OF_FILES: Final = (
    "this process may open no more files: raise its limit (LimitNOFILE= in its unit, or ulimit -n)"
)


class ReconcilerError(Exception):
    """Root of the tree. Users see the message, without a traceback."""


class SettingsError(ReconcilerError):
    """An option, a variable or a line of the settings file is wrong."""


@dataclass(frozen=True, slots=True, order=True)
class Diagnostic:
    """One error in the desired file. Lines and columns count from 1."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class ManifestError(ReconcilerError):
    """The desired file is wrong; ``diagnostics`` has every error in it."""

    def __init__(self, diagnostics: tuple[Diagnostic, ...]) -> None:
        super().__init__("\n".join(map(str, diagnostics)))
        self.diagnostics = diagnostics


class LockedError(ReconcilerError):
    """Another daemon holds the state directory."""


class StoreError(ReconcilerError):
    """The database cannot be opened, read or written."""


class ControlSocketError(ReconcilerError):
    """The control socket cannot be created."""


class EngineError(ReconcilerError):
    """An engine call failed."""


class Throttled(EngineError):
    """The engine was not called: too many calls of this verb run, or its circuit is open."""


class EngineUnavailable(EngineError):
    """The connection failed. The call may or may not have taken effect."""


class EngineTimeout(EngineUnavailable):
    """The engine did not respond in time. The call may still take effect."""


class Unreadable(EngineError):
    """The engine's response cannot be understood, so the object's state is unknown."""


class CommandTimeout(EngineError):
    """A command in a container did not end in time; the engine itself responds."""


class Forbidden(EngineError):
    """The engine, or a proxy before it, does not allow the call.

    ``part`` is the part of the API that the call belongs to, if known.
    """

    def __init__(self, message: str, part: str = "") -> None:
        super().__init__(message)
        self.part = part


class NotFound(EngineError):
    """The container or volume does not exist."""


class ImageNotFound(EngineError):
    """The image is not on this engine."""


class PullFailed(EngineError):
    """The image could not be pulled."""


class NameTaken(EngineError):
    """Another container, which is not ours, has the name."""


class PortTaken(EngineError):
    """Another process uses a host port: ``port``, if the engine says which."""

    def __init__(self, message: str, port: int | None = None) -> None:
        super().__init__(message)
        self.port = port


class Unstartable(EngineError):
    """This container can never start again, but a new one from the same spec could.

    It refers to a network or a container by an id that no longer exists, or leftover runtime state
    blocks it, for instance after a power failure.
    """


class Busy(EngineError):
    """The engine is still working on the object; retry soon."""


class Removing(Busy):
    """The engine is still removing the container. This is not a fault."""


class Refused(EngineError):
    """The engine rejects the request; a retry does not help."""


def is_engine_lost(error: BaseException) -> bool:
    """Whether the engine is unreachable, and not only too slow to answer the call."""
    return isinstance(error, EngineUnavailable) and not isinstance(error, EngineTimeout)


def is_out_of_files(error: BaseException | None) -> bool:
    """Whether the error, or one that it comes from, is that no file descriptor is left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
            return True
        error = error.__cause__ or error.__context__
    return False
