"""YAML 1.2 to plain values, each with the line and column where it stands.

One pass over the events of libyaml's parser. Depth and number of values are bounded while they
are read, aliases counted at the size of what they stand for, so no input costs more than its bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from reconciler.core.errors import Diagnostic, ManifestError
from reconciler.store.scalars import resolve, shown_tag
from reconciler.store.strictness import laxness
from reconciler.store.yaml_words import explain_syntax

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_DEPTH: Final = 50
# 10,000 sandboxes with a dozen overrides each fit.
MAX_NODES: Final = 500_000
_CHARACTERS_PER_NODE: Final = 64
_LONGEST_MESSAGE: Final = 300
_MAPPING_TAGS: Final = frozenset({None, "!", "tag:yaml.org,2002:map"})
_SEQUENCE_TAGS: Final = frozenset({None, "!", "tag:yaml.org,2002:seq"})
_NO_KEYS: Final[Mapping[str, Node]] = MappingProxyType({})


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

    def child(self, key: str | int) -> Node | None:
        """The value under a key or at an index, if it is there."""
        if isinstance(self.children, dict):
            return self.children.get(key) if isinstance(key, str) else None
        if isinstance(self.children, list) and isinstance(key, int):
            return self.children[key] if key < len(self.children) else None
        return None


@dataclass(slots=True)
class Budget:
    """How many values may still be read, over all files of one load."""

    nodes: int = MAX_NODES


@dataclass(frozen=True, slots=True)
class Composed:
    """One document; ``root`` is None where there is none. ``problems`` lie in broken nodes."""

    root: Node | None
    problems: tuple[Diagnostic, ...]


def compose(text: str, file: str, budget: Budget) -> Composed:
    """The one document of a file.

    Raises:
        ManifestError: it is not YAML, or more than may be read; with one diagnostic.
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
        self._open: set[str] = set()

    def document(self) -> Node | None:
        next(self._events)
        start = next(self._events)
        if isinstance(start, StreamEndEvent):
            return None
        self._check_version(start)
        root = self._node(next(self._events), 0, None)
        next(self._events)
        following = next(self._events)
        if isinstance(following, DocumentStartEvent):
            raise self._refusal(following, "a second document begins here: a file holds only one")
        return root

    def _node(self, event: Event, depth: int, within: Node | None) -> Node:
        if isinstance(event, AliasEvent):
            return self._alias(event)
        assert isinstance(event, NodeEvent)
        self._check_form(event, within)
        if depth > MAX_DEPTH:
            raise self._refusal(event, f"nested deeper than {MAX_DEPTH} levels")
        if event.anchor is None:
            return self._content(event, depth)
        self._open.add(event.anchor)
        node = self._anchors[event.anchor] = self._content(event, depth)
        self._open.discard(event.anchor)
        return node

    def _content(self, event: NodeEvent, depth: int) -> Node:
        self._spend(event, 1)
        if isinstance(event, ScalarEvent):
            return self._scalar(event)
        node = self._place(event)
        if isinstance(event, MappingStartEvent):
            self._check_tag(node, event.tag, _MAPPING_TAGS)
            self._fill_mapping(node, depth + 1)
        elif isinstance(event, SequenceStartEvent):
            self._check_tag(node, event.tag, _SEQUENCE_TAGS)
            self._fill_sequence(node, depth + 1)
        return node

    def _check_tag(self, node: Node, tag: str | None, allowed: frozenset[str | None]) -> None:
        if tag is not None and tag not in allowed:
            self._complain(node, f"the tag {shown_tag(tag)} does not belong here: remove it")

    def _scalar(self, event: ScalarEvent) -> Node:
        node = self._place(event)
        extra = len(event.value) // _CHARACTERS_PER_NODE
        self._spend(event, extra)
        node.size += extra
        # libyaml calls a plain text with the tag "!" implicit, which it is not.
        tag = event.tag if event.tag == "!" or not any(event.implicit) else None
        try:
            node.data = resolve(event.value, tag, plain=event.implicit[0])
        except ValueError as error:
            self._complain(node, str(error))
        return node

    def _alias(self, event: AliasEvent) -> Node:
        name = str(event.anchor)
        if name in self._open:
            raise self._refusal(event, f"*{name} stands inside of what it refers to")
        node = self._anchors.get(name)
        if node is None:
            raise self._refusal(event, f"*{name} refers to no &{name} before it")
        self._spend(event, node.size)
        return node

    def _fill_sequence(self, node: Node, depth: int) -> None:
        children: list[Node] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            children.append(self._node(event, depth, node))
        self._check_form(event, node)
        node.children = children
        node.data = [child.data for child in children]
        node.size += sum(child.size for child in children)
        node.broken = node.broken or any(child.broken for child in children)

    def _fill_mapping(self, node: Node, depth: int) -> None:
        node.data, node.children, node.keys = {}, {}, {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._node(event, depth, node)
            value = self._node(next(self._events), depth, node)
            if _is_merge(event):
                self._spoil(node, key.complaint(_MERGE))
            elif key.children is not None:
                self._spoil(node, key.complaint(_NO_KEY))
            else:
                self._put(node, key, *self._named(event, key, value))
        self._check_form(event, node)

    def _named(self, event: Event, key: Node, value: Node) -> tuple[str, Node]:
        """Under which name a value is kept. One whose key is no string is kept, as a broken one."""
        if isinstance(key.data, str) and key.problem is None:
            return key.data, value
        text = event.value if isinstance(event, ScalarEvent) else str(key.data)
        problem = key.problem
        if problem is None:
            problem = key.complaint(f'a key must be a string: write it in quotes: "{text}"')
            self.problems.append(problem)
        # A copy, since the value may be shared through an alias and is fine elsewhere.
        return text, replace(value, problem=problem, broken=True)

    def _put(self, node: Node, key: Node, name: str, value: Node) -> None:
        assert isinstance(node.children, dict)
        assert isinstance(node.keys, dict)
        node.size += key.size + value.size
        if name in node.children:
            first = node.keys[name].line
            self._spoil(node, key.complaint(f'"{name}" is already given in line {first}'))
            return
        node.children[name], node.data[name], node.keys[name] = value, value.data, key
        node.broken = node.broken or value.broken

    def _place(self, event: Event) -> Node:
        mark = event.start_mark
        assert mark is not None
        return Node(self.file, mark.line + 1, mark.column + 1)

    def _complain(self, node: Node, message: str) -> None:
        self._spoil(node, node.complaint(message))

    def _spoil(self, node: Node, problem: Diagnostic) -> None:
        """The node cannot be used; the complaint may stand at one of its keys."""
        node.problem = node.problem or problem
        node.broken = True
        self.problems.append(problem)

    def _spend(self, event: Event, nodes: int) -> None:
        self.budget.nodes -= nodes
        if self.budget.nodes < 0:
            raise self._refusal(
                event, f"too much: more than {MAX_NODES} values, counting each alias in full"
            )

    def _check_form(self, event: Event, within: Node | None) -> None:
        lax = laxness(event, self.text, within.column - 1 if within else None)
        if lax is not None:
            raise self._refusal(event, lax)

    def _check_version(self, start: Event) -> None:
        version = start.version if isinstance(start, DocumentStartEvent) else None
        if version is not None and tuple(version) != (1, 2):
            number = ".".join(map(str, version))
            raise self._refusal(start, f"%YAML {number}: files are read as YAML 1.2; remove this")

    def _refusal(self, event: Event, message: str) -> ManifestError:
        return ManifestError((self._place(event).complaint(message),))


def _readable(message: str) -> str:
    """What a message repeats from the file may be long, or hold a terminal's control characters."""
    if len(message) > _LONGEST_MESSAGE:
        message = message[:_LONGEST_MESSAGE] + " ..."
    if message.isprintable():
        return message
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


_NO_KEY: Final = "a key must be a string, not a list or a mapping"
_MERGE: Final = (
    'the merge key "<<" is not part of YAML 1.2: use a spec, and overrides in the record'
)


def _is_merge(event: Event) -> bool:
    return isinstance(event, ScalarEvent) and event.value == "<<" and bool(event.implicit[0])
