"""Sandbox output never drives a terminal, and secrets in it are masked."""

import os
import pty
import select
import subprocess
import sys

import pytest

from tests.cli.cli import ROOT
from tests.e2e.world import KEY, World, box

# Clear the screen, set the title, write to the clipboard; a C1 control; an override of direction.
ATTACK = "\x1b[2J\x1b]0;owned\x07\x1b]52;c;b3duZWQ=\x07\x9b31m\u202egpj.exe"
CONTROLS = ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\u202e")
PEM = "-----BEGIN KEY-----\nMIIEcanaryline0001\nMIIEcanaryline0002\n-----END KEY-----"
SECRETS = {
    "TLS_PRIVATE_KEY": PEM,
    "ADMIN_PASSWORD": "918273645546372819",
    "DB_PASSWORD": 'correct "horse" battery',
}
CANARIES = ("canaryline", "918273645546372819", "horse")
SAY = f'printf "%s\\n" "$ATTACK" "${KEY}" "$TLS_PRIVATE_KEY" "$ADMIN_PASSWORD" "$DB_PASSWORD"'


def on_terminal(world: World, *arguments: str) -> str:
    """Run a command with a terminal for both outputs, and return all that the terminal got."""
    leader, follower = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "reconciler", *arguments],
            env={**world.daemon.env, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            stdout=follower,
            stderr=follower,
        )
        os.close(follower)
        heard = bytearray()
        while True:
            assert select.select([leader], [], [], 60)[0], heard
            try:
                heard += os.read(leader, 65536)
            except OSError:  # the end of a terminal
                break
        process.wait(60)
    finally:
        os.close(leader)
    return heard.decode(errors="surrogateescape")


@pytest.fixture
def hostile(world: World) -> World:
    """A sandbox that prints an attack and all its secrets, and ends."""
    world.start(
        mallory=box(
            command=["sh", "-c", f"while ! test -e /tmp/end; do sleep 0.1; done; {SAY}; exit 3"],
            env={"ATTACK": ATTACK, **SECRETS},
            restart={"backoff": "60s", "max_backoff": "60s"},
        )
    )
    world.run_in("mallory", "touch /tmp/end")
    world.wait_error("mallory", "exit code 3")
    return world


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("status", "mallory", "--json"),
        ("apply", "--timeout", "1s"),
        ("plan",),
        ("events", "mallory"),
        ("events", "--json"),
        ("logs", "mallory"),
        ("export",),
        ("doctor",),
        ("reload",),
        ("gc", "--dry-run"),
    ],
)
def test_sandbox_output_never_drives_the_terminal(hostile: World, command: tuple[str, ...]):
    shown = on_terminal(hostile, *command)
    assert not [control for control in CONTROLS if control in shown]
    if command[0] != "logs":
        assert not [canary for canary in (*CANARIES, hostile.key("mallory")) if canary in shown]


def test_the_log_has_no_secret_and_no_control_character(hostile: World) -> None:
    text = "\n".join(hostile.daemon.raw)
    assert "sandbox.died" in text
    assert not [c for c in (*CONTROLS, *CANARIES, str(hostile.key("mallory"))) if c in text]


def test_raw_logs_are_the_original_bytes(hostile: World) -> None:
    assert ATTACK in on_terminal(hostile, "logs", "mallory", "--raw")
