"""YAML 1.2 core schema: what a scalar means.

PyYAML resolves YAML 1.1, where ``no`` is false and ``012`` is ten; so its parser is used, and its
resolver is not.
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
# Anything that begins otherwise is a string: the one test that most scalars need.
_MAY_BE_SPECIAL: Final = frozenset("0123456789+-.~nNtTfF")
_LONGEST_NUMBER: Final = 400
_LARGEST: Final = 1 << 64


def resolve(text: str, tag: str | None, *, plain: bool) -> Scalar:
    """The value of a scalar. ``tag`` is the explicit one, resolved; ``plain`` means unquoted.

    Raises:
        ValueError: the tag is unknown, the text does not fit it, or the number is out of range.
    """
    if tag is None:
        return resolve_plain(text) if plain else text
    if tag == "!":
        return text
    convert = _TAGS.get(tag)
    if convert is None:
        raise ValueError(
            "a value that begins with ! has a tag, and this one is unknown: quote the value"
            f" (known tags: {_known_tags()})"
        )
    return convert(text)


def resolve_plain(text: str) -> Scalar:
    """The value of an unquoted, untagged scalar.

    Raises:
        ValueError: it is a number that is out of range.
    """
    if text and text[0] not in _MAY_BE_SPECIAL:
        return text
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INTEGER.fullmatch(text):
        return _integer(text)
    return _float(text) if _FLOAT.fullmatch(text) else text


def _integer(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError("the number is too large")
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    number = int(text, base)
    if abs(number) >= _LARGEST:
        raise ValueError("the number is too large")
    return number


def _float(text: str) -> float:
    if text[-1] in "fFnN" and "." in text:
        return float(text.replace(".", "", 1))
    number = float(text)
    if math.isinf(number):
        raise ValueError("the number is too large")
    return number


def _tagged_integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError("!!int: not a whole number")
    return _integer(text)


def _tagged_float(text: str) -> float:
    if not _FLOAT.fullmatch(text):
        raise ValueError("!!float: not a number")
    return _float(text)


def _tagged_bool(text: str) -> bool:
    if text not in _BOOLS:
        raise ValueError("!!bool: must be true or false")
    return _BOOLS[text]


def _tagged_null(text: str) -> None:
    if text not in _NULLS:
        raise ValueError("!!null: must be null, ~ or nothing")


def _known_tags() -> str:
    return ", ".join(tag.replace(_CORE, "!!", 1) for tag in _TAGS)


_TAGS: Final[dict[str, Callable[[str], Scalar]]] = {
    f"{_CORE}str": str,
    f"{_CORE}int": _tagged_integer,
    f"{_CORE}float": _tagged_float,
    f"{_CORE}bool": _tagged_bool,
    f"{_CORE}null": _tagged_null,
}
