"""A simulated day of events on a host: the memory of the manager does not grow."""

import asyncio
import gc
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from reconciler.core import naming
from reconciler.core.errors import EngineError, EngineTimeout, EngineUnavailable
from reconciler.telemetry.redact import redactor
from tests.simulation.stage import PLAIN, PREFIX, Stage
from tests.simulation.test_stateful import OneThreadLoop

HOUR = 3600.0
GRACE = 1.2 * HOUR
# Looked over seldom, for the time that it takes here.
SETTINGS: Mapping[str, Any] = {
    "brake_count": 100,
    "resync_interval": 600.0,
    "rescan_interval": 60.0,
}
RESIDENTS = tuple(f"resident-{number}" for number in range(20))
FIRST = {
    name: {"spec": ("plain", "probed")[number % 2], "state": state}
    for number, name in enumerate(RESIDENTS)
    for state in [{0: "paused", 5: "stopped"}.get(number % 10, "running")]
}
_CHANGED: Mapping[str, Mapping[str, Any]] = {
    "edited": {"env": {"EDITED": "yes"}},
    "pulled": {"image": "elsewhere:1"},
    "portless": {"ports": []},
    "probed": {"health": {"kind": "exec", "command": ["true"], "interval": "15m"}},
    "ailing": {"health": {"kind": "exec", "command": ["false"], "interval": "1m"}},
    "crashing": {"command": ["false"]},
    "unstarted": {"command": ["no-such-program"]},
    "unmade": {"mounts": [{"host_path": "/nonexistent/x", "container_path": "/x"}]},
    "nowhere": {"image": "nowhere:1"},
    "homeless": {"workspace": None},
}
SPECS = {name: {**PLAIN, **changed} for name, changed in _CHANGED.items()}
STATES = ("running", "running", "paused", "stopped")
MEDDLING = ("kill", "docker_pause", "docker_unpause", "docker_stop", "docker_start", "remove")
VERBS = ("list", "inspect", "create", "start", "stop", "pause", "unpause", "rename", "remove")
ERRORS = (EngineTimeout, EngineUnavailable, EngineError)
# These are remembered up to a bound, even if their objects are gone: repeated warnings, and whose
# ledger grew since it was last pruned, which is done every 256 entries. The queue's heap has room
# for four void items a key.
BOUNDED = {
    "LogDeduplicator._open": 4096,
    "_Incident": 4096,
    # For each sandbox: the names of its container, of its swap, its stand-in and its volume.
    "Claim.pending": 5 * (len(FIRST)),
    "Claim.used": 2 * (len(FIRST)),
    "LedgerTable._touched": 256,
    "WorkQueue._waiting": 4 * (1 + len(RESIDENTS)) + 1,
}


class Churn:
    """One event about every five minutes."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.host, self.dice = stage, stage.host, random.Random(1)
        self.wanted: dict[str, dict[str, Any]] = dict(FIRST)
        self.guests: list[str] = []
        self.numbers = iter(range(10**6))
        self.happened: Counter[str] = Counter()

    def save(self) -> None:
        self.stage.write(self.wanted, **SPECS)

    async def go_on(self, hours: float) -> None:
        often, seldom = [self.edit, self.meddle], [self.arrive, self.leave, self.litter]
        seldom += [self.take_port, self.drop_volume, self.spoil, self.fail]
        seldom += [self.end_streams, self.restart_engine]
        doings = [*often, *often, *seldom]
        end = self.stage.monotonic() + hours * HOUR
        while self.stage.monotonic() < end:
            doing = self.dice.choice(doings)
            self.happened[doing.__name__] += 1
            with suppress(EngineError):
                await doing()
            await self.stage.after(self.dice.uniform(0, 600))
            self.forget()

    def forget(self) -> None:
        """What the tests' own parts keep of it is no concern of ours."""
        self.stage.notes.lines.clear()
        self.stage.engine.calls.clear()

    async def come_to_rest(self) -> None:
        """Every sandbox dies once and comes back; then it is all as at first, and stays so."""
        self.stage.engine._faults.clear()
        self.host.taken_ports.clear()
        self.guests.clear()
        # All that is desired changes at once, as at first, so that records share what they can.
        self.wanted = {name: {"spec": "edited"} for name in RESIDENTS}
        self.save()
        await self.stage.after(GRACE)
        for name in RESIDENTS:
            self.host.kill(f"{PREFIX}{name}")
        await self.stage.after(GRACE)
        self.wanted = dict(FIRST)
        self.save()
        await self.stage.after(GRACE)
        await self.stage.quiet()
        # What was read last is held beside what was accepted: always two of each spec.
        await self.stage.manager.manifest_sync.read()
        await self.stage.store.flush()
        self.forget()

    # --- what happens

    async def edit(self) -> None:
        spec = self.dice.choice(["plain", *SPECS])
        state = self.dice.choice(STATES)
        self.wanted[self.dice.choice(RESIDENTS)] = {"spec": spec, "state": state}
        self.save()

    async def arrive(self) -> None:
        number = next(self.numbers)
        guest = f"guest-{number}"
        env = self.stage.file.with_name(f"{guest}.env")
        env.write_text("A=1\n", encoding="utf-8")
        spec = self.dice.choice(["plain", *SPECS])
        home = {"path": "/workspace", "retain": f"{number % 3 * 10}m"}
        own = {"env_file": str(env)} | ({} if spec == "homeless" else {"workspace": home})
        if spec == "nowhere":
            own["image"] = f"nowhere:{number}"
        self.guests.append(guest)
        self.wanted[guest] = {"spec": spec, **own}
        self.save()

    async def leave(self) -> None:
        while len(self.guests) > self.dice.randrange(4):
            guest = self.guests.pop(0)
            self.wanted.pop(guest)
            self.save()
            self.stage.file.with_name(f"{guest}.env").unlink()

    async def meddle(self) -> None:
        name = self.dice.choice([*self.wanted])
        getattr(self.host, self.dice.choice(MEDDLING))(f"{PREFIX}{name}")

    async def drop_volume(self) -> None:
        self.host.remove_volume(naming.volume_name(PREFIX, self.dice.choice([*self.wanted])))

    async def end_streams(self) -> None:
        self.host.end_streams()

    async def restart_engine(self) -> None:
        self.host.stop_engine()
        await self.stage.after(self.dice.uniform(0, 60))
        self.host.start_engine()

    async def fail(self) -> None:
        for _ in range(3):
            error, after = self.dice.choice(ERRORS)("no"), self.dice.random() < 0.5
            self.stage.engine.fail_next(self.dice.choice(VERBS), error, after=after)

    async def take_port(self) -> None:
        name = self.dice.choice(RESIDENTS)
        self.host.taken_ports = set(self.stage.seen(name).ports.values())
        self.host.kill(f"{PREFIX}{name}")

    async def litter(self) -> None:
        sandbox = f"nobody-{next(self.numbers)}"
        self.stage.add_orphan(sandbox)
        self.stage.add_orphan_volume(sandbox, retain="10m")

    async def spoil(self) -> None:
        broken = f"version: 1\nsandboxes: [{self.dice.random()}"
        self.stage.file.write_text(broken, encoding="utf-8")


# --- what is held


def held(stage: Stage) -> dict[str, Counter[str]]:
    gc.collect()
    return {
        "objects": Counter(_our_objects()),
        "sizes": _summed(_sizes(stage.manager, "Manager", set())),
        "descriptors": Counter(_descriptors()),
        "tasks": Counter(_tasks()),
    }


def _summed(figures: Iterable[tuple[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for name, figure in figures:
        total[name] += figure
    return total


def _our_objects() -> Iterator[str]:
    types = (type(it) for it in gc.get_objects())
    return (it.__qualname__ for it in types if _is_ours(it))


def _sizes(part: object, path: str, seen: set[int]) -> Iterator[tuple[str, int]]:
    """Return the sizes of all containers that are reachable through attributes."""
    if isinstance(part, Collection) and not isinstance(part, str | bytes | tuple | Path):
        yield path, len(part)
    values = part.values() if isinstance(part, Mapping) else ()
    for key, value in [*_attributes(part).items(), *((type(v).__name__, v) for v in values)]:
        if id(value) not in seen:
            seen.add(id(value))
            yield from _sizes(value, f"{type(part).__name__}.{key}", seen)


def _attributes(part: object) -> Mapping[str, Any]:
    if not any(_is_ours(base) for base in type(part).__mro__):
        return {}
    slots = {name for base in type(part).__mro__ for name in getattr(base, "__slots__", ())}
    named = {name: getattr(part, name) for name in slots if hasattr(part, name)}
    return {**named, **getattr(part, "__dict__", {})}


def _is_ours(kind: type) -> bool:
    return str(kind.__module__).startswith("reconciler")


def _descriptors() -> Iterator[str]:
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            yield re.sub(r"\d+", "N", str(descriptor.readlink()))


def _tasks() -> Iterator[str]:
    return (re.sub(r"^Task-\d+$", "unnamed", task.get_name()) for task in asyncio.all_tasks())


def grown(before: Mapping[str, Counter[str]], after: Mapping[str, Counter[str]]) -> list[str]:
    """Return what has grown, one line each."""
    return [
        f"{kind} {name}: {before[kind][name]}, then {now}"
        for kind, counts in after.items()
        for name, now in sorted(counts.items())
        if now > BOUNDED.get(name, before[kind][name])
    ]


async def a_day(folder: Path) -> tuple[list[str], int]:
    """Return what has grown at the end, and the number of additional redacted secrets."""
    async with Stage(folder, **SETTINGS) as stage:
        churn = Churn(stage)
        churn.save()
        await stage.start(absent=())
        await churn.go_on(hours=1)
        await churn.come_to_rest()
        before, hidden = held(stage), len(redactor._counts)
        await churn.go_on(hours=24)
        await churn.come_to_rest()
        after = held(stage)
        # What a task or a thread holds at this moment only is gone a little later; a leak is not.
        for _ in range(10):
            if not grown(before, after):
                break
            await stage.after(30)
            churn.forget()
            after = held(stage)
        print(dict(churn.happened), f"warnings: {len(stage.notes._warnings)}", sep="\n")
        print({kind: (before[kind].total(), after[kind].total()) for kind in after})
        assert stage.phases().keys() == FIRST.keys()
        assert stage.statuses() == {name: it["state"].upper() for name, it in FIRST.items()}
        return grown(before, after), len(redactor._counts) - hidden


def test_a_day_of_churn_leaves_nothing_behind(tmp_path: Path):
    with asyncio.Runner(loop_factory=OneThreadLoop) as runner:
        more, hidden = runner.run(a_day(tmp_path))
    assert (more, hidden) == ([], 0), "\n".join(more)
