"""Watch folders with inotify; without it, wait for the next rescan."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from asyncinotify import Event, Inotify, Mask

from reconciler.liveness import waiting
from reconciler.manifest.documents import is_manifest_name

if TYPE_CHECKING:
    from reconciler.threads import BoundedCalls

QUIET: Final = 0.05
MAX_SETTLE: Final = 0.5
_FINISHED: Final = Mask.CLOSE_WRITE | Mask.MOVED_TO
_UNFINISHED: Final = Mask.MODIFY | Mask.CREATE | Mask.DELETE | Mask.MOVED_FROM
_FOLDER_LOST: Final = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.UNMOUNT | Mask.IGNORED
_ENTRIES: Final = Mask.CREATE | Mask.DELETE | Mask.MOVE | Mask.DELETE_SELF | Mask.MOVE_SELF
_CONTENT: Final = Mask.MODIFY | Mask.CLOSE_WRITE | Mask.ATTRIB
_ONLY_FOLDERS: Final = Mask.ONLYDIR | Mask.MASK_ADD
# A folder on the way to a path may be missing or private: that alone is no problem.
_EXPECTED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP})
_OUT_OF_WATCHES: Final = frozenset({errno.ENOSPC, errno.ENOMEM})


@dataclass(slots=True)
class WatchSpec:
    """Which entries of one folder are relevant: these names, or with ``whole`` all desired files.

    ``content``: a change inside the entries is relevant too, not only one of the names.
    """

    names: set[str] = field(default_factory=set)
    whole: bool = False
    content: bool = False

    def matches(self, name: str) -> bool:
        """Return whether a change of the entry is relevant."""
        return name in self.names or (self.whole and is_manifest_name(name))

    def merge(self, other: WatchSpec) -> None:
        """Make everything relevant that is relevant to the other one."""
        self.names |= other.names
        self.whole = self.whole or other.whole
        self.content = self.content or other.content


WatchSpecs = dict[Path, WatchSpec]


@dataclass(slots=True)
class _Batch:
    """The events since the last reported change. ``unfinished``: the entries being written."""

    relevant: bool = False
    unfinished: set[tuple[int, str]] = field(default_factory=set)


class InotifyWatcher:
    """Watches folders for relevant changes.

    ``problem`` says what cannot be watched, and how to fix it; it is empty if all is well.
    ``calls`` runs the calls that take paths, since these can block.
    """

    def __init__(self, calls: BoundedCalls) -> None:
        self.problem = ""
        self._calls = calls
        self._specs: dict[int, WatchSpec] = {}
        self._inotify = self._open()

    def close(self) -> None:
        """Stop watching. A second call does nothing."""
        if self._inotify is not None:
            self._inotify.close()

    async def watch(self, wanted: WatchSpecs) -> None:
        """Watch these folders from now on, and no others."""
        self.problem = ""
        self._inotify = inotify = self._inotify or self._open()
        if inotify is None:
            return

        def add(folder: Path) -> int:
            mask = _ENTRIES | _CONTENT if wanted[folder].content else _ENTRIES
            return inotify.add_watch(folder, mask | _ONLY_FOLDERS).wd

        specs: dict[int, WatchSpec] = {}
        for folder, number in (await self._calls.each(wanted, add)).items():
            if not isinstance(number, OSError):
                specs.setdefault(number, WatchSpec()).merge(wanted[folder])
            elif number.errno in _OUT_OF_WATCHES:
                self.problem = _limit_problem("max_user_watches", number)
            elif number.errno not in _EXPECTED:
                self.problem = f"{folder}: {number.strerror}"
        for watch in inotify.watches:
            if watch.wd in self._specs.keys() - specs.keys():
                # The kernel already dropped the watch of a folder that was deleted.
                with contextlib.suppress(OSError):
                    inotify.rm_watch(watch)
        self._specs = specs

    async def wait_for_change(self, timeout: float) -> bool:  # noqa: ASYNC109 - not an error here
        """Wait for a relevant change that is complete; return False after ``timeout`` seconds."""
        with waiting(timeout + MAX_SETTLE):
            if self._inotify is None:
                await asyncio.sleep(timeout)
                return False
            batch = _Batch()
            try:
                async with asyncio.timeout(timeout):
                    while not batch.relevant:
                        await self._add_events(self._inotify, batch)
            except TimeoutError:
                return False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MAX_SETTLE):
                    while batch.unfinished:
                        async with asyncio.timeout(QUIET):
                            await self._add_events(self._inotify, batch)
            return True

    async def _add_events(self, inotify: Inotify, batch: _Batch) -> None:
        """Wait for the next event, and add it and all that are ready by then."""
        self._add(await inotify.get(), batch)
        for event in inotify:
            self._add(event, batch)

    def _add(self, event: Event, batch: _Batch) -> None:
        if Mask.Q_OVERFLOW in event.mask:
            batch.relevant = True
        watch = event.watch
        spec = self._specs.get(watch.wd) if watch is not None else None
        if watch is None or spec is None:
            return
        if event.mask & _FOLDER_LOST:
            batch.relevant = True
        elif event.name is not None and spec.matches(str(event.name)):
            batch.relevant = True
            entry = (watch.wd, str(event.name))
            if event.mask & _FINISHED or (Mask.CREATE | Mask.ISDIR) in event.mask:
                batch.unfinished.discard(entry)
            elif event.mask & _UNFINISHED:
                batch.unfinished.add(entry)

    def _open(self) -> Inotify | None:
        try:
            inotify = Inotify(cache_size=64)
        except OSError as error:
            self.problem = _limit_problem("max_user_instances", error)
            return None
        # Iteration ends when no event is ready, instead of waiting.
        os.set_blocking(inotify.fd, False)
        inotify.sync_timeout = 0
        return inotify


def _limit_problem(name: str, error: OSError) -> str:
    return f"inotify: {error.strerror}; raise fs.inotify.{name} with sysctl"
