"""An engine, or a proxy in front of it, that sends arbitrary responses."""

import asyncio
import gzip
import json
import resource
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.errors import EngineError, EngineUnavailable, Unreadable
from reconciler.engine.docker.engine import DockerEngine
from reconciler.engine.docker.pull import Pull
from reconciler.engine.protocol import EngineEvent
from tests.engine.answers import CONTAINER, EVENT, IMAGE, INFO, LABELS, ROW, VERSION, VOLUME
from tests.harness.serving import serving

DEEP = b"[" * 1_000_000
ENDLESS = b"x" * (1 << 16)
OF_LIST, OF_ONE = "/containers/json", "/containers/"


class Answer:
    """One response; ``repeat`` sends the body again and again until the client leaves.

    ``pause`` is in seconds, between the headers and the body.
    """

    def __init__(
        self,
        body: bytes,
        status: int = 200,
        *,
        headers: Mapping[str, str] | None = None,
        repeat: bool = False,
        pause: float = 0,
    ) -> None:
        self.body, self.status, self.repeat, self.pause = body, status, repeat, pause
        self.headers = {"Content-Type": "application/json", **(headers or {})}

    async def send(self, writer: asyncio.StreamWriter) -> None:
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        length = "" if self.repeat else f"Content-Length: {len(self.body)}\r\n"
        start = f"HTTP/1.1 {self.status} Scripted\r\nConnection: close\r\n{length}{head}\r\n"
        writer.write(start.encode())
        await writer.drain()
        await asyncio.sleep(self.pause)
        writer.write(self.body)
        await writer.drain()
        while self.repeat:
            writer.write(self.body)
            await writer.drain()


@asynccontextmanager
async def answering(
    folder: Path, answers: Mapping[str, Answer], **options: Any
) -> AsyncIterator[DockerEngine]:
    """Serve responses by path; the longest matching part of the path wins."""
    usual = {
        "/version": Answer(json.dumps(VERSION).encode()),
        "/info": Answer(json.dumps(INFO).encode()),
        "/containers/json": Answer(json.dumps([ROW]).encode()),
        "/containers/": Answer(json.dumps(CONTAINER).encode()),
        "/volumes": Answer(json.dumps({"Volumes": [VOLUME], "Warnings": None}).encode()),
    }
    known = {**usual, **answers}

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        named = max((name for name in known if name in path), key=len)
        # The client closes the connection if the response is too long.
        with suppress(ConnectionError):
            await known[named].send(writer)

    engine = DockerEngine(instance="mine", docker_host=f"unix://{folder}/odd.sock", **options)
    async with serving(talk, asyncio.start_unix_server, f"{folder}/odd.sock"):
        try:
            yield engine
        finally:
            await engine.close()


BODIES = {
    "deep": DEEP,
    "nan": b"NaN",
    "infinite": b"[Infinity]",
    "long number": b"[" + b"9" * 5000 + b"]",
    "not utf-8": b'["\xff\xfe"]',
    "truncated": b'[{"Id": "a',
    "nothing": b"",
    "null": b"null",
    "number": b"7",
    "text": b'"text"',
    "html": b"<html>it works</html>",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_a_broken_response_is_an_error_of_its_request(tmp_path: Path, body: bytes) -> None:
    broken = Answer(body)
    async with answering(tmp_path, {OF_LIST: broken, OF_ONE: broken, "/info": broken}) as engine:
        for question in (engine.list(), engine.inspect("a" * 64), engine.info()):
            with pytest.raises(Unreadable, match="cannot be decoded"):
                await question


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"<html>page</html>", headers={"Content-Type": "text/html"}),
        Answer(b"page", headers={"Content-Type": "text/plain"}),
        Answer(gzip.compress(b"[]"), headers={"Content-Encoding": "gzip"}),
        Answer(b"[]", headers={"Content-Encoding": "zstd"}),
        Answer(b"", 302, headers={"Location": "/elsewhere"}),
    ],
    ids=["html", "plain", "gzip", "zstd", "redirect"],
)
async def test_impossible_responses_are_errors(tmp_path: Path, answer: Answer) -> None:
    async with answering(tmp_path, {OF_LIST: answer}) as engine:
        with pytest.raises(Unreadable):
            await engine.list()


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (Answer(b"<html><h1>Bad Gateway</h1></html>", 502), EngineUnavailable, "Bad Gateway"),
        (Answer(b'{"message": 7}', 500), EngineError, "7"),
        (Answer(b"{}", 500), EngineError, "{}"),
        (Answer(DEEP, 500), EngineError, r"\[\["),
        (Answer(b"", 500), EngineError, "500 Scripted"),
        (Answer(b'{"message": "\\ud800"}', 500), EngineError, r"\?"),
        (Answer(b"\xff\xfe", 500), EngineError, "\ufffd"),
    ],
    ids=["html", "number", "no message", "deep", "empty", "half a pair", "not utf-8"],
)
async def test_an_error_text_may_be_anything(
    tmp_path: Path, answer: Answer, error: type[EngineError], words: str
) -> None:
    async with answering(tmp_path, {OF_LIST: answer}) as engine:
        with pytest.raises(error, match=words) as caught:
            await engine.list()
    str(caught.value).encode()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("status", [200, 500])
async def test_an_endless_response_is_cut_off(tmp_path: Path, status: int) -> None:
    endless = Answer(ENDLESS, status, repeat=True)
    async with answering(tmp_path, {OF_LIST: endless, OF_ONE: endless}) as engine:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for question in (engine.list(), engine.inspect("a" * 64)):
            with pytest.raises(EngineError):
                await question
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 << 10, "KiB"


async def test_a_response_with_too_many_values_is_rejected(tmp_path: Path) -> None:
    many = Answer(b"[" + b"[]," * 2_000_000 + b"[]]")
    async with answering(tmp_path, {OF_LIST: many}) as engine:
        with pytest.raises(Unreadable, match="too many values"):
            await engine.list()


async def test_a_broken_row_does_not_affect_the_others(tmp_path: Path) -> None:
    rows = [
        {**ROW, "State": "melting", "Id": "b" * 64},
        ROW,
        {**ROW, "Id": 7},
        None,
        {**ROW, "Labels": [1]},
    ]
    volumes = [{**VOLUME, "Name": "other", "Labels": [1]}, VOLUME]
    answers = {
        OF_LIST: Answer(json.dumps(rows).encode()),
        "/volumes": Answer(json.dumps({"Volumes": volumes}).encode()),
    }
    async with answering(tmp_path, answers) as engine:
        listing = await engine.list()
    assert [row.id for row in listing.containers] == [ROW["Id"]]
    assert [volume.name for volume in listing.volumes] == [VOLUME["Name"]]
    broken = [(row.id, row.sandbox) for row in listing.broken_containers]
    assert broken == [("b" * 64, "alice"), ("", ""), ("", ""), (ROW["Id"], "")]
    assert [row.id for row in listing.broken_volumes] == ["other"]


async def test_unreadable_events_are_skipped(tmp_path: Path) -> None:
    good = json.dumps(EVENT).encode()
    lines = [
        b"\xff",
        DEEP,
        b"null",
        json.dumps({**EVENT, "timeNano": 10**400}).encode(),
        json.dumps({**EVENT, "Actor": {"ID": "a", "Attributes": {**LABELS, "name": 7}}}).encode(),
        b"x" * (3 << 20),
        good,
    ]
    async with (
        answering(tmp_path, {"/events": Answer(b"\n".join(lines))}) as engine,
        engine.events() as events,
    ):
        heard: list[EngineEvent] = [event async for event in events]
    assert [event.what for event in heard] == ["die"]


async def test_a_pull_may_be_silent_longer_than_a_read(tmp_path: Path) -> None:
    """Such as while a large layer is unpacked."""
    image = Answer(json.dumps(IMAGE).encode())
    pulled = Answer(b'{"status": "Pull complete", "id": "b"}\n', pause=1.0)
    answers = {"/images/create": pulled, "/images/": image}
    async with answering(tmp_path, answers, read_timeout=0.1) as engine:
        await engine.pull("image:1", lambda _: None)


async def test_a_flood_of_layers_takes_bounded_memory() -> None:
    pull = Pull("image:1")
    for number in range(5000):
        progress = pull.feed(f'{{"status": "Waiting", "id": "{number}"}}'.encode())
    assert progress.layers <= 1000


@pytest.mark.parametrize("line", [b'{"status": [1]}', b'{"status": "Waiting", "id": 7}', DEEP])
async def test_an_unreadable_pull_line_changes_nothing(line: bytes) -> None:
    assert Pull("image:1").feed(line).layers == 0
