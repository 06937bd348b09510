"""How the tests are shared out among workers."""

from xdist.scheduler import LoadScopeScheduling

# These share a machine that takes long to boot: one worker has them all.
TOGETHER = "tests/systemd/"


class Scheduling(LoadScopeScheduling):
    """As xdist's `load`, test by test, but for the tests that stay together; they come first.

    Not xdist's `loadgroup`: it renames tests to group them, and pytest 9.2 keeps their names.
    """

    def _split_scope(self, nodeid: str) -> str:
        return TOGETHER if nodeid.startswith(TOGETHER) else nodeid
