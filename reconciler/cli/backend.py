"""Who answers a command: the running daemon, or this process where none runs."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar

import click
import httpx

from reconciler.core.errors import ReconcilerError
from reconciler.service.sockets import short_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from types import TracebackType

    from reconciler.loop.manager import Manager
    from reconciler.settings import Settings

# A reload reads the file and the env files; everything else is answered from memory.
_TIMEOUT: Final = httpx.Timeout(30.0, connect=5.0)
_FOR_EVER: Final = httpx.Timeout(None, connect=5.0)
T = TypeVar("T")
NO_DAEMON: Final = "no daemon runs here; this is what this process sees"


class Backend(Protocol):
    """The questions that both can answer."""

    def status(self, name: str | None, *, secrets: bool) -> dict[str, Any]:
        """As ``status --json`` prints it."""

    def plan(self) -> dict[str, Any]:
        """As ``plan --json`` prints it."""

    def events(self, name: str | None, after: int | None, limit: int) -> list[dict[str, Any]]:
        """Ledger entries, oldest first."""

    def garbage(self) -> list[dict[str, Any]]:
        """What nothing asks for."""

    def export(self) -> str:
        """The records in force, as YAML."""


class Remote:
    """The daemon, over its control socket."""

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
        stack = ExitStack()
        path = stack.enter_context(short_path(settings.socket))
        transport = httpx.HTTPTransport(uds=path)
        client = stack.enter_context(
            httpx.Client(transport=transport, base_url="http://daemon", timeout=_TIMEOUT),
        )
        try:
            return cls(client, stack, client.get("/v1/ping").json())
        except httpx.ConnectError as error:
            stack.close()
            if "Permission denied" in str(error):
                raise ReconcilerError(
                    f"{settings.socket}: no right to ask the daemon; be its user, or root",
                ) from error
            return None
        except (httpx.HTTPError, ValueError) as error:
            stack.close()
            raise ReconcilerError(f"the daemon does not answer: {error}") from error

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

    def export(self) -> str:
        """The records in force, as YAML."""
        return self._ask("GET", "/v1/export", {}).text

    def convergence(self) -> dict[str, Any]:
        """Whether the host agrees with the records."""
        return dict(self._get("/v1/convergence"))

    def reload(self, *, allow_mass_delete: bool) -> dict[str, Any]:
        """Have the desired file read now."""
        return dict(self._post("/v1/reload", allow_mass_delete=allow_mass_delete))

    def collect(self) -> list[dict[str, Any]]:
        """Have what is due collected now."""
        return list(self._post("/v1/gc", dry_run=False))

    def logs(self, name: str, *, tail: int, follow: bool) -> Iterator[str]:
        """The lines of a sandbox's log, as they come."""
        query = {"tail": tail, "follow": follow}
        timeout = _FOR_EVER if follow else _TIMEOUT
        url = f"/v1/logs/{name}"
        with self._client.stream("GET", url, params=query, timeout=timeout) as answer:
            if answer.is_error:
                answer.read()
                raise ReconcilerError(_error_of(answer))
            yield from answer.iter_lines()

    def _get(self, path: str, **query: Any) -> Any:
        return self._ask("GET", path, query).json()

    def _post(self, path: str, **query: Any) -> Any:
        return self._ask("POST", path, query).json()

    def _ask(self, method: str, path: str, query: dict[str, Any]) -> httpx.Response:
        given = {key: value for key, value in query.items() if value is not None}
        try:
            answer = self._client.request(method, path, params=given)
        except httpx.HTTPError as error:
            raise ReconcilerError(f"the daemon does not answer: {error}") from error
        if answer.is_error:
            raise ReconcilerError(_error_of(answer))
        return answer


class Local:
    """This process, with a rehearsal of the store: nothing is written, nothing is changed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def status(self, name: str | None, *, secrets: bool) -> dict[str, Any]:
        """As ``status --json`` prints it."""
        return self._rehearse(lambda m: m.answers.status(name, secrets=secrets))

    def plan(self) -> dict[str, Any]:
        """As ``plan --json`` prints it."""

        async def ask(manager: Manager) -> dict[str, Any]:
            return manager.answers.plan()

        return self._rehearse(ask)

    def events(self, name: str | None, after: int | None, limit: int) -> list[dict[str, Any]]:
        """Ledger entries, oldest first."""
        return self._rehearse(
            lambda m: m.answers.events(name, after=after, limit=limit),
            observe=False,
        )

    def garbage(self) -> list[dict[str, Any]]:
        """What nothing asks for."""

        async def ask(manager: Manager) -> list[dict[str, Any]]:
            return manager.survey.garbage()

        return self._rehearse(ask)

    def export(self) -> str:
        """The records in force, as YAML."""

        async def ask(manager: Manager) -> str:
            return manager.answers.export()

        return self._rehearse(ask, observe=False)

    def _rehearse(self, ask: Callable[[Manager], Awaitable[T]], *, observe: bool = True) -> T:
        return asyncio.run(_rehearse(self._settings, ask, observe=observe))


async def _rehearse(
    settings: Settings,
    ask: Callable[[Manager], Awaitable[T]],
    *,
    observe: bool,
) -> T:
    async with rehearsal(settings) as manager:
        await manager.read_manifest()
        if observe:
            await manager.observe()
        return await ask(manager)


@asynccontextmanager
async def rehearsal(settings: Settings) -> AsyncIterator[Manager]:
    """The whole loop over a store that is never written, and no task of it runs."""
    from reconciler.daemon import quiet_manager  # noqa: PLC0415 - it loads the engine's client
    from reconciler.store.store import Store  # noqa: PLC0415

    store = await Store.open_readonly(settings.state_dir)
    async with store, quiet_manager(settings, store) as manager:
        yield manager


def backend(settings: Settings, *, quiet: bool = False) -> Remote | Local:
    """The daemon where one runs, else this process; says so on a terminal."""
    remote = Remote.connect(settings)
    if remote is not None:
        return remote
    if not quiet:
        click.echo(f"reconciler: {NO_DAEMON}", err=True)
    return Local(settings)


def _error_of(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"the daemon answered {answer.status_code}"
