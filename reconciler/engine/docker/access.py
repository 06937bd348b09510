"""Which parts of its API an engine allows, or a filtering proxy before it.

The parts have the names that docker-socket-proxy and its like give them: one for each first segment
of a path, and POST for whatever changes something.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from reconciler.core.errors import Forbidden
from reconciler.engine.docker.errors import cut

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.engine.docker.requests import Request

# Proxies answer with any of these. So does Docker itself, about networks and registries.
_STATUSES: Final = frozenset({401, 403, 405})
_OF_DOCKER: Final = re.compile(
    r"endpoint with name|manually attachable|pull access denied|requested access|unauthorized:"
    r"|authentication required|denied: |insufficient_scope"
)
_POST: Final = "POST"
# Seconds after which a refusal counts no longer: what is needed is asked for again by then.
_LONGEST_KEPT: Final = 900.0

# What does not work without a part. One that is not named here can be done without.
NEEDS: Final = {
    "CONTAINERS": "no sandbox can be seen",
    _POST: "nothing can be created, started, stopped or removed",
    "VOLUMES": "no sandbox with a workspace can be created, and no volume is collected",
    "EVENTS": "changes are found by a list every few seconds, and not at once",
    "EXEC": "exec probes have no result",
    "IMAGES": "no image can be pulled or removed; those that are present are used",
    "INFO": "the disk of the engine is not watched",
    "VERSION": "the version of the engine is unknown",
    "PING": "the version of the API is guessed where VERSION is forbidden, too",
}


class _Refusal(NamedTuple):
    error: Forbidden
    at: float


class Access:
    """What was forbidden lately. ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._readable: set[str] = set()
        self._refusals: dict[str, _Refusal] = {}

    @property
    def forbidden(self) -> tuple[Forbidden, ...]:
        """One error for each part of the API that was refused lately, by name."""
        since = self._clock() - _LONGEST_KEPT
        self._refusals = {kind: it for kind, it in self._refusals.items() if it.at >= since}
        parts = {it.error.part: it.error for it in self._refusals.values()}
        return tuple(parts[part] for part in sorted(parts))

    def answered(self, request: Request) -> None:
        """The engine did not forbid the request."""
        self._refusals.pop(_kind(request), None)
        if not request.changes:
            self._readable.add(part_of(request))

    def refused(self, request: Request, status: int, text: str) -> Forbidden | None:
        """The error where the status and the text are those of a rule, and not of the object."""
        if status not in _STATUSES or _OF_DOCKER.search(text):
            return None
        part = part_of(request)
        if request.changes and part in self._readable:
            part = _POST
        error = _forbidden(request, part, f"{status} {text}")
        if part in NEEDS:
            self._refusals[_kind(request)] = _Refusal(error, self._clock())
        return error


def _forbidden(request: Request, part: str, text: str) -> Forbidden:
    """With what needs the part of the API, and how to allow it."""
    needs = NEEDS.get(part, "what needs it does not work")
    names = [part] if part == _POST or not request.changes else [part, _POST]
    allow = " and ".join(f"{name}=1" for name in names)
    return Forbidden(
        f"{request} is forbidden ({cut(text)}): {needs}; allow {allow} in the proxy before the "
        "engine",
        part,
    )


def part_of(request: Request) -> str:
    """The part of the API that a request is of."""
    return request.path.partition("/")[0].lstrip("_").upper()


def _kind(request: Request) -> str:
    """The request without the name of what it is about."""
    first, *rest = request.path.split("/")
    last = rest[-1] if len(rest) > 1 or rest in (["create"], ["json"]) else "*"
    return f"{request.method} {first} {last}"
