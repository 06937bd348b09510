"""When a disk is too full for anything new to be made, and which images may go then. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
# How exactly it is remembered when an image was last in use: each note is a write.
_RENEW_AFTER: Final = 600.0


@dataclass(frozen=True, slots=True)
class Usage:
    """One filesystem, in bytes. ``free`` is what may be used without privileges.

    ``disk`` says what it is for, such as ``state disk``.
    """

    disk: str
    path: str
    free: int
    total: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Below ``free`` bytes or ``percent`` there is pressure; at both resume values it is over.

    A limit in bytes that is more than half of a disk counts as half of it: what is meant for a
    host's large disk must not hold everything for ever where the state is on a small one.
    """

    free: int
    percent: float
    resume_free: int
    resume_percent: float

    def least(self, total: int) -> int:
        """The bytes below which a disk of so many is under pressure."""
        return _least(total, self.free, self.percent)

    def enough(self, total: int) -> int:
        """The bytes with which pressure on a disk of so many is over."""
        return _least(total, self.resume_free, self.resume_percent)


def _least(total: int, free: int, percent: float) -> int:
    return max(min(free, total // 2), int(total * percent / 100))


def judge(under: Collection[str], usages: Iterable[Usage], limits: Limits) -> dict[str, str]:
    """Why nothing new may be made, by disk. ``under`` are the disks that were under pressure.

    Between the two limits, a disk stays what it was.
    """
    found = {}
    for usage in usages:
        enough = limits.enough(usage.total)
        least = enough if usage.disk in under else limits.least(usage.total)
        if usage.free < least:
            found[usage.disk] = (
                f"{usage.disk} {usage.path} has {size(usage.free)} of {size(usage.total)} free: no "
                f"new sandbox is made until it has {size(enough)}"
            )
    return found


def size(number: int) -> str:
    """Bytes for a person: ``1.5 GiB``, ``12.0 MiB``."""
    return f"{number / _GIB:.1f} GiB" if number >= _GIB else f"{number / _MIB:.1f} MiB"


@dataclass(frozen=True, slots=True)
class PulledImage:
    """An image that this instance brought to the host. ``used_at`` is about when it last was.

    Both times are in observed seconds.
    """

    reference: str
    pulled_at: float
    used_at: float


def images_to_collect(
    pulled: Mapping[str, PulledImage], *, kept: Collection[str], now: float, min_age: float
) -> list[str]:
    """The ids of those that may go, the one that was not used for longest first.

    ``kept`` are the ids of all that is in use, wanted or pinned.
    """
    old = {id_: image for id_, image in pulled.items() if now - image.used_at >= min_age}
    return sorted(old.keys() - set(kept), key=lambda id_: (old[id_].used_at, id_))


def renewed(
    pulled: Mapping[str, PulledImage], in_use: Collection[str], now: float
) -> dict[str, PulledImage]:
    """The notes that have to be renewed, since the images are in use now."""
    return {
        id_: replace(image, used_at=now)
        for id_, image in pulled.items()
        if id_ in in_use and now - image.used_at >= _RENEW_AFTER
    }
