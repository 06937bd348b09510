"""Roles, names and volumes in a snapshot; drift of a container."""

from __future__ import annotations

import pytest

from reconciler.core.drift import drift, replace_cause
from reconciler.core.observed import Phase
from reconciler.core.snapshot import Identity, Names
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


def test_a_role_follows_from_the_name():
    several = [container(name) for name in ("renamed", PREV, NAME, NEXT)]
    roles = snapshot(None, *several).roles
    assert (roles.current, roles.successor, roles.predecessor) == (
        several[2],
        several[3],
        several[1],
    )
    assert roles.strays == (several[0],)


def test_the_names_of_one_key_are_distinct():
    names = snapshot(None).names
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
    assert snapshot(desired(), current, other, volumes=there).wanted_volume == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(desired(), VOLUME), (desired(workspace=None), None), (None, None)],
    ids=["with a workspace", "without", "no record"],
)
def test_an_unwanted_volume_is_surplus(wanted, expected):
    other = volume("of-another-prefix")
    seen = snapshot(wanted, volumes=(volume(), other))
    assert seen.wanted_volume == expected
    assert seen.surplus_volumes == ((other,) if expected else (volume(), other))


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
def test_drift_of_spec_ports_and_workspace(wanted, made, volumes, expected):
    assert drift(snapshot(wanted, made, volumes=volumes), wanted, made) == expected


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        *((phase, "") for phase in (Phase.RUNNING, Phase.PAUSED, Phase.RESTARTING)),
        *((phase, PORTS) for phase in (Phase.CREATED, Phase.EXITED)),
    ],
)
def test_host_drift_does_not_replace_a_live_container(phase, expected):
    wanted, made = desired(identity=MOVED), container(NAME, phase)
    assert replace_cause(snapshot(wanted, made), wanted, made) == expected


def test_a_volume_that_cannot_be_seen_is_neither_surplus_nor_gone() -> None:
    other = volume("other")
    both = (volume(), other)
    assert snapshot(desired(), volumes=both).surplus_volumes == (other,)
    assert snapshot(desired(), volumes=both, sees_volumes=False).surplus_volumes == ()
    ended = container(phase=Phase.EXITED)
    for sees, cause in ((True, GONE), (False, "")):
        blind = snapshot(desired(), ended, volumes=(), sees_volumes=sees)
        assert replace_cause(blind, desired(), ended) == cause
