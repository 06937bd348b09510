"""What may leave in a log line: plain data, of bounded size, without a secret in it."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache, singledispatch
from itertools import islice
from types import NoneType
from typing import Any
from urllib.parse import quote

from structlog.typing import EventDict, WrappedLogger

MASK = "***"
FIELD_LIMIT = 4096
ITEM_LIMIT = 64
DEPTH_LIMIT = 6
SHORTEST_SECRET = 6
_MARGIN = 256

Clean = Callable[[str, int], str]

_SENSITIVE = (
    "session_key|api_?keys?|access_key|private_key|password|passwd|secret|token|authorization"
    "|credential|cookie|registry_auth"
)
_SECRET_NAME = re.compile(_SENSITIVE, re.IGNORECASE)
_KEY_VARIABLE = re.compile(r"(?:^|[_-])(?:key|pass|passphrase|pwd|pat|dsn)s?$", re.IGNORECASE)
_ASSIGNMENT = re.compile(rf"((?:{_SENSITIVE})[\w-]{{0,32}})=[^\s&\"',;]+", re.IGNORECASE)
_CREDENTIALS = re.compile(r"\b(bearer|basic) +[\w+/=.~-]{16,}", re.IGNORECASE)
_USERINFO = re.compile(r"://[^/\s:@]{1,64}:[^/\s@]{1,256}@")


def is_secret_name(name: str) -> bool:
    """Says whether a field, variable or header of this name holds a secret."""
    return _SECRET_NAME.search(name.replace("-", "_")) is not None


@lru_cache(maxsize=4096)
def is_secret_variable(name: str) -> bool:
    """Says whether an environment variable of this name holds a secret."""
    return is_secret_name(name) or _KEY_VARIABLE.search(name) is not None


class Redactor:
    """Knows the secrets in use and replaces each by ``***``, also in its quoted forms.

    Secrets under six characters are not registered: they would match by chance everywhere.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._forms: tuple[str, ...] = ()

    def register(self, *secrets: str) -> None:
        """Hides secrets from now on; one that is twice registered is twice to be forgotten."""
        self._counts.update(_all_forms_of(secrets))
        self._rebuild()

    def forget(self, *secrets: str) -> None:
        """Takes registrations back, so that a long churn of sandboxes leaves nothing behind."""
        self._counts -= Counter(_all_forms_of(secrets))
        self._rebuild()

    def clean(self, text: str, limit: int = FIELD_LIMIT) -> str:
        """Returns the text without secrets; beyond ``limit`` characters, a note of how many."""
        if len(text) <= limit:
            return self._replace(text)
        # Only a bounded head is searched. Its end may hold the first half of a secret, which does
        # not match: as many characters as the longest secret has are dropped again.
        margin = max(_MARGIN, len(self._forms[0]) if self._forms else 0)
        head = self._replace(text[: limit + margin])[:-margin]
        return f"{head[:limit]}… (+{len(text) - len(head[:limit])})"

    def _replace(self, text: str) -> str:
        # Names, ids and numbers are shorter than any secret: they cost nothing.
        if self._forms and len(text) >= len(self._forms[-1]):
            for form in self._forms:
                text = text.replace(form, MASK)
        return _mask_patterns(text)

    def _rebuild(self) -> None:
        # Longest first: a secret that holds another one is replaced whole.
        self._forms = tuple(sorted(self._counts, key=len, reverse=True))


redactor = Redactor()


def sanitizer(redact: Redactor) -> Callable[[WrappedLogger, str, EventDict], EventDict]:
    """Makes the structlog processor that lets only clean, bounded, plain data through.

    Fields that are None are left out: optional fields need no branch where they are logged.
    """

    def sanitize(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        known = {name: value for name, value in event.items() if value is not None}
        return dict(_plain_items(known, redact.clean, 0))

    return sanitize


def describe_error(error: BaseException) -> str:
    """Returns an exception and what caused it in one line, the outermost first."""
    return " <- ".join(_describe_one(link) for link in _chain(error))


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen and len(seen) < DEPTH_LIMIT:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _describe_one(error: BaseException) -> str:
    message = _text_of(error)
    if isinstance(error, BaseExceptionGroup):
        message += ": " + "; ".join(describe_error(inner) for inner in error.exceptions[:3])
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a log line must not fail over what it describes
        return f"<unprintable {type(value).__name__}>"


def _all_forms_of(secrets: Iterable[str]) -> list[str]:
    return [form for one in secrets if len(one) >= SHORTEST_SECRET for form in _forms_of(one)]


def _forms_of(secret: str) -> set[str]:
    return {secret, quote(secret, safe="", errors="replace"), json.dumps(secret)[1:-1]}


def _mask_patterns(text: str) -> str:
    text = _ASSIGNMENT.sub(rf"\1={MASK}", text) if "=" in text else text
    text = _USERINFO.sub(f"://{MASK}@", text) if "@" in text else text
    return _CREDENTIALS.sub(rf"\1 {MASK}", text)


def _limit_at(depth: int) -> int:
    # Deeper strings may be many: each level gets a quarter of the one above.
    return FIELD_LIMIT >> (2 * depth)


@singledispatch
def _plain(value: object, clean: Clean, depth: int) -> Any:
    return clean(_text_of(value), _limit_at(depth))


@_plain.register(NoneType)
@_plain.register(bool)
def _plain_constant(value: bool | None, _clean: Clean, _depth: int) -> Any:  # noqa: FBT001 - dispatched by type
    return value


@_plain.register(int)
def _plain_int(value: int, _clean: Clean, _depth: int) -> Any:
    return int(value)


@_plain.register(float)
def _plain_float(value: float, _clean: Clean, _depth: int) -> Any:
    # JSON has no NaN and no infinity.
    return value if math.isfinite(value) else str(value)


@_plain.register(str)
def _plain_str(value: str, clean: Clean, depth: int) -> Any:
    return clean(str.__str__(value), _limit_at(depth))


@_plain.register(bytes)
def _plain_bytes(value: bytes, clean: Clean, depth: int) -> Any:
    return clean(value.decode(errors="replace"), _limit_at(depth))


@_plain.register(BaseException)
def _plain_error(value: BaseException, clean: Clean, depth: int) -> Any:
    return clean(describe_error(value), _limit_at(depth))


@_plain.register(Mapping)
def _plain_mapping(value: Mapping[Any, Any], clean: Clean, depth: int) -> Any:
    return dict(_plain_items(value, clean, depth + 1))


@_plain.register(list)
@_plain.register(tuple)
@_plain.register(AbstractSet)
def _plain_items_of(value: Any, clean: Clean, depth: int) -> Any:
    if depth >= DEPTH_LIMIT:
        return ["…"]
    head = [_plain(item, clean, depth + 1) for item in islice(value, ITEM_LIMIT)]
    return head if len(value) <= ITEM_LIMIT else [*head, f"… (+{len(value) - ITEM_LIMIT})"]


def _plain_items(value: Mapping[Any, Any], clean: Clean, depth: int) -> Iterable[tuple[str, Any]]:
    if depth >= DEPTH_LIMIT:
        yield "…", len(value)
        return
    for name, item in islice(value.items(), ITEM_LIMIT):
        key = clean(_text_of(name), _limit_at(DEPTH_LIMIT // 2))
        yield key, MASK if is_secret_name(key) and item is not None else _plain(item, clean, depth)
    if len(value) > ITEM_LIMIT:
        yield "…", len(value) - ITEM_LIMIT
