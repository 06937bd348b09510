"""libyaml's complaints, in words that say what to mend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.core.errors import Diagnostic

if TYPE_CHECKING:
    import yaml

_TAB: Final = "a tab is used for indentation: use spaces"
_WORDS: Final = {
    "mapping values are not allowed in this context": (
        'a ":" is not expected here: check the indentation, or put the text in quotes'
    ),
    "did not find expected key": "a key is expected here: check the indentation and the quotes",
    "could not find expected ':'": 'a "key: value" line is expected here: the ":" is missing',
    "did not find expected '-' indicator": (
        'a list item is expected here: begin it with "- ", in the column of the others'
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
_CANNOT_START: Final = "found character that cannot start any token"


def explain_syntax(error: yaml.MarkedYAMLError, file: str, text: str) -> Diagnostic:
    """Where the parser gave up, and what is likely wrong there."""
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    problem = error.problem or "not YAML"
    message = _words(problem, _character(text, line, column)) + _opened(error, line)
    return Diagnostic(file, line + 1, column + 1, message)


def _words(problem: str, character: str) -> str:
    if "tab character" in problem or (character == "\t" and problem == _CANNOT_START):
        return _TAB
    if problem == _CANNOT_START and character:
        return f"a value cannot begin with {character}: put it in quotes"
    return _WORDS.get(problem, problem)


def _opened(error: yaml.MarkedYAMLError, line: int) -> str:
    context = error.context_mark
    if context is None or context.line == line:
        return ""
    return f" (what is read here begins in line {context.line + 1})"


def _character(text: str, line: int, column: int) -> str:
    lines = text.split("\n", line + 1)
    return lines[line][column : column + 1] if line < len(lines) else ""
