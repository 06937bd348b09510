"""Only observed time decides: skew and jumps of the wall clock and of the engine's clock."""

import ast
import asyncio
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reconciler
from reconciler.core.errors import EngineError
from reconciler.core.observed import Phase
from reconciler.telemetry import events
from tests.fakes.host import Box
from tests.simulation.stage import DAY, PREFIX, Stage
from tests.simulation.test_stateful import OneThreadLoop

HOUR = 3600.0
YEAR = 365 * DAY
ALICE = f"{PREFIX}alice"
VOLUME = f"openhands-workspace-{ALICE}"
CRASHING = {"command": ["false"]}
# Of a sandbox that ends at once, in 10 minutes, where a start takes 0.2 s.
STARTS = 17
SKEWS = [-HOUR, -300.0, -70.0, -30.0, 0.0, 130.0, 300.0, HOUR, 30 * YEAR, -30 * YEAR]
JUMPS = [8 * DAY, -30 * YEAR, 30 * YEAR]
FAILING = {"kind": "exec", "command": ["false"], "startup_grace": "60s", "interval": "1s"}


def starts(stage: Stage) -> int:
    return stage.engine.count("start")


@pytest.mark.parametrize("skew", SKEWS)
async def test_crash_loop_backs_off_with_any_engine_clock(tmp_path: Path, skew: float):
    async with Stage(tmp_path, skew=skew) as stage:
        stage.engine.latency["start"] = 0.2
        await stage.edit_or_start({"alice": CRASHING})
        await stage.after(600)
        assert starts(stage) == STARTS


@pytest.mark.parametrize("jump", [-HOUR, -70.0, 130.0, HOUR, 8 * DAY])
@pytest.mark.parametrize("clock", ["engine_clock", "wall"])
async def test_a_clock_that_jumps_changes_no_backoff(stage: Stage, clock: str, jump: float):
    stage.engine.latency["start"] = 0.2
    await stage.edit_or_start({"alice": CRASHING})
    for _ in range(10):
        await stage.after(60)
        getattr(stage, clock).jump(jump)
    assert starts(stage) == STARTS


@pytest.mark.parametrize("jump", [-HOUR, HOUR, 8 * DAY, -30 * YEAR])
async def test_a_backoff_lasts_over_a_restart_and_a_jump(stage: Stage, jump: float):
    await stage.edit_or_start({"alice": CRASHING})
    await stage.after(600)
    before = starts(stage)
    await stage.stop()
    stage.wall.jump(jump)
    stage.engine_clock.jump(jump)
    await stage.start()
    await stage.after(50)
    assert starts(stage) <= before + 1
    await stage.after(70)
    assert before + 1 <= starts(stage) <= before + 2


@pytest.mark.parametrize("skew", SKEWS)
async def test_startup_grace_counts_from_the_first_observation(tmp_path: Path, skew: float):
    async with Stage(tmp_path, skew=skew) as stage:
        await stage.edit_or_start({"alice": {"health": FAILING}})
        await stage.after(59)
        assert stage.statuses() == {"alice": "STARTING"}
        assert starts(stage) == 1
        await stage.after(10)
        assert starts(stage) == 2


async def test_startup_grace_counts_once_over_daemon_restarts(stage: Stage):
    await stage.edit_or_start({"alice": {"health": FAILING}})
    await stage.after(40)
    for life in (stage.stop, stage.crash):
        await life()
        stage.wall.jump(HOUR)
        await stage.after(HOUR)
        await stage.start()
        await stage.after(8)
        assert starts(stage) == 1
    await stage.after(45)
    assert starts(stage) == 2


@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("restarted", [True, False], ids=["over a restart", "while it runs"])
async def test_a_jump_of_the_wall_clock_deletes_nothing(
    stage: Stage,
    jump: float,
    restarted: bool,  # noqa: FBT001
):
    await stage.converge({"alice": "running", "bob": "running"})
    await stage.converge({"bob": "running"})
    stage.add_orphan("stray")
    await stage.after(100)
    if restarted:
        await stage.stop()
    stage.wall.jump(jump)
    stage.engine_clock.jump(jump)
    if restarted:
        await stage.start()
    await stage.after(130)
    assert VOLUME in stage.host.volumes
    assert "stray" in stage.phases()
    await stage.after(140)
    assert "stray" not in stage.phases()
    await stage.days(6.9)
    assert VOLUME in stage.host.volumes
    await stage.days(0.1)
    assert VOLUME not in stage.host.volumes


async def test_a_suspend_is_no_observed_time(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    await stage.converge({"bob": "running"})
    # The wall clock and the engine's clock continue; the monotonic one stands still.
    for _ in range(10):
        stage.wall.jump(DAY)
        stage.engine_clock.jump(DAY)
        await stage.after(60)
    assert VOLUME in stage.host.volumes


@pytest.mark.parametrize("times", [1, 3])
async def test_suspended_daemon_observes_no_time(stage: Stage, times: int):
    await stage.converge({"alice": "running", "bob": "running"})
    await stage.converge({"bob": "running"})
    stage.add_orphan("stray")
    await stage.after(60)
    for _ in range(times):
        # Its monotonic clock continues: SIGSTOP, a frozen cgroup, some hypervisors.
        stage.monotonic.jump(8 * DAY / times)
        await stage.after(1)
    assert "stray" in stage.phases()
    assert VOLUME in stage.host.volumes


async def test_downtime_is_no_observed_time(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    await stage.converge({"bob": "running"})
    await stage.stop()
    for clock in (stage.wall, stage.monotonic, stage.engine_clock):
        clock.jump(30 * DAY)
    await stage.start()
    await stage.after(130)
    assert VOLUME in stage.host.volumes


@pytest.mark.parametrize("life", ["restart", "kill"])
async def test_retention_elapses_in_observed_time_over_restarts(stage: Stage, life: str):
    await stage.converge({"alice": "running", "bob": "running"})
    await stage.converge({"bob": "running"})
    for day in range(1, 8):
        assert VOLUME in stage.host.volumes, f"day {day}"
        await stage.days(1)
        await (stage.stop() if life == "restart" else stage.crash())
        # A boot: the monotonic clock begins at 0.
        stage.monotonic.jump(-stage.monotonic())
        await stage.start()
    # A kill loses the time since the last write, each time.
    await stage.after(7 * 60)
    assert VOLUME not in stage.host.volumes


async def test_a_kill_loses_little_time_and_never_gains_any(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    await stage.converge({"bob": "running"})
    for _ in range(20):
        await stage.after(100)
        before = stage.store.clock()
        await stage.crash()
        await stage.start()
        assert before - 45 <= stage.store.clock() <= before


async def test_a_lost_database_keeps_everything_longer(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    await stage.converge({"bob": "running"})
    await stage.days(6)
    await stage.stop()
    for file in stage.settings.state_dir.glob("reconciler.db*"):
        file.unlink()
    await stage.start()
    await stage.after(60)
    await stage.days(6.9)
    assert VOLUME in stage.host.volumes
    # Nobody knows whether it was wanted, so that a person has to confirm its removal.
    await stage.days(0.2)
    assert VOLUME in stage.host.volumes
    await stage.operations.collect(allow_mass_delete=True)
    await stage.after(60)
    assert VOLUME not in stage.host.volumes


async def test_idle_daemon_writes_at_most_once_a_minute(stage: Stage):
    await stage.converge({"alice": "running"})
    await stage.after(120)
    writes = 0
    write = stage.store._database.write

    def counted(*args: Any) -> None:
        nonlocal writes
        writes += 1
        write(*args)

    stage.store._database.write = counted  # type: ignore[method-assign]
    await stage.after(600)
    assert writes <= 10


# --- the engine's dates are names, not times -------------------------------------------------


def without_dates(stage: Stage, change: Callable[[Box], dict[str, Any]]) -> None:
    """Let the engine give these dates for every exit."""
    end = stage.host.end

    def ended(box: Box, code: int, *, oom: bool = False) -> None:
        end(box, code, oom=oom)
        box.seen = replace(box.seen, **change(box))

    stage.host.end = ended  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "dates",
    [
        {"finished_at": None},
        {"finished_at": 0.0},
        {"finished_at": 1e12},
        {"finished_at": -1e10},
        {"started_at": None, "finished_at": None},
        {"started_at": 5.0, "finished_at": 1.0},
    ],
    ids=str,
)
async def test_exit_with_wrong_dates_counts_once_and_backs_off(
    stage: Stage, dates: dict[str, float | None]
):
    without_dates(stage, lambda _: dates)
    stage.engine.latency["start"] = 0.2
    await stage.edit_or_start({"alice": CRASHING})
    await stage.after(600)
    assert starts(stage) == STARTS
    assert len(stage.notes.logged(events.SandboxDied)) == STARTS
    assert stage.row("alice")["restarts"] == STARTS - 1


async def test_exit_without_dates_counts_once_over_a_restart(stage: Stage):
    without_dates(stage, lambda _: {"finished_at": None})
    await stage.edit_or_start({"alice": CRASHING})
    await stage.after(300)
    died = len(stage.notes.logged(events.SandboxDied))
    await stage.restart()
    await stage.after(5)
    assert len(stage.notes.logged(events.SandboxDied)) == died


async def test_our_own_stop_without_dates_is_no_crash(stage: Stage):
    without_dates(stage, lambda _: {"finished_at": None})
    await stage.converge({"alice": "running"})
    await stage.converge({"alice": "stopped"})
    await stage.restart()
    await stage.converge({"alice": "running"})
    assert stage.row("alice")["restarts"] == 0
    assert not stage.notes.logged(events.SandboxDied)


async def test_a_run_is_stable_by_what_the_daemon_saw(stage: Stage):
    await stage.converge({"alice": "running"})
    for _ in range(4):
        stage.host.kill(ALICE, 3)
        await stage.after(60)
    # By the engine's dates it ran for an hour, by the daemon's clock for a minute.
    stage.engine_clock.jump(HOUR)
    stage.host.kill(ALICE, 3)
    await stage.after(1)
    assert stage.store.memory("alice").streak == 4
    await stage.after(30)
    # By the engine's dates it ended before it began, by the daemon's clock it ran for 11 minutes.
    await stage.after(11 * 60)
    stage.engine_clock.jump(-DAY)
    stage.host.kill(ALICE, 3)
    await stage.after(0.5)
    assert stage.store.memory("alice").streak == 1


async def test_downtime_makes_no_run_stable(stage: Stage):
    await stage.converge({"alice": "running"})
    for _ in range(4):
        stage.host.kill(ALICE, 3)
        await stage.after(60)
    await stage.stop()
    await stage.after(HOUR)
    stage.host.kill(ALICE, 3)
    await stage.start()
    await stage.after(1)
    assert stage.store.memory("alice").streak == 4


# --- what is no crash -------------------------------------------------------------------------


async def reboot(stage: Stage, exit_code: int) -> None:
    """Reboot the host with the engine and the daemon."""
    await stage.crash()
    for box in stage.host.boxes.values():
        if box.seen.live:
            stage.host.end(box, exit_code)
    stage.monotonic.jump(-stage.monotonic())
    await stage.start()


@pytest.mark.parametrize("exit_code", [255, 137, 143, 0])
async def test_a_reboot_is_no_crash(stage: Stage, exit_code: int):
    await stage.converge({"alice": "running", "bob": "paused"})
    for _ in range(6):
        await stage.after(30)
        await reboot(stage, exit_code)
        await stage.after(2)
        assert stage.statuses() == {"alice": "RUNNING", "bob": "PAUSED"}
    assert stage.row("alice")["restarts"] == 0
    stage.host.kill(ALICE, 1)
    await stage.after(0.5)
    assert stage.statuses()["alice"] == "RUNNING"
    assert stage.row("alice")["restarts"] == 1


async def test_unknown_exit_is_reported_as_unknown(stage: Stage):
    await stage.converge({"alice": "running"})
    await reboot(stage, 255)
    await stage.after(2)
    (died,) = stage.notes.logged(events.SandboxDied)
    assert died["cause"] == "its exit was not observed: the engine or the host went down"


async def test_engine_crash_is_no_crash_of_its_sandboxes(stage: Stage):
    await stage.converge({"alice": "running"})
    for _ in range(6):
        stage.host.crash_engine()
        await stage.after(20)
        stage.host.start_engine()
        await stage.after(10)
        assert stage.statuses() == {"alice": "RUNNING"}
    assert stage.row("alice")["restarts"] == 0


@pytest.mark.parametrize("exit_code", [255, 143, 137, 0])
async def test_crash_that_looks_like_an_engine_shutdown_backs_off(stage: Stage, exit_code: int):
    command = {"command": ["sh", "-c", f"exit {exit_code}"]}
    stage.engine.latency["start"] = 0.2
    await stage.edit_or_start({"alice": command})
    await stage.after(600)
    assert starts(stage) == STARTS
    died = stage.notes.logged(events.SandboxDied)
    assert all("not seen" not in line["cause"] for line in died)


async def test_a_crash_while_the_daemon_is_down_counts(stage: Stage):
    await stage.converge({"alice": "running"})
    await stage.stop()
    stage.host.kill(ALICE, 3)
    await stage.start()
    await stage.after(5)
    assert stage.row("alice")["restarts"] == 1


async def test_crash_loop_keeps_its_backoff_over_an_unknown_exit(stage: Stage):
    await stage.converge({"alice": "running"})
    for _ in range(6):
        stage.host.kill(ALICE, 3)
        await stage.after(40)
    assert stage.store.memory("alice").streak == 6
    await reboot(stage, 255)
    await stage.after(20)
    assert stage.phases() == {"alice": Phase.EXITED}
    await stage.after(20)
    assert stage.phases() == {"alice": Phase.RUNNING}
    assert stage.store.memory("alice").streak == 6


# --- the whole schedule ------------------------------------------------------------------------

jumps = st.lists(
    st.tuples(
        st.sampled_from(["wall", "engine_clock"]),
        st.sampled_from([-30 * YEAR, -DAY, -HOUR, -70.0, -0.5, 0.5, 130.0, HOUR, 8 * DAY, YEAR]),
    ),
    min_size=8,
    max_size=8,
)


class Calls(list[Any]):
    """Return the calls to the engine, each with its time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock

    def append(self, call: Any) -> None:
        super().append((round(self._clock(), 6), *call))


async def play(folder: Path, skew: float, jumps: list[tuple[str, float]]) -> list[Any]:
    """Run edits, crashes, restarts and a week; return the calls to the engine with their times."""
    random.seed(1)
    async with Stage(folder, skew=skew) as stage:
        stage.engine.latency = dict.fromkeys(["create", "start", "stop", "inspect", "list"], 0.05)
        stage.engine.calls = schedule = Calls(stage.monotonic)
        probed = {"health": {**FAILING, "startup_grace": "20s"}}
        well = {"health": {**FAILING, "command": ["true"]}}
        records = {"alice": CRASHING, "bob": probed, "carol": well, "dave": "running"}
        await stage.edit_or_start(records)
        stage.add_orphan("stray")
        for number, (clock, seconds) in enumerate(jumps):
            await stage.after(100)
            getattr(stage, clock).jump(seconds)
            await stage.after(1)
            match number:
                case 1:
                    records.pop("dave")
                    await stage.edit(records)
                case 2:
                    stage.host.kill(f"{PREFIX}carol", 1)
                case 3:
                    await stage.restart()
                case 4:
                    stage.engine.fail_next("create", EngineError("broken"), times=2)
                    records["alice"] = {**CRASHING, "env": {"A": "1"}}
                    await stage.edit(records)
                case 5:
                    await stage.days(6.9)
                case 6:
                    await stage.days(0.2)
        assert VOLUME.replace("alice", "dave") not in stage.host.volumes
        return list(schedule)


def scheduled(skew: float, jumps: list[tuple[str, float]]) -> list[Any]:
    with (
        tempfile.TemporaryDirectory() as folder,
        asyncio.Runner(loop_factory=OneThreadLoop) as runner,
    ):
        return runner.run(play(Path(folder), skew, jumps))


STEADY = [("wall", 0.0)] * 8


@settings(derandomize=True, deadline=None, database=None, max_examples=25)
@given(st.sampled_from(SKEWS), jumps)
def test_no_clock_changes_what_is_done_nor_when(skew: float, jumps: list[tuple[str, float]]):
    if not baseline:
        baseline.extend(scheduled(0.0, STEADY))
    assert scheduled(skew, jumps) == baseline


baseline: list[Any] = []


# --- who reads the wall clock --------------------------------------------------------------------

WALL = {
    "time": {"time", "time_ns", "localtime", "gmtime", "ctime", "strftime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}
MAY_READ_IT = {
    "cli/render.py": "the age that status shows",
    "engine/docker/engine.py": "which past events the engine sends again",
    "engine/docker/workspace.py": "the date of a folder in an archive",
    "store/store.py": "the ledger's dates, and dates to show",
}


def readers_of_the_wall_clock() -> Iterator[str]:
    package = Path(reconciler.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(value=ast.Name(id=owner), attr=name):
                    reads = name in WALL.get(owner, ())
                case ast.Attribute(value=ast.Attribute(attr=owner), attr=name):
                    reads = name in WALL.get(owner, ())
                case ast.ImportFrom(module="time", names=names):
                    reads = any(alias.name in WALL["time"] for alias in names)
                case _:
                    reads = False
            if reads:
                yield path.relative_to(package).as_posix()


def test_only_what_shows_a_date_reads_the_wall_clock():
    assert set(readers_of_the_wall_clock()) == set(MAY_READ_IT)
