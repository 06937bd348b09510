"""Record what happened: in the log, and in the ledger of the sandbox that it happened to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import structlog

from reconciler.telemetry.dedup import LogDeduplicator
from reconciler.telemetry.redact import redactor, sanitizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reconciler.telemetry.events import Event, RepeatedEvent, SandboxEvent

_clean: Final = sanitizer(redactor)


class Recorder:
    """The only way to the log and to the ledger. ``ledger`` is set once the store is open."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._log = structlog.get_logger()
        self._warnings = LogDeduplicator(clock)
        self.ledger: Callable[[str, str | None, str, Mapping[str, Any]], object] | None = None

    def log(self, event: Event) -> None:
        """Log an event, and keep it out of the ledger."""
        getattr(self._log, event.level)(event.event_name, **event.fields())

    def tell(self, event: SandboxEvent) -> None:
        """Log an event of a sandbox, and add it to the ledger."""
        self.log(event)
        self.note(event)

    def note(self, event: SandboxEvent) -> None:
        """Add an event of a sandbox to the ledger, and do not log it."""
        if self.ledger is None:
            return
        data = event.fields()
        del data["sandbox"], data["cause"]
        cause = redactor.clean(event.cause)
        self.ledger(event.event_name, event.sandbox, cause, _clean(None, "", data))

    def complain(self, event: RepeatedEvent, *, about: str = "") -> None:
        """Log a warning that may repeat: once, and then its number of repetitions once a minute.

        ``about`` tells warnings of one event apart, such as those of two sandboxes.
        """
        repeated = self._warnings.count((event.event_name, about))
        if repeated is not None:
            self.log(replace(event, repeated=repeated) if repeated else event)

    def resolve(self, event: type[RepeatedEvent], *, about: str = "") -> int:
        """End a repeated warning, so that the next one is logged at once; return its count."""
        return self._warnings.resolve((event.event_name, about))
