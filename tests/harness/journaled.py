"""The daemon, which sends its log to a socket that a test reads in the journal's place.

`python -m tests.harness.journaled …` is `python -m reconciler …`, but for the path of the journal's
socket, which JOURNAL_SOCKET names.
"""

import os
import runpy
import sys
from functools import partial

from reconciler.telemetry import logging
from reconciler.telemetry.journald import Journal

if __name__ == "__main__":
    logging.Journal = partial(Journal, os.environ["JOURNAL_SOCKET"])  # type: ignore[misc,assignment]
    sys.argv[0] = "reconciler"
    runpy.run_module("reconciler", run_name="__main__", alter_sys=False)
