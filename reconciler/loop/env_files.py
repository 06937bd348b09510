"""The env files that records name, read ahead: a change is seen, and a create is consistent."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.core.errors import ReconcilerError
from reconciler.store import env_file
from reconciler.store.reading import Unread

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reconciler.store.env_file import EnvFile


class EnvFiles:
    """What each env file held when it was last looked at."""

    def __init__(self) -> None:
        self._files: dict[str, EnvFile | ReconcilerError] = {}

    @property
    def unread(self) -> bool:
        """Whether one is to be tried again."""
        return any(isinstance(file, Unread) for file in self._files.values())

    def get(self, path: str) -> EnvFile | ReconcilerError:
        """The file, or why it cannot be had."""
        return self._files.get(path) or ReconcilerError(f"env_file {path}: not read yet")

    async def refresh(self, paths: Iterable[Path]) -> set[str]:
        """Read these files, forget all others, and say which are not what they were."""
        fresh = await asyncio.to_thread(_read_all, sorted(map(str, paths)))
        former, self._files = self._files, fresh
        return {path for path in fresh if _mark(fresh[path]) != _mark(former.get(path))}


def _read_all(paths: list[str]) -> dict[str, EnvFile | ReconcilerError]:
    return {path: _read(path) for path in paths}


def _read(path: str) -> EnvFile | ReconcilerError:
    try:
        return env_file.read(Path(path))
    except ReconcilerError as error:
        return error


def _mark(file: EnvFile | ReconcilerError | None) -> str | None:
    if file is None or isinstance(file, ReconcilerError):
        return None if file is None else str(file)
    return file.digest
