"""Replay a sandbox's ledger entry by entry, and compare the result with the engine."""

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.world import World
from tests.harness.docker import SANDBOX_LABEL

# By name: a container's phase, or "volume".
Things = dict[str, str]
VOLUME = "volume"
LEAVING = "removing"
ONCE = ("record.added", "record.changed", "record.deleted", "sandbox.died")
_PHASES = {
    "sandbox.started": ({"created", "exited"}, "running"),
    "sandbox.stopped": ({"running"}, "exited"),
    "sandbox.paused": ({"running"}, "paused"),
    "sandbox.resumed": ({"paused"}, "running"),
}
_FILE = "reconciler.db"
_REMOVALS = {"sandbox.removed", "sandbox.replaced", "garbage.removed"}


@dataclass(frozen=True)
class Entry:
    id: int
    at: float
    event: str
    cause: str
    data: dict[str, Any]


class LedgerCheck:
    """The ledger entries of one sandbox so far, compared with the engine.

    An entry that was durable is never lost or altered. What a kill -9 loses are the last entries
    before it, none between: so the entries up to a kill replay from what was there before, and
    those after it from what the kill left, each without a gap.
    """

    def __init__(self, world: World, sandbox: str) -> None:
        self.world, self.sandbox = world, sandbox
        self.things = self.there()
        self.entries = self.durable()
        self._first = 0

    def begin(self) -> None:
        """Start counting entries here."""
        self.rest()
        self._first = len(self.entries)

    def rest(self) -> None:
        """Wait until the ledger explains the present state.

        An edit that changes no container may be written after everything else is done.
        """
        self.world.wait(lambda: is_written(self.world) and self.tells_all())
        self._turn_to(self.durable())

    def tells_all(self) -> bool:
        return self.read(self.durable()) == self.there()

    def break_off(self) -> None:
        """After a kill: the ledger explains a part of the present state."""
        entries = self.durable()
        self.read(entries)
        self._turn_to(entries)

    def read(self, entries: list[Entry]) -> Things:
        """Replay what is new, and return what should be there."""
        known = len(self.entries)
        assert entries[:known] == self.entries, "the ledger has lost or altered an entry"
        ids, times = [e.id for e in entries], [e.at for e in entries]
        assert ids == sorted(set(ids)), f"out of order: {ids}"
        assert times == sorted(times), f"out of order: {times}"
        return replay(self.things, entries[known:])

    def count(self, event: str) -> int:
        """Count its entries since `begin`."""
        return sum(entry.event == event for entry in self.entries[self._first :])

    def durable(self) -> list[Entry]:
        """The entries in the database; that of a dead daemon is read from a copy."""
        folder = self.world.daemon.state_dir
        if self.world.daemon.running:
            return _select(folder / _FILE, self.sandbox, "ro")
        # Opening the file itself would replay its log of writes, which the next daemon must do.
        with tempfile.TemporaryDirectory() as aside:
            for file in folder.glob(f"{_FILE}*"):
                shutil.copy(file, aside)
            return _select(Path(aside) / _FILE, self.sandbox, "rw")

    def there(self) -> Things:
        """The sandbox's containers and volumes, as the engine has them."""
        docker, instance = self.world.docker, self.world.instance
        label = {"label": [f"{SANDBOX_LABEL}={self.sandbox}"]}
        rows = docker.containers(instance.name, **label)
        volume = instance.volume(self.sandbox)
        volumes = {volume: VOLUME} if volume in docker.volumes(instance.name) else {}
        return {row["Names"][0].lstrip("/"): row["State"] for row in rows} | volumes

    def let_go(self, name: str) -> None:
        """Somebody else takes it away; the daemon may see that it goes, and help."""
        self.things[name] = LEAVING

    def _turn_to(self, entries: list[Entry]) -> None:
        self.things, self.entries = self.there(), entries


def is_written(world: World) -> bool:
    """Whether all that the daemon has to tell so far is on disk, and what changed with it."""
    newest = world.ask("/v1/events?limit=1")
    if not newest:
        return False
    file = world.daemon.state_dir / _FILE
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            (last,) = database.execute("select max(id) from ledger").fetchone()
    except sqlite3.OperationalError:
        return False  # it is being made, or its disk is full
    return last is not None and last >= newest[-1]["id"]


def replay(things: Things, entries: Iterable[Entry]) -> Things:
    """Apply the entries in order; fail if one cannot follow the one before it."""
    now = dict(things)
    for entry in entries:
        _follow(now, entry)
    return {name: phase for name, phase in now.items() if phase != LEAVING}


def _follow(now: Things, entry: Entry) -> None:
    data = entry.data
    name = data.get("container", "")
    if entry.event == "sandbox.replaced":
        # It names the container that took over; the one before it is what is gone.
        name = next((old for old in now if old.startswith(f"{name}.prev.")), name)
    match entry.event:
        case "sandbox.created" | "volume.created":
            made = name or data["volume"]
            assert now.get(made, LEAVING) == LEAVING, f"{entry} is logged twice"
            now[made] = "created" if name else VOLUME
        case "sandbox.renamed":
            assert data["new"] not in now, f"{entry}: there are {now}"
            now[data["new"]] = now.pop(data["old"])
        case event if event in _REMOVALS:
            assert name in now, f"{entry}: there are {now}"
            del now[name]
        case "volume.removed":
            assert data["volume"] in now, f"{entry}: there are {now}"
            del now[data["volume"]]
        case event if event in _PHASES:
            before, after = _PHASES[event]
            assert now.get(name) in before, f"{entry}: there are {now}"
            now[name] = after
        case "sandbox.died":
            running = [name for name, phase in now.items() if phase == "running"]
            now.update(dict.fromkeys(running, "exited"))


def _select(file: Path, sandbox: str, mode: str) -> list[Entry]:
    query = "select id, at, event, cause, data from ledger where sandbox = ? order by id"
    with closing(sqlite3.connect(f"{file.as_uri()}?mode={mode}", uri=True)) as database:
        rows = database.execute(query, (sandbox,)).fetchall()
    return [Entry(*row[:4], data=json.loads(row[4])) for row in rows]
