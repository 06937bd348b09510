"""Random hosts that are hostile: nothing is lost, and nothing foreign is touched.

One seed is one world in simulated time: 30 to 60 random events by persons, the host, the engine,
and, in half of the worlds, a second daemon of the same instance on the same engine. Then the world
becomes kind, and everything must be as declared. RECONCILER_TORTURE_ROUNDS has ten seeds each, and
RECONCILER_TORTURE_SEED is the first. A failure names its seed and tells what happened.
"""

import asyncio
import os
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from reconciler.core import naming
from reconciler.core.drift import limits_drift
from reconciler.core.errors import (
    Busy,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    Forbidden,
    NotFound,
    Refused,
    Unreadable,
)
from reconciler.core.observed import Container
from reconciler.telemetry import events
from tests.fakes.engine import FakeEngine
from tests.fakes.host import IMAGE, Box
from tests.simulation.stage import DAY, PLAIN, PREFIX, Stage
from tests.simulation.test_stateful import OneThreadLoop

FIRST = int(os.environ.get("RECONCILER_TORTURE_SEED", "1"))
SEEDS = 10 * int(os.environ.get("RECONCILER_TORTURE_ROUNDS", "4"))

HOUR = 3600.0
YEAR = 365 * DAY
RETAIN = 7 * DAY
# Seconds of observed time that a kill of the daemon may take back.
UNWRITTEN = 60.0
SHARED = "both"
NAMES = (("alice", "bob", SHARED), ("carol", "dave", SHARED))
ELSEWHERE = "elsewhere:1"
NETWORK = "agents"
GOALS = {"running": {"running"}, "paused": {"paused"}, "stopped": {"created", "exited"}}
ASKED = (
    *("list", "inspect", "inspect_volume", "events", "info", "has_image", "image_id", "images"),
    *("image_labels", "log_tail", "run_in", "create_marker", "remove_marker"),
)
CHANGED = ("create_volume", "create", "prepare", "start", "stop", "pause", "unpause", "rename")
CHANGED += ("remove", "remove_volume", "pull", "update")
ON_CONTAINERS = {"prepare", "start", "stop", "pause", "unpause", "rename", "remove", "update"}
ERRORS = (
    EngineTimeout("no answer in time"),
    EngineUnavailable("connection reset"),
    EngineError("500: internal error"),
    Forbidden("403: forbidden by the proxy"),
    NotFound("404: no such thing"),
    Refused("400: refused"),
    Busy("409: conflict"),
    Unreadable("an answer that makes no sense"),
)
# Calls to the engine for each sandbox: in a burst, and a minute.
BURST, A_MINUTE = 60, 60
CHANGES_BURST, CHANGES_A_MINUTE = 24, 12


class HeldEngine(FakeEngine):
    """Fails the test at once where a daemon changes what it did not make."""

    def __init__(self, play: "Play", former: FakeEngine) -> None:
        super().__init__(former.host, instance=former.instance)
        self._play = play
        self.latency = dict.fromkeys((*ASKED, *CHANGED), 0.01)

    @asynccontextmanager
    async def _doing(self, verb: str, target: str = "") -> AsyncIterator[None]:
        async with super()._doing(verb, target):
            if verb in ON_CONTAINERS:
                box = self.host.find(target)
                if box is not None:
                    self._play.must_be_own(self, verb, box)
            if verb == "remove_volume" and target in self.host.volumes:
                self._play.must_be_garbage(self, target)
            yield


class Daemon:
    """One daemon with its state directory, and what its user declares."""

    def __init__(self, stage: Stage, names: tuple[str, ...]) -> None:
        self.stage = stage
        self.names = names
        self.wanted: dict[str, tuple[str, str]] = {}
        # Observed seconds at which a record was taken out.
        self.gone_since: dict[str, float] = {}
        self.owners: set[str] = set()
        self.up = False

    async def start(self) -> None:
        await self.stage.start()
        self.owners.add(self.stage.store.owner)
        self.up = True

    async def end(self, how: str) -> None:
        self.up = False
        async with asyncio.timeout(120):
            await getattr(self.stage, how)()

    async def save(self, specs: dict[str, Any]) -> None:
        records = {n: {"spec": spec, "state": state} for n, (spec, state) in self.wanted.items()}
        if self.stage.file.is_dir():
            self.stage.file.rmdir()
        self.stage.file.unlink(missing_ok=True)
        self.stage.write(records, **specs)
        await self.read()

    async def read(self) -> None:
        if self.up:
            await self.stage.manager.manifest_sync.read()


class Play:
    """A world, what happens in it, and what must be so."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.story: list[str] = []
        self.folder = folder
        self.env_file = folder / "secret.env"
        self.specs: dict[str, dict[str, Any]] = {
            "plain": dict(PLAIN),
            "edited": {**PLAIN, "env": {"EDITED": "yes"}},
            "pulled": {**PLAIN, "image": ELSEWHERE},
            "netted": {**PLAIN, "network": {"mode": NETWORK}, "ports": []},
            "secret": {**PLAIN, "env_file": str(self.env_file)},
            "probed": {
                **PLAIN,
                "health": {"kind": "exec", "command": ["true"], "interval": "1s"},
            },
        }
        skew = self.random.choice([-HOUR, -70.0, 0.0, 130.0, HOUR])
        first = Stage(folder, skew=skew)
        self.host = first.host
        self.daemons = [Daemon(first, NAMES[0])]
        if self.random.random() < 0.5:
            (folder / "other").mkdir()
            self.daemons.append(Daemon(first.beside(folder / "other"), NAMES[1]))
        for daemon in self.daemons:
            daemon.stage.engine = HeldEngine(self, daemon.stage.engine)
        # What persons made, as it has to stay.
        self.theirs: dict[str, Container] = {}
        # Whether something hostile happened since everything was as declared.
        self.troubled = False
        self.checked_at = 0.0
        self.number = 0

    # --- the run

    async def run(self) -> None:
        await self.begin()
        for _ in range(self.random.randint(30, 60)):
            event = self.random.choice(EVENTS)
            self.story.append(event.__name__)
            await event(self)
            await asyncio.sleep(self.random.choice([0.005, 0.05, 0.3, 1.0, 5.0, 20.0, 70.0]))
            await self.check()
        await self.rest()
        for daemon in self.daemons:
            await daemon.end("stop")

    async def begin(self) -> None:
        self.host.registry.add(ELSEWHERE)
        self.host.add_network(NETWORK)
        self.env_file.write_text("SECRET=1\n", encoding="utf-8")
        self.person_runs(self.host.add_container("postgres"))
        self.host.add_volume("pgdata")
        for daemon in self.daemons:
            for name in daemon.names:
                spec = "plain" if name == SHARED else self.random.choice(list(self.specs))
                daemon.wanted[name] = (spec, "running")
            await daemon.save(self.specs)
        # A daemon that is not met alive counts as lost, and another may take over what it made.
        await asyncio.gather(*(daemon.start() for daemon in self.daemons))
        await asyncio.sleep(15)

    def note(self, what: object) -> None:
        self.story[-1] += f" {what}"

    # --- what must be, at every moment

    def daemon_of(self, engine: FakeEngine) -> Daemon:
        return next(daemon for daemon in self.daemons if daemon.stage.engine is engine)

    def is_of(self, daemon: Daemon, box: Box) -> bool:
        return box.seen.id not in self.theirs and box.seen.owner in daemon.owners

    def must_be_own(self, engine: FakeEngine, verb: str, box: Box) -> None:
        daemon = self.daemon_of(engine)
        assert self.is_of(daemon, box), self.told(f"{daemon.names[0]} did {verb} to {box.seen}")

    def must_be_garbage(self, engine: FakeEngine, volume: str) -> None:
        daemon = self.daemon_of(engine)
        labels = self.host.volumes[volume].labels
        sandbox, owner = labels.get(naming.LABEL_SANDBOX, ""), labels.get(naming.LABEL_OWNER)
        assert owner in daemon.owners, self.told(f"{volume} is of others")
        assert sandbox not in daemon.wanted, self.told(f"{volume} is in use")
        kept = daemon.stage.store.clock() - daemon.gone_since[sandbox]
        assert kept >= RETAIN - UNWRITTEN, self.told(f"{volume} was kept for {kept} s only")

    def blamed(self, daemon: Daemon) -> list[dict[str, Any]]:
        """The rows of the sandboxes in ERROR; used while nothing keeps them from being well."""
        names = [name for name in daemon.wanted if not self.contested(name)]
        rows = [daemon.stage.row(name) for name in names if name in daemon.stage.store.records]
        return [row for row in rows if row["status"] == "ERROR"]

    async def check(self) -> None:
        for id_, seen in self.theirs.items():
            box = self.host.find(id_)
            assert box, self.told(f"{seen.name} of a person is gone")
            assert box.seen == seen, self.told(f"{seen} of a person became {box.seen}")
        assert "pgdata" in self.host.volumes, self.told("a person's volume is gone")
        self.check_calls()
        for daemon in self.daemons:
            failed = daemon.stage.notes.logged(events.TaskFailed)
            assert not failed, self.told(failed)
            daemon.stage.notes.lines.clear()
            if daemon.up and not self.troubled and self.blamed(daemon):
                # A pass that has seen a stop, and still inspects the successor, shows an end.
                await asyncio.sleep(5)
                assert not self.blamed(daemon), self.told(self.blamed(daemon))

    def check_calls(self) -> None:
        """No failure leads to a loop without a pause."""
        engines = [daemon.stage.engine for daemon in self.daemons]
        now = asyncio.get_running_loop().time()
        calls = sum(len(engine.calls) for engine in engines)
        changes = sum(len(engine.changes) for engine in engines)
        then, self.checked_at = self.checked_at, now
        for engine in engines:
            engine.calls.clear()
        sandboxes, minutes = 3 * len(engines), (now - then) / 60
        assert calls <= sandboxes * (BURST + A_MINUTE * minutes), self.told((calls, minutes))
        most = sandboxes * (CHANGES_BURST + CHANGES_A_MINUTE * minutes)
        assert changes <= most, self.told((changes, minutes))

    def contested(self, name: str) -> bool:
        return name == SHARED and len(self.daemons) > 1

    def told(self, wrong: object) -> str:
        return f"{wrong}\nafter: " + "\n       ".join(self.story)

    # --- what must be, in a kind world

    async def rest(self) -> None:
        """The world becomes kind; in the end everything is as declared."""
        await self.become_kind()
        wrong: list[str] = []
        for _ in range(4 * 60):
            await asyncio.sleep(60)
            await self.check()
            wrong = [line for daemon in self.daemons for line in self.wrong(daemon)]
            wrong += self.wrong_shared()
            if not wrong:
                # One that is connected to a network that is gone works until it ends.
                joined = {box.joined for box in self.host.boxes.values()}
                self.troubled = not joined <= {"", *self.host.networks.values()}
                return
        raise AssertionError(self.told("\n".join(wrong)))

    async def become_kind(self) -> None:
        self.host.start_engine()
        if NETWORK not in self.host.networks:
            self.host.add_network(NETWORK)
        self.host.images.add(IMAGE)
        self.host.registry.add(ELSEWHERE)
        self.host.taken_ports.clear()
        self.restore_env_file()
        for seen in list(self.theirs.values()):
            if seen.name.startswith(PREFIX):
                self.person_removes(seen)
        for daemon in self.daemons:
            engine = daemon.stage.engine
            engine._faults.clear()
            engine.unreadable.clear()
            for verb in list(engine._hung):
                engine.release(verb)
            if not daemon.up:
                await daemon.start()
            await daemon.save(self.specs)

    def wrong(self, daemon: Daemon) -> list[str]:
        """What is not as declared, a line each."""
        own = [box.seen for box in self.host.boxes.values() if self.is_of(daemon, box)]
        surplus = [s.name for s in own if not self.may_stay(daemon, s)]
        wrong = [f"{name} is left over" for name in surplus]
        for name in daemon.wanted:
            if not self.contested(name):
                ails = self.ails(daemon, name, [seen for seen in own if seen.sandbox == name])
                wrong += [f"{name}: {ails}"] if ails else []
        return wrong

    def may_stay(self, daemon: Daemon, seen: Container) -> bool:
        if seen.sandbox in daemon.wanted:
            return seen.name == f"{PREFIX}{seen.sandbox}"
        # An orphan of a lost database waits for a person's confirmation.
        return seen.owner != daemon.stage.store.owner

    def ails(self, daemon: Daemon, name: str, own: list[Container]) -> str:
        spec, state = daemon.wanted[name]
        row, snapshot = daemon.stage.row(name), daemon.stage.manager.snapshots.snapshot(name)
        why = f"{row['status']}: {row['reason']}"
        if len(own) != 1:
            return f"it has {len(own)} containers, {why}"
        if snapshot.desired.spec_hash != own[0].spec_hash:
            return f"it is not made from {spec}, {why}"
        if own[0].phase not in GOALS[state]:
            return f"it is {own[0].phase}, not {state}, {why}"
        # The measure is what the engine first said of the container: a new database, or a daemon
        # that could not read the container before, does not know what a person changed.
        if drift := limits_drift(snapshot.memory, own[0]):
            return drift
        if not own[0].volumes <= self.host.volumes.keys():
            return "its workspace is gone"
        return why if row["status"] != state.upper() else ""

    def wrong_shared(self) -> list[str]:
        if len(self.daemons) < 2:
            return []
        asking = [daemon for daemon in self.daemons if SHARED in daemon.wanted]
        good = [
            daemon
            for daemon in asking
            if daemon.stage.row(SHARED)["status"] == daemon.wanted[SHARED][1].upper()
        ]
        others = [d.stage.row(SHARED)["status"] for d in asking if d not in good]
        box = self.host.find(f"{PREFIX}{SHARED}")
        if len(good) > 1 or any(status != "ERROR" for status in others):
            return [f"{SHARED}: {len(good)} have it, {others}"]
        if good and (box is None or not self.is_of(good[0], box)):
            return [f"{SHARED}: it is taken for another daemon's"]
        return []

    # --- tools of the events

    def some_daemon(self) -> Daemon:
        return self.random.choice(self.daemons)

    def some_name(self) -> str:
        name = self.random.choice([name for daemon in self.daemons for name in daemon.names])
        self.note(name)
        return name

    def has_sandbox(self, name: str) -> bool:
        """Whether a sandbox's container has that name, and not one of a person."""
        box = self.host.find(name)
        return box is not None and box.seen.id not in self.theirs

    def person_runs(self, id_: str) -> None:
        self.theirs[id_] = self.host.box(id_).seen

    def person_removes(self, seen: Container) -> None:
        del self.theirs[seen.id]
        self.host.remove(seen.id)

    def restore_env_file(self) -> None:
        if self.env_file.is_dir():
            self.env_file.rmdir()
        self.env_file.write_text("SECRET=1\n", encoding="utf-8")

    def engine_ended(self) -> None:
        self.theirs = {id_: self.host.box(id_).seen for id_ in self.theirs}


Happening = Callable[[Play], Awaitable[None]]


# --- users


async def edit(play: Play) -> None:
    daemon = play.some_daemon()
    name = play.random.choice(daemon.names)
    spec = "plain" if name == SHARED else play.random.choice(list(play.specs))
    daemon.wanted[name] = (spec, play.random.choice(list(GOALS)))
    daemon.gone_since.pop(name, None)
    play.note((name, daemon.wanted[name]))
    await daemon.save(play.specs)


async def take_out(play: Play) -> None:
    daemon = play.some_daemon()
    name = play.random.choice(daemon.names)
    play.note(name)
    if daemon.wanted.pop(name, None):
        daemon.gone_since[name] = daemon.stage.store.clock()
        await daemon.save(play.specs)


async def break_desired_file(play: Play) -> None:
    """It is gone, is no YAML, or is something else than a file."""
    daemon, how = play.some_daemon(), play.random.randrange(4)
    play.note(how)
    file = daemon.stage.file
    if file.is_dir():
        file.rmdir()
    file.unlink(missing_ok=True)
    if how == 0:
        file.write_bytes(b"version: 1\nsandboxes: {alice: [}\n\xff")
    elif how == 1:
        file.mkdir()
    elif how == 2:
        file.symlink_to(file)
    await daemon.read()


async def break_env_file(play: Play) -> None:
    how = play.random.randrange(3)
    play.note(how)
    play.troubled = True
    play.restore_env_file()
    if how == 0:
        play.env_file.unlink()
    elif how == 1:
        play.env_file.unlink()
        play.env_file.mkdir()
    else:
        play.env_file.write_bytes(b"\xff=\n")
    for daemon in play.daemons:
        await daemon.read()


# --- persons at the host


async def meddle(play: Play) -> None:
    name = f"{PREFIX}{play.some_name()}"
    what = play.random.choice(["kill", "docker_pause", "docker_unpause", "docker_stop"])
    play.note(what)
    if play.has_sandbox(name):
        with suppress(EngineError):
            getattr(play.host, what)(name)


async def docker_restart(play: Play) -> None:
    name = f"{PREFIX}{play.some_name()}"
    if play.has_sandbox(name):
        with suppress(EngineError):
            play.host.docker_stop(name)
            play.host.docker_start(name)


async def docker_update(play: Play) -> None:
    name = f"{PREFIX}{play.some_name()}"
    if play.has_sandbox(name):
        play.host.docker_update(name, memory=64 << 20, memory_swap=128 << 20)


async def remove_container(play: Play) -> None:
    name = f"{PREFIX}{play.some_name()}"
    if play.has_sandbox(name):
        play.host.remove(name)


async def rename_container(play: Play) -> None:
    name = play.some_name()
    box = play.host.find(f"{PREFIX}{name}")
    # One of a lost database, not yet taken over, would be nobody's from then on.
    current = {daemon.stage.store.owner for daemon in play.daemons}
    if box and play.has_sandbox(box.seen.name) and box.seen.owner in current:
        with suppress(EngineError):
            play.host.rename(f"{PREFIX}{name}", f"renamed-{name}")


async def prune(play: Play) -> None:
    """Containers that do not run, and then volumes that nothing uses."""
    play.troubled = True
    for box in list(play.host.boxes.values()):
        if not box.seen.live and box.seen.id not in play.theirs:
            play.host.remove(box.seen.id)
    for volume in [*play.host.volumes, *play.host.markers]:
        if volume != "pgdata":
            with suppress(Busy):
                play.host.drop_volume(volume)


async def run_snapshot(play: Play) -> None:
    """`docker commit`, and a container from the image: it has all labels of the sandbox."""
    source, name = f"{PREFIX}{play.some_name()}", play.some_name()
    if not play.has_sandbox(source):
        return
    play.number += 1
    snapshot = f"person/snapshot:{play.number}"
    play.host.commit(source, snapshot)
    called = play.random.choice(
        [
            f"debug-{play.number}",
            f"{PREFIX}{name}",
            naming.successor_name(PREFIX, name),
            naming.predecessor_name(PREFIX, name),
        ]
    )
    play.note(called)
    with suppress(EngineError):
        play.person_runs(play.host.run_image(called, snapshot))
        play.troubled |= called.startswith(PREFIX)


async def person_cleans_up(play: Play) -> None:
    if play.theirs:
        play.person_removes(play.random.choice(list(play.theirs.values())))


async def take_port(play: Play) -> None:
    daemon = play.some_daemon()
    identity = daemon.stage.store.identity(play.random.choice(daemon.names))
    play.host.taken_ports.update(identity.ports.values() if identity else ())


# --- what a sandbox depends on


async def lose_network(play: Play) -> None:
    play.troubled = True
    play.host.networks.pop(NETWORK, None)


async def remake_network(play: Play) -> None:
    play.troubled = True
    play.host.add_network(NETWORK)


async def lose_image(play: Play) -> None:
    play.troubled = True
    image = play.random.choice([IMAGE, ELSEWHERE])
    play.note(image)
    play.host.images.discard(image)
    if play.random.random() < 0.5:
        play.host.registry.discard(image)


async def bring_image(play: Play) -> None:
    play.host.images.add(IMAGE)
    play.host.registry.add(ELSEWHERE)


# --- the engine


async def fail(play: Play) -> None:
    play.troubled = True
    verb = play.random.choice((*ASKED, *CHANGED, *CHANGED))
    error, times = play.random.choice(ERRORS), play.random.choice([1, 2, 6, 20])
    after = play.random.random() < 0.3
    if verb == "image_labels" and isinstance(error, NotFound | Forbidden):
        # Where the image is gone, or no image may be inspected, the container's name is believed.
        return
    play.note((verb, error, times, after))
    play.some_daemon().stage.engine.fail_next(verb, error, times, after=after)


async def hang(play: Play) -> None:
    play.troubled = True
    verb = play.random.choice((*ASKED, *CHANGED))
    play.note(verb)
    play.some_daemon().stage.engine.hang(verb)


async def release(play: Play) -> None:
    for daemon in play.daemons:
        for verb in list(daemon.stage.engine._hung):
            daemon.stage.engine.release(verb)


async def make_unreadable(play: Play) -> None:
    play.troubled = True
    play.some_daemon().stage.engine.unreadable.add(f"{PREFIX}{play.some_name()}")


async def make_readable(play: Play) -> None:
    for daemon in play.daemons:
        daemon.stage.engine.unreadable.clear()


async def restart_engine(play: Play) -> None:
    play.troubled = True
    how = play.random.choice(["stop_engine", "crash_engine"])
    play.note(how)
    getattr(play.host, how)()
    play.engine_ended()
    await asyncio.sleep(play.random.choice([0.0, 1.0, 60.0]))
    play.host.start_engine()


async def end_streams(play: Play) -> None:
    play.host.end_streams()


# --- clocks


async def jump(play: Play) -> None:
    clock = play.random.choice(["wall", "engine_clock"])
    seconds = play.random.choice([-30 * YEAR, -DAY, -70.0, -0.5, 0.5, 130.0, 8 * DAY, 30 * YEAR])
    play.note((clock, seconds))
    getattr(play.daemons[0].stage, clock).jump(seconds)


async def days(play: Play) -> None:
    count = play.random.randint(1, 8)
    play.note(count)
    for daemon in play.daemons:
        if daemon.up:
            await daemon.stage.days(count)


# --- the daemon


async def kill_daemon(play: Play) -> None:
    daemon = play.some_daemon()
    if daemon.up:
        await daemon.end("crash")
    if play.random.random() < 0.7:
        await daemon.start()


async def stop_daemon(play: Play) -> None:
    daemon = play.some_daemon()
    if daemon.up:
        await daemon.end("stop")


async def start_daemon(play: Play) -> None:
    for daemon in play.daemons:
        if not daemon.up:
            await daemon.start()


async def lose_database(play: Play) -> None:
    """With two daemons, only in a kind world: a daemon that does not answer counts as lost."""
    if len(play.daemons) > 1:
        await play.rest()
    play.troubled = True
    daemon = play.some_daemon()
    if daemon.up:
        await daemon.end("stop")
    for file in daemon.stage.settings.state_dir.glob("*.db*"):
        file.unlink()
    # What has another name than it was made under is nobody's from now on.
    for box in play.host.boxes.values():
        named = naming.made_names(box.seen.base, box.seen.sandbox)
        if play.is_of(daemon, box) and box.seen.name not in named:
            play.person_runs(box.seen.id)
    gone = set(daemon.names) - daemon.wanted.keys()
    daemon.gone_since |= dict.fromkeys(gone, float("inf"))
    await daemon.start()
    if len(play.daemons) > 1:
        await asyncio.sleep(15)


async def rest(play: Play) -> None:
    await play.rest()


EVENTS: tuple[Happening, ...] = (
    *(edit, edit, edit, take_out, break_desired_file, break_env_file),
    *(meddle, meddle, docker_restart, docker_update, remove_container, rename_container, prune),
    *(run_snapshot, run_snapshot, person_cleans_up, take_port),
    *(lose_network, remake_network, remake_network, lose_image, bring_image),
    *(fail, fail, fail, hang, release, release, make_unreadable, make_readable),
    *(restart_engine, end_streams, jump, jump, days),
    *(kill_daemon, kill_daemon, stop_daemon, start_daemon, start_daemon, lose_database, rest),
)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_a_hostile_world_loses_nothing(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch):
    drawn = random.Random(seed)
    monkeypatch.setattr(secrets, "token_hex", lambda size: drawn.randbytes(size).hex())

    async def world() -> None:
        await Play(seed, tmp_path).run()

    with asyncio.Runner(loop_factory=OneThreadLoop) as runner:
        runner.run(world())
