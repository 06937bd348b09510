"""Resolve scalars by the core schema of YAML 1.2.

PyYAML resolves scalars by YAML 1.1, where ``no`` is false and ``012`` is ten. So only its parser is
used.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Scalar: TypeAlias = "str | int | float | bool | None"

_CORE: Final = "tag:yaml.org,2002:"
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS: Final = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_INTEGER: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
)
# A text that begins with any other character is a string. Most scalars need only this test.
_FIRST_OF_NON_STRINGS: Final = frozenset("0123456789+-.~nNtTfF")
_MAX_DIGITS: Final = 400
_TOO_LARGE: Final = 1 << 64


def resolve(text: str, tag: str | None, *, plain: bool) -> Scalar:
    """Return the value of a scalar. ``tag`` is the explicit one, resolved; ``plain``: unquoted.

    Raises:
        ValueError: the tag is unknown, the text does not fit it, or the number is out of range.
    """
    if tag is None:
        return resolve_plain(text) if plain else text
    if tag == "!":
        return text
    name = tag.removeprefix(_CORE)
    if name == tag or name not in _TAGS:
        raise ValueError(
            "unknown tag: put a value that begins with ! in quotes, or use one of the tags"
            f" {_KNOWN_TAGS}"
        )
    fits, convert, expected = _TAGS[name]
    if not fits(text):
        raise ValueError(f"!!{name}: must be {expected}")
    return convert(text)


def resolve_plain(text: str) -> Scalar:
    """Return the value of a scalar without quotes and tag.

    Raises:
        ValueError: it is a number out of range.
    """
    if text and text[0] not in _FIRST_OF_NON_STRINGS:
        return text
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INTEGER.fullmatch(text):
        return _integer(text)
    return _float(text) if _FLOAT.fullmatch(text) else text


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError("the number is too large")
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    number = int(text, base)
    if abs(number) >= _TOO_LARGE:
        raise ValueError("the number is too large")
    return number


def _float(text: str) -> float:
    if text[-1] in "fFnN" and "." in text:
        return float(text.replace(".", "", 1))
    number = float(text)
    if math.isinf(number):
        raise ValueError("the number is too large")
    return number


# For each tag: whether a text fits it, its value, and what a text must be.
_TAGS: Final[dict[str, tuple[Callable[[str], object], Callable[[str], Scalar], str]]] = {
    "str": (lambda _text: True, str, "a string"),
    "int": (_INTEGER.fullmatch, _integer, "a whole number"),
    "float": (_FLOAT.fullmatch, _float, "a number"),
    "bool": (_BOOLS.__contains__, _BOOLS.__getitem__, "true or false"),
    "null": (_NULLS.__contains__, lambda _text: None, "null, ~ or nothing"),
}
_KNOWN_TAGS: Final = ", ".join(f"!!{name}" for name in _TAGS)
