"""The mass-delete guard's rule, for edits of the desired file and for garbage collection."""

from __future__ import annotations


def mass_delete_guard_engages(total: int, removed: int, *, count: int, percent: float) -> bool:
    """Whether removing ``removed`` of ``total`` sandboxes needs confirmation."""
    return removed > count and removed * 100.0 > percent * total
