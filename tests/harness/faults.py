"""Faults of requests, and the requests that they apply to."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

_VERSION = re.compile(r"^/v\d+\.\d+(?=/)")
GARBAGE = b'\x00{"Id": nonsense'


@dataclass
class Request:
    """One request that reached the proxy; `status` is the engine's answer, None until then."""

    number: int
    method: str
    target: str
    body: bytes
    time: float = field(default_factory=monotonic)
    status: int | None = None

    @property
    def path(self) -> str:
        """Return the path without the API's version and the query."""
        return _VERSION.sub("", urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, str]:
        return {key: values[0] for key, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def changes(self) -> bool:
        """Tell whether the request changes something."""
        return self.method in {"POST", "PUT", "DELETE"}


Predicate = Callable[[Request], bool]
EditEvent = Callable[[dict[str, Any]], list[dict[str, Any]]]


@dataclass(frozen=True)
class Fault:
    """A fault of a request; the fields combine, in their order."""

    delay: float = 0
    hang: Literal["", "before", "after"] = ""
    drop: bool = False
    answer: tuple[int, bytes] | None = None
    cut: bool = False
    truncate: bool = False


def delay(seconds: float) -> Fault:
    """Delay the request."""
    return Fault(delay=seconds)


def drop() -> Fault:
    """Close the connection; the engine never gets the request."""
    return Fault(drop=True)


def cut() -> Fault:
    """Let the engine do it, then close the connection without a response."""
    return Fault(cut=True)


def answer(status: int, message: str = "scripted fault") -> Fault:
    """Respond instead of the engine, which never gets the request."""
    return Fault(answer=(status, b'{"message": "%s"}' % message.encode()))


def garbage() -> Fault:
    """Respond with 200 and no JSON; the engine never gets the request."""
    return Fault(answer=(200, GARBAGE))


def truncate() -> Fault:
    """Let the engine do it, and send the first half of its response, well framed."""
    return Fault(truncate=True)


def hang() -> Fault:
    """Neither forward nor answer, until the client disconnects or `release()`."""
    return Fault(hang="before")


def hang_after() -> Fault:
    """Let the engine do it, but do not answer, until the client disconnects or `release()`."""
    return Fault(hang="after")


@dataclass
class Rule:
    """A fault, and the requests that it is for; `times` counts down, None means always."""

    predicate: Predicate
    fault: Fault
    times: int | None = 1

    def take(self, request: Request) -> bool:
        """Tell whether it applies to this request, and count it."""
        if self.times == 0 or not self.predicate(request):
            return False
        if self.times is not None:
            self.times -= 1
        return True


def matching(method: str = ".*", path: str = ".*") -> Predicate:
    """Select requests by regular expressions for the whole method and path."""
    pattern = re.compile(f"{method} {path}")
    return lambda request: bool(pattern.fullmatch(f"{request.method} {request.path}"))


def part(name: str) -> Predicate:
    """Select the requests that a filtering proxy forbids with ``NAME=0``."""
    if name == "POST":
        return lambda request: request.method not in {"GET", "HEAD"}
    return lambda request: request.path.split("/")[1].lstrip("_").upper() == name


def number(wanted: int) -> Predicate:
    """Select the request of that number."""
    return lambda request: request.number == wanted
