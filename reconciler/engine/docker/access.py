"""Track which parts of the API an engine, or a filtering proxy in front of it, forbids.

The parts have the names that docker-socket-proxy gives them: the first segment of the path, and
POST for every request that changes something.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from reconciler.core.errors import Forbidden
from reconciler.engine.docker.errors import cut

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.engine.docker.requests import Request

# Proxies send any of these. Docker itself also does, about networks and registries.
_STATUSES: Final = frozenset({401, 403, 405})
_OF_DOCKER: Final = re.compile(
    r"endpoint with name|manually attachable|pull access denied|requested access|unauthorized:"
    r"|authentication required|denied: |insufficient_scope"
)
_POST: Final = "POST"
# Seconds after which a refusal expires: by then, what is needed was requested again.
_LONGEST_KEPT: Final = 900.0

# What does not work without a part. Other parts are not needed.
NEEDS: Final = {
    "CONTAINERS": "no sandbox can be observed",
    _POST: "nothing can be created, started, stopped or removed",
    "VOLUMES": "no sandbox with a workspace can be created, and no volume is removed",
    "EVENTS": "changes are noticed every few seconds instead of at once",
    "EXEC": "exec probes have no result",
    "IMAGES": "no image can be pulled or removed; only images on the engine can be used",
    "INFO": "the engine's disk is not monitored",
    "VERSION": "the version of the engine is unknown",
    "PING": "the API version is guessed if VERSION is forbidden too",
}


class _Refusal(NamedTuple):
    error: Forbidden
    at: float


class Access:
    """The parts that were forbidden recently. ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._readable: set[str] = set()
        self._refusals: dict[str, _Refusal] = {}

    @property
    def forbidden(self) -> tuple[Forbidden, ...]:
        """One error for each part of the API that was forbidden recently, sorted by name."""
        since = self._clock() - _LONGEST_KEPT
        self._refusals = {kind: it for kind, it in self._refusals.items() if it.at >= since}
        parts = {it.error.part: it.error for it in self._refusals.values()}
        return tuple(parts[part] for part in sorted(parts))

    def answered(self, request: Request) -> None:
        """Record that the engine did not forbid the request."""
        self._refusals.pop(_kind(request), None)
        if not request.changes:
            self._readable.add(part_of(request))

    def refused(self, request: Request, status: int, text: str) -> Forbidden | None:
        """Return the error if status and text mean a rule of a proxy, and not the object."""
        if status not in _STATUSES or _OF_DOCKER.search(text):
            return None
        part = part_of(request)
        if request.changes and part in self._readable:
            part = _POST
        needs = NEEDS.get(part, "what needs it does not work")
        names = [part] if part == _POST or not request.changes else [part, _POST]
        allow = " and ".join(f"{name}=1" for name in names)
        error = Forbidden(
            f"{request} is forbidden ({cut(f'{status} {text}')}): {needs}; allow {allow} in the "
            "proxy in front of the engine",
            part,
        )
        if part in NEEDS:
            self._refusals[_kind(request)] = _Refusal(error, self._clock())
        return error


def part_of(request: Request) -> str:
    """Return the part of the API that a request belongs to."""
    return request.path.partition("/")[0].lstrip("_").upper()


def _kind(request: Request) -> str:
    """Return the request without the name of its object."""
    first, *rest = request.path.split("/")
    last = rest[-1] if len(rest) > 1 or rest in (["create"], ["json"]) else "*"
    return f"{request.method} {first} {last}"
