"""YAML 1.2 to plain values, each with the line and column where it stands.

One pass over the events of libyaml's parser. Depth and number of values are bounded while they
are read, aliases counted at the size of what they stand for, so no input costs more than its bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

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
    SequenceStartEvent,
    StreamEndEvent,
)

from reconciler.core.errors import Diagnostic, ManifestError
from reconciler.manifest.yaml12.nodes import Node
from reconciler.manifest.yaml12.scalars import resolve
from reconciler.manifest.yaml12.strictness import Around, strict_errors
from reconciler.manifest.yaml12.syntax_errors import explain_syntax

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH: Final = 50
# 10,000 sandboxes with a dozen overrides each fit.
MAX_NODES: Final = 500_000
_CHARACTERS_PER_NODE: Final = 64
_MAPPING_TAGS: Final = frozenset({None, "!", "tag:yaml.org,2002:map"})
_SEQUENCE_TAGS: Final = frozenset({None, "!", "tag:yaml.org,2002:seq"})


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
        root = self._node(next(self._events), 0, Around())
        next(self._events)
        following = next(self._events)
        if isinstance(following, DocumentStartEvent):
            raise self._refusal(following, "a second document begins here: a file holds only one")
        return root

    def _node(self, event: Event, depth: int, instance_config: Around) -> Node:
        if isinstance(event, AliasEvent):
            return self._alias(event)
        assert isinstance(event, NodeEvent)
        self._check_form(event, instance_config)
        if depth > MAX_DEPTH:
            raise self._refusal(event, f"nested deeper than {MAX_DEPTH} levels")
        if event.anchor is None:
            return self._content(event, depth, instance_config)
        self._open.add(event.anchor)
        node = self._anchors[event.anchor] = self._content(event, depth, instance_config)
        self._open.discard(event.anchor)
        return node

    def _content(self, event: NodeEvent, depth: int, instance_config: Around) -> Node:
        self._spend(event, 1)
        if isinstance(event, ScalarEvent):
            return self._scalar(event)
        node = self._place(event)
        if isinstance(event, MappingStartEvent):
            self._check_tag(node, event.tag, _MAPPING_TAGS)
            self._fill_mapping(node, depth + 1, _inside(event, node, instance_config))
        elif isinstance(event, SequenceStartEvent):
            self._check_tag(node, event.tag, _SEQUENCE_TAGS)
            self._fill_sequence(node, depth + 1, _inside(event, node, instance_config))
        return node

    def _check_tag(self, node: Node, tag: str | None, allowed: frozenset[str | None]) -> None:
        if tag is not None and tag not in allowed:
            self._complain(node, "this tag (the word that begins with !) does not fit: remove it")

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
            raise self._refusal(event, "this alias stands inside the value that it refers to")
        node = self._anchors.get(name)
        if node is None:
            raise self._refusal(
                event,
                "a value that begins with * is an alias, and no anchor has its name: quote it",
            )
        self._spend(event, node.size)
        return node

    def _fill_sequence(self, node: Node, depth: int, inside: Around) -> None:
        children: list[Node] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            children.append(self._node(event, depth, inside))
        self._check_form(event, inside)
        node.children = children
        node.data = [child.data for child in children]
        node.size += sum(child.size for child in children)
        node.broken = node.broken or any(child.broken for child in children)

    def _fill_mapping(self, node: Node, depth: int, inside: Around) -> None:
        node.data, node.children, node.keys = {}, {}, {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._node(event, depth, inside)
            value = self._node(next(self._events), depth, inside)
            if _is_merge(event):
                self._spoil(node, key.complaint(_MERGE))
            elif key.children is not None:
                self._spoil(node, key.complaint(_NO_KEY))
            else:
                self._put(node, key, *self._named(event, key, value))
        self._check_form(event, inside)

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

    def _check_form(self, event: Event, instance_config: Around) -> None:
        lax = strict_errors(event, self.text, instance_config)
        if lax is not None:
            raise self._refusal(event, lax)

    def _check_version(self, start: Event) -> None:
        version = start.version if isinstance(start, DocumentStartEvent) else None
        if version is not None and tuple(version) != (1, 2):
            number = ".".join(map(str, version))
            raise self._refusal(start, f"%YAML {number}: files are read as YAML 1.2; remove this")

    def _refusal(self, event: Event, message: str) -> ManifestError:
        return ManifestError((self._place(event).complaint(message),))


def _inside(event: CollectionStartEvent, node: Node, instance_config: Around) -> Around:
    if event.flow_style:
        return instance_config._replace(flow=True)
    # A tag or an anchor may stand on a line of its own, before the column that counts.
    is_plain = event.anchor is None and event.tag is None
    return Around(node.column - 1) if is_plain else instance_config


_NO_KEY: Final = "a key must be a string, not a list or a mapping"
_MERGE: Final = (
    'the merge key "<<" is not part of YAML 1.2: use a spec, and overrides in the record'
)


def _is_merge(event: Event) -> bool:
    return isinstance(event, ScalarEvent) and event.value == "<<" and bool(event.implicit[0])
