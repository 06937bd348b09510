from __future__ import annotations

from reconciler.core.health import Health, Verdict, fold
from reconciler.core.spec import HealthSpec
from tests.core.builders import NOW

PROBE = HealthSpec.model_validate({"failures": 3, "startup_grace": "60s"})


def folded(*probes: tuple[float, str | None], spec: HealthSpec = PROBE) -> list[Verdict]:
    health, verdicts = Health("id", 7.0, NOW), []
    for after, reason in probes:
        health = fold(health, spec, reason, NOW + after)
        verdicts.append(health.verdict)
    return verdicts


GOOD, BAD, SICK = Verdict.GOOD, Verdict.BAD, Verdict.UNHEALTHY


def test_bad_probes_within_the_grace_are_not_counted():
    assert folded(*[(9.0 * n, "refused") for n in range(6)]) == [BAD] * 6
    assert folded((59.0, "refused"), (60.0, "refused"), (70.0, "refused")) == [BAD] * 3


def test_failures_in_a_row_after_grace_make_it_unhealthy():
    assert folded((60, "a"), (70, "b"), (80, "c"), (90, None)) == [BAD, BAD, SICK, GOOD]


def test_one_bad_probe_does_not_change_a_good_verdict():
    probes = [(1, None), (61, "a"), (62, "b"), (63, None), (64, "a"), (65, "b"), (66, "c")]
    assert folded(*probes) == [GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, SICK]


def test_the_verdict_is_good_after_enough_good_probes():
    twice = HealthSpec.model_validate({"successes": 2})
    assert folded((1, None), (2, "a"), (3, None), (4, None), spec=twice) == [
        Verdict.UNKNOWN,
        BAD,
        BAD,
        GOOD,
    ]


def test_a_verdict_has_the_time_it_was_reached():
    health = fold(Health("id", 7.0, NOW), PROBE, None, NOW + 1)
    assert fold(health, PROBE, None, NOW + 9).since == NOW + 1
    bad = fold(health, PROBE, "refused", NOW + 99)
    assert (bad.reason, bad.good, bad.bad) == ("refused", 0, 1)
    assert fold(bad, PROBE, None, NOW + 100).reason == ""
