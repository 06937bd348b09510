"""Env files: ``KEY=value`` lines by Docker's rules, read before they are used.

A line is one variable. Blank lines and lines that begin with ``#`` are skipped, and so is blank
space before a name. The value is everything after the first ``=``: quotes, spaces and ``#`` in it
stay. A name alone, without ``=``, is skipped: Docker's client takes its value from the client's
environment, and the daemon's environment is private. The last line of a name wins.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from reconciler.core.action import UNREAD
from reconciler.core.errors import Diagnostic, ManifestError, ReconcilerError
from reconciler.manifest.text_file import TransientReadError, read_text, unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from reconciler.threads import BoundedCalls

MAX_BYTES: Final = 1 << 20
_NAME: Final = re.compile(r"[^\s=]+")


@dataclass(frozen=True, slots=True)
class EnvFile:
    """``values`` by name; ``digest`` (64 hex digits) is the same for the same values."""

    values: Mapping[str, str] = field(repr=False)
    digest: str


def read_env_file(path: Path) -> EnvFile:
    """Read an env file of at most 1 MB. Blocks for as long as the file system does.

    Raises:
        TransientReadError: it cannot be read now.
        ManifestError: it cannot be read, or lines are wrong; with a diagnostic for each. None
            repeats the file's text.
    """
    try:
        lines = read_text(path, MAX_BYTES).split("\n")
    except FileNotFoundError as error:
        raise ManifestError((Diagnostic(str(path), 1, 1, "does not exist"),)) from error
    values: dict[str, str] = {}
    problems: list[Diagnostic] = []
    for number, raw in enumerate(lines, start=1):
        line = raw.removesuffix("\r").lstrip()
        name, equals, value = line.partition("=")
        if not line or line.startswith("#"):
            continue
        if not _NAME.fullmatch(name):
            what = "must not hold spaces" if name else "is missing"
            message = f"the variable's name {what}: write NAME=value"
            problems.append(Diagnostic(str(path), number, 1, message))
        elif equals:
            values[name] = value
    if problems:
        raise ManifestError(tuple(problems))
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return EnvFile(MappingProxyType(values), digest)


class EnvFiles:
    """The latest content of each env file that a record names.

    A create uses what was read before, so that all its steps use the same values. ``calls`` runs
    the reading.
    """

    def __init__(self, calls: BoundedCalls) -> None:
        self._calls = calls
        self._files: dict[str, EnvFile | ManifestError] = {}

    @property
    def must_retry(self) -> bool:
        """Whether one of them could not be read now, and must be read again."""
        return any(isinstance(file, TransientReadError) for file in self._files.values())

    @property
    def errors(self) -> Mapping[str, ManifestError]:
        """The error of each one that cannot be used, by path."""
        return {path: it for path, it in self._files.items() if isinstance(it, ManifestError)}

    def get(self, path: str) -> EnvFile | ReconcilerError:
        """Return the file, or why it is unavailable."""
        return self._files.get(path) or ReconcilerError(UNREAD)

    async def refresh(self, paths: Iterable[Path]) -> dict[str, bool]:
        """Read these files and forget all others.

        Returns:
            The paths that changed, new ones included; True where the values of a file that was
            readable before are different now.
        """
        fresh = await read_env_files(self._calls, paths)
        former, self._files = self._files, fresh
        changed: dict[str, bool] = {}
        for path, now in fresh.items():
            before = former.get(path)
            if _version(now) != _version(before):
                changed[path] = isinstance(before, EnvFile) and isinstance(now, EnvFile)
        return changed


async def read_env_files(
    calls: BoundedCalls, paths: Iterable[Path]
) -> dict[str, EnvFile | ManifestError]:
    """Return each file, or why it cannot be used, by path."""

    def read(path: Path) -> EnvFile | ManifestError:
        try:
            return read_env_file(path)
        except ManifestError as error:
            return error

    found = await calls.each(sorted(paths), read)
    return {
        str(path): unreadable(path, it) if isinstance(it, OSError) else it
        for path, it in found.items()
    }


def _version(file: EnvFile | ManifestError | None) -> str | None:
    """Return a text that differs where the content or the error differs."""
    if file is None:
        return None
    return file.digest if isinstance(file, EnvFile) else str(file)
