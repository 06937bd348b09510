"""Names are deterministic, and no record can have the name of another."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core import naming

PREFIX = "oh-agent-server-"
names = st.from_regex(naming.NAME_PATTERN.replace("$", r"\Z"))
steady = settings(derandomize=True, deadline=None, database=None)


def test_the_names_of_a_sandbox():
    digest = "2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90"
    assert naming.container_name(PREFIX, "alice") == "oh-agent-server-alice"
    assert naming.volume_name(PREFIX, "alice") == "openhands-workspace-oh-agent-server-alice"
    assert naming.successor_name(PREFIX, "alice") == f"oh-agent-server-alice.next.{digest}"
    assert naming.predecessor_name(PREFIX, "alice") == f"oh-agent-server-alice.prev.{digest}"


def test_a_transient_name_is_no_valid_sandbox_name():
    for transient in (naming.successor_name("", "a"), naming.predecessor_name("", "a")):
        assert re.fullmatch(naming.NAME_PATTERN, transient) is None


@steady
@given(names, names)
def test_no_record_owns_the_transient_name_of_another(one, other):
    transient = {naming.successor_name(PREFIX, one), naming.predecessor_name(PREFIX, one)}
    others = {
        naming.container_name(PREFIX, other),
        *(naming.successor_name(PREFIX, other), naming.predecessor_name(PREFIX, other))
        * (one != other),
    }
    assert len(transient) == 2
    assert transient & others == set()


@steady
@given(names, st.text())
def test_no_record_owns_the_key_of_garbage(one, found):
    assert naming.garbage_key(found) != one
    assert re.fullmatch(naming.NAME_PATTERN, naming.garbage_key(found)) is None


@steady
@given(names)
def test_every_generated_name_is_recognised(one):
    base = naming.container_name(PREFIX, one)
    assert naming.made_names(base, one) == {
        base,
        naming.successor_name(PREFIX, one),
        naming.predecessor_name(PREFIX, one),
        naming.stand_in_name(PREFIX, one),
    }
    assert naming.volume_of(base) == naming.volume_name(PREFIX, one)
    assert naming.is_garbage(naming.garbage_key(one))
    assert not naming.is_garbage(one)


def test_a_marker_names_its_instance_and_its_owner():
    assert naming.marker_name("prod", "0a1b") == "reconciler-owner-prod-0a1b"


def test_labels_are_in_our_own_namespace():
    labels = [v for k, v in vars(naming).items() if k.startswith("LABEL_")]
    assert set(labels) == set(naming.LABELS)
    assert len(labels) == len(naming.LABELS)
    assert [label for label in labels if not label.startswith(naming.LABEL)] == []
