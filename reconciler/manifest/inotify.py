"""The kernel's word on changes in folders: inotify, or nothing where it cannot be had."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from asyncinotify import Event, Inotify, Mask

from reconciler.manifest.sights import WatchSpec, WatchSpecs
from reconciler.progress import waiting

if TYPE_CHECKING:
    from pathlib import Path

    from reconciler.threads import BoundedCalls

QUIET: Final = 0.05
LONGEST_SETTLE: Final = 0.5
_FINISHED: Final = Mask.CLOSE_WRITE | Mask.MOVED_TO
_BEGUN: Final = Mask.MODIFY | Mask.CREATE | Mask.DELETE | Mask.MOVED_FROM
_LOST: Final = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.UNMOUNT | Mask.IGNORED
_PLACES: Final = Mask.CREATE | Mask.DELETE | Mask.MOVE | Mask.DELETE_SELF | Mask.MOVE_SELF
_CONTENT: Final = Mask.MODIFY | Mask.CLOSE_WRITE | Mask.ATTRIB
_ONLY_FOLDERS: Final = Mask.ONLYDIR | Mask.MASK_ADD
# A folder on the way that is not there, or not ours to read, is no reason to complain.
_EXPECTED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP})


@dataclass(slots=True)
class _Batch:
    """What was seen since the last change was told. ``unfinished``: begun, and not ended yet."""

    matters: bool = False
    unfinished: set[tuple[int, str]] = field(default_factory=set)


class InotifyWatcher:
    """Watches folders for what matters in them. ``problem`` says what cannot be watched, and why.

    ``calls`` is what the calls on paths run in: to look one up can block.
    """

    def __init__(self, calls: BoundedCalls) -> None:
        self.problem = ""
        self._calls = calls
        self._shown: dict[int, WatchSpec] = {}
        self._inotify = self._open()

    def close(self) -> None:
        """Stop watching; closing twice is fine."""
        if self._inotify is not None:
            self._inotify.close()

    async def aim(self, wanted: WatchSpecs) -> None:
        """Watch these folders from now on, and no others."""
        self.problem = ""
        self._inotify = self._inotify or self._open()
        if self._inotify is None:
            return
        shown: dict[int, WatchSpec] = {}
        add = partial(_watch, self._inotify, wanted)
        for folder, number in (await self._calls.each(wanted, add)).items():
            if isinstance(number, OSError):
                self._explain(folder, number)
            else:
                shown.setdefault(number, WatchSpec()).add(wanted[folder])
        self._forget(self._inotify, self._shown.keys() - shown.keys())
        self._shown = shown

    def _explain(self, folder: Path, error: OSError) -> None:
        if error.errno in {errno.ENOSPC, errno.ENOMEM}:
            self.problem = _limits("max_user_watches", error)
        elif error.errno not in _EXPECTED:
            self.problem = f"{folder}: {error.strerror}"

    async def change(self, within: float) -> bool:
        """Wait for a change that matters and is finished; False after ``within`` seconds."""
        with waiting(within + LONGEST_SETTLE):
            return await self._change(within)

    async def _change(self, within: float) -> bool:
        if self._inotify is None:
            await asyncio.sleep(within)
            return False
        batch = _Batch()
        try:
            async with asyncio.timeout(within):
                while not batch.matters:
                    await self._next(self._inotify, batch)
        except TimeoutError:
            return False
        await self._settle(self._inotify, batch)
        return True

    async def _settle(self, inotify: Inotify, batch: _Batch) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_SETTLE):
                while batch.unfinished:
                    async with asyncio.timeout(QUIET):
                        await self._next(inotify, batch)

    async def _next(self, inotify: Inotify, batch: _Batch) -> None:
        """Take in the next event, and all that have come by then."""
        self._take(await inotify.get(), batch)
        for event in inotify:
            self._take(event, batch)

    def _take(self, event: Event, batch: _Batch) -> None:
        if Mask.Q_OVERFLOW in event.mask:
            batch.matters = True
        watch = event.watch
        sight = self._shown.get(watch.wd) if watch is not None else None
        if watch is None or sight is None:
            return
        if event.mask & _LOST:
            batch.matters = True
        elif event.name is not None and sight.shows(str(event.name)):
            batch.matters = True
            _follow_up(event.mask, (watch.wd, str(event.name)), batch.unfinished)

    def _open(self) -> Inotify | None:
        try:
            inotify = Inotify(cache_size=64)
        except OSError as error:
            self.problem = _limits("max_user_instances", error)
            return None
        # Iterating it ends where nothing more has come, instead of waiting.
        os.set_blocking(inotify.fd, False)
        inotify.sync_timeout = 0
        return inotify

    @staticmethod
    def _forget(inotify: Inotify, numbers: set[int]) -> None:
        for watch in inotify.watches:
            if watch.wd in numbers:
                # The kernel forgets a folder that is gone by itself.
                with contextlib.suppress(OSError):
                    inotify.rm_watch(watch)


def _watch(inotify: Inotify, wanted: WatchSpecs, folder: Path) -> int:
    mask = _PLACES | _CONTENT if wanted[folder].content else _PLACES
    return inotify.add_watch(folder, mask | _ONLY_FOLDERS).wd


def _follow_up(mask: Mask, entry: tuple[int, str], unfinished: set[tuple[int, str]]) -> None:
    if mask & _FINISHED or (Mask.CREATE | Mask.ISDIR) in mask:
        unfinished.discard(entry)
    elif mask & _BEGUN:
        unfinished.add(entry)


def _limits(name: str, error: OSError) -> str:
    return f"inotify: {error.strerror}; raise fs.inotify.{name} with sysctl"
