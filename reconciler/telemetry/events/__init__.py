"""The events that the daemon logs: each is a class with typed fields.

``python -m reconciler.telemetry.events`` prints docs/events.md from these classes.
"""

from reconciler.telemetry.events.base import *
from reconciler.telemetry.events.daemon_events import *
from reconciler.telemetry.events.engine_events import *
from reconciler.telemetry.events.manifest_events import *
from reconciler.telemetry.events.resources_events import *
from reconciler.telemetry.events.sandbox_events import *
