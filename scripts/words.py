"""Find words to avoid in prose, comments, docstrings, strings and test names.

python3 -m scripts.words    print each as FILE:LINE:COL: message; exit 1 if there is any
"""

# ruff: noqa: S603, S607 - git is found by PATH

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ROOT = Path(__file__).parent.parent
_BE = "(?:is|are|was|were|be|been|being)"

# A space stands for any white space, the mark of a comment, or the quotes between two strings.
AVOID: Mapping[str, str] = {
    rf"{_BE} (?:told|said)": "is logged, is reported",
    r"(?:told|telling|tells|tell) of": "logs, reports",
    r"anew": "again; recreated",
    r"mend(?:s|ed|ing)?": "fix",
    r"for ever": "indefinitely, forever",
    r"whoever": "name the thing",
    r"whose (?:is|are|was|the)": "name the thing",
    r"whatever (?:is|was|has|had|waits|comes|lies|stands)": "name the thing",
    r"(?:goes|go|went|going) on": "continues",
    r"(?:is|are|be|was|were) had": "is available, is unavailable",
    r"look(?:s|ed)? at": "inspects, checks",
    r"hangs? at(?! once)": "the circuit is open for VERB; the engine is wedged",
    r"belongs? to no (?:record|one|sandbox)": "orphan",
    r"of no record": "orphan",
    r"last words": "last log lines",
    r"brakes?": "mass-delete guard",
    r"complaints?": "warning",
    r"remains of": "leftover runtime state",
    r"the engine's word|word of the engine": "engine event, engine response",
    r"of (?:its|their|his) own": "(usually nothing)",
    r"heirs?": "successor",
    r"autopsy|afterlife|wreck(?:ed|age)|rehearsals?|goodbye|shelf": "the field's noun",
}
# Phrases that a file may use, because they quote another program or name a thing.
# The list, and its test.
_EXEMPT = {"scripts/words.py", "tests/harness/test_words.py"}
ALLOWED: Mapping[str, frozenset[str]] = {}

_SPACE = r"""[\s#"']+"""
_PATTERNS = {
    re.compile(rf"\b(?:{words.replace(' ', _SPACE)})\b", re.IGNORECASE): instead
    for words, instead in AVOID.items()
}
_PROSE = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
# Stands for a character of code: no word continues across it.
_CODE = "\0"
# Names in prose: code in backticks, and string literals without a space, such as keys and events.
_CODE_SPAN = re.compile(r"`[^`\s]+`")
_KEY = re.compile(r"""[a-zA-Z]*(?P<quote>["'])[^"'\s]*(?P=quote)""")


class Finding(NamedTuple):
    """One use of a word; `path` is relative to the project."""

    path: str
    line: int
    column: int
    words: str
    instead: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}:{self.column}"
        return f"{place}: avoid {self.words!r}; write: {self.instead}"


def check(path: str, text: str) -> Iterator[Finding]:
    """Yield the words to avoid in one file, in order."""
    if path.endswith(".py"):
        prose = _python_prose(text)
    elif path.endswith(".md"):
        prose = text
    else:
        prose = re.sub(r"(?m)^[^#\n]+", lambda code: _CODE * len(code[0]), text)
    prose = _CODE_SPAN.sub(lambda span: _CODE * len(span[0]), prose)
    allowed = ALLOWED.get(path, frozenset())
    found = []
    for pattern, instead in _PATTERNS.items():
        for match in pattern.finditer(prose):
            words = " ".join(re.split(_SPACE, match[0]))
            if words.lower() not in allowed:
                start = prose.rfind("\n", 0, match.start()) + 1
                line = prose.count("\n", 0, match.start()) + 1
                found.append(Finding(path, line, match.start() - start + 1, words, instead))
    yield from sorted(found)


def _python_prose(text: str) -> str:
    """Blank out code, so that prose keeps its position; test names become words."""
    lines = [re.sub(r"\S", _CODE, line) for line in text.splitlines(keepends=True)]
    source = text.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_test = token.type == tokenize.NAME and token.string.startswith("test_")
        if token.type not in _PROSE and not is_test:
            continue
        if token.type == tokenize.STRING and _KEY.fullmatch(token.string):
            continue
        (first, begin), (last, end) = token.start, token.end
        for number in range(first, last + 1):
            left = begin if number == first else 0
            right = end if number == last else len(source[number - 1])
            kept = source[number - 1][left:right]
            line = lines[number - 1]
            words = kept.replace("_", " ") if is_test else kept
            lines[number - 1] = line[:left] + words + line[right:]
    return "".join(lines)


def findings() -> list[Finding]:
    """Check every file of prose or Python that git knows."""
    patterns = ["*.py", "*.md", "config/*.yaml", "systemd/*", "Makefile", "pyproject.toml"]
    listed = subprocess.run(
        ["git", "-C", str(_ROOT), "ls-files", *patterns], check=True, capture_output=True, text=True
    )
    paths = [path for path in listed.stdout.splitlines() if path not in _EXEMPT]
    texts = {path: (_ROOT / path).read_text() for path in paths if (_ROOT / path).is_file()}
    return [finding for path, text in texts.items() for finding in check(path, text)]


def main() -> int:
    """Print the findings."""
    found = findings()
    for finding in found:
        print(finding)  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
