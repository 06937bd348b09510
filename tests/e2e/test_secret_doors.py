"""A secret leaves through no door: log, journal, STATUS, answers, commands, HTTP errors."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.e2e.test_hostile_output import CANARIES, SECRETS
from tests.e2e.world import KEY, World, box

DIGITS = SECRETS["ADMIN_PASSWORD"]
LINE = "MIIEcanaryline0001"
FILE_SECRET = "canaryline-of-the-env-file"
SAY = (
    f'printf "%s\\n" "${KEY}" "$TLS_PRIVATE_KEY" "$ADMIN_PASSWORD" "$DB_PASSWORD" "$TOKEN"; exit 3'
)

COMMANDS = [
    *(("status",), ("status", "--json"), ("status", "says"), ("plan",), ("plan", "--json")),
    *(("events", "says"), ("events", "--json"), ("export",), ("check",), ("reload",)),
    *(("doctor",), ("doctor", "--json"), ("gc", "--dry-run"), ("apply", "--timeout", "1s")),
    *(("adopt", "says", DIGITS), ("adopt", LINE), ("logs", LINE)),
]
ASKED = [
    *("/v1/status", "/v1/plan", "/v1/convergence", "/v1/events", "/v1/export"),
    *(f"/v1/events?limit={DIGITS}", f"/v1/events?after={LINE}", f"/v1/logs/{LINE}"),
    *(f"/v1/logs/says?tail={DIGITS}", f"/{LINE}", f"/v1/status?secrets={LINE}"),
]
POSTED = [f"/v1/adopt?name={LINE}", f"/v1/adopt?name=says&volume={quote(SECRETS['DB_PASSWORD'])}"]

# A secret where no key belongs; the error of the desired file repeats it.
WRONG = f"version: 1\nsandboxes:\n  says:\n    spec: box\n    LLM_API_KEY={LINE}: 1\n"


class Heard:
    """All that came to a datagram socket, as text."""

    def __init__(self, path: Path) -> None:
        self.text = ""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while data := self._socket.recv(1 << 20):
            self.text += data.decode(errors="replace") + "\n"

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RD)
        self._reader.join()
        self._socket.close()


@pytest.fixture
def heard(world: World) -> Iterator[dict[str, Heard]]:
    """What the service manager and the journal hear."""
    folder = world.daemon.runtime_dir
    made = {name: Heard(folder / name) for name in ("notify", "journal")}
    world.daemon.env |= {
        "NOTIFY_SOCKET": str(folder / "notify"),
        "JOURNAL_SOCKET": str(folder / "journal"),
    }
    yield made
    for one in made.values():
        one.close()


def leaky(env_file: Path) -> dict[str, dict[str, Any]]:
    """Sandboxes that print their secrets, or whose secrets an error of the engine repeats."""
    env_file.write_text(f"TOKEN={FILE_SECRET}\n", encoding="utf-8")
    slow = {"restart": {"backoff": "60s", "max_backoff": "60s"}}
    more = {"env": SECRETS, "env_file": str(env_file), **slow}
    return {
        "says": box(**more, command=["sh", "-c", SAY]),
        "runs": box(**more, command=[LINE, DIGITS]),
        "mounts": box(
            **more, mounts=[{"host_path": f"/{LINE}/{DIGITS}", "container_path": "/data"}]
        ),
        "pulls": box(**more, image=f"127.0.0.1:1/{FILE_SECRET}:1", pull="missing"),
    }


def asked(world: World, path: str, method: str = "GET") -> str:
    return json.dumps(world.ask(path, method)) if "export" not in path else ""


def told(world: World) -> dict[str, str]:
    """What each command and each question of the control socket is answered."""
    done = {" ".join(command): world.daemon.cli(*command) for command in COMMANDS}
    answers = {command: f"{it.stdout}{it.stderr}" for command, it in done.items()}
    if world.daemon.running:
        answers |= {path: asked(world, path) for path in ASKED}
        answers |= {path: asked(world, path, "POST") for path in POSTED}
    return answers


def leaks(doors: dict[str, str], *keys: str) -> dict[str, list[str]]:
    words = (*CANARIES, *keys)
    found = {door: [word for word in words if word in text] for door, text in doors.items()}
    return {door: words for door, words in found.items() if words}


def start(world: World, folder: Path, log_format: str) -> str:
    """Start a daemon whose sandboxes leak; return a session key."""
    world.daemon.env |= {"RECONCILER_LOG_FORMAT": log_format, "RECONCILER_LOG_LEVEL": "debug"}
    world.daemon.module = "tests.harness.journaled"
    world.declare(**leaky(folder / "secret.env"))
    world.daemon.start()
    world.wait_error("says", "exit code 3")
    for name in ("runs", "mounts", "pulls"):
        world.wait_error(name)
    return world.key("says")


@pytest.mark.parametrize("log_format", ["json", "console", "journal"])
def test_no_secret_is_in_a_log_or_in_the_service_status(
    world: World, heard: dict[str, Heard], tmp_path: Path, log_format: str
) -> None:
    key = start(world, tmp_path, log_format)
    world.daemon.write(WRONG)
    world.wait(lambda: world.ask("/v1/plan")["errors"])
    world.daemon.terminate()
    doors = {"log": "\n".join(world.daemon.raw), **{n: it.text for n, it in heard.items()}}
    assert leaks(doors, key) == {}
    assert "STATUS=" in doors["notify"]
    said = doors["journal" if log_format == "journal" else "log"]
    assert "sandbox.died" in said
    assert "LLM_API_KEY=***" in said


@pytest.mark.timeout(900)
def test_no_secret_is_in_an_answer(world: World, heard: dict[str, Heard], tmp_path: Path) -> None:
    key = start(world, tmp_path, "json")
    doors = told(world)
    good = world.daemon.desired.read_text()
    world.daemon.write(WRONG)
    for command in ("check", "reload", "plan"):
        done = world.daemon.cli(command)
        assert done.returncode
        doors[f"{command} of a wrong file"] = f"{done.stdout}{done.stderr}"
    world.daemon.write(good)
    world.daemon.terminate()
    doors |= {f"{door}, alone": text for door, text in told(world).items()}
    assert leaks(doors, key) == {}
    assert not [door for door in ("status", "plan", "check of a wrong file") if not doors[door]]
