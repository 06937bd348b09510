"""What libyaml lets pass and YAML 1.2 does not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from yaml.events import CollectionEndEvent, ScalarEvent

if TYPE_CHECKING:
    from yaml.events import Event

_GLUED_HEADER: Final = re.compile(r"(?:[!&]\S*\s+)*[|>][-+0-9]*#")
_COMMENT: Final = "a comment needs a blank before its #"


def laxness(event: Event, text: str, parent_column: int | None) -> str | None:
    """What is wrong with an event that the parser accepted, if anything.

    ``parent_column`` is that of the list or mapping around it, counted from 0; None at the top.
    """
    if event.start_mark is None or event.end_mark is None:
        return None
    start, end = event.start_mark, event.end_mark
    if isinstance(event, ScalarEvent) and event.style in {"|", ">"}:
        if parent_column is not None and start.column <= parent_column:
            return "this text must be indented more than what it belongs to"
        return _COMMENT if _GLUED_HEADER.match(text, start.index) else None
    closes = isinstance(event, CollectionEndEvent) and text[end.index - 1 : end.index] in "]}"
    quoted = isinstance(event, ScalarEvent) and event.style in {"'", '"'}
    return _COMMENT if (closes or quoted) and text.startswith("#", end.index) else None
