"""Redact log lines and answers: plain data of bounded size, without secrets."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache, singledispatch
from itertools import chain, islice
from types import NoneType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from reconciler.core.text import inert_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from structlog.typing import EventDict, WrappedLogger

    Clean = Callable[[str, int], str]

MASK = "***"
FIELD_LIMIT = 4096
ITEM_LIMIT = 64
DEPTH_LIMIT = 6
SHORTEST_SECRET = 6
SESSION_KEY_FIELD = "session_api_key"
_MARGIN = 256

_SENSITIVE = (
    "session_key|api_?keys?|access_key|private_key|password|passwd|secret|token|authorization"
    "|credential|cookie|registry_auth"
)
_SECRET_NAME = re.compile(_SENSITIVE, re.IGNORECASE)
_KEY_VARIABLE = re.compile(r"(?:^|[_-])(?:key|pass|passphrase|pwd|pat|dsn)s?$", re.IGNORECASE)
_AMOUNT = re.compile(
    r"tokens$|(?:^|[_-])(?:max|min|num|ttl|limit|count|size|length|budget|seconds|minutes|hours|days"
    r"|timeout|expiry|expires?|lifetime|age|version)(?:$|[_-])",
    re.IGNORECASE,
)
_ASSIGNMENT = re.compile(rf"((?:{_SENSITIVE})[\w-]{{0,32}})=[^\s&\"',;]+", re.IGNORECASE)
_CREDENTIALS = re.compile(r"\b(bearer|basic) +[\w+/=.~-]{16,}", re.IGNORECASE)
_USERINFO = re.compile(r"://[^/\s:@]{1,64}:[^/\s@]{1,256}@")


def is_secret_name(name: str) -> bool:
    """Return whether a field, variable or header of this name holds a secret."""
    return _SECRET_NAME.search(name.replace("-", "_")) is not None


@lru_cache(maxsize=4096)
def is_secret_variable(name: str) -> bool:
    """Return whether an environment variable of this name holds a secret."""
    return is_secret_name(name) or _KEY_VARIABLE.search(name) is not None


@lru_cache(maxsize=4096)
def is_amount(name: str) -> bool:
    """Return whether a number of this name is an amount: ``MAX_TOKENS``, ``TOKEN_TTL_SECONDS``."""
    return _AMOUNT.search(name) is not None


class Redactor:
    """Knows the secrets in use, and replaces each by ``***``, also in its quoted forms.

    A secret of several lines is redacted line by line. Secrets and lines under six characters are
    not registered: they would match by chance. The cost of cleaning a text does not depend on the
    number of secrets: each six characters of it are looked up among the beginnings of the secrets.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._forms: dict[str, _Forms] = {}
        self._longest = 0

    def register(self, *secrets: str) -> None:
        """Redact secrets from now on; one that is registered twice has to be forgotten twice."""
        for form in _all_forms_of(secrets):
            self._counts[form] += 1
            if self._counts[form] == 1:
                self._forms.setdefault(form[:SHORTEST_SECRET], _Forms()).add(form)
                self._longest = max(self._longest, len(form))

    def forget(self, *secrets: str) -> None:
        """Undo registrations, so that deleted sandboxes leave nothing in memory."""
        for form in _all_forms_of(secrets):
            self._counts[form] -= 1
            if self._counts[form] > 0:
                continue
            del self._counts[form]
            start = form[:SHORTEST_SECRET]
            if start in self._forms and not self._forms[start].discard(form):
                del self._forms[start]

    def clean(self, text: str, limit: int = FIELD_LIMIT) -> str:
        """Return the text without secrets, and safe for a terminal.

        It is cut at ``limit`` characters, and then ends with the number of those left out.
        """
        if len(text) <= limit:
            return inert_lines(self._replace(text))
        # Only a bounded head is searched. Its end may hold the first half of a secret, which does
        # not match: as many characters as the longest secret has are dropped again.
        margin = max(_MARGIN, self._longest)
        head = self._replace(text[: limit + margin])[:-margin]
        return inert_lines(f"{head[:limit]}… (+{len(text) - len(head[:limit])})")

    def _replace(self, text: str) -> str:
        count = max(len(text) - SHORTEST_SECRET + 1, 0)
        windows = _all_windows()[:count]
        more = (slice(at, at + SHORTEST_SECRET) for at in range(len(windows), count))
        starts = map(text.__getitem__, chain(windows, more))
        text = text if self._forms.keys().isdisjoint(starts) else self._mask(text)
        text = _ASSIGNMENT.sub(rf"\1={MASK}", text) if "=" in text else text
        text = _USERINFO.sub(f"://{MASK}@", text) if "@" in text else text
        return _CREDENTIALS.sub(rf"\1 {MASK}", text)

    def _mask(self, text: str) -> str:
        done: list[str] = []
        copied = position = 0
        while position <= len(text) - SHORTEST_SECRET:
            forms = self._forms.get(text[position : position + SHORTEST_SECRET])
            length = forms.length_at(text, position) if forms else 0
            if length:
                done += (text[copied:position], MASK)
                copied = position + length
            position += length or 1
        return "".join((*done, text[copied:]))

    def clean_answer(self, answer: Any) -> Any:
        """Return a copy of plain data in which every text is clean and not cut.

        A session key stays: an answer contains one only if the client asked for it.
        """
        match answer:
            case str():
                return self.clean(answer, len(answer))
            case list():
                return [self.clean_answer(item) for item in answer]
            case dict():
                return {
                    key: value if key == SESSION_KEY_FIELD else self.clean_answer(value)
                    for key, value in answer.items()
                }
            case _:
                return answer


class _Forms:
    """The forms of secrets that begin with the same characters, by their length."""

    def __init__(self) -> None:
        self._by_length: dict[int, set[str]] = {}
        self._lengths: list[int] = []

    def add(self, form: str) -> None:
        self._by_length.setdefault(len(form), set()).add(form)
        self._lengths = sorted(self._by_length, reverse=True)

    def discard(self, form: str) -> bool:
        """Remove a form; return whether any is left."""
        same = self._by_length.get(len(form), set())
        same.discard(form)
        if not same:
            self._by_length.pop(len(form), None)
            self._lengths = sorted(self._by_length, reverse=True)
        return bool(self._by_length)

    def length_at(self, text: str, position: int) -> int:
        """Return the length of the longest form at the position, or 0."""
        for length in self._lengths:
            if text[position : position + length] in self._by_length[length]:
                return length
        return 0


@lru_cache(maxsize=1)
def _all_windows() -> list[slice]:
    return [slice(at, at + SHORTEST_SECRET) for at in range(FIELD_LIMIT * 2)]


redactor = Redactor()


def sanitizer(redact: Redactor) -> Callable[[WrappedLogger, str, EventDict], EventDict]:
    """Return the structlog processor that makes a line clean, bounded, plain data.

    Fields that are None are left out.
    """

    def sanitize(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        known = {name: value for name, value in event.items() if value is not None}
        return dict(_plain_items(known, redact.clean, 0))

    return sanitize


def describe_error(error: BaseException) -> str:
    """Return an exception and its causes in one line, the outermost first."""
    described: list[str] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen and len(seen) < DEPTH_LIMIT:
        seen.add(id(link))
        name, message = type(link).__name__, _text_of(link)
        if isinstance(link, BaseExceptionGroup):
            message += ": " + "; ".join(describe_error(inner) for inner in link.exceptions[:3])
        described.append(f"{name}: {message}" if message else name)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return " <- ".join(described)


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a log line must not fail over what it describes
        return f"<unprintable {type(value).__name__}>"


def _all_forms_of(secrets: Iterable[str]) -> list[str]:
    lines = (line for secret in secrets for line in {secret, *secret.splitlines()})
    return [form for line in lines if len(line) >= SHORTEST_SECRET for form in _forms_of(line)]


def _forms_of(secret: str) -> set[str]:
    # Longest first, as a log, a URL and JSON would show it; stripped, as a log reader would.
    return {
        secret,
        secret.strip() if len(secret.strip()) >= SHORTEST_SECRET else secret,
        quote(secret, safe="", errors="replace"),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
    }


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
