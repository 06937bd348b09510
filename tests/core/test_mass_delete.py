from __future__ import annotations

import pytest

from reconciler.core.mass_delete import mass_delete_guard_engages


@pytest.mark.parametrize(
    ("total", "removed", "engages"),
    [
        (4, 3, False),
        (4, 4, True),
        (10, 4, True),
        (13, 4, True),
        (14, 4, False),
        (100, 30, False),
        (100, 31, True),
        (0, 0, False),
    ],
)
def test_the_guard_needs_both_a_count_and_a_percentage(total, removed, engages):
    assert mass_delete_guard_engages(total, removed, count=3, percent=30.0) is engages
