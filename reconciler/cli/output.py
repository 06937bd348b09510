"""Print text that cannot drive the reader's terminal."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from reconciler.core.text import inert_lines


def say(text: str, *, err: bool = False) -> None:
    """Print one or more lines, without escape sequences."""
    click.echo(inert_lines(text), err=err)


def say_json(answer: Any, *, indent: int | None = 2) -> None:
    """Print JSON for programs; it is ASCII, so a terminal shows it safely too."""
    click.echo(json.dumps(answer, indent=indent))


def say_raw(line: bytes) -> None:
    """Print one line of a sandbox's log unchanged."""
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()
