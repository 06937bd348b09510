"""The errors that this project raises, all of them.

ReconcilerError
 ├── SettingsError            a setting is wrong: says which, and what would be right
 ├── ManifestError            the desired file is wrong: carries every diagnostic
 ├── LockedError              another daemon holds the state directory
 ├── StoreError               the database cannot be read or written
 ├── ControlSocketError       the control socket cannot be made
 └── EngineError              the engine did not do what was asked
      ├── Postponed           it was not asked yet: too much of the kind is under way, or hangs
      ├── EngineUnavailable   it could not be asked: nothing is known about the outcome
      │    └── EngineTimeout  it did not answer in time: the outcome is unknown
      ├── Unreadable          it answered, and the answer cannot be understood
      ├── CommandTimeout      a command in a container did not end in time
      ├── Forbidden           the engine, or a proxy before it, does not allow the call
      ├── NotFound            the object is not there
      ├── ImageNotFound       the image is not on this engine
      ├── PullFailed          the registry or the engine refused the image
      ├── NameTaken           another container bears the name
      ├── PortTaken           another socket holds a host port
      ├── Wrecked             this container can never start again; another one could
      ├── Busy                the engine is still at work on the object: ask again soon
      │    └── Removing       the engine is removing the container, which may take long
      └── Refused             the engine understood, and will not: a bad mount, a bad option

Messages say what to do. None carries a secret.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

OUT_OF_FILES: Final = (
    "this process may open no more files: raise its limit (LimitNOFILE= in its unit, or ulimit -n)"
)


class ReconcilerError(Exception):
    """Root of the tree: what a user may be shown, without a traceback."""


class SettingsError(ReconcilerError):
    """A flag, a variable or a line of the settings file is wrong."""


@dataclass(frozen=True, slots=True, order=True)
class Diagnostic:
    """One complaint about the desired file. Lines and columns count from 1."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class ManifestError(ReconcilerError):
    """The desired file cannot be used; ``diagnostics`` holds all that is wrong with it."""

    def __init__(self, diagnostics: tuple[Diagnostic, ...]) -> None:
        super().__init__("\n".join(map(str, diagnostics)))
        self.diagnostics = diagnostics


class LockedError(ReconcilerError):
    """Another daemon works on this state directory."""


class StoreError(ReconcilerError):
    """The database cannot be opened, read or written."""


class ControlSocketError(ReconcilerError):
    """The control socket cannot be made."""


class EngineError(ReconcilerError):
    """The engine did not do what was asked."""


class Throttled(EngineError):
    """The engine was not asked: too much of the kind is under way, or the kind hangs."""


class EngineUnavailable(EngineError):
    """The engine could not be asked. What it was asked may or may not have happened."""


class EngineTimeout(EngineUnavailable):
    """The engine did not answer in time. What it was asked may still happen."""


class Unreadable(EngineError):
    """The engine answered, and the answer cannot be understood. Nothing is known of the object."""


class CommandTimeout(EngineError):
    """A command in a container did not end in time; the engine itself answers."""


class Forbidden(EngineError):
    """The engine, or a proxy before it, does not allow the call.

    ``part`` is the part of the API that it is of, where it is known.
    """

    def __init__(self, message: str, part: str = "") -> None:
        super().__init__(message)
        self.part = part


class NotFound(EngineError):
    """The container or volume is not there."""


class ImageNotFound(EngineError):
    """The image is not on this engine."""


class PullFailed(EngineError):
    """The image could not be pulled."""


class NameTaken(EngineError):
    """A container that is not ours to touch bears the name."""


class PortTaken(EngineError):
    """A host port is held by somebody else. ``port`` is it, where the engine said which."""

    def __init__(self, message: str, port: int | None = None) -> None:
        super().__init__(message)
        self.port = port


class Unstartable(EngineError):
    """This container cannot start any more, and another one made from the same spec could.

    It refers to a network or a container by an id that no longer exists, or leftover runtime state
    of an earlier run is in its way, as an engine or a host that is cut off can leave it.
    """


class Busy(EngineError):
    """The engine is still at work on the object; ask again soon."""


class Removing(Busy):
    """The engine has begun to remove the container, and has not finished. This is no fault."""


class Refused(EngineError):
    """The engine understood the request and will not do it: asking again will not help."""


def is_out_of_files(error: BaseException | None) -> bool:
    """Whether an error comes from there being no file descriptor left; then it says no more."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
            return True
        error = error.__cause__ or error.__context__
    return False
