"""Compose YAML 1.2 text into plain values, each with its line and column.

One pass over the events of libyaml's parser. Depth and number of values are limited during the
pass, and an alias counts as much as the value that it refers to, so the cost has an upper bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import yaml
from yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)

from reconciler.core.errors import Diagnostic, ManifestError
from reconciler.manifest.yaml12.scalars import resolve
from reconciler.manifest.yaml12.syntax_errors import Context, explain_syntax, strict_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_DEPTH: Final = 50
# 10,000 sandboxes with a dozen overrides each fit.
MAX_NODES: Final = 500_000
_CHARACTERS_PER_NODE: Final = 64
_MAX_MESSAGE: Final = 300
_MAPPING_TAGS: Final = frozenset({None, "!", "tag:yaml.org,2002:map"})
_SEQUENCE_TAGS: Final = frozenset({None, "!", "tag:yaml.org,2002:seq"})
_NO_KEY: Final = "a key must be a string, not a list or a mapping"
_NO_ANCHOR: Final = (
    "a value that begins with * is an alias, and no anchor has its name: put it in quotes"
)
_MERGE: Final = (
    'the merge key "<<" is not part of YAML 1.2: use a spec, and overrides in the record'
)


class Place(NamedTuple):
    """A position in a file. Lines and columns count from 1."""

    file: str
    line: int
    column: int


@dataclass(slots=True, eq=False)
class Node:
    """One value and its position. Lines and columns count from 1.

    ``data`` is the plain value; aliases share it, so it must not be changed. ``keys`` holds the
    keys of a mapping as nodes. ``size`` counts the values inside, long texts as several.
    ``problem`` is the first problem of the value itself. ``broken``: it, or a value inside it, has
    a problem.
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

    def diagnostic(self, message: str) -> Diagnostic:
        """Return a diagnostic at this position: one printable line of limited length."""
        if len(message) > _MAX_MESSAGE:
            message = message[:_MAX_MESSAGE] + " ..."
        # A message may quote the file, which may hold a terminal's control characters.
        if not message.isprintable():
            message = "".join(
                c if c.isprintable() else c.encode("unicode_escape").decode() for c in message
            )
        return Diagnostic(self.file, self.line, self.column, message)

    def problems(self) -> Iterator[Diagnostic]:
        """Yield the problems of the value and of all values inside it, each once."""
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
        """Return the position of a key of this mapping, or None."""
        found = self.keys.get(key)
        return Place(found.file, found.line, found.column) if found else None

    def child(self, key: str | int) -> Node | None:
        """Return the value under a key or at an index, or None."""
        if isinstance(self.children, dict):
            return self.children.get(key) if isinstance(key, str) else None
        if isinstance(self.children, list) and isinstance(key, int):
            return self.children[key] if key < len(self.children) else None
        return None


_NO_KEYS: Final[Mapping[str, Node]] = MappingProxyType({})


@dataclass(slots=True)
class Budget:
    """How many values may still be read, over all files of one load."""

    nodes: int = MAX_NODES


@dataclass(frozen=True, slots=True)
class Composed:
    """One document. ``root`` is None for an empty one; nodes with ``problems`` are broken."""

    root: Node | None
    problems: tuple[Diagnostic, ...]


def compose(text: str, file: str, budget: Budget) -> Composed:
    """Return the only document of a file.

    Raises:
        ManifestError: the text is not YAML, or exceeds a limit; with one diagnostic.
    """
    composer = _Composer(text, file, budget)
    try:
        root = composer.document()
    except yaml.MarkedYAMLError as error:
        raise ManifestError((explain_syntax(error, file, text),)) from error
    except yaml.YAMLError as error:
        raise ManifestError((Diagnostic(file, 1, 1, f"not YAML: {error}"),)) from error
    return Composed(root, tuple(composer.problems))


@dataclass
class _Composer:
    text: str
    file: str
    budget: Budget
    problems: list[Diagnostic] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._events: Iterator[Event] = yaml.parse(self.text, Loader=yaml.CSafeLoader)
        self._anchors: dict[str, Node] = {}
        self._open_anchors: set[str] = set()

    def document(self) -> Node | None:
        next(self._events)
        start = next(self._events)
        if isinstance(start, StreamEndEvent):
            return None
        version = start.version if isinstance(start, DocumentStartEvent) else None
        if version is not None and tuple(version) != (1, 2):
            number = ".".join(map(str, version))
            raise self._error(start, f"%YAML {number}: files are read as YAML 1.2; remove this")
        root = self._node(next(self._events), 0, Context())
        next(self._events)
        following = next(self._events)
        if isinstance(following, DocumentStartEvent):
            raise self._error(following, "a second document begins here: a file holds only one")
        return root

    def _node(self, event: Event, depth: int, context: Context) -> Node:
        if isinstance(event, AliasEvent):
            name = str(event.anchor)
            if name in self._open_anchors:
                raise self._error(event, "this alias stands inside the value that it refers to")
            if name not in self._anchors:
                raise self._error(event, _NO_ANCHOR)
            self._spend(event, self._anchors[name].size)
            return self._anchors[name]
        assert isinstance(event, NodeEvent)
        self._check_strictly(event, context)
        if depth > MAX_DEPTH:
            raise self._error(event, f"nested deeper than {MAX_DEPTH} levels")
        if event.anchor is None:
            return self._content(event, depth, context)
        self._open_anchors.add(event.anchor)
        node = self._anchors[event.anchor] = self._content(event, depth, context)
        self._open_anchors.discard(event.anchor)
        return node

    def _content(self, event: NodeEvent, depth: int, context: Context) -> Node:
        self._spend(event, 1)
        node = self._node_at(event)
        if isinstance(event, ScalarEvent):
            extra = len(event.value) // _CHARACTERS_PER_NODE
            self._spend(event, extra)
            node.size += extra
            # libyaml calls a plain text with the tag "!" implicit, which it is not.
            tag = event.tag if event.tag == "!" or not any(event.implicit) else None
            try:
                node.data = resolve(event.value, tag, plain=event.implicit[0])
            except ValueError as error:
                self._add_problem(node, node.diagnostic(str(error)))
        elif isinstance(event, CollectionStartEvent):
            if event.flow_style:
                context = context._replace(flow=True)
            # A tag or an anchor may stand on its own line, before the column that counts.
            elif event.anchor is None and event.tag is None:
                context = Context(node.column - 1)
            tags = _MAPPING_TAGS if isinstance(event, MappingStartEvent) else _SEQUENCE_TAGS
            if event.tag not in tags:
                message = "this tag (the word that begins with !) does not fit: remove it"
                self._add_problem(node, node.diagnostic(message))
            if isinstance(event, MappingStartEvent):
                self._fill_mapping(node, depth + 1, context)
                return node
            children: list[Node] = []
            while not isinstance(end := next(self._events), SequenceEndEvent):
                children.append(self._node(end, depth + 1, context))
            self._check_strictly(end, context)
            node.children = children
            node.data = [child.data for child in children]
            node.size += sum(child.size for child in children)
            node.broken = node.broken or any(child.broken for child in children)
        return node

    def _fill_mapping(self, node: Node, depth: int, context: Context) -> None:
        data: dict[str, Any] = {}
        children: dict[str, Node] = {}
        keys: dict[str, Node] = {}
        node.data, node.children, node.keys = data, children, keys
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._node(event, depth, context)
            value = self._node(next(self._events), depth, context)
            if isinstance(event, ScalarEvent) and event.value == "<<" and event.implicit[0]:
                self._add_problem(node, key.diagnostic(_MERGE))
                continue
            if key.children is not None:
                self._add_problem(node, key.diagnostic(_NO_KEY))
                continue
            name = key.data
            if not isinstance(name, str) or key.problem is not None:
                name = event.value if isinstance(event, ScalarEvent) else str(key.data)
                problem = key.problem
                if problem is None:
                    message = f'a key must be a string: write it in quotes: "{name}"'
                    problem = key.diagnostic(message)
                    self.problems.append(problem)
                # A copy: an alias may share the value, which is valid elsewhere.
                value = replace(value, problem=problem, broken=True)
            node.size += key.size + value.size
            if name in children:
                message = f'"{name}" is already given in line {keys[name].line}'
                self._add_problem(node, key.diagnostic(message))
                continue
            children[name], data[name], keys[name] = value, value.data, key
            node.broken = node.broken or value.broken
        self._check_strictly(event, context)

    def _node_at(self, event: Event) -> Node:
        mark = event.start_mark
        assert mark is not None
        return Node(self.file, mark.line + 1, mark.column + 1)

    def _add_problem(self, node: Node, problem: Diagnostic) -> None:
        """Mark the node as broken; the problem's position may be one of its keys."""
        node.problem = node.problem or problem
        node.broken = True
        self.problems.append(problem)

    def _spend(self, event: Event, nodes: int) -> None:
        self.budget.nodes -= nodes
        if self.budget.nodes < 0:
            message = f"too much: more than {MAX_NODES} values, counting each alias in full"
            raise self._error(event, message)

    def _check_strictly(self, event: Event, context: Context) -> None:
        if (message := strict_error(event, self.text, context)) is not None:
            raise self._error(event, message)

    def _error(self, event: Event, message: str) -> ManifestError:
        return ManifestError((self._node_at(event).diagnostic(message),))
