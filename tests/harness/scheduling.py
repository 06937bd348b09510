"""Distribute the tests among workers."""

from xdist.scheduler import LoadScopeScheduling

# These share a machine that boots slowly: one worker runs them all.
TOGETHER = "tests/systemd/"


class Scheduling(LoadScopeScheduling):
    """Distribute as xdist's `load` does, except for tests that stay together; they come first.

    Not xdist's `loadgroup`: it renames tests to group them, and pytest 9.2 keeps their names.
    """

    def _split_scope(self, nodeid: str) -> str:
        return TOGETHER if nodeid.startswith(TOGETHER) else nodeid
