"""Report what is wrong with the syntax of a YAML text, and how to fix it.

libyaml's own messages are terse, and it accepts some text that YAML 1.2 forbids.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from yaml.events import CollectionEndEvent, CollectionStartEvent, ScalarEvent

from reconciler.core.errors import Diagnostic

if TYPE_CHECKING:
    import yaml
    from yaml.events import Event

_TAB: Final = "a tab is used for indentation: use spaces"
_CANNOT_START: Final = "found character that cannot start any token"
_MESSAGES: Final = {
    "mapping values are not allowed in this context": (
        'a ":" is not expected here: check the indentation, or put the text in quotes'
    ),
    "did not find expected key": "a key is expected here: check the indentation and the quotes",
    "could not find expected ':'": 'a "key: value" line is expected here: the ":" is missing',
    "did not find expected '-' indicator": (
        'a list item is expected here: begin it with "- ", in the column of the other items'
    ),
    "did not find expected ',' or ']'": "a list that begins with [ is not closed with ]",
    "did not find expected ',' or '}'": "a mapping that begins with { is not closed with }",
    "did not find expected node content": "a value is expected here",
    "found unexpected end of stream": "a text in quotes is not closed",
    "found unexpected document indicator": "a text in quotes is not closed",
    "found unknown escape character": (
        "an unknown escape in double quotes: write \\\\ for a backslash, or use single quotes"
    ),
}

_HASH_AFTER_HEADER: Final = re.compile(r"(?:[!&]\S*\s+)*[|>][-+0-9]*#")
_HASH_AFTER_COMMA: Final = re.compile(r"(?:\s|(?<=\s)#[^\n]*\n)*,#")
_COMMENT: Final = "a comment needs a space before its #"
_INDICATORS: Final = frozenset({"-", "?", ":"})
_INDENT: Final = "indent this more than the key or list that it belongs to"


def explain_syntax(error: yaml.MarkedYAMLError, file: str, text: str) -> Diagnostic:
    """Return where libyaml stopped, and the most likely reason."""
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    lines = text.split("\n", line + 1)
    character = lines[line][column : column + 1] if line < len(lines) else ""
    problem = error.problem or "not YAML"
    if "tab character" in problem or (character == "\t" and problem == _CANNOT_START):
        message = _TAB
    elif problem == _CANNOT_START and character:
        message = f"a value cannot begin with {character}: put it in quotes"
    else:
        message = _MESSAGES.get(problem, problem)
    enclosing = error.context_mark
    if enclosing is not None and enclosing.line != line:
        message += f" (in the value that begins in line {enclosing.line + 1})"
    return Diagnostic(file, line + 1, column + 1, message)


class Context(NamedTuple):
    """Where a value stands: the column of the nearest list or mapping in block style.

    Columns count from 0; -1 is the top level. ``flow``: the value also stands in brackets.
    """

    column: int = -1
    flow: bool = False


def strict_error(event: Event, text: str, context: Context) -> str | None:
    """Return what YAML 1.2 forbids in an event that libyaml accepted, or None."""
    start, end = event.start_mark, event.end_mark
    if start is None or end is None:
        return None
    if context.flow and _HASH_AFTER_COMMA.match(text, end.index):
        return _COMMENT
    bracket = (isinstance(event, CollectionStartEvent) and event.flow_style) or (
        isinstance(event, CollectionEndEvent) and text[end.index - 1 : end.index] in "]}"
    )
    if bracket and text.startswith("#", end.index):
        return _COMMENT
    if isinstance(event, ScalarEvent) and (error := _scalar_error(event, text, context.column)):
        return error
    outdented = context.flow and start.column <= context.column
    return _INDENT if outdented and not isinstance(event, CollectionEndEvent) else None


def _scalar_error(event: ScalarEvent, text: str, column: int) -> str | None:
    start, end = event.start_mark, event.end_mark
    assert start is not None
    assert end is not None
    if event.value in _INDICATORS and event.style not in {"'", '"', "|", ">"}:
        return f'"{event.value}" alone is no value: put it in quotes'
    if event.style in {"|", ">"}:
        if start.column <= column:
            return _INDENT
        return _COMMENT if _HASH_AFTER_HEADER.match(text, start.index) else None
    if start.line != end.line:
        following = text[start.index : end.index].splitlines()[1:]
        if any(len(it) - len(it.lstrip(" ")) <= column for it in following if it.strip()):
            return _INDENT
    quoted = event.style in {"'", '"'}
    return _COMMENT if quoted and text.startswith("#", end.index) else None
