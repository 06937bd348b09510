"""How answers look: tables on a terminal, plain lines when piped."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reconciler.cli.output import say
from reconciler.core.text import inert, inert_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

COLOURS: Final = {
    "RUNNING": "green",
    "PAUSED": "cyan",
    "STOPPED": "blue",
    "STARTING": "yellow",
    "MISSING": "magenta",
    "ERROR": "bold red",
    "UNKNOWN": "magenta",
}
_PIPED_WIDTH: Final = 10_000


def console() -> Console:
    """The terminal; a pipe is as wide as it needs to be, so that nothing is cut or wrapped."""
    return Console(
        highlight=False,
        width=None if sys.stdout.isatty() else _PIPED_WIDTH,
        soft_wrap=not sys.stdout.isatty(),
    )


def cell(text: str, style: str = "") -> Text:
    """Return a table's cell, or a line of a live picture."""
    return Text(inert(text), style=style)


def print_status(answer: dict[str, Any]) -> None:
    """The table, and what else a user must know."""
    out = console()
    out.print(status_table(answer))
    for note in status_notes(answer):
        out.print(cell(note))


def status_table(answer: dict[str, Any]) -> Table:
    """One row a sandbox."""
    table = _table("SANDBOX", "DESIRED", "STATUS", "RESTARTS", "AGE", "URLS", "REASON")
    for row in answer["sandboxes"]:
        status = cell(row["status"], COLOURS.get(row["status"], ""))
        urls = " ".join(f"{url['name']}={url['url']}" for url in row["exposed_urls"])
        reason = row["reason"] or row["next"]
        age = age_of(row["created_at"]) if row["container_id"] else "-"
        cells = [row["name"], row["desired"], status, str(row["restarts"]), age, urls, reason]
        table.add_row(*(one if isinstance(one, Text) else cell(one) for one in cells))
    return table


def status_notes(answer: dict[str, Any]) -> list[str]:
    """What else a user must know."""
    engine = answer["engine"]
    notes = [_engine_line(engine), *engine.get("forbidden", ())]
    notes += answer.get("disk", {}).get("pressure", [])  # a daemon of an older release has none
    notes += answer["desired"]["errors"]
    if answer["desired"]["awaiting_confirmation"]:
        notes.append(held_deletions_line(answer["desired"]["awaiting_confirmation"]))
    if answer["conflict"]:
        notes.append(answer["conflict"])
    if answer["garbage"]["reason"]:
        notes.append(answer["garbage"]["reason"])
    if answer["store"]["error"]:
        notes.append(f"state: {answer['store']['error']}")
    return notes


def former_line(name: str, former: dict[str, Any] | None) -> str:
    """What is known of a name that no sandbox bears now."""
    if former is None:
        return f"no sandbox is called {name}"
    line = f"no sandbox is called {name} now"
    if former["deleted_at"]:
        line += f"; its record was taken out at {former['deleted_at']}"
    if died := former["last_exit"]:
        words = "".join(f"\n  {text}" for text in died.get("last_lines", []))
        line += f"; it last ended by itself at {died['at']}: {died['reason']}{words}"
    return f"{line}\nSee its whole story with `reconciler events {name}`"


def complain(answer: dict[str, Any]) -> None:
    """What is wrong with the desired file, and which deletions wait, on stderr."""
    for line in answer["errors"]:
        say(line, err=True)
    if answer["awaiting_confirmation"]:
        say(held_deletions_line(answer["awaiting_confirmation"]), err=True)


def held_deletions_line(names: Sequence[str]) -> str:
    """Which deletions wait, and how they are confirmed."""
    return (
        f"{len(names)} deletions wait to be confirmed ({', '.join(names)}): "
        "reconciler apply --allow-mass-delete"
    )


def _engine_line(engine: dict[str, Any]) -> str:
    if not engine["reachable"]:
        return f"engine: cannot be asked: {engine['error']}"
    line = f"engine: {engine['name']} {engine['version']} (API {engine['api_version']})"
    return f"{line}: {engine['wedged']}" if engine["wedged"] else line


def garbage_table(rows: Iterable[dict[str, Any]]) -> Table:
    """One row for each thing that nothing asks for."""
    table = _table("KIND", "NAME", "WHY", "SINCE", "GOES")
    for row in rows:
        goes = _goes(row)
        table.add_row(*map(cell, (row["kind"], row["name"], row["why"], row["since"], goes)))
    return table


def _goes(row: dict[str, Any]) -> str:
    if row["removed"]:
        return "removed"
    if row["error"]:
        return "not removed"
    return "now" if row["due"] else row["remove_at"] or ("held" if row["held"] else "never")


def print_finding(verdict: str, style: str, line: str) -> None:
    """One check of ``doctor``."""
    console().print(Text.assemble((f"{verdict:5}", style), inert_lines(line)))


def plan_lines(answer: dict[str, Any]) -> list[str]:
    """One line an action, in order."""
    lines = []
    for change in answer["changes"]:
        for action in change["actions"]:
            moved = f" -> {action['new_name']}" if action["new_name"] else ""
            what = f"{action['verb']} {action['target']}{moved}"
            lines.append(f"{change['sandbox']}: {what} ({action['cause']})")
        if not change["actions"]:
            lines.append(f"{change['sandbox']}: waits: {change['waiting_for']}")
    return lines


def event_line(entry: dict[str, Any]) -> str:
    """One entry of the ledger as a line of a story."""
    data = entry.get("data", {})
    details = " ".join(f"{key}={value}" for key, value in data.items() if value or value == 0)
    at = entry["at"]
    if sys.stdout.isatty():
        at = datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return (
        f"{at}  {entry['sandbox'] or '-'}  {entry['event']}  {entry['cause']}  {details}".rstrip()
    )


def age_of(at: str | None) -> str:
    """``5m``, in the largest unit that fits."""
    if at is None:
        return "-"
    seconds = (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(int(seconds), 0)}s"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "SANDBOX")
    return table
