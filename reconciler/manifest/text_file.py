"""The text of one file, within bounds: never more than it may hold, never a wait on a pipe.

A file system that hangs blocks these calls: run them in ``reconciler.threads``.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
from typing import TYPE_CHECKING, Final

from reconciler.core.errors import OUT_OF_FILES, Diagnostic, ManifestError, is_out_of_files

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES: Final = 4 << 20
_OTHER_ENCODINGS: Final = (
    codecs.BOM_UTF32_LE,
    codecs.BOM_UTF32_BE,
    codecs.BOM_UTF16_LE,
    codecs.BOM_UTF16_BE,
)
# Not YAML at all, or (U+0085 and the last two) line breaks in YAML 1.1 and none in 1.2.
_FORBIDDEN: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff\u2028\u2029]",
)
# What an edit or a change of permissions has to fix. Any other error may pass by itself.
_LASTING: Final = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EISDIR,
        errno.ENXIO,
        errno.EINVAL,
    }
)


class Unread(ManifestError):
    """It cannot be read now, for a reason that may pass by itself: it has to be tried again."""


def read_yaml(path: Path) -> str:
    """The text of a YAML file, without characters that YAML 1.2 forbids or reads otherwise.

    Raises:
        ManifestError: as ``read_text``, or for such a character.
        FileNotFoundError: as ``read_text``.
    """
    text = read_text(path)
    if found := _FORBIDDEN.search(text):
        code = f"U+{ord(found[0]):04X}"
        message = f"the character {code} may not stand here; in double quotes it can be escaped"
        raise _at(path, text[: found.start()].encode(), message)
    return text


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """The file's text, without a byte order mark.

    Raises:
        Unread: it cannot be read now.
        ManifestError: it cannot be read, is no regular file, holds more than ``limit`` bytes, or
            is not UTF-8 text. With one diagnostic.
        FileNotFoundError: it is not there, or a link that leads nowhere.
    """
    try:
        raw = _read(path, limit)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise _refusal(path, "its name holds a NUL character") from error
    if len(raw) > limit:
        raise _too_large(path, limit)
    return _decode(path, raw)


def _read(path: Path, limit: int) -> bytes:
    # A device can react to being opened, so the path is inspected first. Without O_NONBLOCK, the
    # open of a pipe that took the file's place since waits for a writer.
    _check(path, path.stat(), limit)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        _check(path, os.fstat(descriptor), limit)
        return file.read(limit + 1)


def _check(path: Path, status: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _refusal(path, "not a regular file")
    if status.st_size > limit:
        raise _too_large(path, limit)


def _decode(path: Path, raw: bytes) -> str:
    if raw.startswith(_OTHER_ENCODINGS):
        raise _refusal(path, "UTF-16 or UTF-32 text: save the file as UTF-8")
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise _at(path, raw[: error.start], "not UTF-8 text") from error
    if "\0" in text:
        raise _at(path, raw[: raw.index(b"\0")], "not a text file: it holds a NUL character")
    return text


def _at(path: Path, before: bytes, message: str) -> ManifestError:
    line = before.count(b"\n") + 1
    column = len(before[before.rfind(b"\n") + 1 :].decode()) + 1
    return ManifestError((Diagnostic(str(path), line, column, message),))


def unreadable(path: Path, error: OSError) -> ManifestError:
    """The error for a path that the system refuses; ``Unread`` where another try may succeed."""
    why = OUT_OF_FILES if is_out_of_files(error) else error.strerror or str(error)
    if error.errno == errno.EACCES:
        why += f"; {_denied(path)}"
    found = (Diagnostic(str(path), 1, 1, f"cannot be read: {why}"),)
    return ManifestError(found) if error.errno in _LASTING else Unread(found)


def _denied(path: Path) -> str:
    """Which permission is missing. Blocks as a reading does."""
    closed = next(
        (p for p in reversed(path.parents) if not os.access(p, os.X_OK, effective_ids=True)), None
    )
    what = f"enter the folder {closed}" if closed else f"read {path}"
    return f"the user with uid {os.geteuid()} may not {what}: change its mode or its owner"


def _too_large(path: Path, limit: int) -> ManifestError:
    return _refusal(path, f"larger than {limit >> 20} MB, the most that is read")


def _refusal(path: Path, message: str) -> ManifestError:
    return ManifestError((Diagnostic(str(path), 1, 1, message),))
