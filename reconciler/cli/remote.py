"""Ask the running daemon over its control socket."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote

import httpx

from reconciler.core.errors import ReconcilerError
from reconciler.telemetry.sockets import short_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from reconciler.settings import Settings

# A reload reads the file and the env files, each of which may hang for 10 s. The daemon answers
# everything else from memory.
_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)
# The daemon waits a minute for removals.
_REMOVAL_TIMEOUT: Final = httpx.Timeout(90.0, connect=5.0)
# A followed log may be silent indefinitely.
_FOLLOW_TIMEOUT: Final = httpx.Timeout(None, connect=5.0)


class RemoteBackend:
    """The daemon of one state directory. Use it as a context manager."""

    def __init__(self, client: httpx.Client, stack: ExitStack, desired: str) -> None:
        self._client = client
        self._stack = stack
        self.desired = desired

    @classmethod
    def connect(cls, settings: Settings) -> Self | None:
        """Connect to the daemon of these settings; None if none listens.

        Raises:
            ReconcilerError: a daemon listens, but it refuses this user or does not respond.
        """
        with ExitStack() as stack:
            # The short path is valid only within its block, and the client reconnects through it.
            path = stack.enter_context(short_path(settings.socket))
            transport = httpx.HTTPTransport(uds=path)
            client = stack.enter_context(
                httpx.Client(transport=transport, base_url="http://daemon", timeout=_TIMEOUT)
            )
            try:
                facts = client.get("/v1/ping").json()
            except httpx.ConnectError as error:
                if "Permission denied" not in str(error):
                    return None
                raise ReconcilerError(
                    f"{settings.socket}: permission denied; run this as the daemon's user, or as "
                    "root",
                ) from error
            except (httpx.HTTPError, ValueError) as error:
                raise ReconcilerError(f"the daemon does not respond: {error}") from error
            if not isinstance(facts, dict) or "desired" not in facts:
                raise ReconcilerError(
                    f"{settings.socket}: the process that listens there is not a daemon of this "
                    "release"
                )
            return cls(client, stack.pop_all(), facts["desired"])

    def follows(self, desired: Path) -> bool:
        """Whether the daemon follows this desired file."""
        # Path.resolve raises for a loop of links, and for a folder that may not be entered.
        return os.path.realpath(self.desired) == os.path.realpath(desired)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def status(self, name: str | None, *, secrets: bool) -> dict[str, Any]:
        """Return what ``status --json`` prints."""
        return dict(self._get("/v1/status", name=name, secrets=secrets))

    def plan(self) -> dict[str, Any]:
        """Return what ``plan --json`` prints."""
        return dict(self._get("/v1/plan"))

    def convergence(self) -> dict[str, Any]:
        """Return whether the host matches the records."""
        return dict(self._get("/v1/convergence"))

    def events(self, name: str | None, after: int | None, limit: int) -> list[dict[str, Any]]:
        """Return ledger entries, oldest first."""
        return list(self._get("/v1/events", sandbox=name, after=after, limit=limit))

    def export(self, *, secrets: bool) -> str:
        """Return the records in force, as YAML."""
        return self._ask("GET", "/v1/export", {"secrets": secrets}).text

    def reload(self, *, allow_mass_delete: bool) -> dict[str, Any]:
        """Make the daemon read the desired file now."""
        return dict(self._post("/v1/reload", allow_mass_delete=allow_mass_delete))

    def garbage(self) -> list[dict[str, Any]]:
        """Return what no record wants."""
        return list(self._post("/v1/gc", dry_run=True))

    def collect(self, *, allow_mass_delete: bool) -> list[dict[str, Any]]:
        """Remove the garbage that is due, and return all of it with the outcome."""
        query = {"dry_run": False, "allow_mass_delete": allow_mass_delete}
        return list(self._ask("POST", "/v1/gc", query, timeout=_REMOVAL_TIMEOUT).json())

    def adopt(self, name: str, volume: str | None) -> dict[str, Any]:
        """Take over a workspace or a container."""
        return dict(self._post("/v1/adopt", name=name, volume=volume))

    def logs(self, name: str, *, tail: int, follow: bool, on_line: Callable[[str], None]) -> None:
        """Call ``on_line`` for each line of a sandbox's log."""
        query = {"tail": tail, "follow": follow}
        timeout = _FOLLOW_TIMEOUT if follow else _TIMEOUT
        url = f"/v1/logs/{quote(name, safe='')}"
        with (
            _http_errors(),
            self._client.stream("GET", url, params=query, timeout=timeout) as answer,
        ):
            if answer.is_error:
                answer.read()
                raise ReconcilerError(_error_of(answer))
            rest = b""
            for chunk in answer.iter_bytes():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    on_line(line.decode(errors="surrogateescape"))

    def _get(self, path: str, **query: Any) -> Any:
        return self._ask("GET", path, query).json()

    def _post(self, path: str, **query: Any) -> Any:
        return self._ask("POST", path, query).json()

    def _ask(
        self,
        method: str,
        path: str,
        query: dict[str, Any],
        timeout: httpx.Timeout = _TIMEOUT,
    ) -> httpx.Response:
        given = {key: value for key, value in query.items() if value is not None}
        with _http_errors():
            answer = self._client.request(method, path, params=given, timeout=timeout)
        if answer.is_error:
            raise ReconcilerError(_error_of(answer))
        return answer


@contextmanager
def _http_errors() -> Iterator[None]:
    """Raise a ReconcilerError for each error of httpx."""
    try:
        yield
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.ConnectError) as error:
        raise ReconcilerError("the daemon stopped") from error
    except httpx.HTTPError as error:
        raise ReconcilerError(f"the daemon does not respond: {error}") from error


def _error_of(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"the daemon answered with HTTP status {answer.status_code}"
