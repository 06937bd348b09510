from __future__ import annotations

from dataclasses import replace

from reconciler.core.action import Verb
from reconciler.core.failures import after_failure, after_success
from reconciler.core.restart import (
    Failure,
    SandboxMemory,
)
from reconciler.core.spec import RestartSpec
from tests.core.builders import HASH, NOW, OLD

RESTART = RestartSpec.model_validate({"backoff": "1s", "max_backoff": "60s", "reset_after": "10m"})


def failed(verb: Verb = Verb.CREATE, spec_hash: str = HASH, at: float = NOW) -> Failure:
    return Failure(verb, spec_hash, "no", 1, at, at)


def remember(memory: SandboxMemory, failure: Failure, *, swap: bool = False) -> SandboxMemory:
    relevant = {HASH}
    return after_failure(memory, failure, RESTART, "alice", swap=swap, relevant=relevant)


def test_an_action_that_fails_again_waits_longer():
    once = remember(SandboxMemory(), failed())
    assert [f.count for f in once.failures] == [1]
    assert 0.9 <= once.failures[0].not_before - NOW <= 1.0
    thrice = remember(remember(once, failed()), failed(at=NOW + 7))
    assert [f.count for f in thrice.failures] == [3]
    assert 3.6 <= thrice.failures[0].not_before - (NOW + 7) <= 4.0


def test_a_failed_replacement_has_a_longer_backoff():
    swap = remember(SandboxMemory(), failed(Verb.START), swap=True)
    assert 54.0 <= swap.failures[0].not_before - NOW <= 60.0


def test_failures_of_former_edits_are_forgotten():
    memory = remember(SandboxMemory(), failed(Verb.START))
    memory = remember(memory, failed(Verb.CREATE, OLD, NOW + 1))
    assert [f.verb for f in memory.failures] == [Verb.START, Verb.CREATE]
    memory = remember(memory, failed(Verb.PULL, HASH, NOW + 2))
    assert [f.verb for f in memory.failures] == [Verb.START, Verb.PULL]
    assert max(memory.failures, key=lambda failure: failure.at) == memory.failures[-1]


def test_failures_on_removed_objects_are_forgotten():
    on = [replace(failed(Verb.REMOVE), target=target) for target in ("here", "gone", "")]
    memory = SandboxMemory(failures=tuple(on))
    memory = after_failure(memory, failed(), RESTART, "alice", swap=False, relevant={HASH, "here"})
    assert [f.target for f in memory.failures] == ["here", "", ""]


def test_success_forgets_failures_and_nothing_else():
    memory = SandboxMemory(restarts=2, streak=1, failures=(failed(),))
    assert after_success(memory) == SandboxMemory(restarts=2, streak=1)
    assert after_success(SandboxMemory(streak=1)) == SandboxMemory(streak=1)
