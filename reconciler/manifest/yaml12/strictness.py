"""What libyaml lets pass and YAML 1.2 does not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from yaml.events import CollectionEndEvent, CollectionStartEvent, ScalarEvent

if TYPE_CHECKING:
    from yaml.events import Event

_GLUED_HEADER: Final = re.compile(r"(?:[!&]\S*\s+)*[|>][-+0-9]*#")
_GLUED_COMMA: Final = re.compile(r"(?:\s|(?<=\s)#[^\n]*\n)*,#")
_COMMENT: Final = "a comment needs a blank before its #"
_INDENT: Final = "this must be indented more than what it belongs to"


class Around(NamedTuple):
    """Where a value stands: the column of the nearest list or mapping that is written in lines.

    Columns count from 0; -1 is the top. ``flow``: between the two, it stands in brackets.
    """

    column: int = -1
    flow: bool = False


def strict_errors(event: Event, text: str, instance_config: Around) -> str | None:
    """What is wrong with an event that the parser accepted, if anything."""
    start, end = event.start_mark, event.end_mark
    if start is None or end is None:
        return None
    glued = _GLUED_COMMA.match(text, end.index) if instance_config.flow else None
    if glued or (isinstance(event, CollectionStartEvent) and _is_glued_bracket(event, text)):
        return _COMMENT
    if isinstance(event, ScalarEvent):
        return _lax_scalar(event, text, instance_config.column) or _lax_flow(
            start.column, instance_config
        )
    if isinstance(event, CollectionEndEvent):
        closed = text[end.index - 1 : end.index] in "]}"
        return _COMMENT if closed and text.startswith("#", end.index) else None
    return _lax_flow(start.column, instance_config)


def _is_glued_bracket(event: CollectionStartEvent, text: str) -> bool:
    return bool(event.flow_style and event.end_mark and text.startswith("#", event.end_mark.index))


def _lax_flow(column: int, instance_config: Around) -> str | None:
    return _INDENT if instance_config.flow and column <= instance_config.column else None


def _lax_scalar(event: ScalarEvent, text: str, column: int) -> str | None:
    start, end = event.start_mark, event.end_mark
    assert start is not None
    assert end is not None
    if event.style in {"|", ">"}:
        glued = _GLUED_HEADER.match(text, start.index)
        return _INDENT if start.column <= column else glued and _COMMENT
    if start.line != end.line and _is_outdented(text[start.index : end.index], column):
        return _INDENT
    quoted = event.style in {"'", '"'}
    return _COMMENT if quoted and text.startswith("#", end.index) else None


def _is_outdented(text: str, column: int) -> bool:
    following = (line for line in text.splitlines()[1:] if line.strip())
    return any(len(line) - len(line.lstrip(" ")) <= column for line in following)
