"""Measure the disks. While one is too full, create nothing new and remove unused images."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from reconciler.core.action import UNMEASURED
from reconciler.core.disk_pressure import Usage, judge
from reconciler.core.errors import EngineError
from reconciler.telemetry import events
from reconciler.threads import BoundedCalls

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from reconciler.core.disk_pressure import PressureLimits
    from reconciler.engine.protocol import Engine
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder

    Measure = Callable[[Path], Awaitable["Space"]]

Role = Literal["state", "engine"]

_ROLES: Final[tuple[Role, ...]] = ("state", "engine")
_MEASURE_EVERY: Final = 5.0
_COLLECT_EVERY: Final = 60.0
# The engine's data folder only changes with a restart.
_FIND_ENGINE_EVERY: Final = 300.0
_TIMEOUT: Final = 5.0
_FACT: Final = "disk-pressure"


@dataclass(frozen=True, slots=True)
class Space:
    """One file system: bytes free for users, bytes in total, and its device number."""

    free: int
    total: int
    device: int


class Statvfs:
    """Measures file systems, each within ``limit`` seconds, so that a hung one blocks nothing."""

    def __init__(self, limit: float = _TIMEOUT) -> None:
        self._calls = BoundedCalls(limit)

    async def __call__(self, path: Path) -> Space:
        """Return the space of the path's file system.

        Raises:
            OSError: it cannot be measured, or not in time (TimeoutError).
        """
        return await self._calls.run(path, space_of, path)


def space_of(path: Path) -> Space:
    """Measure a file system; blocks as long as the file system hangs.

    Raises:
        OSError: it cannot be measured.
    """
    result = os.statvfs(path)
    unit = result.f_frsize
    return Space(result.f_bavail * unit, result.f_blocks * unit, path.stat().st_dev)


class DiskGuard:
    """The disks of the state directory and, if it is on this host, of the engine.

    Args:
        collect: Removes unused images until ``await enough()``. It returns False while it cannot
            know which are unused; it is then called again soon.
        on_change: Called when the creation of sandboxes becomes blocked or allowed again.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        store: Store,
        state_dir: Path,
        limits: PressureLimits,
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
        self._logged: set[Role] = set()
        self._find_engine_at = self._collect_at = 0.0

    # --- status -------------------------------------------------------------------------------

    @property
    def hold(self) -> str:
        """Why nothing new may be created now; empty if it may."""
        if self._reasons is None:
            return UNMEASURED
        return "; ".join(self._reasons.values())

    def facts(self) -> dict[str, Any]:
        """Return what ``status`` shows about the disks; sizes are in bytes."""
        return {
            "pressure": list((self._reasons or {}).values()),
            "disks": [asdict(usage) for usage, _ in self._usages()],
        }

    def _usages(self) -> list[tuple[Usage, frozenset[Role]]]:
        """Return the usage of each file system, with its roles: one disk may have both."""
        spaces = self._spaces
        if len({space.device for space in spaces.values()}) < len(spaces):
            paths = ", ".join(str(self._paths[role]) for role in spaces)
            return [(_usage("disk", paths, spaces["state"]), frozenset(spaces))]
        return [
            (_usage(f"{role} disk", str(self._paths[role]), space), frozenset({role}))
            for role, space in spaces.items()
        ]

    # --- loop ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Check every few seconds, without end."""
        while True:
            await self.check()
            await asyncio.sleep(_MEASURE_EVERY)

    async def check(self) -> None:
        """Measure, remove unused images if the engine's disk is too full, and log changes."""
        await self.measure()

        async def enough() -> bool:
            await self._measure_one("engine")
            await self._measure_one("state")
            self._judge()
            return not self._engine_is_full()

        due = self._engine_is_full() and self._clock() >= self._collect_at
        if due and await self._collect(enough):
            self._collect_at = self._clock() + _COLLECT_EVERY
        self._log_changes()

    async def measure(self) -> None:
        """Measure and update ``hold``, without logging or removing anything."""
        if self._clock() >= self._find_engine_at:
            with suppress(EngineError, TimeoutError):
                async with asyncio.timeout(_TIMEOUT):
                    info = await self._engine.info()
                self._find_engine_at = self._clock() + _FIND_ENGINE_EVERY
                if info.local and info.root:
                    self._paths["engine"] = Path(info.root)
                else:
                    self._paths.pop("engine", None)
                    self._forget("engine")
        for role in tuple(self._paths):
            await self._measure_one(role)
        self._judge()

    def _engine_is_full(self) -> bool:
        return "engine" in self._spaces and "engine" in self._under()

    # --- measure ------------------------------------------------------------------------------

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
            # The engine's folder is on another host, or the state directory does not exist yet.
            self._forget(role)
        except OSError as error:
            # The last known value stays.
            self._recorder.complain(
                events.DiskUnmeasured(path=str(path), error=error.strerror or str(error)),
                about=role,
            )
        else:
            self._recorder.resolve(events.DiskUnmeasured, about=role)

    # --- judge --------------------------------------------------------------------------------

    def _under(self) -> set[Role]:
        """Return the roles of the disks that are under pressure, also from before a restart."""
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
                # A disk that cannot be measured keeps its state.
                under - self._spaces.keys()
            )
        )
        changed = self._reasons is None or bool(self._reasons) != bool(reasons)
        self._reasons = reasons
        if changed:
            self._on_change()

    def _log_changes(self) -> None:
        reasons, logged = self._reasons or {}, set[Role]()
        for usage, roles in self._usages():
            disk, path, free, total = usage.disk, usage.path, usage.free, usage.total
            if usage.disk in reasons:
                logged |= roles
                if not roles <= self._logged:
                    self._recorder.log(
                        events.DiskPressure(
                            disk=disk, path=path, free=free, total=total, reason=reasons[disk]
                        )
                    )
            elif roles & self._logged:
                self._recorder.log(
                    events.DiskRelieved(disk=disk, path=path, free=free, total=total)
                )
        self._logged = logged


def _usage(disk: str, path: str, space: Space) -> Usage:
    return Usage(disk, path, space.free, space.total)
