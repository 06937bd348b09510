"""The way out of a command: text that cannot drive the reader's terminal."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from reconciler.core.text import inert_lines


def say(text: str, *, err: bool = False) -> None:
    """Print text, which may have several lines."""
    click.echo(inert_lines(text), err=err)


def say_json(answer: Any, *, indent: int | None = 2) -> None:
    """Print JSON, for programs: ASCII, so that it is inert on a terminal too."""
    click.echo(json.dumps(answer, indent=indent))


def say_raw(line: bytes) -> None:
    """Print a line of a sandbox's log as it came."""
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()
