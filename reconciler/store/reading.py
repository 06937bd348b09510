"""The text of one file, within bounds: never more than it may hold, never a wait on a pipe."""

from __future__ import annotations

import codecs
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


class Unread(ManifestError):
    """It could not be read now, for a reason that is not the file's: it is to be tried again."""


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
        if is_out_of_files(error):
            raise Unread((unread(path),)) from error
        raise _refusal(path, f"cannot be read: {error.strerror}") from error
    if len(raw) > limit:
        raise _refusal(path, f"larger than {limit >> 20} MB, the most that is read")
    return _decode(path, raw)


def _read(path: Path, limit: int) -> bytes:
    # Without O_NONBLOCK, the open of a pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _refusal(path, "not a regular file")
        too_large = status.st_size > limit
        return b"\0" * (limit + 1) if too_large else file.read(limit + 1)


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


def unread(path: Path) -> Diagnostic:
    """What is said of a path that cannot be read now."""
    return Diagnostic(str(path), 1, 1, f"cannot be read: {OUT_OF_FILES}")


def _refusal(path: Path, message: str) -> ManifestError:
    return ManifestError((Diagnostic(str(path), 1, 1, message),))
