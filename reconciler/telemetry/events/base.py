"""The base classes of log events, and the list of all events."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Callable

Level = Literal["debug", "info", "warning", "error"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """A log line.

    Subclasses declare their fields, and their docstring is the event's meaning on docs/events.md.
    A field with a default is optional: None leaves it out of the line.

    Attributes:
        event_name: The stable name, such as ``sandbox.died``: filters and alerts depend on it.
        level: The level that the event is logged at.
        context: Fields that the logging context adds where a reconcile pass logs the event.
    """

    event_name: ClassVar[str]
    level: ClassVar[Level]
    context: ClassVar[tuple[str, ...]] = ()

    def fields(self) -> dict[str, Any]:
        """Return the fields of the line, without those that are None."""
        named = ((each.name, getattr(self, each.name)) for each in dataclasses.fields(self))
        return {name: value for name, value in named if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SandboxEvent(Event):
    """An event of one sandbox, which the ledger may keep; ``cause`` says why it happened."""

    context = ("reconcile_id",)

    sandbox: str
    cause: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepeatedEvent(Event):
    """A warning that may repeat; ``repeated`` counts the repetitions since its last line."""

    repeated: int | None = None


CATALOGUE: Final[list[type[Event]]] = []
_E = TypeVar("_E", bound=Event)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def log_event(name: str, level: Level = "info") -> Callable[[type[_E]], type[_E]]:
    """Make a class an event: a frozen dataclass with keyword arguments, listed in ``CATALOGUE``."""

    def register(cls: type[_E]) -> type[_E]:
        made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        made.event_name, made.level = name, level
        CATALOGUE.append(made)
        return made

    return register
