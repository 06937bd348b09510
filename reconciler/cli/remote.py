"""The running daemon, asked over its control socket."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote

import httpx

from reconciler.core.errors import ReconcilerError
from reconciler.telemetry.sockets import short_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from reconciler.settings import Settings

# A reload reads the file and the env files, which may hang for 10 s each; everything else is
# answered from memory.
_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)
# The daemon waits a minute for removals.
_REMOVAL: Final = httpx.Timeout(90.0, connect=5.0)
# The next line of a log may be a long time coming.
_FOR_EVER: Final = httpx.Timeout(None, connect=5.0)


class Client:
    """The daemon of one state directory."""

    def __init__(self, client: httpx.Client, stack: ExitStack, facts: dict[str, Any]) -> None:
        self._client = client
        self._stack = stack
        self.desired: str = facts["desired"]

    @classmethod
    def connect(cls, settings: Settings) -> Self | None:
        """The daemon of these settings; None where none listens.

        Raises:
            ReconcilerError: one listens, and may not be asked or does not answer.
        """
        with ExitStack() as stack:
            # The short name holds for as long as the client connects through it.
            path = stack.enter_context(short_path(settings.socket))
            client = stack.enter_context(_http_over(path))
            try:
                facts = _ping(client)
            except httpx.ConnectError as error:
                if "Permission denied" not in str(error):
                    return None
                raise ReconcilerError(
                    f"{settings.socket}: no right to ask the daemon; be its user, or root",
                ) from error
            return cls(client, stack.pop_all(), facts)

    def follows(self, desired: Path) -> bool:
        """Whether this is the desired file that the daemon follows."""
        # Path.resolve raises for a loop of links, and for a folder that may not be entered.
        return os.path.realpath(self.desired) == os.path.realpath(desired)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def status(self, name: str | None, *, secrets: bool) -> dict[str, Any]:
        """As ``status --json`` prints it."""
        return dict(self._get("/v1/status", name=name, secrets=secrets))

    def plan(self) -> dict[str, Any]:
        """As ``plan --json`` prints it."""
        return dict(self._get("/v1/plan"))

    def events(self, name: str | None, after: int | None, limit: int) -> list[dict[str, Any]]:
        """Ledger entries, oldest first."""
        return list(self._get("/v1/events", sandbox=name, after=after, limit=limit))

    def garbage(self) -> list[dict[str, Any]]:
        """What nothing asks for."""
        return list(self._post("/v1/gc", dry_run=True))

    def export(self, *, secrets: bool) -> str:
        """The records in force, as YAML."""
        return self._ask("GET", "/v1/export", {"secrets": secrets}).text

    def convergence(self) -> dict[str, Any]:
        """Whether the host agrees with the records."""
        return dict(self._get("/v1/convergence"))

    def reload(self, *, allow_mass_delete: bool) -> dict[str, Any]:
        """Have the desired file read now."""
        return dict(self._post("/v1/reload", allow_mass_delete=allow_mass_delete))

    def collect(self, *, allow_mass_delete: bool) -> list[dict[str, Any]]:
        """Have what is due collected now; what there was."""
        query = {"dry_run": False, "allow_mass_delete": allow_mass_delete}
        return list(self._ask("POST", "/v1/gc", query, timeout=_REMOVAL).json())

    def adopt(self, name: str, volume: str | None) -> dict[str, Any]:
        """Have a workspace or a container taken over."""
        return dict(self._post("/v1/adopt", name=name, volume=volume))

    def logs(self, name: str, *, tail: int, follow: bool) -> Iterator[str]:
        """The lines of a sandbox's log, as they come."""
        query = {"tail": tail, "follow": follow}
        timeout = _FOR_EVER if follow else _TIMEOUT
        url = f"/v1/logs/{quote(name, safe='')}"
        with (
            _explained(),
            self._client.stream("GET", url, params=query, timeout=timeout) as answer,
        ):
            if answer.is_error:
                answer.read()
                raise ReconcilerError(_error_of(answer))
            rest = b""
            for chunk in answer.iter_bytes():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line.decode(errors="surrogateescape")

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
        with _explained():
            answer = self._client.request(method, path, params=given, timeout=timeout)
        if answer.is_error:
            raise ReconcilerError(_error_of(answer))
        return answer


def _http_over(path: str) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=path)
    return httpx.Client(transport=transport, base_url="http://daemon", timeout=_TIMEOUT)


def _ping(client: httpx.Client) -> dict[str, Any]:
    try:
        facts = client.get("/v1/ping").json()
    except httpx.ConnectError:
        raise
    except (httpx.HTTPError, ValueError) as error:
        raise ReconcilerError(f"the daemon does not answer: {error}") from error
    if not isinstance(facts, dict) or "desired" not in facts:
        raise ReconcilerError("what listens on the control socket is no daemon of this release")
    return facts


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.ConnectError) as error:
        raise ReconcilerError("the daemon has ended") from error
    except httpx.HTTPError as error:
        raise ReconcilerError(f"the daemon does not answer: {error}") from error


def _error_of(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"the daemon answered {answer.status_code}"
