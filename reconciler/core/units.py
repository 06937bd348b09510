"""Parse and format durations (``500ms 30s 5m 1h 7d``), sizes (``512m 4g``) and dates."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
# The engine stores sizes in 64 bits.
_LARGEST: Final = 2**63 - 1
_DURATION: Final = re.compile(r"(\d{1,12}(?:\.\d{1,3})?)(ms|s|m|h|d)", re.ASCII)
_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,3})?)([bkmgt])b?", re.IGNORECASE | re.ASCII)

DURATION_PATTERN: Final = r"^\d{1,12}(\.\d{1,3})?(ms|s|m|h|d)$"
SIZE_PATTERN: Final = r"^\d{1,15}(\.\d{1,3})?[bkmgtBKMGT][bB]?$"
FOREVER: Final = "forever"
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_FIRST_DATE: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH).total_seconds()
_LAST_DATE: Final = float(int((datetime.max.replace(tzinfo=UTC) - _EPOCH).total_seconds()) - 1)


def iso(at: float | None) -> str | None:
    """Format seconds since the epoch as ``2030-01-31T12:00:00.000Z``.

    Times outside of the years 1 to 9999 give the first or the last date.
    """
    if at is None:
        return None
    date = _EPOCH + timedelta(seconds=min(max(at, _FIRST_DATE), _LAST_DATE))
    return date.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_duration(value: Any) -> float:
    """Parse ``500ms``, ``30s``, ``5m``, ``1h`` or ``7d`` to seconds; 0 needs no unit.

    Raises:
        ValueError: it is not a duration.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and value == 0:
        return 0.0
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("must be a duration such as 500ms, 30s, 5m, 1h or 7d")
    return round(float(match[1]) * _SECONDS[match[2]], 6)


def format_duration(seconds: float) -> str:
    """Format seconds as the shortest exact text for ``parse_duration``: 90.0 is ``90s``."""
    for unit in ("d", "h", "m", "s"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{int(seconds / _SECONDS[unit])}{unit}"
    milliseconds = f"{seconds * 1000:.3f}".rstrip("0").rstrip(".")
    return f"{milliseconds}ms" if milliseconds != "0" else "0s"


def parse_size(value: Any) -> int:
    """Parse ``512m`` or ``4g`` (powers of 1024) to bytes; a whole number is bytes.

    Raises:
        ValueError: it is not a size.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    size = int(float(match[1]) * _BYTES[match[2].lower()]) if match else _LARGEST + 1
    if size > _LARGEST:
        raise ValueError("must be a size such as 512m or 4g, or a whole number of bytes")
    return size


def parse_retain(value: Any) -> float | str:
    """Parse a duration to seconds, or return ``forever``.

    Raises:
        ValueError: it is neither.
    """
    if value == FOREVER:
        return FOREVER
    try:
        return parse_duration(value)
    except ValueError:
        raise ValueError("must be a duration such as 7d, 0 or forever") from None


def format_retain(value: float | str) -> str:
    """Format a value as text for ``parse_retain``."""
    return value if isinstance(value, str) else format_duration(value)


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": DURATION_PATTERN}, {"const": 0}]},
    ),
]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": SIZE_PATTERN}, {"type": "integer", "minimum": 0}]},
    ),
]
Retain = Annotated[
    float | Literal["forever"],
    BeforeValidator(parse_retain),
    PlainSerializer(format_retain, return_type=str),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": DURATION_PATTERN},
                {"const": 0},
                {"const": FOREVER},
            ],
        },
    ),
]
