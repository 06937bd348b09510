"""Disk pressure: when a disk is too full to create anything, and which images to remove then."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
# Seconds between updates of an image's last use, since each update is a write.
_RENEW_AFTER: Final = 600.0


@dataclass(frozen=True, slots=True)
class Usage:
    """One filesystem, in bytes. ``free`` is the space available without privileges.

    ``disk`` is its purpose, such as ``state disk``.
    """

    disk: str
    path: str
    free: int
    total: int


@dataclass(frozen=True, slots=True)
class PressureLimits:
    """Pressure begins below ``free`` bytes or ``percent``, and ends at both resume values.

    A limit in bytes counts as at most half of a disk. Otherwise a limit for a large disk would
    block everything forever on a small state disk.
    """

    free: int
    percent: float
    resume_free: int
    resume_percent: float

    def least(self, total: int) -> int:
        """Return the free bytes below which pressure on a disk of this size begins."""
        return _least(total, self.free, self.percent)

    def enough(self, total: int) -> int:
        """Return the free bytes at which pressure on a disk of this size ends."""
        return _least(total, self.resume_free, self.resume_percent)


def _least(total: int, free: int, percent: float) -> int:
    return max(min(free, total // 2), int(total * percent / 100))


def judge(
    under: Collection[str], usages: Iterable[Usage], limits: PressureLimits
) -> dict[str, str]:
    """Return why nothing may be created, by disk. ``under`` are the disks under pressure before.

    Between the two limits, a disk keeps its former state.
    """
    found = {}
    for usage in usages:
        enough = limits.enough(usage.total)
        least = enough if usage.disk in under else limits.least(usage.total)
        if usage.free < least:
            found[usage.disk] = (
                f"{usage.disk} {usage.path} has {size(usage.free)} of {size(usage.total)} free: no "
                f"sandbox is created until it has {size(enough)}"
            )
    return found


def size(number: int) -> str:
    """Format bytes as ``1.5 GiB`` or ``12.0 MiB``."""
    return f"{number / _GIB:.1f} GiB" if number >= _GIB else f"{number / _MIB:.1f} MiB"


@dataclass(frozen=True, slots=True)
class PulledImage:
    """An image that this instance pulled. ``used_at`` is when it was last used, give or take.

    Both times are observed seconds.
    """

    reference: str
    pulled_at: float
    used_at: float


def images_to_collect(
    pulled: Mapping[str, PulledImage], *, kept: Collection[str], now: float, min_age: float
) -> list[str]:
    """Return the ids of images that may be removed, the least recently used first.

    ``kept`` are the ids of images that are in use, wanted or pinned.
    """
    old = {id_: image for id_, image in pulled.items() if now - image.used_at >= min_age}
    return sorted(old.keys() - set(kept), key=lambda id_: (old[id_].used_at, id_))


def renewed(
    pulled: Mapping[str, PulledImage], in_use: Collection[str], now: float
) -> dict[str, PulledImage]:
    """Return the images in use whose ``used_at`` is outdated, with ``used_at`` set to now."""
    return {
        id_: replace(image, used_at=now)
        for id_, image in pulled.items()
        if id_ in in_use and now - image.used_at >= _RENEW_AFTER
    }
