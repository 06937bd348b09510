"""The events that the daemon logs: each is a class with typed fields.

``python -m reconciler.telemetry.events`` prints docs/events.md from these classes.
"""

from reconciler.telemetry.events.base import *
from reconciler.telemetry.events.daemon import *
from reconciler.telemetry.events.engine import *
from reconciler.telemetry.events.manifest import *
from reconciler.telemetry.events.resources import *
from reconciler.telemetry.events.sandbox import *
