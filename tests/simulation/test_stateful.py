"""Random edits, kills, external changes, faults, lost events and clock jumps at once."""

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from reconciler.core import naming
from reconciler.core.errors import EngineError, EngineTimeout, EngineUnavailable
from reconciler.core.failures import latest_failure
from reconciler.core.observed import Container
from reconciler.store.store import Store
from tests.fakes.engine import FakeEngine
from tests.fakes.host import Box, FakeHost, labels
from tests.simulation.simulated import SimulatedLoop
from tests.simulation.stage import DAY, PLAIN, PREFIX, Stage

NAMES = ("alice", "bob", "carol")
GOALS = {"running": {"running"}, "paused": {"paused"}, "stopped": {"created", "exited"}}
WELL: dict[str, dict[str, Any]] = {
    "plain": {},
    "edited": {"env": {"EDITED": "yes"}},
    "pulled": {"image": "elsewhere:1"},
    "homeless": {"workspace": None},
    "portless": {"ports": []},
    "probed": {"health": {"kind": "exec", "command": ["true"], "interval": "1s"}},
}
# These can never be satisfied: only their order is checked.
UNWELL: dict[str, dict[str, Any]] = {
    "unmade": {"mounts": [{"host_path": "/nonexistent/x", "container_path": "/x"}]},
    "unstarted": {"command": ["no-such-program"]},
    "crashing": {"command": ["false"]},
}
SPECS = {name: {**PLAIN, **it} for name, it in {**WELL, **UNWELL}.items()}
RETAIN = 7 * DAY
YEAR = 365 * DAY
VERBS = ("list", "inspect", "create_volume", "create", "prepare", "start", "stop", "pause")
VERBS += (
    "unpause",
    "rename",
    "remove",
    "remove_volume",
    "inspect_volume",
    "pull",
    "events",
    "log_tail",
    "run_in",
)
MEDDLING = ("kill", "docker_pause", "docker_unpause", "docker_stop", "docker_start", "remove")
ERRORS = (EngineTimeout("hangs"), EngineUnavailable("gone"), EngineError("500"))


class OneThreadLoop(SimulatedLoop):
    """Run the work of threads at once, so that each run is the same."""

    def run_in_executor(
        self, _executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - the caller's to handle
            future.set_exception(error)
        return future


class WatchedHost(FakeHost):
    """Sends no event while ``deaf``, and records sandboxes that ever had two live containers."""

    deaf = False

    def start(self, box: Box) -> None:
        super().start(box)
        self.must_be_alone(box.seen)

    def must_be_alone(self, seen: Container) -> None:
        rivals = [
            other.seen.name
            for other in self.boxes.values()
            if other.seen.live and other.labels == self.boxes[seen.id].labels
        ]
        assert not seen.live or len(rivals) == 1, f"two live containers: {rivals}"

    def _publish(self, *event: Any) -> None:
        if not self.deaf:
            super()._publish(*event)


class Theatre(Stage):
    """A stage with a store that outlives its managers, as a disk does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, brake_count=100)
        self.host = WatchedHost(self.engine_clock)
        self.engine = FakeEngine(self.host)
        self.engine.latency = dict.fromkeys(VERBS, 0.01)
        self._kept: Store | None = None

    async def _opened_store(self) -> Store:
        self._kept = self._kept or await Store.open_readonly(
            self.file.parent, wall=self.wall, monotonic=self.monotonic
        )
        return self._kept

    async def crash(self) -> None:
        await self._end_tasks()

    async def _end_tasks(self) -> None:
        tasks = self._tasks
        for task in tasks:
            task.cancel()
        _, left = await asyncio.wait(tasks, timeout=60)
        assert not left, f"they do not end: {left}"
        await super()._end_tasks()

    async def end(self) -> None:
        await self._end_tasks()
        await self.store.close()


class LoopMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = OneThreadLoop()
        self.wanted: dict[str, tuple[str, str]] = {}
        self.gone_since: dict[str, float] = {}
        self.keys: dict[str, str] = {}
        self.theatre = self.run(self._open())
        self.host, self.engine = self.theatre.host, self.theatre.engine

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    async def _open(self) -> Theatre:
        theatre = Theatre(Path(self.folder.name))
        theatre.write({})
        return theatre

    @initialize(
        specs=st.tuples(*[st.sampled_from(list(WELL))] * len(NAMES)),
        late=st.booleans(),
        skew=st.sampled_from([-3600.0, -70.0, 0.0, 130.0, 3600.0]),
    )
    def begin(self, specs: tuple[str, ...], late: bool, skew: float) -> None:  # noqa: FBT001
        self.theatre.engine_clock.jump(skew)
        self.host.registry.add("elsewhere:1")
        self.host.add_container(f"{PREFIX}foreign")
        self.host.add_container(f"{PREFIX}other", labels("other", "alice"))
        self.host.add_volume("foreign")
        self.host.add_volume("others", labels("other", "alice"))
        self.foreign = self._foreign()
        self._guard_volumes()
        self.wanted = {n: (spec, "running") for n, spec in zip(NAMES, specs, strict=True)}
        self._write()
        self.run(self.theatre.start())
        if not late:
            self.run(asyncio.sleep(10))

    def teardown(self) -> None:
        self.come_to_rest()
        self.run(self.theatre.end())
        self.loop.close()
        self.folder.cleanup()

    # --- what happens

    @rule(
        name=st.sampled_from(NAMES),
        spec=st.sampled_from([*WELL, *WELL, *UNWELL]),
        state=st.sampled_from(list(GOALS)),
        soon=st.sampled_from([0.0, 0.01, 0.05]),
    )
    def edit(self, name: str, spec: str, state: str, soon: float) -> None:
        self.wanted[name] = (spec, state)
        self.gone_since.pop(name, None)
        self._save()
        self.run(asyncio.sleep(soon))

    @rule(name=st.sampled_from(NAMES))
    def take_out(self, name: str) -> None:
        if self.wanted.pop(name, None):
            self.gone_since[name] = self.theatre.store.clock()
            self._save()
            self._forget_key_without_volume(name)

    @rule(turns=st.integers(0, 40), name=st.sampled_from(NAMES), edited=st.booleans())
    def crash(self, turns: int, name: str, edited: bool) -> None:  # noqa: FBT001
        async def die_and_come_back() -> None:
            for _ in range(turns):
                await asyncio.sleep(0.004)
            await self.theatre.crash()
            if edited and name in self.wanted:
                self.wanted[name] = ("edited", "running")
                self._write()
            await self.theatre.start()

        self.run(die_and_come_back())

    @rule(name=st.sampled_from(NAMES), what=st.sampled_from(MEDDLING), deaf=st.booleans())
    def meddle(self, name: str, what: str, deaf: bool) -> None:  # noqa: FBT001
        self.host.deaf = deaf
        with suppress(EngineError):
            getattr(self.host, what)(f"{PREFIX}{name}")
        self.host.deaf = False

    @rule(name=st.sampled_from(NAMES), deaf=st.booleans())
    def rename(self, name: str, deaf: bool) -> None:  # noqa: FBT001
        self.host.deaf = deaf
        with suppress(EngineError):
            self.host.rename(f"{PREFIX}{name}", f"renamed-{name}")
        self.host.deaf = False

    @rule(name=st.sampled_from(NAMES))
    def remove_volume(self, name: str) -> None:
        with suppress(EngineError):
            self.host.drop_volume(naming.volume_name(PREFIX, name))
        if name not in self.wanted:
            self._forget_key_without_volume(name)

    @rule(name=st.sampled_from(NAMES))
    def take_port(self, name: str) -> None:
        identity = self.theatre.store.identity(name)
        self.host.taken_ports.update(identity.ports.values() if identity else ())

    @rule()
    def remove_image(self) -> None:
        self.host.images.discard("elsewhere:1")

    @rule(
        verb=st.sampled_from(VERBS),
        error=st.sampled_from(ERRORS),
        times=st.integers(1, 3),
        after=st.booleans(),
    )
    def fail(self, verb: str, error: Exception, times: int, after: bool) -> None:  # noqa: FBT001
        self.engine.fail_next(verb, error, times, after=after)

    @rule(verb=st.sampled_from(VERBS))
    def hang(self, verb: str) -> None:
        self.engine.hang(verb)

    @rule(kept=st.booleans())
    def lose_engine(self, kept: bool) -> None:  # noqa: FBT001
        if kept:
            self.host.down = True
            self.host.end_streams()
        else:
            self.host.stop_engine()
            self.foreign = self._foreign()

    @rule()
    def start_engine(self) -> None:
        self.host.start_engine()

    @rule(
        clock=st.sampled_from(["wall", "engine_clock"]),
        seconds=st.sampled_from([-30 * YEAR, -DAY, -70.0, -0.5, 0.5, 130.0, 8 * DAY, 30 * YEAR]),
    )
    def jump(self, clock: str, seconds: float) -> None:
        """A clock is set, or its host slept: no sandbox and no volume may notice."""
        getattr(self.theatre, clock).jump(seconds)

    @rule(turns=st.integers(0, 40))
    def reboot(self, turns: int) -> None:
        """Everything ends without a word, and comes back with other clocks."""

        async def end_and_come_back() -> None:
            for _ in range(turns):
                await asyncio.sleep(0.004)
            await self.theatre.crash()
            self.host.crash_engine()
            self.foreign = self._foreign()
            self.theatre.wall.jump(-3600.0)
            self.theatre.engine_clock.jump(-3600.0)
            self.host.start_engine()
            await self.theatre.start()

        self.run(end_and_come_back())

    @rule(seconds=st.sampled_from([0.005, 0.03, 0.2, 1.0, 20.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(days=st.integers(1, 8))
    def wait_days(self, days: int) -> None:
        self.run(self.theatre.days(days))

    # --- what must be

    @rule()
    def come_to_rest(self) -> None:
        self._mend()
        self.run(self._rest())
        for name in self.wanted:
            self._check_key(name)

    @invariant()
    def nothing_foreign_is_touched(self) -> None:
        if hasattr(self, "foreign"):
            assert self._foreign() == self.foreign

    @invariant()
    def no_session_key_is_told(self) -> None:
        if hasattr(self, "foreign"):
            said = repr(self.theatre.notes.lines)
            known = (self.theatre.store.identity(name) for name in NAMES)
            assert not any(identity.session_key in said for identity in known if identity)
            self.theatre.notes.lines.clear()

    async def _rest(self) -> None:
        # Long enough for the relist, the grace of garbage, and the longest wait between two tries.
        for _ in range(8 * 60):
            await asyncio.sleep(60)
            wrong = self._wrong()
            if not wrong:
                return
        raise AssertionError(wrong)

    def _wrong(self) -> list[str]:
        """What is not as it should be, a line each."""
        ours = [box for box in self.host.boxes.values() if self.engine._ours(box)]
        by_name = {box.seen.name: box.seen for box in ours}
        well = [n for n, (spec, _) in self.wanted.items() if spec in WELL]
        unwell = [n for n in self.wanted if n not in well]
        wrong = [f"{n}: {why}" for n in well if (why := self._ails(n, by_name))]
        expected = {f"{PREFIX}{n}" for n in well}
        surplus = [b.seen for b in ours if b.seen.name not in expected]
        left = [seen for seen in surplus if seen.sandbox not in unwell]
        return [*wrong, *(f"{seen.name} is left over, {seen.phase}" for seen in left)]

    def _ails(self, name: str, by_name: dict[str, Container]) -> str:
        spec, state = self.wanted[name]
        seen = by_name.get(f"{PREFIX}{name}")
        if seen is None:
            return "it is not there"
        snapshot = self.theatre.manager.snapshots.snapshot(name)
        if seen.spec_hash != snapshot.desired.spec_hash:
            return f"it is not made from {spec}"
        if seen.phase not in GOALS[state]:
            return f"it is {seen.phase}, not {state}: {latest_failure(snapshot)}"
        volume = naming.volume_name(PREFIX, name)
        if spec != "homeless" and volume not in self.host.volumes:
            return "its workspace is gone"
        return ""

    def _check_key(self, name: str) -> None:
        boxes = [b.seen for b in self.host.boxes.values() if b.seen.name == f"{PREFIX}{name}"]
        for seen in boxes:
            assert seen.session_key == self.keys.setdefault(name, seen.session_key)

    def _forget_key_without_volume(self, name: str) -> None:
        """A sandbox that was taken out, with nothing kept of it, comes back with another key."""
        if naming.volume_name(PREFIX, name) not in self.host.volumes:
            self.keys.pop(name, None)

    def _mend(self) -> None:
        self.host.start_engine()
        self.engine._faults.clear()
        for verb in list(self.engine._hung):
            self.engine.release(verb)
        self.host.taken_ports.clear()

    def _guard_volumes(self) -> None:
        """Checks only calls of the daemon; external changes may do anything."""
        remove = self.engine.remove_volume

        async def guarded(name: str) -> None:
            for sandbox in NAMES:
                if name == naming.volume_name(PREFIX, sandbox):
                    self._may_go(sandbox)
            await remove(name)

        self.engine.remove_volume = guarded  # type: ignore[method-assign]

    def _may_go(self, sandbox: str) -> None:
        spec, _ = self.wanted.get(sandbox, ("", ""))
        assert spec in {"", "homeless"}, f"the workspace of {sandbox} is wanted"
        if not spec:
            kept = self.theatre.store.clock() - self.gone_since[sandbox]
            assert kept >= RETAIN - 1, f"the workspace of {sandbox} was kept for {kept} s only"
            self.keys.pop(sandbox, None)

    def _foreign(self) -> list[object]:
        boxes = [b.seen for b in self.host.boxes.values() if not self.engine._ours(b)]
        return [boxes, {"foreign", "others"} - set(self.host.volumes)]

    def _save(self) -> None:
        self._write()
        self.run(self.theatre.manager.manifest_sync.read())

    def _write(self) -> None:
        self.theatre.write(
            {name: {"spec": spec, "state": state} for name, (spec, state) in self.wanted.items()},
            **SPECS,
        )


LoopMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=25,
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestLoop = LoopMachine.TestCase
