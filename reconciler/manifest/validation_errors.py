"""Explain validation errors at the line and column of the YAML value that is wrong."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic import BaseModel

from reconciler.core.naming import NAME_PATTERN
from reconciler.telemetry.redact import SHORTEST_SECRET

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from reconciler.core.errors import Diagnostic
    from reconciler.manifest.yaml12.composer import Node

NAME_RULE: Final = "begin with a letter or digit, then letters, digits, _ . - (63 at most)"
_PATTERNS: Final = {
    "^/": "must be an absolute path, which begins with /",
    NAME_PATTERN: f"not a valid name: {NAME_RULE}",
    r"^[A-Za-z_][A-Za-z0-9_.-]*$": (
        "not a valid variable name: begin with a letter or _, then letters, digits, _ . -"
    ),
    r"^\d{1,10}(:\d{1,10})?$": 'must be a uid, or uid:gid, in quotes: "10001:10001"',
}


# By pydantic's error type; the values in braces are pydantic's.
_MAPPING: Final = 'must be a mapping: "key: value" lines, or {{key: value}}'
_LIST: Final = 'must be a list: "- item" lines, or [item, item]'
_MESSAGES: Final = {
    "string_too_short": "must not be empty",
    "model_type": _MAPPING,
    "dict_type": _MAPPING,
    "tuple_type": _LIST,
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a number",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
}
_BOOLS: Final = {"yes": "true", "on": "true", "no": "false", "off": "false"}


@dataclass(frozen=True, slots=True)
class _Forms:
    """A field whose values have a simple or a structured form, and pydantic's name of the latter.

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
# Values under these keys may be secrets, so no message repeats them.
_SECRET: Final = frozenset({"env"})


@dataclass(frozen=True, slots=True)
class Subject:
    """A validated mapping, its key, and the model that it should fit.

    ``whole``: the mapping is complete. Otherwise it was laid over others, and only its own keys are
    reported. ``more_keys`` are allowed beside the model's.
    """

    key: Node
    node: Node
    model: type[BaseModel]
    more_keys: frozenset[str] = frozenset()
    whole: bool = True

    def keys_at(self, path: Sequence[str | int]) -> list[str]:
        """Return the keys that are allowed in the mapping at a path."""
        model: type[BaseModel] | None = self.model
        for step in path:
            field = model.model_fields.get(str(step)) if model and isinstance(step, str) else None
            model = next(_models_in(field.annotation), model) if field else model
        own = sorted(model.model_fields) if model else []
        return own if path else sorted({*own, *self.more_keys})


@dataclass(frozen=True, slots=True)
class _Spot:
    """The end of a path through the YAML: the last value found and its key.

    ``rest`` is the part of the path that does not exist. ``branch`` is the form that pydantic
    tried, where a value may have several ``forms``.
    """

    node: Node
    key: Node
    found: tuple[str | int, ...]
    rest: tuple[str | int, ...]
    branch: str

    @property
    def forms(self) -> _Forms | None:
        return _FORMS.get(self.found[:2]) if self.branch else None

    @property
    def is_structured(self) -> bool:
        return self.forms is not None and isinstance(self.node.data, self.forms.structured)


def explain(error: ValidationError, subject: Subject) -> list[Diagnostic]:
    """Return each error once, by position, without those of values that have a problem already."""
    found: set[Diagnostic] = set()
    for detail in error.errors(include_url=False, include_input=False):
        spot, kind = _walk(detail, subject), detail["type"]
        forms = spot.forms
        if spot.node.problem:
            continue
        if forms is not None and spot.is_structured and not spot.branch.startswith(forms.branch):
            # The error is about a form that the user did not write.
            continue
        if not subject.whole:
            by_field = kind in {"missing", "value_error"}
            if not (spot.found if by_field else spot.rest in {(), ("[key]",)}):
                # The error is about a key of the layers below.
                continue
        about_key = kind in {"missing", "extra_forbidden"}
        message = _message(detail, spot, subject)
        if not spot.found and not about_key:
            # The position alone does not say which field it is.
            message = "".join(f"{it}: " for it in spot.rest[:1] if it != "[key]") + message
        at_key = about_key or not spot.found or spot.rest == ("[key]",)
        found.add((spot.key if at_key else spot.node).diagnostic(message))
    return sorted(found)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint such as ``: did you mean "image"?``, or an empty text."""
    close = difflib.get_close_matches(word[:100], list(known)[:2000], n=1)
    return f': did you mean "{close[0]}"?' if close else ""


def _walk(detail: ErrorDetails, subject: Subject) -> _Spot:
    path, branch = detail["loc"], ""
    if not path:
        # An error of the whole model begins with the field, if it is about one.
        field = _reason(detail).partition(":")[0]
        path = (field,) if subject.node.child(field) else ()
    forms = _FORMS.get(path[:2])
    if forms is not None and len(path) > forms.depth and path[forms.depth] != "[key]":
        # This step is no key: it is pydantic's name of the form that it tried.
        branch = str(path[forms.depth])
        path = path[: forms.depth] + path[forms.depth + 1 :]
    node, key = subject.node, subject.key
    for index, step in enumerate(path):
        below = node.child(step)
        if below is None:
            return _Spot(node, key, path[:index], path[index:], branch)
        key = node.keys.get(str(step), below)
        node = below
    return _Spot(node, key, path, (), branch)


def _message(detail: ErrorDetails, spot: _Spot, subject: Subject) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    forms = spot.forms
    if forms is not None and len(spot.found) == forms.depth and not spot.is_structured:
        return forms.message
    if kind in _MESSAGES:
        return _MESSAGES[kind].format(**context)
    data = spot.node.data
    message = _PATTERNS.get(context.get("pattern", ""), _reason(detail))
    match kind:
        case "string_type" if spot.node.children is not None:
            message = "must be a string"
        case "string_type" if data is None:
            message = 'must be a string; an empty one is ""'
        case "string_type":
            text = str(data).lower() if isinstance(data, bool) else str(data)
            # A long number may be a secret wherever it stands, such as an argument of a command.
            secret = _SECRET & set(spot.found) or len(text) >= SHORTEST_SECRET
            message = "must be a string: write it in quotes" + ("" if secret else f': "{text}"')
        case "extra_forbidden":
            key, known = str(spot.found[-1]), subject.keys_at(spot.found[:-1])
            hint = did_you_mean(key, known) or f": the known keys are {', '.join(known)}"
            message = f'unknown key "{key}"{hint}'
        case "missing":
            message = f'the key "{detail["loc"][-1]}" is missing'
        case "bool_type":
            word = _BOOLS.get(str(data).lower())
            message = "must be true or false" + (f": write {word}" if word else "")
        case "enum" | "literal_error":
            allowed = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            hint = did_you_mean(str(data), allowed)
            message = f"must be one of {', '.join(allowed)}{hint}"
    return message


def _reason(detail: ErrorDetails) -> str:
    return detail["msg"].removeprefix("Value error, ")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
