"""Prints docs/events.md."""

import sys

from reconciler.telemetry.events.page import markdown

sys.stdout.write(markdown())
