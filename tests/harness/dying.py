"""The daemon, which kills itself at a database statement that a test chooses.

`python -m tests.harness.dying …` is `python -m reconciler …`, but for the file that DEATH_FILE
names. While there is such a file, the statements that it is about are counted, and the daemon kills
itself with SIGKILL on one side of one of them.
"""

import json
import os
import re
import runpy
import signal
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VARIABLE = "DEATH_FILE"
COMMITS = "COMMIT"
WRITES = "COMMIT|INSERT|DELETE|UPDATE|CREATE|PRAGMA user_version ="


@dataclass(frozen=True)
class Order:
    """When to die: at the Nth statement with this beginning, before or after it."""

    statements: str
    number: int
    side: str
    nonce: str  # a new one restarts the count

    def write(self, file: Path) -> None:
        aside = file.with_suffix(".new")
        aside.write_text(json.dumps(asdict(self)))
        aside.replace(file)


class Reaper:
    """Counts the statements that match the current order."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._nonce = ""
        self._count = 0

    def attend(self, statement: str, do: Callable[[], sqlite3.Cursor]) -> sqlite3.Cursor:
        order = self._order()
        if order is None or not re.match(order.statements, statement.lstrip()):
            return do()
        if order.nonce != self._nonce:
            self._nonce, self._count = order.nonce, 0
        mine = self._count == order.number
        self._count += 1
        if mine and order.side == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        cursor = do()
        if mine and order.side == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return cursor

    def _order(self) -> Order | None:
        try:
            return Order(**json.loads(self._file.read_text()))
        except FileNotFoundError:
            return None


def main() -> None:
    """Run the program with the instrumented database."""
    reaper = Reaper(Path(os.environ[VARIABLE]))
    connect = sqlite3.connect

    class Mortal(sqlite3.Connection):
        def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
            return reaper.attend(sql, lambda: super(Mortal, self).execute(sql, parameters))

        def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
            return reaper.attend(sql, lambda: super(Mortal, self).executemany(sql, parameters))

    def connect_mortal(*args: Any, **options: Any) -> sqlite3.Connection:
        return connect(*args, **options, factory=Mortal)

    sqlite3.connect = connect_mortal  # type: ignore[assignment]
    runpy.run_module("reconciler", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
