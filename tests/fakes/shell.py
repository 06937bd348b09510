"""The subset of a shell that fake containers run."""

from __future__ import annotations

from collections.abc import Sequence


def run(command: Sequence[str]) -> tuple[list[str], int | None]:
    """Return output and exit code of ``sh -c "echo ...; exit N"``; None if it keeps running."""
    if not command:
        return [], None
    if command[0] != "sh":
        return [], {"true": 0, "false": 1}.get(command[0])
    lines: list[str] = []
    for step in command[-1].split(";"):
        word, _, rest = step.strip().partition(" ")
        if word == "echo":
            lines.append(rest)
        elif word == "exit":
            return lines, int(rest or 0)
        elif word == "sleep":
            return lines, None
    return lines, 0
