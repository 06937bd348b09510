"""A proxy between the daemon and the engine that records requests and injects faults.

It runs in a thread, so that both sync and async tests can use it. Callbacks run in that
thread and hold up everything that passes through, so that a test can kill the daemon at an exact
point: before the engine has a request, or after the engine answered and before the daemon knows.
"""

import asyncio
import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from tests.harness import faults
from tests.harness.connection import Connection
from tests.harness.faults import EditEvent, Fault, Predicate, Request, Rule
from tests.harness.waiting import PATIENCE, wait_until
from tests.harness.wire import Message

Callback = Callable[[Request], None]


# A dead engine leaves its socket behind; asyncio removes it from Python 3.13 on.
_KEEP_SOCKET: dict[str, Any] = {} if sys.version_info < (3, 13) else {"cleanup_socket": False}


class FaultProxy:
    """The proxy; `host` is what the daemon gets as its DOCKER_HOST."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).path
        self.directory = Path(tempfile.mkdtemp(prefix="rclp-"))
        self.host = f"unix://{self.directory}/docker.sock"
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []
        self._rules: list[Rule] = []
        self._on_request: list[Callback] = []
        self._on_response: list[Callback] = []
        self._edit_event: EditEvent | None = None
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.accept()
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.errors:
            raise self.errors[0]

    def fault(self, predicate: Predicate, fault: Fault, times: int | None = 1) -> Rule:
        """Add a fault for the next requests of that kind; the first matching rule wins."""
        rule = Rule(predicate, fault, times)
        self._rules.append(rule)
        return rule

    def on_request(self, callback: Callback) -> None:
        """Call before a request goes to the engine."""
        self._on_request.append(callback)

    def on_response(self, callback: Callback) -> None:
        """Call after the engine has answered and before the client gets the response."""
        self._on_response.append(callback)

    def crash_at(
        self, number: int, side: Literal["before", "after"], crash: Callable[[], None]
    ) -> None:
        """Call `crash` before the engine gets that request, or the client its response."""

        def look(request: Request) -> None:
            if request.number == number:
                crash()

        self.fault(faults.number(number), faults.drop() if side == "before" else faults.cut())
        (self.on_request if side == "before" else self.on_response)(look)

    def edit_events(self, edit: EditEvent | None) -> None:
        """Replace each event by those that `edit` returns: none drops it, two repeat it."""
        self._edit_event = edit

    def clear(self) -> None:
        """Remove every rule, callback and edit, and release hanging requests."""
        for scripted in (self._rules, self._on_request, self._on_response):
            scripted.clear()
        self._edit_event = None
        self.release()

    def release(self) -> None:
        """Close the connections that hang."""
        self._run(self._abort(lambda connection: connection.hangs))

    def refuse(self, *, cut: bool = True) -> None:
        """Refuse new connections, as if no engine listens, and cut existing ones."""
        self._run(self._refuse())
        if cut:
            self.cut()

    def accept(self) -> None:
        """Accept connections again."""
        self._run(self._accept())

    def cut(self) -> None:
        """Cut every connection."""
        self._run(self._abort(lambda _: True))

    def cut_streams(self) -> None:
        """Cut the events, logs and pulls, and nothing else."""
        self._run(self._abort(lambda connection: connection.streams))

    @property
    def idle(self) -> bool:
        """Tell whether no client is connected and every request is done."""
        return not self._connections

    @property
    def late(self) -> bool:
        """Tell whether a delayed request is still to be done, even without its client."""
        return any(connection.late for connection in list(self._connections))

    def seen(self, predicate: Predicate) -> list[Request]:
        """Return the requests of that kind so far."""
        return [request for request in list(self.requests) if predicate(request)]

    def wait_request(
        self, predicate: Predicate, timeout: float = PATIENCE, after: int = -1
    ) -> Request:
        """Wait for a request of that kind with a number above `after`."""

        def first() -> Request | None:
            found = [request for request in self.seen(predicate) if request.number > after]
            return found[0] if found else None

        found = wait_until(first, timeout, self.transcript)
        assert found is not None
        return found

    def transcript(self) -> str:
        """Return the last requests, one per line."""
        return "\n".join(f"{r.number} {r.method} {r.path} {r.status}" for r in self.requests[-40:])

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Call in the loop's thread; a callback already is there and does not wait."""
        if threading.current_thread() is self._thread:
            self._keep(self._loop.create_task(work))
        else:
            asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        if self._server is None:
            path = urlsplit(self.host).path
            self._server = await asyncio.start_unix_server(self._serve, path, **_KEEP_SOCKET)

    async def _refuse(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            # asyncio forgets to close what a server accepted in the turn before it is closed.
            for listening in server.sockets:
                self._loop.remove_reader(listening.fileno())
            await _some_turns()
            server.close()

    async def _abort(self, which: Callable[[Connection], bool]) -> None:
        for connection in [one for one in self._connections if which(one)]:
            connection.abort()

    async def _close(self) -> None:
        await self._refuse()
        # One that was just accepted is served from the turn after next; until then, to cancel it
        # would leave it open. One that is aborted is closed in the next turn.
        await _some_turns()
        tasks = [connection.task for connection in self._connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _some_turns()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, reader, writer)
        self._connections.add(connection)
        try:
            await connection.run()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # either side has left, or the proxy ends
        except Exception as error:  # noqa: BLE001 - raised again in the test's own thread
            self.errors.append(error)
        finally:
            self._connections.discard(connection)
            connection.abort()

    def record(self, message: Message) -> Request:
        """Number the request, and run the callbacks."""
        method, target, _ = message.start.split(" ")
        request = Request(len(self.requests), method, target, message.body)
        self.requests.append(request)
        for callback in list(self._on_request):
            callback(request)
        return request

    def fault_for(self, request: Request) -> Fault:
        """Return the fault of the first matching rule."""
        return next((rule.fault for rule in self._rules if rule.take(request)), Fault())

    def answered(self, request: Request, status: int) -> None:
        """Record the engine's status, and run the callbacks."""
        request.status = status
        for callback in list(self._on_response):
            callback(request)

    def edited(self, request: Request, piece: bytes) -> bytes:
        """Apply the test's edit to a piece of the event stream; an event is one line."""
        if self._edit_event is None or request.path != "/events":
            return piece
        events = [json.loads(line) for line in piece.splitlines() if line.strip()]
        kept = [new for event in events for new in self._edit_event(event)]
        return b"".join(json.dumps(event).encode() + b"\n" for event in kept)


async def _some_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)
