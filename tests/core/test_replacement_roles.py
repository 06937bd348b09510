"""Who is who under a key, and what makes a container another than the record asks for."""

from __future__ import annotations

import pytest

from reconciler.core.model import Identity, Phase
from reconciler.core.replacement import (
    Names,
    drift,
    names_of,
    replace_cause,
    roles_of,
    surplus_volumes,
    wanted_volume,
)
from tests.core.builders import (
    NAME,
    NEXT,
    OLD,
    PREP,
    PREV,
    VOLUME,
    container,
    desired,
    snapshot,
    volume,
)

MOVED = Identity("secret-key", {8000: 30001})
SPEC, PORTS, GONE = "the spec changed", "its host ports changed", "its workspace volume is gone"


def test_a_container_plays_the_part_that_its_name_says():
    crowd = [container(name) for name in ("renamed", PREV, NAME, NEXT)]
    roles = roles_of(snapshot(None, *crowd))
    assert (roles.current, roles.successor, roles.predecessor) == (crowd[2], crowd[3], crowd[1])
    assert roles.strays == (crowd[0],)


def test_the_names_of_one_key_are_distinct():
    names = names_of(snapshot(None))
    assert names == Names(
        current=NAME, successor=NEXT, predecessor=PREV, stand_in=PREP, volume=VOLUME
    )
    assert len({NAME, NEXT, PREV, PREP, VOLUME}) == 5


@pytest.mark.parametrize(
    ("mounted_by_current", "mounted_by_other", "volumes", "expected"),
    [
        ("", "", [], VOLUME),
        ("", "", ["old-prefix"], "old-prefix"),
        ("", "", ["a", "b"], "b"),
        ("", "", [VOLUME, "z"], VOLUME),
        ("", "a", ["a", VOLUME, "z"], "a"),
        ("a", "b", ["a", "b", VOLUME], "a"),
        ("gone", "", [VOLUME], VOLUME),
    ],
    ids=["none", "any", "last", "its name", "another's mount", "its mount", "lost"],
)
def test_a_workspace_is_found_whatever_its_name(
    mounted_by_current, mounted_by_other, volumes, expected
):
    current = container(volumes=frozenset({mounted_by_current} - {""}))
    other = container(PREV, Phase.EXITED, volumes=frozenset({mounted_by_other} - {""}))
    there = tuple(volume(name) for name in volumes)
    assert wanted_volume(snapshot(desired(), current, other, volumes=there)) == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(desired(), VOLUME), (desired(workspace=None), None), (None, None)],
    ids=["with a workspace", "without", "no record"],
)
def test_a_volume_that_nothing_asks_for_is_surplus(wanted, expected):
    other = volume("of-another-prefix")
    seen = snapshot(wanted, volumes=(volume(), other))
    assert wanted_volume(seen) == expected
    assert surplus_volumes(seen) == ((other,) if expected else (volume(), other))


@pytest.mark.parametrize(
    ("wanted", "made", "volumes", "expected"),
    [
        (desired(), container(), (volume(),), ""),
        (desired(), container(spec_hash=OLD), (volume(),), SPEC),
        (desired(), container(spec_hash="9:later"), (volume(),), ""),
        (desired(spec_hash=None), container(spec_hash=OLD), (volume(),), ""),
        (desired(identity=MOVED), container(), (volume(),), PORTS),
        (desired(identity=MOVED), container(ports={}), (volume(),), ""),
        (desired(identity=MOVED), container(ports={9000: 30000}), (volume(),), ""),
        (desired(identity=None), container(), (volume(),), ""),
        (desired(), container(), (), GONE),
        (desired(), container(volumes=frozenset()), (), ""),
        (desired(workspace=None), container(), (), ""),
    ],
)
def test_what_makes_a_container_another_than_desired(wanted, made, volumes, expected):
    assert drift(snapshot(wanted, made, volumes=volumes), wanted, made) == expected


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        *((phase, "") for phase in (Phase.RUNNING, Phase.PAUSED, Phase.RESTARTING)),
        *((phase, PORTS) for phase in (Phase.CREATED, Phase.EXITED)),
    ],
)
def test_what_the_host_lost_counts_once_the_container_no_longer_lives(phase, expected):
    wanted, made = desired(identity=MOVED), container(NAME, phase)
    assert replace_cause(snapshot(wanted, made), wanted, made) == expected


def test_a_volume_that_cannot_be_seen_is_neither_surplus_nor_gone() -> None:
    other = volume("other")
    both = (volume(), other)
    assert surplus_volumes(snapshot(desired(), volumes=both)) == (other,)
    assert surplus_volumes(snapshot(desired(), volumes=both, sees_volumes=False)) == ()
    ended = container(phase=Phase.EXITED)
    for sees, cause in ((True, GONE), (False, "")):
        blind = snapshot(desired(), ended, volumes=(), sees_volumes=sees)
        assert replace_cause(blind, desired(), ended) == cause
