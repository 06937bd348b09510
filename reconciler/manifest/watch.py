"""Tells when the desired file, a folder of them, or an env file may have changed.

The folders are watched, not the files: editors and configuration management replace files by
rename, and mounted configuration by swapping a link. A change is told as soon as what was begun is
finished: a file that was opened for writing is closed, one that was taken away is back. Where that
does not happen, it is told after a short quiet time.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from reconciler.manifest.inotify import InotifyWatcher
from reconciler.manifest.sights import (
    WatchSpec,
    WatchSpecs,
    desired_fingerprint,
    desired_sights,
    file_fingerprint,
    file_sights,
)
from reconciler.threads import BoundedCalls

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable
    from pathlib import Path

_RESCAN: Final = 10.0


class Watch:
    """Watches one desired path, and what ``extra`` names at the time (env files).

    ``rescan`` is how many seconds pass between looks at the files themselves, for changes of which
    the kernel does not tell: on a network's file system, or where its limits are reached.
    ``calls`` is what all calls on the file system run in.
    """

    def __init__(
        self,
        desired: Path,
        extra: Callable[[], Iterable[Path]] = tuple,
        *,
        rescan: float = _RESCAN,
        calls: BoundedCalls | None = None,
    ) -> None:
        self._desired = desired
        self._calls = calls or BoundedCalls()
        self._extra = extra
        self._rescan = rescan
        self._problem = ""

    @property
    def problem(self) -> str:
        """Why changes are seen by rescan only, or nothing."""
        return self._problem

    async def changes(self) -> AsyncGenerator[None, None]:
        """Yield once the watch is set, and then after each change that could matter.

        What happens between two turns of the loop is told once. The first turn is for the first
        reading, so that no edit falls between it and the watch. Close it with
        ``contextlib.aclosing``, or by cancelling the task that waits for it.
        """
        with contextlib.closing(InotifyWatcher(self._calls)) as watcher:
            while True:
                paths = self._paths()
                await self._aim(watcher, paths)
                seen = await self._look(paths)
                yield
                # A reading that names other env files has read them before they were watched.
                if paths == self._paths():
                    await self._change(watcher, paths, seen)

    async def _change(
        self, watcher: InotifyWatcher, paths: tuple[Path, ...], seen: tuple[object, ...]
    ) -> None:
        while not await watcher.change(self._rescan):
            await self._aim(watcher, paths)
            if await self._look(paths) != seen:
                return

    async def _aim(self, watcher: InotifyWatcher, paths: tuple[Path, ...]) -> None:
        wanted: WatchSpecs = {}
        for found in (await self._calls.each(paths, self._sights)).values():
            for folder, sight in found.items() if isinstance(found, dict) else ():
                wanted.setdefault(folder, WatchSpec()).add(sight)
        await watcher.aim(wanted)
        self._problem = watcher.problem

    async def _look(self, paths: tuple[Path, ...]) -> tuple[object, ...]:
        found = await self._calls.each(paths, self._fingerprint)
        return tuple(it.errno if isinstance(it, OSError) else it for it in found.values())

    def _sights(self, path: Path) -> WatchSpecs:
        return desired_sights(path.absolute()) if path == self._desired else file_sights(path)

    def _fingerprint(self, path: Path) -> object:
        return desired_fingerprint(path) if path == self._desired else file_fingerprint(path)

    def _paths(self) -> tuple[Path, ...]:
        """The desired path, and then the others."""
        return self._desired, *sorted(set(self._extra()) - {self._desired})
