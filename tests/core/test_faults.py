"""What is wrong with a sandbox, by source; the log, the ledger and the status all say this."""

from __future__ import annotations

import pytest

from reconciler.core import faults
from reconciler.core.faults import faults_of
from reconciler.core.model import UNMEASURED, UNREAD, Fate, ImageState, Memory, Verb
from tests.core.builders import OLD, container, desired, failing, snapshot

FULL = "the disk is full"
WHOLE = desired()


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (snapshot(WHOLE), {}),
        (snapshot(WHOLE, container(), hold=FULL), {}),
        (snapshot(WHOLE, hold=FULL), {"disk": FULL}),
        (snapshot(WHOLE, container(spec_hash=OLD), hold=FULL), {"disk": FULL}),
        (snapshot(WHOLE, hold=UNMEASURED), {}),
        (snapshot(desired(problem="no file", spec_hash=None)), {"env_file": "no file"}),
        (snapshot(desired(problem=UNREAD, spec_hash=None)), {}),
        (snapshot(desired(problem="no port")), {"ports": "no port"}),
        (snapshot(WHOLE, container(), unseen="nonsense"), {"inspect": "nonsense"}),
        (snapshot(WHOLE, container(), held="f:1:1: bad"), {"record": "f:1:1: bad"}),
        (snapshot(None, held="f:1:1: bad"), {"record": "f:1:1: bad"}),
        (snapshot(WHOLE, memory=failing(Verb.CREATE, Verb.PULL)), {"create": "no", "pull": "no"}),
        (snapshot(WHOLE, memory=failing(Verb.CREATE, spec_hash=OLD)), {}),
        (snapshot(WHOLE, container(), memory=failing(Verb.STOP, on="gone")), {}),
        (snapshot(WHOLE, image=ImageState.PULLING), {}),
    ],
)
def test_each_source(seen, expected):
    assert faults_of(seen) == expected


@pytest.mark.parametrize(("fate", "sources"), [(Fate.DELETED, {"remove"}), (Fate.UNKNOWN, set())])
def test_garbage_is_no_sandbox(fate, sources):
    there = container()
    memory: Memory = failing(Verb.REMOVE, on=there)
    assert faults_of(snapshot(None, there, memory=memory, fate=fate)).keys() == sources


def test_every_source_has_its_words():
    sources = {faults.RECORD, faults.ENV_FILE, faults.PORTS, faults.DISK, faults.INSPECT}
    assert faults.BEGUN.keys() == faults.OVER.keys() == sources
    assert not sources & faults.STEPS
