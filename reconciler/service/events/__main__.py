"""Prints docs/events.md."""

import sys

from reconciler.service.events.page import markdown

sys.stdout.write(markdown())
