"""Read one text file: of limited size, and without waiting on a pipe.

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
# Not allowed in YAML, or (U+0085 and the last two) line breaks in YAML 1.1 and not in 1.2.
_FORBIDDEN: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff\u2028\u2029]",
)
# An edit or a change of permissions must fix these. Any other error may pass by itself.
_PERMANENT: Final = frozenset(
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


class TransientReadError(ManifestError):
    """The file cannot be read now, for a reason that may pass by itself: read it again."""


def read_yaml(path: Path) -> str:
    """Return the text of a YAML file.

    Raises:
        ManifestError: as ``read_text``, or for a character that YAML 1.2 forbids or that YAML 1.1
            reads as a line break.
        FileNotFoundError: as ``read_text``.
    """
    text = read_text(path)
    if found := _FORBIDDEN.search(text):
        code = f"U+{ord(found[0]):04X}"
        message = f"the character {code} is not allowed here: escape it in double quotes"
        raise _error_after(path, text[: found.start()].encode(), message)
    return text


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """Return the file's text, without a byte order mark.

    Raises:
        TransientReadError: it cannot be read now.
        ManifestError: it cannot be read, is no regular file, holds more than ``limit`` bytes, or
            is not UTF-8 text. With one diagnostic.
        FileNotFoundError: it does not exist, or is a link to nothing.
    """
    try:
        # A device can react to an open, so the path is inspected first. O_NONBLOCK: the open of a
        # pipe that has replaced the file since then would wait for a writer.
        _check(path, path.stat(), limit)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            _check(path, os.fstat(descriptor), limit)
            raw = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise _error(path, "its name holds a NUL character") from error
    if len(raw) > limit:
        raise _too_large(path, limit)
    if raw.startswith(_OTHER_ENCODINGS):
        raise _error(path, "UTF-16 or UTF-32 text: save the file as UTF-8")
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise _error_after(path, raw[: error.start], "not UTF-8 text") from error
    if "\0" in text:
        message = "not a text file: it holds a NUL character"
        raise _error_after(path, raw[: raw.index(b"\0")], message)
    return text


def unreadable(path: Path, error: OSError) -> ManifestError:
    """Return the error for a path that the system refuses. Blocks as a read does.

    It is a ``TransientReadError`` where another try may succeed.
    """
    why = OUT_OF_FILES if is_out_of_files(error) else error.strerror or str(error)
    if error.errno == errno.EACCES:
        closed = next(
            (it for it in reversed(path.parents) if not os.access(it, os.X_OK, effective_ids=True)),
            None,
        )
        what = f"enter the folder {closed}" if closed else f"read {path}"
        why += f"; the user with uid {os.geteuid()} may not {what}: change its mode or its owner"
    found = (Diagnostic(str(path), 1, 1, f"cannot be read: {why}"),)
    return ManifestError(found) if error.errno in _PERMANENT else TransientReadError(found)


def _check(path: Path, status: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _error(path, "not a regular file")
    if status.st_size > limit:
        raise _too_large(path, limit)


def _too_large(path: Path, limit: int) -> ManifestError:
    return _error(path, f"larger than the limit of {limit >> 20} MB")


def _error(path: Path, message: str) -> ManifestError:
    return ManifestError((Diagnostic(str(path), 1, 1, message),))


def _error_after(path: Path, before: bytes, message: str) -> ManifestError:
    """Return the error for the position after these bytes."""
    line = before.count(b"\n") + 1
    column = len(before[before.rfind(b"\n") + 1 :].decode()) + 1
    return ManifestError((Diagnostic(str(path), line, column, message),))
