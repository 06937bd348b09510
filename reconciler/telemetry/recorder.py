"""Reports what happened: to the log, and to the ledger of the sandbox that it happened to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import structlog
from structlog.contextvars import get_contextvars

from reconciler.telemetry.dedup import LogDeduplicator
from reconciler.telemetry.events import Event
from reconciler.telemetry.redact import redactor, sanitizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_clean: Final = sanitizer(redactor)


class Recorder:
    """The only way to the log and to the ledger. ``ledger`` is set once the store is open.

    An event has the fields that the catalogue names: ``strict`` raises ValueError where it does
    not, for tests; otherwise what is too much is dropped, and ``log.malformed`` reports it.
    """

    def __init__(self, clock: Callable[[], float], *, strict: bool = False) -> None:
        self._log = structlog.get_logger()
        self._complaints = LogDeduplicator(clock)
        self._strict = strict
        self.ledger: Callable[[str, str | None, str, Mapping[str, Any]], object] | None = None

    def log(self, event: Event, **fields: Any) -> None:
        """Log an event that is about no sandbox, or whose sandbox has no ledger yet."""
        self._write(event, self._checked(event, fields))

    def tell(self, event: Event, sandbox: str, cause: str, **fields: Any) -> None:
        """Log an event of a sandbox, and add it to the ledger."""
        known = self._checked(event, {"sandbox": sandbox, "cause": cause, **fields})
        self._write(event, known)
        self._append(event, known)

    def note(self, event: Event, sandbox: str, cause: str, **fields: Any) -> None:
        """Add an event of a sandbox to the ledger, and do not log it."""
        self._append(event, self._checked(event, {"sandbox": sandbox, "cause": cause, **fields}))

    def complain(self, event: Event, *, about: str = "", **fields: Any) -> None:
        """Log a warning that may be repeated: once, and then how often it was repeated."""
        repeated = self._complaints.say((event, about))
        if repeated is None:
            return
        counted = {"repeated": repeated} if repeated else {}
        self.log(event, **fields, **counted)

    def resolve(self, event: Event, *, about: str = "") -> int:
        """End a repeated warning; returns how often it was made."""
        return self._complaints.resolved((event, about))

    def _checked(self, event: Event, fields: Mapping[str, Any]) -> dict[str, Any]:
        known = {name: value for name, value in fields.items() if value is not None}
        unknown, missing = event.misfits(known)
        missing = [name for name in missing if name not in get_contextvars()]
        if not unknown and not missing:
            return known
        if self._strict:
            raise ValueError(f"{event}: unknown fields {unknown}, missing fields {missing}")
        self.complain(
            Event.LOG_MALFORMED, about=event, event_name=event, unknown=unknown, missing=missing
        )
        return {name: value for name, value in known.items() if name not in unknown}

    def _write(self, event: Event, fields: Mapping[str, Any]) -> None:
        getattr(self._log, event.level)(event, **fields)

    def _append(self, event: Event, fields: Mapping[str, Any]) -> None:
        if self.ledger is None:
            return
        data = {name: fields[name] for name in fields if name not in {"sandbox", "cause"}}
        cause = redactor.clean(fields["cause"])
        self.ledger(str(event), fields["sandbox"], cause, _clean(None, "", data))
