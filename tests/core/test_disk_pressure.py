from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.action import Source
from reconciler.core.disk_pressure import (
    PressureLimits,
    PulledImage,
    Usage,
    images_to_collect,
    judge,
    renewed,
    size,
)
from reconciler.core.observed import Phase
from reconciler.core.snapshot import ImageState
from reconciler.core.status import Status, status_of
from tests.core.builders import OLD, blocked, container, desired, snapshot, step, steps

GIB = 1 << 30
FULL = "state disk /s has 0.9 GiB of 20 GiB free"
LIMITS = PressureLimits(free=GIB, percent=1.0, resume_free=GIB * 3 // 2, resume_percent=1.5)


def usage(free: float, total: float) -> Usage:
    """Return the usage of a disk; sizes are in GiB."""
    return Usage("state disk", "/s", int(free * GIB), int(total * GIB))


@pytest.mark.parametrize(
    ("free", "total", "was_under", "is_under"),
    [
        (50, 100, False, False),
        (1.0, 20, False, False),
        (0.99, 20, False, True),
        (0, 20, False, True),
        # Between the two limits, the former state stays.
        (1.2, 20, False, False),
        (1.2, 20, True, True),
        (1.49, 20, True, True),
        (1.5, 20, True, False),
        # One percent of a large disk is more than the bytes.
        (19, 2000, False, True),
        (21, 2000, False, False),
        (29, 2000, True, True),
        (30.1, 2000, True, False),
        # On a small disk, the limit is at most half of it.
        (0.06, 0.1, False, False),
        (0.04, 0.1, False, True),
        (0.049, 0.1, True, True),
        (0.051, 0.1, True, False),
        # Some filesystems do not report their size.
        (0, 0, True, False),
    ],
)
def test_pressure_begins_and_ends_at_its_limits(
    free: float, total: float, *, was_under: bool, is_under: bool
) -> None:
    under = {"state disk"} if was_under else set()
    assert bool(judge(under, [usage(free, total)], LIMITS)) is is_under


def test_a_limit_of_zero_disables_pressure() -> None:
    assert judge(["state disk"], [usage(0, 20)], PressureLimits(0, 0.0, 0, 0.0)) == {}


def test_the_reason_names_the_disk_and_the_space_needed() -> None:
    disks = [usage(0.5, 20), Usage("engine disk", "/e", 100 * GIB, 200 * GIB)]
    assert judge((), disks, LIMITS) == {
        "state disk": "state disk /s has 512.0 MiB of 20.0 GiB free: no sandbox is created until "
        "it has 1.5 GiB"
    }


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0.0 MiB"), (1 << 29, "512.0 MiB"), (3 << 29, "1.5 GiB")]
)
def test_sizes_are_formatted(number: int, text: str) -> None:
    assert size(number) == text


sizes = st.integers(0, 1 << 45)
limits = st.builds(
    lambda free, more, percent, more_percent: PressureLimits(
        free, percent, free + more, min(percent + more_percent, 100.0)
    ),
    sizes,
    sizes,
    st.floats(0, 100),
    st.floats(0, 100),
)


@given(sizes, sizes, limits)
def test_pressure_ends_later_than_it_begins(free: int, total: int, limits: PressureLimits) -> None:
    one = [Usage("disk", "/", min(free, total), total)]
    assert judge((), one, limits).keys() <= judge(["disk"], one, limits).keys()


@given(st.lists(st.floats(0, 100), min_size=2, max_size=50))
def test_pressure_does_not_flap_between_the_limits(frees: list[float]) -> None:
    under: set[str] = set()
    for free in frees:
        now = set(judge(under, [usage(free, 100)], LIMITS))
        if now != under:
            assert free < 1 if now else free >= 1.5
        under = now


# --- images ---

NOW = 1_000_000.0
DAY = 86400.0


def pulled(**used_days_ago: float) -> dict[str, PulledImage]:
    return {
        id_: PulledImage(f"{id_}:1", NOW - 99 * DAY, NOW - days * DAY)
        for id_, days in used_days_ago.items()
    }


@pytest.mark.parametrize(
    ("known", "kept", "go"),
    [
        ({}, set(), []),
        ({"a": 2, "b": 9, "c": 5}, set(), ["b", "c", "a"]),
        ({"a": 2, "b": 9, "c": 5}, {"b", "x"}, ["c", "a"]),
        ({"a": 0.9, "b": 1.0}, set(), ["b"]),
        ({"b": 2, "a": 2}, set(), ["a", "b"]),
    ],
)
def test_the_least_recently_used_image_is_collected_first(
    known: dict[str, float], kept: set[str], go: list[str]
) -> None:
    assert images_to_collect(pulled(**known), kept=kept, now=NOW, min_age=DAY) == go


names = st.sampled_from("abcdef")


@given(st.dictionaries(names, st.floats(-10, 10)), st.sets(names), st.floats(0, 10 * DAY))
def test_no_kept_recent_or_unknown_image_is_collected(
    known: dict[str, float], kept: set[str], min_age: float
) -> None:
    images = pulled(**known)
    go = images_to_collect(images, kept=kept, now=NOW, min_age=min_age)
    assert set(go) <= images.keys() - kept
    assert all(NOW - images[id_].used_at >= min_age for id_ in go)
    assert [images[id_].used_at for id_ in go] == sorted(images[id_].used_at for id_ in go)
    stays = images.keys() - kept - set(go)
    assert all(NOW - images[id_].used_at < min_age for id_ in stays)


@pytest.mark.parametrize(
    ("days_ago", "in_use", "is_renewed"),
    [(1, True, True), (1, False, False), (0.001, True, False)],
)
def test_an_outdated_use_is_renewed(days_ago: float, *, in_use: bool, is_renewed: bool) -> None:
    known = pulled(a=days_ago)
    fresh = renewed(known, {"a"} if in_use else {"x"}, NOW)
    expected = {"a": PulledImage("a:1", NOW - 99 * DAY, NOW)} if is_renewed else {}
    assert fresh == expected


# --- blocked actions ---


def test_disk_pressure_blocks_a_create() -> None:
    missing = snapshot(desired(), blockers=blocked(Source.DISK, FULL))
    assert step(missing) == f"wait: {FULL}"
    assert status_of(missing) == (Status.MISSING, FULL)


def test_disk_pressure_blocks_volumes_and_pulls() -> None:
    assert (
        step(snapshot(desired(), volumes=(), blockers=blocked(Source.DISK, FULL)))
        == f"wait: {FULL}"
    )
    assert (
        step(snapshot(desired(), image=ImageState.ABSENT, blockers=blocked(Source.DISK, FULL)))
        == f"wait: {FULL}"
    )
    pulling = snapshot(desired(), image=ImageState.PULLING, blockers=blocked(Source.DISK, FULL))
    assert step(pulling) == f"wait: {FULL}"
    assert status_of(pulling) == (Status.MISSING, FULL)


def test_an_env_file_error_is_reported_before_disk_pressure() -> None:
    blockers = (*blocked(Source.ENV_FILE, "no env file"), *blocked(Source.DISK, FULL))
    both = snapshot(desired(), blockers=blockers)
    assert step(both) == "wait: no env file"
    assert status_of(both) == (Status.ERROR, "no env file")


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.PAUSED, Phase.EXITED, Phase.CREATED])
@pytest.mark.parametrize("state", ["running", "paused", "stopped"])
def test_disk_pressure_does_not_affect_existing_containers(state: str, phase: Phase) -> None:
    there = container(phase=phase)
    held, free = (
        snapshot(desired(state), there, blockers=blocked(Source.DISK, hold)) for hold in (FULL, "")
    )
    assert step(held) == step(free)
    assert steps(held) == steps(free)
    assert status_of(held) == status_of(free)


@pytest.mark.parametrize(
    ("state", "phase", "done"),
    [
        ("running", Phase.RUNNING, f"wait: {FULL}"),
        ("running", Phase.EXITED, "start alice (it ended: exit code 0)"),
        ("running", Phase.CREATED, "start alice (running is desired)"),
        ("running", Phase.PAUSED, "unpause alice (running is desired)"),
        ("paused", Phase.RUNNING, "pause alice (paused is desired)"),
        ("stopped", Phase.RUNNING, "stop alice (stopped is desired)"),
    ],
)
def test_disk_pressure_blocks_a_replacement(state: str, phase: Phase, done: str) -> None:
    held = snapshot(
        desired(state), container(phase=phase, spec_hash=OLD), blockers=blocked(Source.DISK, FULL)
    )
    assert step(held) == done
    assert not {"create next", "remove alice", "rename alice -> prev"} & set(steps(held))


def test_disk_pressure_does_not_block_a_deletion() -> None:
    gone, freely = (
        snapshot(None, container(), blockers=blocked(Source.DISK, hold)) for hold in (FULL, "")
    )
    assert steps(gone) == steps(freely)
    assert status_of(snapshot(None, volumes=(), blockers=blocked(Source.DISK, FULL))) == (
        Status.MISSING,
        "",
    )
