"""The HTTP routes of the control socket: JSON answers from ``Queries`` and ``Operations``."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from reconciler.control.operations import Operations
from reconciler.control.queries import Queries
from reconciler.core.errors import EngineError, EngineUnavailable, NotFound, ReconcilerError
from reconciler.telemetry.redact import redactor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import Request

    from reconciler.observe.informer import Informer
    from reconciler.wiring import Manager

Limit = Annotated[int, Query(ge=1, le=10_000)]

# Seconds; longer than a relist takes after the event stream was lost.
_PATIENCE: Final = 5.0


class CleanJSON(JSONResponse):
    """JSON without secrets, and without characters that could drive a terminal."""

    def render(self, content: Any) -> bytes:
        """Redact the answer and encode it."""
        return super().render(redactor.clean_answer(content))


def create_app(manager: Manager) -> FastAPI:
    """Return the application for one manager. Each error is answered as ``{"error": "..."}``."""
    app = FastAPI(
        title="reconciler",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        default_response_class=CleanJSON,
    )
    for kind in (ReconcilerError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, error_response)
    _add_queries(app, manager)
    _add_operations(app, manager)
    _add_logs(app, Queries(manager))
    return app


def _add_queries(app: FastAPI, manager: Manager) -> None:
    queries = Queries(manager)
    # Absolute, since a client has another working directory than the daemon.
    desired = manager.manifest_sync.path
    with suppress(FileNotFoundError):  # the daemon's working directory was removed
        desired = desired.absolute()

    @app.get("/v1/ping")
    async def ping() -> dict[str, str]:
        return {"desired": str(desired), "instance": manager.settings.instance}

    @app.get("/v1/status")
    async def status(name: str | None = None, *, secrets: bool = False) -> dict[str, Any]:
        return await queries.status(name, secrets=secrets)

    @app.get("/v1/plan")
    async def plan() -> dict[str, Any]:
        await _wait_for_engine(manager.informer)
        return queries.plan()

    @app.get("/v1/convergence")
    async def convergence() -> dict[str, Any]:
        return queries.convergence()

    @app.get("/v1/events")
    async def events(
        sandbox: str | None = None, after: int | None = None, limit: Limit = 200
    ) -> list[dict[str, Any]]:
        return await queries.events(sandbox, after=after, limit=limit)

    @app.get("/v1/export")
    async def export(*, secrets: bool = False) -> PlainTextResponse:
        text = queries.export(secrets=secrets)
        shown = text if secrets else redactor.clean_answer(text)
        return PlainTextResponse(shown, media_type="application/yaml")


def _add_logs(app: FastAPI, queries: Queries) -> None:
    @app.get("/v1/logs/{name}")
    async def logs(name: str, tail: Limit = 100, *, follow: bool = False) -> StreamingResponse:
        # Awaited before the answer begins, so that a wrong name is an error, not an empty log.
        lines = await queries.logs(name, tail=tail, follow=follow)

        async def body() -> AsyncIterator[bytes]:
            async for line in lines:
                yield f"{line}\n".encode(errors="surrogateescape")

        return StreamingResponse(body(), media_type="text/plain")


def _add_operations(app: FastAPI, manager: Manager) -> None:
    queries, operations = Queries(manager), Operations(manager)

    @app.post("/v1/reload")
    async def reload(*, allow_mass_delete: bool = False) -> dict[str, Any]:
        return await operations.reload(allow_mass_delete=allow_mass_delete)

    @app.post("/v1/gc")
    async def collect(
        *, dry_run: bool = False, allow_mass_delete: bool = False
    ) -> list[dict[str, Any]]:
        if dry_run:
            return queries.garbage()
        await _wait_for_engine(manager.informer)
        return await operations.collect(allow_mass_delete=allow_mass_delete)

    @app.post("/v1/adopt")
    async def adopt(name: str, volume: str | None = None) -> dict[str, Any]:
        return await operations.adopt(name, volume)


async def _wait_for_engine(informer: Informer) -> None:
    """Wait until the cache is current: a stale one must not be reported as "in sync".

    Raises:
        EngineUnavailable: the engine stays unreachable.
    """
    try:
        async with asyncio.timeout(_PATIENCE):
            await informer.synced.wait()
    except TimeoutError:
        raise EngineUnavailable(informer.error) from None


async def error_response(_request: Request, error: Exception) -> JSONResponse:
    """Return any error of a route as JSON, with the HTTP status that suits it."""
    message = str(error)
    match error:
        case RequestValidationError():
            status = 422
            message = "; ".join(f"{wrong['loc'][-1]}: {wrong['msg']}" for wrong in error.errors())
        case HTTPException():
            status, message = error.status_code, str(error.detail)
        case NotFound():
            status = 404
        case EngineError():
            status = 503
        case ReconcilerError():
            status = 500
        case _:
            status = 500
            message = f"internal error; see the daemon's log: {type(error).__name__}: {error}"
    return CleanJSON({"error": message}, status_code=status)
