"""Env files: ``KEY=value`` lines by Docker's rules.

A line is one variable. Blank lines and lines that begin with ``#`` are skipped, blanks before a
name are not part of it, and the value is all that follows the first ``=``: quotes, blanks and
``#`` in it are kept. A name alone, without ``=``, is skipped: Docker's client takes its value from
its own environment, and a daemon's environment is nobody's business. A later line wins.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from reconciler.core.errors import Diagnostic, ManifestError
from reconciler.manifest.text_file import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MAX_BYTES: Final = 1 << 20
_NAME: Final = re.compile(r"[^\s=]+")


@dataclass(frozen=True, slots=True)
class EnvFile:
    """``values`` by name; ``digest`` (64 hex digits) is the same for the same values."""

    values: Mapping[str, str] = field(repr=False)
    digest: str


def read(path: Path) -> EnvFile:
    """Read an env file of at most 1 MB. Blocks for as long as the file system does.

    Raises:
        Unread: it cannot be read now.
        ManifestError: it cannot be read, or a line is wrong; with a diagnostic for each. None
            repeats what the file says.
    """
    try:
        lines = read_text(path, MAX_BYTES).split("\n")
    except FileNotFoundError as error:
        raise ManifestError((Diagnostic(str(path), 1, 1, "does not exist"),)) from error
    wrong = tuple(_complaints(path, lines))
    if wrong:
        raise ManifestError(wrong)
    values = dict(_variables(lines))
    return EnvFile(MappingProxyType(values), _digest(values))


def _variables(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, equals, value = _split(line)
        if equals:
            yield name, value


def _complaints(path: Path, lines: list[str]) -> Iterator[Diagnostic]:
    for number, line in enumerate(lines, start=1):
        name, equals, _ = _split(line)
        if (name or equals) and not _NAME.fullmatch(name):
            message = "a variable's name is missing" if not name else "a name holds no blanks"
            yield Diagnostic(str(path), number, 1, f"{message}: write NAME=value")


def _split(line: str) -> tuple[str, str, str]:
    line = line.removesuffix("\r").lstrip()
    return ("", "", "") if line.startswith("#") else line.partition("=")


def _digest(values: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
