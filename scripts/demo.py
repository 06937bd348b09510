"""Run the demonstration: the sandboxes of config/desired.yaml on any engine.

python3 -m scripts.demo            run it; once, with DEMO_ONCE=1 or without a terminal
python3 -m scripts.demo clean      remove everything that it created
"""

# ruff: noqa: S603 - we run our own command

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from scripts import demo_clean, private, processes
from scripts.debian import say
from scripts.engine import ensure
from scripts.image import DEMO_IMAGE, ensure_image

ROOT = Path(__file__).parent.parent
DESIRED = ROOT / "config" / "desired.yaml"
HOME = ROOT / ".state" / "demo"
LOG = HOME / "reconciler.log"
_COMMAND = [str(ROOT / ".venv" / "bin" / "reconciler")]
_AT_REST = {"running": "RUNNING", "paused": "PAUSED", "stopped": "STOPPED"}
_TIMEOUT = 180


def main() -> int:
    """Run the demonstration, or remove it."""
    if sys.argv[1:] == ["clean"]:
        demo_clean.clean(HOME)
        return 0
    private.make_folder(HOME)
    # Socket paths must be short. Each run uses the same folder, as long as it is ours.
    short = private.remembered_folder(HOME / demo_clean.DIRECTORY, "reconciler-demo-")
    environment = _environment(short)
    ensure_image(environment["DOCKER_HOST"], DEMO_IMAGE)
    daemon = _start(environment)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _show(daemon, environment)
    except KeyboardInterrupt:
        return 0
    finally:
        _end(daemon)


def _environment(short: Path) -> dict[str, str]:
    host = ensure(short / "engine")
    private.write(HOME / demo_clean.HOST, host)
    runtime = short / "run"
    private.make_folder(runtime)
    return {
        **os.environ,
        "DOCKER_HOST": host,
        "RECONCILER_DESIRED": str(DESIRED),
        "RECONCILER_STATE_DIR": str(HOME / "state"),
        "RECONCILER_RUNTIME_DIR": str(runtime),
        "RECONCILER_INSTANCE": demo_clean.INSTANCE,
        "RECONCILER_CONTAINER_NAME_PREFIX": "demo-",
        "RECONCILER_LOG_FORMAT": "console",
    }


def _start(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the daemon in a new session, so that Ctrl-C only reaches this process."""
    private.make_folder(HOME / "state")
    with LOG.open("wb") as log:
        daemon = subprocess.Popen(
            [*_COMMAND, "run"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    private.write(HOME / demo_clean.PID, str(daemon.pid))
    return daemon


def _show(daemon: subprocess.Popen[bytes], environment: dict[str, str]) -> int:
    say(f"waiting until the sandboxes match {_shown(DESIRED)}")
    converged = _wait(daemon, environment)
    subprocess.run([*_COMMAND, "status"], env=environment, check=False)
    if daemon.poll() is not None or not converged:
        say(f"the sandboxes do not match after {_TIMEOUT} s; the end of {_shown(LOG)}:")
        say("\n".join(LOG.read_text(errors="replace").splitlines()[-20:]))
        return 1
    sandboxes = _sandboxes(environment)
    answered = [_request(url["url"]) for one in sandboxes for url in _urls(one)]
    _advise(sandboxes)
    if "DEMO_ONCE" not in os.environ and sys.stdin.isatty() and sys.stdout.isatty():
        _follow(daemon)
    return 0 if all(answered) else 1


def _wait(daemon: subprocess.Popen[bytes], environment: dict[str, str]) -> bool:
    def settled() -> bool:
        return daemon.poll() is not None or _at_rest(_sandboxes(environment))

    return processes.wait_for(settled, _TIMEOUT)


def _sandboxes(environment: dict[str, str]) -> list[dict[str, Any]]:
    """Return the sandboxes' status; empty until the daemon answers."""
    command = [*_COMMAND, "status", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    try:
        return list(json.loads(done.stdout)["sandboxes"])
    except (ValueError, KeyError):
        return []


def _at_rest(sandboxes: list[dict[str, Any]]) -> bool:
    return bool(sandboxes) and all(
        sandbox["status"] == _AT_REST.get(sandbox["desired"]) for sandbox in sandboxes
    )


def _urls(sandbox: dict[str, Any]) -> list[dict[str, Any]]:
    return list(sandbox["exposed_urls"] or []) if sandbox["status"] == "RUNNING" else []


def _request(url: str) -> bool:
    """Request a URL and print the result; False without an answer."""
    try:
        with urlopen(url, timeout=5) as response:  # noqa: S310 - the daemon's own URL
            outcome = str(response.status)
    except HTTPError as error:
        outcome = str(error.code)
    except HTTPException:
        outcome = "(answers, but with another protocol)"
    except OSError as error:
        print(f"  no answer  {url}  ({error})")  # noqa: T201
        return False
    print(f"  HTTP {outcome}  {url}")  # noqa: T201
    return True


def _advise(sandboxes: list[dict[str, Any]]) -> None:
    paused = next((one["name"] for one in sandboxes if one["desired"] == "paused"), None)
    say(f"\nTo see changes, edit {_shown(DESIRED)} and save it:")
    if paused:
        say(f"  - remove `state: paused` from {paused}: it answers at once")
    say("  - remove a sandbox, or add another one")
    say(f"The daemon's log is {_shown(LOG)}. `make demo-clean` removes everything.")


def _follow(daemon: subprocess.Popen[bytes]) -> None:
    """Follow the log until Ctrl-C or the daemon exits."""
    say("Ctrl-C stops the daemon; the sandboxes keep running.\n")
    with LOG.open(errors="replace") as log:
        while daemon.poll() is None:
            if text := log.read():
                sys.stderr.write(text)
                sys.stderr.flush()
            time.sleep(0.1)
    say("the daemon has exited by itself")


def _end(daemon: subprocess.Popen[bytes]) -> None:
    if daemon.poll() is None:
        daemon.terminate()
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(30)
    if daemon.poll() is None:
        daemon.kill()
        daemon.wait()
    (HOME / demo_clean.PID).unlink(missing_ok=True)
    say("\nthe daemon has stopped; the sandboxes keep running (`make demo-clean` removes them)")


def _shown(path: Path) -> str:
    with suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


if __name__ == "__main__":
    try:
        code = main()
    except (RuntimeError, ValueError, OSError, subprocess.CalledProcessError) as error:
        say(f"error: {error}")
        code = 1
    sys.exit(code)
