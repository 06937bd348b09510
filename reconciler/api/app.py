"""What the control socket answers: the manager's own words, as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from reconciler.core.errors import EngineError, ReconcilerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import Request

    from reconciler.loop.answers import Answers
    from reconciler.loop.manager import Manager

Limit = Annotated[int, Query(ge=1, le=10_000)]


def create_app(manager: Manager) -> FastAPI:
    """The application over one manager."""
    app = FastAPI(title="reconciler", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(ReconcilerError, _explain)
    _add_questions(app, manager)
    _add_requests(app, manager.answers)
    _add_logs(app, manager.answers)
    return app


def _add_questions(app: FastAPI, manager: Manager) -> None:
    @app.get("/v1/ping")
    async def ping() -> dict[str, str]:
        return {"desired": str(manager.intake.path), "instance": manager.settings.instance}

    @app.get("/v1/status")
    async def status(name: str | None = None, *, secrets: bool = False) -> dict[str, Any]:
        return await manager.answers.status(name, secrets=secrets)

    @app.get("/v1/plan")
    async def plan() -> dict[str, Any]:
        return manager.answers.plan()

    @app.get("/v1/convergence")
    async def convergence() -> dict[str, Any]:
        return manager.survey.convergence()

    @app.get("/v1/events")
    async def events(
        sandbox: str | None = None,
        after: int | None = None,
        limit: Limit = 200,
    ) -> list[dict[str, Any]]:
        return await manager.answers.events(sandbox, after=after, limit=limit)

    @app.get("/v1/export")
    async def export() -> PlainTextResponse:
        return PlainTextResponse(manager.answers.export(), media_type="application/yaml")


def _add_requests(app: FastAPI, answers: Answers) -> None:
    @app.post("/v1/reload")
    async def reload(*, allow_mass_delete: bool = False) -> dict[str, Any]:
        return await answers.reload(allow_mass_delete=allow_mass_delete)

    @app.post("/v1/gc")
    async def collect(*, dry_run: bool = False) -> list[dict[str, Any]]:
        return answers.garbage() if dry_run else answers.collect()


def _add_logs(app: FastAPI, answers: Answers) -> None:
    @app.get("/v1/logs/{name}")
    async def logs(
        name: str,
        tail: Limit = 100,
        *,
        follow: bool = False,
    ) -> StreamingResponse:
        # Asked before the answer begins, so that a wrong name is an error and not an empty log.
        lines = await answers.logs(name, tail=tail, follow=follow)
        return StreamingResponse(_as_text(lines), media_type="text/plain")


async def _as_text(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    async for line in lines:
        yield f"{line}\n"


async def _explain(_request: Request, error: Exception) -> JSONResponse:
    status = 503 if isinstance(error, EngineError) else 404
    return JSONResponse({"error": str(error)}, status_code=status)
