"""What the control socket answers: the manager's own words, as JSON."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from reconciler.control.queries import Queries
from reconciler.core.errors import EngineError, EngineUnavailable, NotFound, ReconcilerError
from reconciler.telemetry.redact import redactor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import Request

    from reconciler.observe.informer import Informer
    from reconciler.wiring import Manager

Limit = Annotated[int, Query(ge=1, le=10_000)]

# Longer than it takes to list again after a lost event stream.
_PATIENCE: Final = 5.0


class CleanJSON(JSONResponse):
    """An answer without a secret and without a character that could drive a terminal."""

    def render(self, content: Any) -> bytes:
        """Clean the answer and encode it."""
        return super().render(redactor.clean_answer(content))


def create_app(manager: Manager) -> FastAPI:
    """The application over one manager. Every error is ``{"error": "..."}``."""
    app = FastAPI(
        title="reconciler",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        default_response_class=CleanJSON,
    )
    app.add_exception_handler(ReconcilerError, _explain)
    app.add_exception_handler(RequestValidationError, _explain_question)
    app.add_exception_handler(HTTPException, _explain_address)
    app.add_exception_handler(Exception, _own_up)
    queries = Queries(manager)
    _add_state(app, manager, queries)
    _add_observations(app, manager.informer, queries)
    _add_requests(app, queries, manager.informer)
    _add_logs(app, queries)
    return app


def _add_state(app: FastAPI, manager: Manager, queries: Queries) -> None:
    # A client's working directory is another than the daemon's.
    try:
        desired = str(manager.manifest_sync.path.absolute())
    except FileNotFoundError:
        # The working directory was removed.
        desired = str(manager.manifest_sync.path)

    @app.get("/v1/ping")
    async def ping() -> dict[str, str]:
        return {"desired": desired, "instance": manager.settings.instance}

    @app.get("/v1/status")
    async def status(name: str | None = None, *, secrets: bool = False) -> dict[str, Any]:
        return await queries.status(name, secrets=secrets)

    @app.get("/v1/events")
    async def events(
        sandbox: str | None = None,
        after: int | None = None,
        limit: Limit = 200,
    ) -> list[dict[str, Any]]:
        return await queries.events(sandbox, after=after, limit=limit)

    @app.get("/v1/export")
    async def export(*, secrets: bool = False) -> PlainTextResponse:
        text = queries.export(secrets=secrets)
        return PlainTextResponse(text, media_type="application/yaml")


def _add_observations(app: FastAPI, informer: Informer, queries: Queries) -> None:
    """What only an engine that answers can tell."""

    @app.get("/v1/plan")
    async def plan() -> dict[str, Any]:
        await _observed(informer)
        return queries.plan()

    @app.get("/v1/convergence")
    async def convergence() -> dict[str, Any]:
        return queries.convergence()


async def _observed(informer: Informer) -> None:
    """What was seen before the engine was lost says nothing about what is: "in sync" least."""
    try:
        async with asyncio.timeout(_PATIENCE):
            await informer.synced.wait()
    except TimeoutError:
        raise EngineUnavailable(informer.error) from None


def _add_requests(app: FastAPI, queries: Queries, informer: Informer) -> None:
    @app.post("/v1/reload")
    async def reload(*, allow_mass_delete: bool = False) -> dict[str, Any]:
        return await queries.reload(allow_mass_delete=allow_mass_delete)

    @app.post("/v1/gc")
    async def collect(
        *, dry_run: bool = False, allow_mass_delete: bool = False
    ) -> list[dict[str, Any]]:
        if dry_run:
            return queries.garbage()
        await _observed(informer)
        return await queries.collect(allow_mass_delete=allow_mass_delete)

    @app.post("/v1/adopt")
    async def adopt(name: str, volume: str | None = None) -> dict[str, Any]:
        return await queries.adopt(name, volume)


def _add_logs(app: FastAPI, queries: Queries) -> None:
    @app.get("/v1/logs/{name}")
    async def logs(
        name: str,
        tail: Limit = 100,
        *,
        follow: bool = False,
    ) -> StreamingResponse:
        # Asked before the answer begins, so that a wrong name is an error and not an empty log.
        lines = await queries.logs(name, tail=tail, follow=follow)
        return StreamingResponse(_as_bytes(lines), media_type="text/plain")


async def _as_bytes(lines: AsyncIterator[str]) -> AsyncIterator[bytes]:
    async for line in lines:
        yield f"{line}\n".encode(errors="surrogateescape")


# --- errors -----------------------------------------------------------------------------------


async def _explain(_request: Request, error: Exception) -> JSONResponse:
    return _error(_status_of(error), str(error))


def _status_of(error: Exception) -> int:
    if isinstance(error, NotFound):
        return 404
    return 503 if isinstance(error, EngineError) else 500


async def _explain_question(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    wrong = [f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()]
    return _error(422, "; ".join(wrong))


async def _explain_address(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, str(error.detail))


async def _own_up(_request: Request, error: Exception) -> JSONResponse:
    return _error(500, f"this is a defect, see the daemon's log: {type(error).__name__}: {error}")


def _error(status: int, message: str) -> JSONResponse:
    return CleanJSON({"error": message}, status_code=status)
