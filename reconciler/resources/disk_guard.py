"""Watches the disks: while one is too full nothing new is made, and what may go is collected."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from reconciler.core.disk_pressure import Usage, judge
from reconciler.core.errors import EngineError
from reconciler.core.model import UNMEASURED
from reconciler.telemetry import events
from reconciler.threads import BoundedCalls

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from reconciler.core.disk_pressure import Limits
    from reconciler.engine.protocol import Engine
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder

    Measure = Callable[[Path], Awaitable["Space"]]

Role = Literal["state", "engine"]

_ROLES: Final[tuple[Role, ...]] = ("state", "engine")
_MEASURE_EVERY: Final = 5.0
_COLLECT_EVERY: Final = 60.0
# An engine keeps its data elsewhere after a restart at the earliest.
_ASK_EVERY: Final = 300.0
_LIMIT: Final = 5.0
_FACT: Final = "disk-pressure"


@dataclass(frozen=True, slots=True)
class Space:
    """One filesystem: bytes free without privileges, bytes in all, and which one it is."""

    free: int
    total: int
    device: int


class Statvfs:
    """Measures file systems, each within ``limit`` seconds: one that hangs blocks nothing."""

    def __init__(self, limit: float = _LIMIT) -> None:
        self._calls = BoundedCalls(limit)

    async def __call__(self, path: Path) -> Space:
        """The space of the file system that holds the path.

        Raises:
            OSError: it is unavailable, or not available in time (TimeoutError).
        """
        return await self._calls.run(path, space_of, path)


def space_of(path: Path) -> Space:
    """Asks the system; may hang as long as the filesystem does.

    Raises:
        OSError: it cannot be told.
    """
    found = os.statvfs(path)
    unit = found.f_frsize
    return Space(found.f_bavail * unit, found.f_blocks * unit, path.stat().st_dev)


class DiskGuard:
    """What is known of the disks of the state directory and, where it is on this host, the engine.

    ``collect(enough)`` removes what may go until ``await enough()``; False: it is not known yet
    what may, so it is to be asked again soon. ``on_change`` is called when new sandboxes may no
    longer be made, or may be made again.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        store: Store,
        state_dir: Path,
        limits: Limits,
        collect: Callable[[Callable[[], Awaitable[bool]]], Awaitable[bool]],
        on_change: Callable[[], None],
        recorder: Recorder,
        clock: Callable[[], float],
        measure: Measure | None = None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._limits = limits
        self._collect = collect
        self._on_change = on_change
        self._recorder = recorder
        self._clock = clock
        self._measure = measure or Statvfs()
        self._paths: dict[Role, Path] = {"state": state_dir}
        self._spaces: dict[Role, Space] = {}
        self._reasons: Mapping[str, str] | None = None
        self._said: set[Role] = set()
        self._ask_at = self._collect_at = 0.0

    # --- what is known ------------------------------------------------------------------------

    @property
    def hold(self) -> str:
        """Why nothing new may be made now; empty where it may."""
        if self._reasons is None:
            return UNMEASURED
        return "; ".join(self._reasons.values())

    def facts(self) -> dict[str, Any]:
        """What ``status`` says of the disks; sizes are in bytes."""
        return {
            "pressure": list((self._reasons or {}).values()),
            "disks": [asdict(usage) for usage, _ in self._usages()],
        }

    def _usages(self) -> list[tuple[Usage, frozenset[Role]]]:
        """One for each filesystem, with what it is for."""
        spaces = self._spaces
        if len({space.device for space in spaces.values()}) < len(spaces):
            paths = ", ".join(str(self._paths[role]) for role in spaces)
            return [(_usage("disk", paths, spaces["state"]), frozenset(spaces))]
        return [
            (_usage(f"{role} disk", str(self._paths[role]), space), frozenset({role}))
            for role, space in spaces.items()
        ]

    # --- life ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Watch, for ever."""
        while True:
            await self.check()
            await asyncio.sleep(_MEASURE_EVERY)

    async def check(self) -> None:
        """Measure; where the engine's disk is too full, collect; then say how things stand."""
        await self.look()
        due = self._engine_is_full() and self._clock() >= self._collect_at
        if due and await self._collect(self._has_room):
            self._collect_at = self._clock() + _COLLECT_EVERY
        self._say()

    async def look(self) -> None:
        """Measure, and close or open the gate; nothing is said or collected."""
        await self._find_engine()
        for role in tuple(self._paths):
            await self._measure_one(role)
        self._judge()

    async def _has_room(self) -> bool:
        await self._measure_one("engine")
        await self._measure_one("state")
        self._judge()
        return not self._engine_is_full()

    def _engine_is_full(self) -> bool:
        return "engine" in self._spaces and "engine" in self._under()

    # --- measure ------------------------------------------------------------------------------

    async def _find_engine(self) -> None:
        if self._clock() < self._ask_at:
            return
        try:
            async with asyncio.timeout(_LIMIT):
                info = await self._engine.info()
        except (EngineError, TimeoutError):
            return
        self._ask_at = self._clock() + _ASK_EVERY
        if info.local and info.root:
            self._paths["engine"] = Path(info.root)
        else:
            self._paths.pop("engine", None)
            self._forget("engine")

    def _forget(self, role: Role) -> None:
        self._spaces.pop(role, None)
        self._remember(self._under() - {role})

    async def _measure_one(self, role: Role) -> None:
        path = self._paths.get(role)
        if path is None:
            return
        try:
            self._spaces[role] = await self._measure(path)
        except FileNotFoundError:
            # The engine's folder is on another host, or the state is only to be made.
            self._forget(role)
        except OSError as error:
            # What was known of it stays: nothing is concluded.
            self._recorder.complain(
                events.DiskUnmeasured(path=str(path), error=error.strerror or str(error)),
                about=role,
            )
        else:
            self._recorder.resolve(events.DiskUnmeasured, about=role)

    # --- judge --------------------------------------------------------------------------------

    def _under(self) -> set[Role]:
        """The roles of the disks that are under pressure, as it is remembered over restarts."""
        known = (self._store.fact(_FACT) or "").split()
        return {role for role in _ROLES if role in known}

    def _remember(self, under: set[Role]) -> None:
        self._store.put_fact(_FACT, " ".join(sorted(under)) or None)

    def _judge(self) -> None:
        usages, under = self._usages(), self._under()
        former = {usage.disk for usage, roles in usages if roles & under}
        reasons = judge(former, [usage for usage, _ in usages], self._limits)
        self._remember(
            {r for usage, roles in usages if usage.disk in reasons for r in roles}
            | (
                # What cannot be measured stays what it was.
                under - self._spaces.keys()
            )
        )
        changed = self._reasons is None or bool(self._reasons) != bool(reasons)
        self._reasons = reasons
        if changed:
            self._on_change()

    def _say(self) -> None:
        reasons, said = self._reasons or {}, set[Role]()
        for usage, roles in self._usages():
            disk, path, free, total = usage.disk, usage.path, usage.free, usage.total
            if usage.disk in reasons:
                said |= roles
                if not roles <= self._said:
                    self._recorder.log(
                        events.DiskPressure(
                            disk=disk, path=path, free=free, total=total, reason=reasons[disk]
                        )
                    )
            elif roles & self._said:
                self._recorder.log(
                    events.DiskRelieved(disk=disk, path=path, free=free, total=total)
                )
        self._said = said


def _usage(disk: str, path: str, space: Space) -> Usage:
    return Usage(disk, path, space.free, space.total)
