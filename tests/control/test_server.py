"""The control socket: its permissions, its path, stale sockets and shutdown."""

import asyncio
import contextlib
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from reconciler.control.server import serve
from reconciler.core.errors import ControlSocketError
from reconciler.telemetry.sockets import short_path


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    app.state.begun = asyncio.Event()

    @app.get("/word")
    async def word() -> str:
        return "word"

    @app.get("/slow")
    async def slow() -> str:
        app.state.begun.set()
        await asyncio.sleep(0.2)
        return "slow"

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            while True:
                yield "line\n"
                await asyncio.sleep(0.01)

        return StreamingResponse(lines())

    return app


@contextlib.asynccontextmanager
async def serving(app: FastAPI, path: Path) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(serve(app, path))
    async with asyncio.timeout(60):
        while not await _answers(path):
            assert not task.done(), task.exception()
            await asyncio.sleep(0.01)
    yield task
    task.cancel()
    await asyncio.wait({task})


async def _answers(path: Path) -> bool:
    try:
        return "word" in await ask(path, "/word")
    except OSError:
        return False


async def begin(path: Path, target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    with short_path(path) as short:
        reader, writer = await asyncio.open_unix_connection(short)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    return reader, writer


async def ask(path: Path, target: str) -> str:
    reader, writer = await begin(path, target)
    answer = (await reader.read()).decode()
    writer.close()
    return answer


@pytest.mark.parametrize("depth", [1, 60])
async def test_socket_serves_on_a_path_of_any_length(
    app: FastAPI, tmp_path: Path, depth: int
) -> None:
    path = tmp_path / ("d" * depth * 3) / "control.sock"
    async with serving(app, path):
        assert (await ask(path, "/word")).endswith('"word"')
    assert not path.exists()


async def test_only_the_owner_can_connect(app: FastAPI, tmp_path: Path) -> None:
    path = tmp_path / "run" / "control.sock"
    async with serving(app, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_socket_of_a_killed_daemon_is_replaced(app: FastAPI, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead, short_path(path) as short:
        dead.bind(short)
    async with serving(app, path):
        assert "word" in await ask(path, "/word")


async def test_socket_that_cannot_be_created_raises(app: FastAPI, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ControlSocketError, match="cannot create the control socket"):
        await serve(app, tmp_path / "file" / "control.sock")


async def test_shutdown_finishes_a_running_response(app: FastAPI, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with serving(app, path) as task:
        reader, writer = await begin(path, "/slow")
        await app.state.begun.wait()
        task.cancel()
        assert (await reader.read()).endswith(b'"slow"')
        writer.close()


async def test_shutdown_closes_an_endless_response(
    app: FastAPI, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "control.sock"
    async with serving(app, path) as task:
        reader, writer = await begin(path, "/endless")
        await reader.readuntil(b"line\n")
        task.cancel()
        async with asyncio.timeout(60):
            with pytest.raises(asyncio.CancelledError):
                await task
            await reader.read()
        writer.close()
    assert not path.exists()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
