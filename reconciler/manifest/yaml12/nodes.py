"""A value of a YAML file, and the place where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from reconciler.core.errors import Diagnostic

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LONGEST_MESSAGE: Final = 300
_NO_KEYS: Final[Mapping[str, Node]] = MappingProxyType({})


class Place(NamedTuple):
    """A place in a file. Lines and columns count from 1."""

    file: str
    line: int
    column: int


@dataclass(slots=True, eq=False)
class Node:
    """One value and its place. Lines and columns count from 1.

    ``data`` is the plain value; aliased values are shared, so it must not be changed. ``keys``
    holds the keys of a mapping as nodes. ``size`` counts the values in it, long texts as several.
    ``problem`` is what was first complained of about the value itself, ``broken`` says that it or
    one inside it was complained about.
    """

    file: str
    line: int
    column: int
    data: Any = None
    children: dict[str, Node] | list[Node] | None = None
    keys: Mapping[str, Node] = field(default_factory=lambda: _NO_KEYS)
    size: int = 1
    problem: Diagnostic | None = None
    broken: bool = False

    def complaint(self, message: str) -> Diagnostic:
        """A diagnostic at this place, of one line and a readable length."""
        return Diagnostic(self.file, self.line, self.column, _readable(message))

    def problems(self) -> Iterator[Diagnostic]:
        """What was complained of about it and what is in it, each once."""
        seen: set[int] = set()
        waiting = [self]
        while waiting:
            node = waiting.pop()
            if not node.broken or id(node) in seen:
                continue
            seen.add(id(node))
            if node.problem is not None:
                yield node.problem
            children = node.children or ()
            waiting += children.values() if isinstance(children, dict) else children

    def place_of(self, key: str) -> Place | None:
        """Where a key of this mapping stands, if it is there."""
        found = self.keys.get(key)
        return Place(found.file, found.line, found.column) if found else None

    def child(self, key: str | int) -> Node | None:
        """The value under a key or at an index, if it is there."""
        if isinstance(self.children, dict):
            return self.children.get(key) if isinstance(key, str) else None
        if isinstance(self.children, list) and isinstance(key, int):
            return self.children[key] if key < len(self.children) else None
        return None


def _readable(message: str) -> str:
    """What a message repeats from the file may be long, or hold a terminal's control characters."""
    if len(message) > _LONGEST_MESSAGE:
        message = message[:_LONGEST_MESSAGE] + " ..."
    if message.isprintable():
        return message
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
