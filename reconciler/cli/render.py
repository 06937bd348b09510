"""Format answers for people: tables on a terminal, plain lines in a pipe."""

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
    """Return a console for stdout; in a pipe it is so wide that nothing is cut or wrapped."""
    return Console(
        highlight=False,
        width=None if sys.stdout.isatty() else _PIPED_WIDTH,
        soft_wrap=not sys.stdout.isatty(),
    )


def cell(text: str, style: str = "") -> Text:
    """Return text for a table cell or a live display, without escape sequences."""
    return Text(inert(text), style=style)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "SANDBOX")
    return table


# --- status -----------------------------------------------------------------------------------


def print_status(answer: dict[str, Any]) -> None:
    """Print the table of sandboxes, and the notes below it."""
    out = console()
    out.print(status_table(answer))
    for note in status_notes(answer):
        out.print(cell(note))


def status_table(answer: dict[str, Any]) -> Table:
    """Return a table with one row for each sandbox."""
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
    """Return a line about the engine, and one for each problem that is not of one sandbox."""
    engine = answer["engine"]
    if engine["reachable"]:
        line = f"engine: {engine['name']} {engine['version']} (API {engine['api_version']})"
        notes = [f"{line}: {engine['wedged']}" if engine["wedged"] else line]
    else:
        notes = [f"engine: unreachable: {engine['error']}"]
    notes += engine.get("forbidden", ())
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
    """Return what the ledger knows of a name that no sandbox has now."""
    if former is None:
        return f"no sandbox is named {name}"
    line = f"no sandbox is named {name} now"
    if former["deleted_at"]:
        line += f"; it was removed from the desired file at {former['deleted_at']}"
    if died := former["last_exit"]:
        tail = "".join(f"\n  {text}" for text in died.get("last_lines", []))
        line += f"; its last crash was at {died['at']}: {died['reason']}{tail}"
    return f"{line}\nRun `reconciler events {name}` for its history"


def age_of(at: str | None) -> str:
    """Return the time since ``at`` in its largest unit, such as ``5m``."""
    if at is None:
        return "-"
    seconds = (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(int(seconds), 0)}s"


# --- the other commands -----------------------------------------------------------------------


def print_manifest_errors(answer: dict[str, Any]) -> None:
    """Print the file's errors, and the deletions that await confirmation, on stderr."""
    for line in answer["errors"]:
        say(line, err=True)
    if answer["awaiting_confirmation"]:
        say(held_deletions_line(answer["awaiting_confirmation"]), err=True)


def held_deletions_line(names: Sequence[str]) -> str:
    """Return which deletions the mass-delete guard blocks, and the command that confirms them."""
    return (
        f"{len(names)} deletions await confirmation ({', '.join(names)}): run "
        "`reconciler apply --allow-mass-delete`"
    )


def plan_lines(answer: dict[str, Any]) -> list[str]:
    """Return one line for each action, in order."""
    lines = []
    for change in answer["changes"]:
        for action in change["actions"]:
            new_name = f" -> {action['new_name']}" if action["new_name"] else ""
            what = f"{action['verb']} {action['target']}{new_name}"
            lines.append(f"{change['sandbox']}: {what} ({action['cause']})")
        if not change["actions"]:
            lines.append(f"{change['sandbox']}: waiting: {change['waiting_for']}")
    return lines


def event_line(entry: dict[str, Any]) -> str:
    """Return one ledger entry as a line; the time is local on a terminal, UTC elsewhere."""
    data = entry.get("data", {})
    details = " ".join(f"{key}={value}" for key, value in data.items() if value or value == 0)
    at = entry["at"]
    if sys.stdout.isatty():
        at = datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return (
        f"{at}  {entry['sandbox'] or '-'}  {entry['event']}  {entry['cause']}  {details}".rstrip()
    )


def garbage_table(rows: Iterable[dict[str, Any]]) -> Table:
    """Return a table with one row for each orphan and unused image."""
    table = _table("KIND", "NAME", "WHY", "SINCE", "REMOVAL")
    for row in rows:
        if row["removed"]:
            removal = "removed"
        elif row["error"]:
            removal = "failed"
        elif row["due"]:
            removal = "now"
        else:
            removal = row["remove_at"] or ("held" if row["held"] else "never")
        table.add_row(*map(cell, (row["kind"], row["name"], row["why"], row["since"], removal)))
    return table


def print_finding(verdict: str, style: str, line: str) -> None:
    """Print one finding of ``doctor``."""
    console().print(Text.assemble((f"{verdict:5}", style), inert_lines(line)))
