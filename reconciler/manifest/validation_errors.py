"""What the models complain about, at the line and column of the YAML that it is about."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic import BaseModel

from reconciler.core.naming import NAME_PATTERN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from reconciler.core.errors import Diagnostic
    from reconciler.manifest.yaml12.composer import Node

NAME_RULE: Final = "begin with a letter or digit, then letters, digits, _ . - (63 at most)"
_PATTERNS: Final = {
    "^/": "must be an absolute path, one that begins with /",
    NAME_PATTERN: f"not a name: {NAME_RULE}",
    r"^[A-Za-z_][A-Za-z0-9_.-]*$": (
        "not the name of a variable: begin with a letter or _, then letters, digits, _ . -"
    ),
    r"^\d{1,10}(:\d{1,10})?$": 'must be a uid, or uid:gid, in quotes: "10001:10001"',
}


@dataclass(frozen=True, slots=True)
class _Forms:
    """A field whose values are of a simple or a structured form: how the models name the latter.

    ``depth`` is the length of the path to such a value.
    """

    depth: int
    structured: type
    branch: str
    message: str


_FORMS: Final[dict[tuple[str | int, ...], _Forms]] = {
    ("resources", "gpus"): _Forms(
        2,
        list,
        "tuple",
        'must be "all", a number of GPUs (1 or more), or a list of their ids',
    ),
    ("resources", "ulimits"): _Forms(
        3,
        dict,
        "UlimitSpec",
        "must be a whole number (-1: unlimited), or {soft: NUMBER, hard: NUMBER}",
    ),
}
# Texts under these may be secrets, so no message repeats them.
_SECRET: Final = frozenset({"env"})


@dataclass(frozen=True, slots=True)
class Subject:
    """What was validated: a mapping, the key it stands under, and the model that it should fit.

    ``whole`` says that the mapping is all there is; else it was laid over others, and only what it
    says itself is complained about. ``more_keys`` are allowed beside the model's own.
    """

    key: Node
    node: Node
    model: type[BaseModel]
    more_keys: frozenset[str] = frozenset()
    whole: bool = True


@dataclass(frozen=True, slots=True)
class _Spot:
    """How far a path could be walked: the last value found, its key, and what was not found.

    ``branch`` is the alternative that the complaint is about, where a value may have several forms.
    """

    node: Node
    key: Node
    found: tuple[str | int, ...]
    rest: tuple[str | int, ...]
    branch: str


def explain(error: ValidationError, subject: Subject) -> list[Diagnostic]:
    """Every complaint, once, by place; none about what was complained of before."""
    return explain_details(error.errors(include_url=False, include_input=False), subject)


def explain_details(details: Iterable[ErrorDetails], subject: Subject) -> list[Diagnostic]:
    """As ``explain``, of some of the problems that a validation found."""
    said = (_diagnostic(detail, subject) for detail in details)
    return sorted({diagnostic for diagnostic in said if diagnostic is not None})


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``: did you mean "image"?``, or nothing."""
    close = difflib.get_close_matches(word[:100], list(known)[:2000], n=1)
    return f': did you mean "{close[0]}"?' if close else ""


def _diagnostic(detail: ErrorDetails, subject: Subject) -> Diagnostic | None:
    spot = _walk(*_split(detail["loc"] or _named_field(detail, subject.node)), subject)
    if spot.node.problem or _is_other_branch(spot):
        return None
    if not subject.whole and not _is_own(detail, spot):
        return None
    place = _place(detail, spot)
    return place.diagnostic(_prefix(detail, spot) + _message(detail, spot, subject))


def _named_field(detail: ErrorDetails, node: Node) -> tuple[str | int, ...]:
    """The field that a complaint about a whole model begins with."""
    field = _reason(detail).partition(":")[0]
    return (field,) if node.child(field) else ()


def _split(path: tuple[str | int, ...]) -> tuple[tuple[str | int, ...], str]:
    """A path without the step that names a form of the value, and that step."""
    forms = _FORMS.get(path[:2])
    if forms is None or len(path) <= forms.depth or path[forms.depth] == "[key]":
        return path, ""
    return path[: forms.depth] + path[forms.depth + 1 :], str(path[forms.depth])


def _walk(path: Sequence[str | int], branch: str, subject: Subject) -> _Spot:
    node, key = subject.node, subject.key
    for index, step in enumerate(path):
        below = node.child(step)
        if below is None:
            return _Spot(node, key, tuple(path[:index]), tuple(path[index:]), branch)
        key = node.keys.get(str(step), below)
        node = below
    return _Spot(node, key, tuple(path), (), branch)


def _is_own(detail: ErrorDetails, spot: _Spot) -> bool:
    if detail["type"] in {"missing", "value_error"}:
        return bool(spot.found)
    return spot.rest in {(), ("[key]",)}


def _is_other_branch(spot: _Spot) -> bool:
    """Whether this is about a form of the value that was not meant."""
    forms = _FORMS.get(spot.found[:2]) if spot.branch else None
    return (
        forms is not None
        and isinstance(spot.node.data, forms.structured)
        and not spot.branch.startswith(forms.branch)
    )


def _has_no_form(spot: _Spot) -> bool:
    """Whether a value that has several forms is in none of them."""
    forms = _FORMS.get(spot.found[:2]) if spot.branch else None
    return (
        forms is not None
        and len(spot.found) == forms.depth
        and not isinstance(spot.node.data, forms.structured)
    )


def _place(detail: ErrorDetails, spot: _Spot) -> Node:
    if detail["type"] in {"missing", "extra_forbidden"} or not spot.found:
        return spot.key
    return spot.key if spot.rest == ("[key]",) else spot.node


def _prefix(detail: ErrorDetails, spot: _Spot) -> str:
    """The field, where the place alone does not tell which one it is."""
    if spot.found or detail["type"] in {"missing", "extra_forbidden"}:
        return ""
    return "".join(f"{step}: " for step in spot.rest[:1] if step != "[key]")


def _message(detail: ErrorDetails, spot: _Spot, subject: Subject) -> str:
    if _has_no_form(spot):
        return _FORMS[spot.found[:2]].message
    known = _keys_at(spot.found[:-1], subject)
    explainer = _EXPLAINERS.get(detail["type"])
    return explainer(detail, spot, known) if explainer else _reason(detail)


def _reason(detail: ErrorDetails) -> str:
    return detail["msg"].removeprefix("Value error, ")


def _unknown_key(_detail: ErrorDetails, spot: _Spot, known: Sequence[str]) -> str:
    key = str(spot.found[-1])
    hint = did_you_mean(key, known) or f": known here are {', '.join(known)}"
    return f'unknown key "{key}"{hint}'


def _missing(detail: ErrorDetails, _spot: _Spot, _known: Sequence[str]) -> str:
    return f'the key "{detail["loc"][-1]}" is missing'


def _text(_detail: ErrorDetails, spot: _Spot, _known: Sequence[str]) -> str:
    if spot.node.children is not None:
        return "must be a string"
    if spot.node.data is None:
        return 'must be a string; an empty one is ""'
    if _SECRET & set(spot.found):
        return "must be a string: write it in quotes"
    return f'must be a string: write it in quotes: "{_as_yaml(spot.node.data)}"'


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _flag(_detail: ErrorDetails, spot: _Spot, _known: Sequence[str]) -> str:
    word = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(
        str(spot.node.data).lower()
    )
    return f"must be true or false: write {word}" if word else "must be true or false"


def _choice(detail: ErrorDetails, spot: _Spot, _known: Sequence[str]) -> str:
    allowed = detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
    return f"must be one of {', '.join(allowed)}{did_you_mean(str(spot.node.data), allowed)}"


def _pattern(detail: ErrorDetails, _spot: _Spot, _known: Sequence[str]) -> str:
    return _PATTERNS.get(detail["ctx"]["pattern"], _reason(detail))


def _bound(word: str, limit: str) -> _Explainer:
    return lambda detail, _spot, _known: f"must be {word} {detail['ctx'][limit]}"


def _always(message: str) -> _Explainer:
    return lambda _detail, _spot, _known: message


if TYPE_CHECKING:
    _Explainer = Callable[[ErrorDetails, _Spot, Sequence[str]], str]

_MAPPING: Final = _always('must be a mapping: "key: value" lines, or {key: value}')
_LIST: Final = _always('must be a list: "- item" lines, or [item, item]')
_WHOLE: Final = _always("must be a whole number")
_NUMBER: Final = _always("must be a number")
_EXPLAINERS: Final[dict[str, _Explainer]] = {
    "extra_forbidden": _unknown_key,
    "missing": _missing,
    "string_type": _text,
    "string_pattern_mismatch": _pattern,
    "string_too_short": _always("must not be empty"),
    "bool_type": _flag,
    "enum": _choice,
    "literal_error": _choice,
    "model_type": _MAPPING,
    "dict_type": _MAPPING,
    "tuple_type": _LIST,
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "finite_number": _NUMBER,
    "greater_than": _bound("more than", "gt"),
    "greater_than_equal": _bound("at least", "ge"),
    "less_than": _bound("less than", "lt"),
    "less_than_equal": _bound("at most", "le"),
}


def _keys_at(path: Sequence[str | int], subject: Subject) -> list[str]:
    """The keys that are allowed in the mapping at a path."""
    model: type[BaseModel] | None = subject.model
    for step in path:
        field = model.model_fields.get(str(step)) if model and isinstance(step, str) else None
        model = next(_models_in(field.annotation), model) if field else model
    own = sorted(model.model_fields) if model else []
    return own if path else sorted({*own, *subject.more_keys})


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
