"""What is wrong with a sandbox, by source; the log, the ledger and the status all say this."""

from __future__ import annotations

import pytest

from reconciler.core import faults
from reconciler.core.faults import faults_of
from reconciler.core.model import UNMEASURED, UNREAD, Fate, ImageState, Memory, Verb
from tests.core.builders import OLD, container, desired, failing, view

FULL = "the disk is full"
WHOLE = desired()


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (view(WHOLE), {}),
        (view(WHOLE, container(), hold=FULL), {}),
        (view(WHOLE, hold=FULL), {"disk": FULL}),
        (view(WHOLE, container(spec_hash=OLD), hold=FULL), {"disk": FULL}),
        (view(WHOLE, hold=UNMEASURED), {}),
        (view(desired(problem="no file", spec_hash=None)), {"env_file": "no file"}),
        (view(desired(problem=UNREAD, spec_hash=None)), {}),
        (view(desired(problem="no port")), {"ports": "no port"}),
        (view(WHOLE, container(), unseen="nonsense"), {"inspect": "nonsense"}),
        (view(WHOLE, container(), held="f:1:1: bad"), {"record": "f:1:1: bad"}),
        (view(None, held="f:1:1: bad"), {"record": "f:1:1: bad"}),
        (view(WHOLE, memory=failing(Verb.CREATE, Verb.PULL)), {"create": "no", "pull": "no"}),
        (view(WHOLE, memory=failing(Verb.CREATE, spec_hash=OLD)), {}),
        (view(WHOLE, container(), memory=failing(Verb.STOP, on="gone")), {}),
        (view(WHOLE, image=ImageState.PULLING), {}),
    ],
)
def test_each_source(seen, expected):
    assert faults_of(seen) == expected


@pytest.mark.parametrize(("fate", "sources"), [(Fate.DELETED, {"remove"}), (Fate.UNKNOWN, set())])
def test_garbage_is_no_sandbox(fate, sources):
    there = container()
    memory: Memory = failing(Verb.REMOVE, on=there)
    assert faults_of(view(None, there, memory=memory, fate=fate)).keys() == sources


def test_every_source_has_its_words():
    sources = {faults.RECORD, faults.ENV_FILE, faults.PORTS, faults.DISK, faults.INSPECT}
    assert faults.BEGUN.keys() == faults.OVER.keys() == sources
    assert not sources & faults.STEPS
