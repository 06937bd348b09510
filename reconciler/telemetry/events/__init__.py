"""The events that the daemon logs."""

from reconciler.telemetry.events.catalogue import Event

__all__ = ["Event"]
