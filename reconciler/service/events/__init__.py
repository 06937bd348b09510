"""The events that the daemon logs."""

from reconciler.service.events.catalogue import Event

__all__ = ["Event"]
