"""The faults of a sandbox, by source, as the log, the ledger and ``status`` report them."""

from __future__ import annotations

import pytest

from reconciler.core.action import UNMEASURED, UNREAD, Source, Verb
from reconciler.core.restart import SandboxMemory
from reconciler.core.snapshot import ImageState
from reconciler.core.status import BEGUN, OVER, STEPS, faults_of
from tests.core.builders import OLD, blocked, container, desired, failing, snapshot

FULL = "the disk is full"
WHOLE = desired()


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (snapshot(WHOLE), {}),
        (snapshot(WHOLE, container(), blockers=blocked(Source.DISK, FULL)), {}),
        (snapshot(WHOLE, blockers=blocked(Source.DISK, FULL)), {"disk": FULL}),
        (
            snapshot(WHOLE, container(spec_hash=OLD), blockers=blocked(Source.DISK, FULL)),
            {"disk": FULL},
        ),
        (snapshot(WHOLE, blockers=blocked(Source.DISK, UNMEASURED)), {}),
        (
            snapshot(desired(spec_hash=None), blockers=blocked(Source.ENV_FILE, "no file")),
            {"env_file": "no file"},
        ),
        (snapshot(desired(spec_hash=None), blockers=blocked(Source.ENV_FILE, UNREAD)), {}),
        (snapshot(WHOLE, blockers=blocked(Source.PORTS, "no port")), {"ports": "no port"}),
        (
            snapshot(WHOLE, container(), blockers=blocked(Source.INSPECT, "nonsense")),
            {"inspect": "nonsense"},
        ),
        (
            snapshot(WHOLE, container(), blockers=blocked(Source.RECORD, "f:1:1: bad")),
            {"record": "f:1:1: bad"},
        ),
        (snapshot(None, blockers=blocked(Source.RECORD, "f:1:1: bad")), {"record": "f:1:1: bad"}),
        (snapshot(WHOLE, memory=failing(Verb.CREATE, Verb.PULL)), {"create": "no", "pull": "no"}),
        (snapshot(WHOLE, memory=failing(Verb.CREATE, spec_hash=OLD)), {}),
        (snapshot(WHOLE, container(), memory=failing(Verb.STOP, on="gone")), {}),
        (snapshot(WHOLE, image=ImageState.PULLING), {}),
    ],
)
def test_the_fault_of_each_source(seen, expected):
    assert faults_of(seen) == expected


@pytest.mark.parametrize(("deleted", "sources"), [(True, {"remove"}), (False, set())])
def test_a_failed_removal_of_an_orphan_is_no_fault(*, deleted, sources):
    there = container()
    memory: SandboxMemory = failing(Verb.REMOVE, on=there)
    assert faults_of(snapshot(None, there, memory=memory, deleted=deleted)).keys() == sources


def test_every_source_has_its_causes():
    sources = set(Source) - {Source.ENGINE, Source.CIRCUIT, Source.IMAGE, Source.FAILURE}
    assert BEGUN.keys() == OVER.keys() == sources
    assert not sources & STEPS
