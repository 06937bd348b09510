"""One client's connection through the proxy, and the faults of its requests."""

import asyncio
import re
from contextlib import suppress
from typing import Protocol

from tests.harness import wire
from tests.harness.faults import Fault, Request
from tests.harness.wire import Framing, Message

# Endless streams: the response counts as complete with its headers.
_ENDLESS = re.compile(r"/events|/containers/[^/]+/(logs|attach|stats)|/exec/[^/]+/start")
# Finite streams: complete at their end, but their pieces pass at once.
_STREAMS = re.compile(r"/images/create|/images/.+/push|/build|/containers/[^/]+/wait")


class Hub(Protocol):
    """The interface of the proxy for its connections."""

    upstream: str

    def record(self, message: Message) -> Request: ...
    def fault_for(self, request: Request) -> Fault: ...
    def answered(self, request: Request, status: int) -> None: ...
    def edited(self, request: Request, piece: bytes) -> bytes: ...


class Connection:
    """One client's connection; each request uses a new connection to the engine."""

    def __init__(
        self, hub: Hub, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.hub, self.reader, self.writer = hub, reader, writer
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.hangs = False
        self.streams = False
        self.late = False

    def abort(self) -> None:
        self.writer.transport.abort()

    async def run(self) -> None:
        while message := await wire.read_head(self.reader):
            message.body = await wire.read_body(self.reader, message, wire.request_framing(message))
            if not await self._exchange(message):
                return

    async def _exchange(self, message: Message) -> bool:
        """Serve one request; False if the connection ends with it."""
        request = self.hub.record(message)
        fault = self.hub.fault_for(request)
        self.late = fault.delay > 0
        try:
            return await self._serve(message, request, fault)
        finally:
            self.late = False

    async def _serve(self, message: Message, request: Request, fault: Fault) -> bool:
        await asyncio.sleep(fault.delay)
        if fault.hang == "before":
            await self._hang()
        if fault.drop or fault.hang == "before":
            return False
        if fault.answer:
            return await self._send(wire.answer(*fault.answer).whole())
        reader, writer = await asyncio.open_unix_connection(self.hub.upstream)
        try:
            writer.write(message.whole() if message.body else message.head())
            return await self._answer(request, fault, reader, writer)
        finally:
            writer.close()

    async def _answer(
        self,
        request: Request,
        fault: Fault,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        response = await wire.read_head(reader)
        if response is None:
            return False
        framing = wire.answer_framing(request.method, response)
        if framing is Framing.HIJACKED:
            return await self._hijack(request, response, reader, writer, fault)
        endless = bool(_ENDLESS.fullmatch(request.path))
        if framing is Framing.CHUNKED and (endless or _STREAMS.fullmatch(request.path)):
            return await self._stream(request, response, reader, fault, endless=endless)
        response.body = await wire.read_body(reader, response, framing)
        self.hub.answered(request, response.status)
        if fault.hang:
            await self._hang()
        if fault.cut or fault.hang:
            return False
        if fault.truncate:
            response.body = response.body[: len(response.body) // 2]
        return await self._send(response.head() if framing is Framing.NONE else response.whole())

    async def _send(self, data: bytes) -> bool:
        self.writer.write(data)
        await self.writer.drain()
        return True

    async def _stream(
        self,
        request: Request,
        response: Message,
        reader: asyncio.StreamReader,
        fault: Fault,
        *,
        endless: bool,
    ) -> bool:
        """Pass each piece on as it comes, until either side ends."""
        self.streams = True
        if endless:
            self.hub.answered(request, response.status)
            if fault.cut:
                return False
        await self._send(response.head())
        copy = asyncio.ensure_future(self._copy(request, reader))
        left = asyncio.ensure_future(self.reader.read(1))
        try:
            await asyncio.wait({copy, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.cancel()
            copy.cancel()
            with suppress(asyncio.CancelledError):
                await left
        await copy
        if not endless:
            self.hub.answered(request, response.status)
        self.streams = False
        return not fault.cut and await self._send(wire.chunk(b""))

    async def _copy(self, request: Request, reader: asyncio.StreamReader) -> None:
        async for piece in wire.read_chunks(reader):
            if edited := self.hub.edited(request, piece):
                await self._send(wire.chunk(edited))

    async def _hijack(
        self,
        request: Request,
        response: Message,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        fault: Fault,
    ) -> bool:
        """Join both sides as bare bytes."""
        self.streams = True
        self.hub.answered(request, response.status)
        if fault.cut:
            return False
        await self._send(response.head())
        upwards = asyncio.ensure_future(wire.pump(self.reader, writer))
        await wire.pump(reader, self.writer)
        upwards.cancel()
        self.writer.close()
        await self.writer.wait_closed()
        return False

    async def _hang(self) -> None:
        """Wait until the client leaves, or the test lets go."""
        self.hangs = True
        await self.reader.read(1)
