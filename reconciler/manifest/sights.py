"""Which folders must be watched, and for which names, so that no change of a path is missed."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from reconciler.manifest.documents import counts

# As many links as the kernel follows.
_MAX_LINKS: Final = 40


@dataclass(slots=True)
class WatchSpec:
    """What matters in one folder: entries of these names, or ``whole``: every desired file.

    ``content``: what is in the entries matters too, not only where they lead.
    """

    names: set[str] = field(default_factory=set)
    whole: bool = False
    content: bool = False

    def shows(self, name: str) -> bool:
        """Whether a change of this entry can matter."""
        return name in self.names or (self.whole and counts(name))

    def add(self, other: WatchSpec) -> None:
        """Matter also what matters there."""
        self.names |= other.names
        self.whole = self.whole or other.whole
        self.content = self.content or other.content


WatchSpecs = dict[Path, WatchSpec]


def desired_sights(desired: Path) -> WatchSpecs:
    """The folders to watch for a desired file or folder. Blocks."""
    found: WatchSpecs = {}
    target = _follow(desired, found)
    if target is not None and _is_folder(target):
        found.setdefault(target, WatchSpec()).add(WatchSpec(whole=True, content=True))
        for entry in _desired_in(target):
            if _link(entry) is not None:
                _follow(entry, found)
    return found


def file_sights(path: Path) -> WatchSpecs:
    """The folders to watch for one file, those on the way and behind links included. Blocks.

    The way is followed as far as it exists, so that the rest is seen to come into being.
    """
    found: WatchSpecs = {}
    _follow(path, found)
    return found


def desired_fingerprint(desired: Path) -> tuple[object, ...]:
    """What differs after a change of a desired file or folder that a watch may miss. Blocks."""
    return tuple((path, file_fingerprint(path)) for path in (desired, *_desired_in(desired)))


def file_fingerprint(path: Path) -> object:
    """What differs after a change of one file that a watch may miss. Blocks."""
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    # A folder's own times change with every file in it, also with those that do not matter.
    if stat.S_ISDIR(found.st_mode):
        return found.st_dev, found.st_ino, found.st_mode
    times = found.st_mtime_ns, found.st_ctime_ns
    return found.st_dev, found.st_ino, found.st_mode, found.st_size, *times


def _desired_in(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if counts(entry.name))
    except OSError:
        return []


def _follow(path: Path, found: WatchSpecs) -> Path | None:
    """Note every step of the way to a path; where it ends, links resolved, if it exists."""
    here = Path(os.sep)
    steps = list(reversed(path.parts[1:]))
    links = 0
    while steps and links <= _MAX_LINKS:
        step = steps.pop()
        if step == os.pardir:
            here = here.parent
            continue
        _note(found, here, step, last=not steps)
        link = _link(here / step)
        if link is None:
            here /= step
            continue
        links += 1
        steps += reversed([part for part in Path(link).parts if part != os.sep])
        here = Path(os.sep) if link.startswith(os.sep) else here
    return here if _exists(here) and not steps else None


def _note(found: WatchSpecs, folder: Path, name: str, *, last: bool) -> None:
    sight = found.setdefault(folder, WatchSpec())
    sight.names.add(name)
    sight.content = sight.content or (last and not _is_folder(folder / name))


# Path's own methods raise for a folder that may not be entered, up to Python 3.13.
def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110


def _link(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except OSError:
        return None
