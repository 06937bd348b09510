"""Twelve hostile sandboxes beside twelve honest ones: the honest ones are not affected."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.test_hostile_output import ATTACK, CANARIES, SECRETS
from tests.e2e.world import KEY, World, box, get, web
from tests.harness.waiting import wait_until

# In `make torture` the run is as long as one that an operator would notice.
LONG = "RECONCILER_TORTURE_ROUNDS" in os.environ
SECONDS = 120 if LONG else 15
# Seconds by which single answers differ on a busy machine.
JITTER = 0.02
HONEST = [f"honest-{n}" for n in range(12)]

# What answers each probe: a shell script that is given one connection.
ANSWERS = {
    "secret-status": f'printf "%s %s\\r\\n\\r\\n" "${KEY}" "$ADMIN_PASSWORD"',
    "bad-cookie": r'printf "HTTP/1.1 200 OK\r\nSet-Cookie: a\264=b; Max-Age=%0400d\r\n\r\n" 9',
    "interim": r'yes "$(printf "HTTP/1.1 100 C\r\n\r")"',
    "endless-status": "yes | tr -d '\\n'",
    "endless-header": r'printf "HTTP/1.1 200 OK\r\n"; yes "$(printf "A: b\r")"',
    "endless-body": r'printf "HTTP/1.1 200 OK\r\n\r\n"; cat /dev/zero',
    "drip": r'while :; do printf "H"; sleep 0.2; done',
    "redirect": r'printf "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n"',
    "escapes": r'printf "HTTP/1.1 200 \033[2J\233\r\n\r\n"',
}


def answering(script: str) -> dict[str, Any]:
    """A sandbox whose port answers with a script, for each connection."""
    serve = "printf '%s' \"$SCRIPT\" > /tmp/s; chmod 700 /tmp/s; exec nc -ll -p 8000 -e /tmp/s"
    return web(
        command=["sh", "-c", serve],
        env={"SCRIPT": f"#!/bin/sh\n{script}\n", **SECRETS},
        health={"path": "/", "interval": "500ms", "startup_grace": "2s", "timeout": "1s"},
    )


def hostile() -> dict[str, dict[str, Any]]:
    noise = {"env": {"ATTACK": ATTACK, **SECRETS}, "command": ["sh", "-c", ""]}
    say = f'printf "%s\\n" "$ATTACK" "${KEY}" "$TLS_PRIVATE_KEY"'
    dies = ["sh", "-c", f"{say}; exit 3"]
    floods = ["sh", "-c", 'yes "$ATTACK" | head -c 20000000; sleep 1; exit 1']
    one_line = ["sh", "-c", "head -c 30000000 /dev/zero | tr '\\0' x; exit 2"]
    found = {
        **{name: answering(script) for name, script in ANSWERS.items()},
        "dies": box(**{**noise, "command": dies}),
        "floods": box(**{**noise, "command": floods}),
        "one-line": box(**{**noise, "command": one_line}),
    }
    # The engine enforces the limits of sandboxes. The test measures the daemon only.
    return {name: {**record, "resources": {"cpus": 0.1}} for name, record in found.items()}


class Use(NamedTuple):
    """What the daemon used: seconds on the processor, and MiB."""

    seconds: float
    memory: float


def use_of(world: World) -> Use:
    assert world.daemon.process is not None
    proc = Path(f"/proc/{world.daemon.process.pid}")
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    pages = int((proc / "statm").read_text().split()[1])
    return Use(ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGESIZE") / 2**20)


class Latency(NamedTuple):
    """The medians of some answers, in seconds: of `status`, and of an honest sandbox's probe."""

    status: float
    probe: float


def latency_of(world: World) -> Latency:
    (port,) = world.ports(HONEST[0]).values()
    questions = (world.rows, lambda: get(f"http://127.0.0.1:{port}/health"))
    return Latency(*(_median_seconds(question) for question in questions))


def _median_seconds(question: Callable[[], object]) -> float:
    taken = []
    for _ in range(21):
        began = time.monotonic()
        question()
        taken.append(time.monotonic() - began)
    return sorted(taken)[len(taken) // 2]


def test_honest_sandboxes_beside_hostile_ones(world: World) -> None:
    honest: dict[str, Any] = {name: web() for name in HONEST}
    # As many sandboxes before and after, so that the times can be compared.
    world.start(**honest, **{name: web() for name in hostile()})
    before = {name: (world.id(name), world.row(name)["restarts"]) for name in HONEST}
    former = {name: world.id(name) for name in hostile()}
    quiet = latency_of(world)
    world.declare(**honest, **hostile())
    world.wait(lambda: all(world.id(name) not in {None, former[name]} for name in former))
    world.wait(lambda: world.row("dies")["restarts"] >= 2)
    began, used = time.monotonic(), use_of(world)

    wait_until(lambda: time.monotonic() - began >= SECONDS, SECONDS + 60)
    share = (use_of(world).seconds - used.seconds) / (time.monotonic() - began)
    loud = latency_of(world)
    print(  # a measurement
        f"\n{SECONDS} s: daemon {100 * share:.1f} % of a core, {use_of(world).memory:.0f} MiB,"
        f" status {1000 * quiet.status:.0f} ms quiet and {1000 * loud.status:.0f} ms beside them,"
        f" probe {1000 * quiet.probe:.1f} and {1000 * loud.probe:.1f} ms"
    )
    assert {name: (world.id(name), world.row(name)["restarts"]) for name in HONEST} == before
    assert {world.row(name)["status"] for name in HONEST} == {"RUNNING"}
    assert world.row("redirect")["status"] == world.row("escapes")["status"] == "RUNNING"
    assert not world.daemon.events("task.failed")

    # A death beside them is noticed and followed by a start.
    world.docker.kill(world.name(HONEST[0]))
    world.wait(lambda: world.row(HONEST[0])["restarts"] == 1)
    world.wait(lambda: world.row(HONEST[0])["status"] == "RUNNING")

    output = "\n".join([*world.daemon.raw, str(world.rows()), str(world.ask("/v1/events"))])
    keys = [str(world.key(name)) for name in hostile()]
    assert not [word for word in (*CANARIES, *keys, "\x1b", "\x9b") if word in output]
    if LONG:
        assert share < 0.15
        assert loud.status < 2 * quiet.status + JITTER
        assert loud.probe < 2 * quiet.probe + JITTER
        assert use_of(world).memory < 120
