"""Randomly changed responses: each is decoded or Unreadable, and nothing else happens."""

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.errors import PullFailed, Unreadable
from reconciler.core.units import iso
from reconciler.engine.docker import chown, decode
from reconciler.engine.docker.errors import decode_errors
from reconciler.engine.docker.pull import Pull
from reconciler.engine.docker.stream import (
    LONGEST_LOG_LINE,
    Frames,
    Lines,
    Splitter,
    lines_of,
    parse_json,
)
from tests.engine.answers import CONTAINER, EVENT, IMAGE, INFO, ROW, VERSION, VOLUME

ODD = (
    None,
    True,
    0,
    -1,
    10**400,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "\ud800",
    "x" * 5000,
    "9999-12-31T23:59:59-23:59",
    "0001-01-02T00:00:00Z",
    "1969-01-01T00:00:00Z",
    [],
    {},
    [None],
    {"": None},
    [[]] * 3,
)
JSON = st.recursive(
    st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value in a value."""
    below = list(value.items()) if isinstance(value, dict) else []
    below += list(enumerate(value)) if isinstance(value, list) else []
    return [way, *(found for key, part in below for found in places(part, (*way, key)))]


def changed(value: Any, way: tuple[Any, ...], new: Any, *, gone: bool) -> Any:
    if not way:
        return new
    made = copy.deepcopy(value)
    holder = made
    for key in way[:-1]:
        holder = holder[key]
    if gone:
        del holder[way[-1]]
    else:
        holder[way[-1]] = new
    return made


@st.composite
def mutated(draw: st.DrawFn, answer: Any) -> Any:
    """The response with one to three values replaced or removed."""
    for _ in range(draw(st.integers(1, 3))):
        way = draw(st.sampled_from(places(answer)))
        answer = changed(answer, way, draw(JSON), gone=draw(st.booleans()))
    return answer


READERS: list[tuple[Any, Callable[[Any], Any]]] = [
    (CONTAINER, lambda answer: decode.container(answer, "mine")),
    (CONTAINER, lambda answer: decode.is_asked_for(answer, "a")),
    ([ROW, ROW], lambda answer: decode.rows(answer, decode.summary)),
    ({"Volumes": [VOLUME]}, lambda a: decode.rows(decode.volume_rows(a), decode.listed_volume)),
    (VOLUME, lambda answer: decode.volume(answer, "mine")),
    ([IMAGE], lambda answer: decode.rows(answer, decode.image)),
    ([VERSION, INFO], lambda answer: decode.info(*answer, api_version="1.41")),
    (INFO, decode.index_server),
    ({"ExitCode": 0}, lambda answer: decode.exit_code(answer["ExitCode"])),
]


def usable(value: Any) -> None:
    """Check that the decoded value can be stored, shown and counted with."""
    repr(value).encode()
    for name in ("created_at", "started_at", "finished_at"):
        iso(getattr(value, name, None))


@given(st.sampled_from(READERS).flatmap(lambda it: st.tuples(mutated(it[0]), st.just(it[1]))))
def test_a_response_is_decoded_or_unreadable(case: tuple[Any, Callable[[Any], Any]]) -> None:
    answer, read = case
    try:
        with decode_errors("a fuzzed answer"):
            usable(read(answer))
    except Unreadable as error:
        str(error).encode()


def test_any_value_of_any_response_may_be_odd() -> None:
    for answer, read in READERS:
        for way in places(answer):
            for odd in ODD:
                for gone in (False, True):
                    try:
                        with decode_errors("an odd answer"):
                            usable(read(changed(answer, way, odd, gone=gone)))
                    except Unreadable:
                        continue


@given(mutated(EVENT))
def test_an_event_is_decoded_or_skipped(data: Any) -> None:
    usable(decode.event(json.dumps(data).encode(), "mine"))


@given(mutated({"status": "Downloading", "id": "a", "progressDetail": {"current": 1, "total": 2}}))
def test_a_pull_line_is_decoded_or_skipped(data: Any) -> None:
    pull = Pull("image:1")
    try:
        usable(pull.feed(json.dumps(data).encode()))
    except PullFailed as error:
        str(error).encode()


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_unreadable(body: bytes) -> None:
    usable(decode.event(body, "mine"))
    try:
        with decode_errors("bytes"):
            parse_json(body)
    except Unreadable:
        pass
    for read in (chown.head, lambda text: chown.place(text.decode("latin-1"))):
        try:
            with decode_errors("bytes"):
                read(body)
        except Unreadable:
            continue


def split(splitter: Splitter, pieces: list[bytes]) -> list[bytes]:
    async def read() -> list[bytes]:
        async def chunks() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return [line async for line in lines_of(chunks(), splitter)]

    return asyncio.run(read())


FRAME = st.builds(
    lambda output, length, body: bytes([output, 0, 0, 0]) + length.to_bytes(4, "big") + body,
    st.sampled_from([0, 1, 2, 255]),
    st.sampled_from([0, 1, 5, 4096, 2**32 - 1]),
    st.binary(max_size=40),
)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40) | FRAME, max_size=12))
def test_any_stream_is_split_into_bounded_lines(pieces: list[bytes]) -> None:
    for splitter in (Frames(LONGEST_LOG_LINE), Lines(LONGEST_LOG_LINE)):
        assert all(len(line) <= LONGEST_LOG_LINE for line in split(splitter, pieces))


@settings(deadline=None)
@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=8))
def test_chunk_borders_do_not_matter(data: bytes, cuts: list[int]) -> None:
    ends = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in pairwise(ends)]
    assert split(Frames(64), pieces) == split(Frames(64), [data])
    assert split(Lines(64), pieces) == split(Lines(64), [data])


def test_a_stream_of_many_outputs_takes_bounded_memory() -> None:
    frames = Frames(64)
    for number in range(256):
        list(frames.feed(bytes([number, 0, 0, 0]) + (1 << 16).to_bytes(4, "big")))
        list(frames.feed(b"x" * (1 << 16)))
    assert sum(len(lines._kept) for lines in frames._outputs.values()) <= 256 * 64
