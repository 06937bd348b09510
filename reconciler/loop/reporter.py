"""What is said: to the log, and to the ledger that remembers each sandbox's story."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import structlog

from reconciler.service.redact import redactor, sanitizer
from reconciler.service.suppress import Complaints

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reconciler.service.events import Event

_clean: Final = sanitizer(redactor)


class Reporter:
    """One way to say what happened. ``ledger`` is set once the store is open."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._log = structlog.get_logger()
        self._complaints = Complaints(clock)
        self.ledger: Callable[[str, str | None, str, Mapping[str, Any]], object] | None = None

    def log(self, event: Event, **fields: Any) -> None:
        """A line in the log."""
        getattr(self._log, event.level)(event, **fields)

    def tell(self, event: Event, sandbox: str, cause: str, **fields: Any) -> None:
        """A line in the log and one in the sandbox's story."""
        self.log(event, sandbox=sandbox, cause=cause, **fields)
        self.note(event, sandbox, cause, **fields)

    def note(self, event: Event, sandbox: str, cause: str, **fields: Any) -> None:
        """A line in the sandbox's story alone."""
        if self.ledger is not None:
            self.ledger(str(event), sandbox, redactor.clean(cause), _clean(None, "", fields))

    def complain(self, event: Event, *, about: str = "", **fields: Any) -> None:
        """A line in the log, once: the same complaint is counted, then summed up."""
        repeated = self._complaints.say((event, about))
        if repeated is None:
            return
        counted = {"repeated": repeated} if repeated else {}
        self.log(event, **fields, **counted)

    def resolve(self, event: Event, *, about: str = "") -> int:
        """The complaint is over; says how often it was made."""
        return self._complaints.resolved((event, about))
