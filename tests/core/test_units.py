"""Durations and sizes are parsed and formatted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.units import (
    FOREVER,
    format_duration,
    format_retain,
    iso,
    parse_duration,
    parse_retain,
    parse_size,
)

steady = settings(derandomize=True, deadline=None, database=None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30.0),
        ("1.5s", 1.5),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("7d", 604800.0),
        ("0s", 0.0),
        (0, 0.0),
        (0.0, 0.0),
    ],
)
def test_a_duration_parses_to_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "5", "5 s", "s", "-1s", "1w", "1S", "1e3s", "5s\n", "1.2345s", "٣s", 5, 1.5, False, None],
)
def test_an_invalid_duration_is_rejected(text):
    with pytest.raises(ValueError, match="must be a duration such as 500ms, 30s, 5m, 1h or 7d"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.0000001, "0s"),
        (0.000001, "0.001ms"),
        (0.5, "500ms"),
        (1.5, "1500ms"),
        (90.0, "90s"),
        (60.0, "1m"),
        (7200.0, "2h"),
        (604800.0, "7d"),
    ],
)
def test_a_duration_formats_as_the_shortest_exact_text(seconds, text):
    assert format_duration(seconds) == text


@steady
@given(st.integers(0, 10**12 - 1), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_a_formatted_duration_parses_back(number, unit):
    seconds = parse_duration(f"{number}{unit}")
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512m", 512 << 20),
        ("4g", 4 << 30),
        ("4G", 4 << 30),
        ("1.5k", 1536),
        ("1kb", 1024),
        ("7b", 7),
        ("1t", 1 << 40),
        (0, 0),
        (1024, 1024),
        (2**63 - 1, 2**63 - 1),
    ],
)
def test_a_size_parses_to_bytes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "4", "4 g", "g", "-1m", "4p", "4gib", "9999999999t", -1, 2**63, 1.5, True, None],
)
def test_an_invalid_size_is_rejected(text):
    with pytest.raises(ValueError, match="must be a size such as 512m or 4g"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "kept"),
    [("forever", FOREVER), ("7d", 604800.0), (0, 0.0)],
)
def test_a_retention_parses(text, kept):
    assert parse_retain(text) == kept
    assert parse_retain(format_retain(kept)) == kept


@pytest.mark.parametrize("text", ["Forever", "never", 7, None, True])
def test_an_invalid_retention_is_rejected(text):
    with pytest.raises(ValueError, match="must be a duration such as 7d, 0 or forever"):
        parse_retain(text)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (None, None),
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_896_091_200.25, "2030-01-31T12:00:00.250Z"),
        (-1e18, "0001-01-01T00:00:00.000Z"),
        (1e18, "9999-12-31T23:59:59.000Z"),
    ],
)
def test_any_time_formats_as_a_date(at, expected):
    assert iso(at) == expected
