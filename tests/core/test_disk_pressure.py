from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.disk_pressure import (
    Limits,
    PulledImage,
    Usage,
    images_to_collect,
    judge,
    renewed,
    size,
)
from reconciler.core.model import ImageState, Phase, Status
from reconciler.core.status import status_of
from tests.core.builders import OLD, container, desired, snapshot, step, steps

GIB = 1 << 30
FULL = "state disk /s has 0.9 GiB of 20 GiB free"
LIMITS = Limits(free=GIB, percent=1.0, resume_free=GIB * 3 // 2, resume_percent=1.5)


def usage(free: float, total: float) -> Usage:
    """Of a disk, in GiB."""
    return Usage("state disk", "/s", int(free * GIB), int(total * GIB))


@pytest.mark.parametrize(
    ("free", "total", "was_under", "is_under"),
    [
        (50, 100, False, False),
        (1.0, 20, False, False),
        (0.99, 20, False, True),
        (0, 20, False, True),
        # Between the two limits it stays what it was.
        (1.2, 20, False, False),
        (1.2, 20, True, True),
        (1.49, 20, True, True),
        (1.5, 20, True, False),
        # One percent of a large disk is more than the bytes.
        (19, 2000, False, True),
        (21, 2000, False, False),
        (29, 2000, True, True),
        (30.1, 2000, True, False),
        # On a small disk, half of it is the most that is asked for.
        (0.06, 0.1, False, False),
        (0.04, 0.1, False, True),
        (0.049, 0.1, True, True),
        (0.051, 0.1, True, False),
        # Some filesystems do not say how large they are.
        (0, 0, True, False),
    ],
)
def test_when_a_disk_is_under_pressure(
    free: float, total: float, *, was_under: bool, is_under: bool
) -> None:
    under = {"state disk"} if was_under else set()
    assert bool(judge(under, [usage(free, total)], LIMITS)) is is_under


def test_a_limit_of_nothing_is_none() -> None:
    assert judge(["state disk"], [usage(0, 20)], Limits(0, 0.0, 0, 0.0)) == {}


def test_the_reason_says_which_disk_and_what_is_enough() -> None:
    disks = [usage(0.5, 20), Usage("engine disk", "/e", 100 * GIB, 200 * GIB)]
    assert judge((), disks, LIMITS) == {
        "state disk": "state disk /s has 512.0 MiB of 20.0 GiB free: no new sandbox is made until "
        "it has 1.5 GiB"
    }


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0.0 MiB"), (1 << 29, "512.0 MiB"), (3 << 29, "1.5 GiB")]
)
def test_sizes_for_a_person(number: int, text: str) -> None:
    assert size(number) == text


sizes = st.integers(0, 1 << 45)
limits = st.builds(
    lambda free, more, percent, more_percent: Limits(
        free, percent, free + more, min(percent + more_percent, 100.0)
    ),
    sizes,
    sizes,
    st.floats(0, 100),
    st.floats(0, 100),
)


@given(sizes, sizes, limits)
def test_pressure_ends_later_than_it_begins(free: int, total: int, limits: Limits) -> None:
    one = [Usage("disk", "/", min(free, total), total)]
    assert judge((), one, limits).keys() <= judge(["disk"], one, limits).keys()


@given(st.lists(st.floats(0, 100), min_size=2, max_size=50))
def test_a_change_of_mind_takes_the_whole_gap(frees: list[float]) -> None:
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
def test_which_images_go_and_in_which_order(
    known: dict[str, float], kept: set[str], go: list[str]
) -> None:
    assert images_to_collect(pulled(**known), kept=kept, now=NOW, min_age=DAY) == go


names = st.sampled_from("abcdef")


@given(st.dictionaries(names, st.floats(-10, 10)), st.sets(names), st.floats(0, 10 * DAY))
def test_nothing_kept_young_or_unknown_goes(
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
def test_when_a_use_is_noted(days_ago: float, *, in_use: bool, is_renewed: bool) -> None:
    known = pulled(a=days_ago)
    fresh = renewed(known, {"a"} if in_use else {"x"}, NOW)
    expected = {"a": PulledImage("a:1", NOW - 99 * DAY, NOW)} if is_renewed else {}
    assert fresh == expected


# --- what is held ---


def test_nothing_is_made_while_there_is_pressure() -> None:
    missing = snapshot(desired(), hold=FULL)
    assert step(missing) == f"wait: {FULL}"
    assert status_of(missing) == (Status.MISSING, FULL)


def test_neither_a_volume_nor_an_image_is_fetched() -> None:
    assert step(snapshot(desired(), volumes=(), hold=FULL)) == f"wait: {FULL}"
    assert step(snapshot(desired(), image=ImageState.ABSENT, hold=FULL)) == f"wait: {FULL}"
    pulling = snapshot(desired(), image=ImageState.PULLING, hold=FULL)
    assert step(pulling) == f"wait: {FULL}"
    assert status_of(pulling) == (Status.MISSING, FULL)


def test_a_problem_of_the_record_itself_comes_first() -> None:
    both = snapshot(desired(problem="no env file"), hold=FULL)
    assert step(both) == "wait: no env file"
    assert status_of(both) == (Status.ERROR, "no env file")


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.PAUSED, Phase.EXITED, Phase.CREATED])
@pytest.mark.parametrize("state", ["running", "paused", "stopped"])
def test_what_exists_goes_on_as_ever(state: str, phase: Phase) -> None:
    there = container(phase=phase)
    held, free = (snapshot(desired(state), there, hold=hold) for hold in (FULL, ""))
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
def test_what_is_to_be_replaced_goes_on_as_it_is(state: str, phase: Phase, done: str) -> None:
    held = snapshot(desired(state), container(phase=phase, spec_hash=OLD), hold=FULL)
    assert step(held) == done
    assert not {"create next", "remove alice", "rename alice -> prev"} & set(steps(held))


def test_what_is_to_go_goes() -> None:
    gone, freely = (snapshot(None, container(), hold=hold) for hold in (FULL, ""))
    assert steps(gone) == steps(freely)
    assert status_of(snapshot(None, volumes=(), hold=FULL)) == (Status.MISSING, "")
