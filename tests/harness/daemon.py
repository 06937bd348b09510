"""The daemon as a real process: its files, its log, and its commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self, TypeVar

from scripts.unixhttp import Answer, request
from tests.harness.instance import Instance
from tests.harness.waiting import PATIENCE, wait_until

T = TypeVar("T")
_ROOT = Path(__file__).parent.parent.parent
_TAIL = 40


def ask(runtime_dir: Path, path: str, method: str = "GET") -> Answer | None:
    """Ask a daemon over its control socket; None if it does not answer."""
    try:
        return request(f"unix://{runtime_dir}/control.sock", method, path)
    except (OSError, HTTPException):
        # Dead, or it died in the middle of its response.
        return None


class Daemon:
    """One daemon on one state directory. It may stop and start again; the log continues.

    `home` holds the state directory and the desired file; `host` is the engine's address where
    it is not the instance's own, such as a proxy's. `module` is what Python runs as the program,
    `prefix` a command before it, such as one that changes a namespace and then runs the rest.
    """

    def __init__(
        self,
        instance: Instance,
        home: Path,
        *,
        host: str | None = None,
        env: Mapping[str, str] | None = None,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.module = "reconciler"
        self.prefix: tuple[str, ...] = ()
        self.instance = instance
        self.state_dir = home / "state"
        self.desired = home / "desired.yaml"
        self.arguments = arguments
        self.logs: list[dict[str, Any]] = []
        self.raw: list[str] = []
        # Below a short path: it holds the control socket.
        self.runtime_dir = Path(tempfile.mkdtemp(prefix="rcld-"))
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RECONCILER_")},
            "PYTHONPATH": str(_ROOT),
            "PYTHONUNBUFFERED": "1",
            **instance.env(),
            "RECONCILER_STATE_DIR": str(self.state_dir),
            "RECONCILER_RUNTIME_DIR": str(self.runtime_dir),
            "RECONCILER_DESIRED": str(self.desired),
            "RECONCILER_LOG_FORMAT": "json",
            **({"DOCKER_HOST": host} if host else {}),
            **(env or {}),
        }
        self.process: subprocess.Popen[str] | None = None
        self._home = home
        self._reader: threading.Thread | None = None
        self._spoke = threading.Condition()
        self._heard_all = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Start and stop

    def start(self) -> Self:
        """Start the process; returns at once."""
        assert not self.running, "the daemon runs already"
        self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [*self.prefix, sys.executable, "-m", self.module, "run", *self.arguments],
            cwd=self._home,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._heard_all = False
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()
        return self

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill9(self) -> None:
        """Kill it, and return when it is dead."""
        self._end(signal.SIGKILL, PATIENCE)

    def terminate(self, timeout: float = PATIENCE) -> int:
        """Stop it as a service manager does; return its exit code."""
        return self._end(signal.SIGTERM, timeout)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the process, with all its threads, until the block ends."""
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task")
        self.send(signal.SIGSTOP)
        try:
            wait_until(lambda: all(_is_stopped(task) for task in tasks.iterdir()))
            yield
        finally:
            self.send(signal.SIGCONT)

    def wait_exit(self, timeout: float = PATIENCE) -> int:
        """Wait until it exits by itself; return its exit code."""
        assert self.process is not None
        code = self.process.wait(timeout)
        self._join()
        return code

    def close(self) -> None:
        """Kill it if it runs, and remove its sockets."""
        if self.running:
            self.kill9()
        self._join()
        shutil.rmtree(self.runtime_dir, ignore_errors=True)

    # Its desired file

    def write(self, text: str) -> None:
        """Save the desired file as a good editor does: written aside, then renamed."""
        self._home.mkdir(parents=True, exist_ok=True)
        aside = self.desired.with_suffix(".new")
        aside.write_text(text)
        aside.replace(self.desired)

    # Its log

    def mark(self) -> int:
        """Return the current position in the log, for `wait_event`."""
        return len(self.logs)

    def events(self, name: str, sandbox: str | None = None, since: int = 0) -> list[dict[str, Any]]:
        """Return the log's lines of that event so far."""
        lines = self.logs[since:]
        named = [line for line in lines if line.get("event") == name]
        return [line for line in named if sandbox is None or line.get("sandbox") == sandbox]

    def wait_event(
        self, name: str, sandbox: str | None = None, timeout: float = PATIENCE, since: int = 0
    ) -> dict[str, Any]:
        """Wait for a line of that event at or after `since`; fail at once when the daemon dies."""

        def said() -> bool:
            return bool(self.events(name, sandbox, since)) or self._heard_all

        with self._spoke:
            self._spoke.wait_for(said, timeout)
        found = self.events(name, sandbox, since)
        assert found, f"no event {name} of {sandbox or 'any sandbox'}\n{self.tail()}"
        return found[0]

    def tail(self) -> str:
        """Return the end of the log, for the message of a failed test."""
        state = "runs" if self.running else f"ended: {self.process and self.process.returncode}"
        return "\n".join([f"the daemon {state}; its log ends:", *self.raw[-_TAIL:]])

    def wait_until(self, predicate: Callable[[], T], timeout: float = PATIENCE) -> T:
        """Poll until the predicate holds; fail with the log's end."""
        return wait_until(predicate, timeout, self.tail)

    # Its commands

    def cli(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command with the daemon's settings, in another process."""
        return subprocess.run(
            [*self.prefix, sys.executable, "-m", "reconciler", *arguments],
            cwd=self._home,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def status(self, *arguments: str) -> dict[str, Any]:
        """Return what `status --json` says."""
        done = self.cli("status", "--json", *arguments)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.tail()}"
        return dict(json.loads(done.stdout))

    def sandboxes(self) -> dict[str, dict[str, Any]]:
        """Return each sandbox's status by its name."""
        return {sandbox["name"]: sandbox for sandbox in self.status()["sandboxes"]}

    def statuses(self) -> dict[str, str]:
        return {name: sandbox["status"] for name, sandbox in self.sandboxes().items()}

    def wait_statuses(self, wanted: Mapping[str, str], timeout: float = PATIENCE) -> None:
        """Wait until these, and no others, have these statuses."""
        self.wait_until(lambda: self.statuses() == wanted, timeout)

    def _end(self, number: signal.Signals, timeout: float) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait_exit(timeout)

    def _join(self) -> None:
        if self._reader is not None:
            self._reader.join(10)

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None
        with process.stderr:
            for text in process.stderr:
                self._hear(text.rstrip("\n"))
        with self._spoke:
            self._heard_all = True
            self._spoke.notify_all()

    def _hear(self, text: str) -> None:
        with self._spoke:
            self.raw.append(text)
            self.logs.append(_parse(text))
            self._spoke.notify_all()


def _is_stopped(task: Path) -> bool:
    return (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"


def _parse(text: str) -> dict[str, Any]:
    """Parse a line; what is no JSON object, such as a traceback, is kept as `raw`."""
    try:
        line = json.loads(text)
    except ValueError:
        return {"raw": text}
    return line if isinstance(line, dict) else {"raw": text}
