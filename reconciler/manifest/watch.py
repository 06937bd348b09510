"""Watch the desired file, or a folder of them, and the env files for changes.

It watches the folders, not the files: editors and configuration management replace files by rename,
and mounted configuration by swapping a link. It reports a change once it is complete: a file that
was open for writing is closed, a file that was moved away is back. If that does not happen, it
reports the change after a short quiet time.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reconciler.manifest.documents import is_manifest_name
from reconciler.manifest.inotify import InotifyWatcher, WatchSpec, WatchSpecs
from reconciler.threads import BoundedCalls

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable

_RESCAN: Final = 10.0
# As many links as the kernel follows.
_MAX_LINKS: Final = 40


class Watch:
    """Watches one desired path, and the paths that ``extra`` returns at the time (env files).

    Every ``rescan`` seconds it compares the files themselves, for changes that the kernel does not
    report: on a network file system, or beyond inotify's limits. ``calls`` runs all calls on the
    file system.
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
        """Why only a rescan detects changes; empty while inotify does."""
        return self._problem

    async def changes(self) -> AsyncGenerator[None, None]:
        """Yield once the watch is set, and then after each change that could matter.

        The first iteration is for the first read, so that no edit falls between it and the watch.
        Changes during one iteration are reported once. Close the generator with
        ``contextlib.aclosing``, or cancel the task that iterates.
        """
        with contextlib.closing(InotifyWatcher(self._calls)) as watcher:
            while True:
                paths = self._paths()
                await self._watch(watcher, paths)
                before = await self._fingerprints(paths)
                yield
                # New env files were read before they were watched: report them once more.
                if paths != self._paths():
                    continue
                while not await watcher.wait_for_change(self._rescan):
                    await self._watch(watcher, paths)
                    if await self._fingerprints(paths) != before:
                        break

    async def _watch(self, watcher: InotifyWatcher, paths: tuple[Path, ...]) -> None:
        def specs(path: Path) -> WatchSpecs:
            return desired_specs(path.absolute()) if path == self._desired else file_specs(path)

        wanted: WatchSpecs = {}
        for found in (await self._calls.each(paths, specs)).values():
            for folder, spec in found.items() if isinstance(found, dict) else ():
                wanted.setdefault(folder, WatchSpec()).merge(spec)
        await watcher.watch(wanted)
        self._problem = watcher.problem

    async def _fingerprints(self, paths: tuple[Path, ...]) -> tuple[object, ...]:
        def fingerprint(path: Path) -> object:
            return desired_fingerprint(path) if path == self._desired else file_fingerprint(path)

        found = await self._calls.each(paths, fingerprint)
        return tuple(it.errno if isinstance(it, OSError) else it for it in found.values())

    def _paths(self) -> tuple[Path, ...]:
        """Return the desired path, and then the others."""
        return self._desired, *sorted(set(self._extra()) - {self._desired})


def desired_specs(desired: Path) -> WatchSpecs:
    """Return the folders to watch for a desired file or folder. Blocks."""
    found: WatchSpecs = {}
    target = _follow(desired, found)
    if target is not None and _is_folder(target):
        found.setdefault(target, WatchSpec()).merge(WatchSpec(whole=True, content=True))
        for entry in _desired_files(target):
            if _link(entry) is not None:
                _follow(entry, found)
    return found


def file_specs(path: Path) -> WatchSpecs:
    """Return the folders to watch for one file, with those on the way and behind links. Blocks.

    Of a path that does not exist, the part that does is watched, so that the rest can appear.
    """
    found: WatchSpecs = {}
    _follow(path, found)
    return found


def desired_fingerprint(desired: Path) -> tuple[object, ...]:
    """Return a value that differs after a change of a desired file or folder. Blocks."""
    return tuple((path, file_fingerprint(path)) for path in (desired, *_desired_files(desired)))


def file_fingerprint(path: Path) -> object:
    """Return a value that differs after a change of one file. Blocks."""
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    # A folder's times change with every file in it, relevant or not.
    if stat.S_ISDIR(found.st_mode):
        return found.st_dev, found.st_ino, found.st_mode
    times = found.st_mtime_ns, found.st_ctime_ns
    return found.st_dev, found.st_ino, found.st_mode, found.st_size, *times


def _desired_files(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if is_manifest_name(entry.name))
    except OSError:
        return []


def _follow(path: Path, found: WatchSpecs) -> Path | None:
    """Add every step of the way to a path; return where it ends, links resolved, if it exists."""
    here = Path(os.sep)
    steps = list(reversed(path.parts[1:]))
    links = 0
    while steps and links <= _MAX_LINKS:
        step = steps.pop()
        if step == os.pardir:
            here = here.parent
            continue
        spec = found.setdefault(here, WatchSpec())
        spec.names.add(step)
        spec.content = spec.content or (not steps and not _is_folder(here / step))
        link = _link(here / step)
        if link is None:
            here /= step
            continue
        links += 1
        steps += reversed([part for part in Path(link).parts if part != os.sep])
        here = Path(os.sep) if link.startswith(os.sep) else here
    # Path.exists raises for a folder that may not be entered, up to Python 3.13.
    return here if os.path.exists(here) and not steps else None  # noqa: PTH110


def _is_folder(path: Path) -> bool:
    # Path.is_dir raises for a folder that may not be entered, up to Python 3.13.
    return os.path.isdir(path)  # noqa: PTH112


def _link(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except OSError:
        return None
