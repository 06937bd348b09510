"""The env files that records name, read ahead: a change is seen, and a create is consistent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.core.errors import ManifestError, ReconcilerError
from reconciler.core.model import UNREAD
from reconciler.manifest import env_file
from reconciler.manifest.env_file import EnvFile
from reconciler.manifest.text_file import Unread, unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from reconciler.threads import BoundedCalls


class EnvFiles:
    """What each env file held when it was last read. ``calls`` is what the reading runs in."""

    def __init__(self, calls: BoundedCalls) -> None:
        self._calls = calls
        self._files: dict[str, EnvFile | ManifestError] = {}

    @property
    def unread(self) -> bool:
        """Whether one has to be tried again."""
        return any(isinstance(file, Unread) for file in self._files.values())

    @property
    def refused(self) -> Mapping[str, ManifestError]:
        """The error of each one that cannot be used, by path."""
        return {path: it for path, it in self._files.items() if isinstance(it, ManifestError)}

    def get(self, path: str) -> EnvFile | ReconcilerError:
        """The file, or why it is unavailable."""
        return self._files.get(path) or ReconcilerError(UNREAD)

    async def refresh(self, paths: Iterable[Path]) -> dict[str, bool]:
        """Read these files and forget all others.

        Returns:
            The paths of those that are not what they were, new ones among them; True where a file
            that could be read holds something else now.
        """
        fresh = await read_env_files(self._calls, paths)
        former, self._files = self._files, fresh
        return {
            path: _is_edited(former.get(path), file)
            for path, file in fresh.items()
            if _mark(file) != _mark(former.get(path))
        }


async def read_env_files(
    calls: BoundedCalls, paths: Iterable[Path]
) -> dict[str, EnvFile | ManifestError]:
    """Each file, or why it cannot be used, by path."""
    found = await calls.each(sorted(paths), _read)
    return {
        str(path): unreadable(path, it) if isinstance(it, OSError) else it
        for path, it in found.items()
    }


def _read(path: Path) -> EnvFile | ManifestError:
    try:
        return env_file.read(path)
    except ManifestError as error:
        return error


def _is_edited(former: EnvFile | ManifestError | None, now: EnvFile | ManifestError) -> bool:
    return isinstance(former, EnvFile) and isinstance(now, EnvFile) and former.digest != now.digest


def _mark(file: EnvFile | ManifestError | None) -> str | None:
    if file is None or isinstance(file, ManifestError):
        return None if file is None else str(file)
    return file.digest
