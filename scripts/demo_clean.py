"""Remove everything that the demonstration created."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from urllib.parse import quote

from scripts import private, processes
from scripts.debian import say
from scripts.engine import PrivateEngine
from scripts.image import DEMO_IMAGE
from scripts.unixhttp import answers, request

INSTANCE = "demo"
# Files in which the demonstration records what it uses.
DIRECTORY, HOST, PID = "directory", "host", "daemon.pid"
_LABEL = f"io.sandbox-reconciler.instance={INSTANCE}"


def clean(home: Path) -> None:
    """Remove the sandboxes, their volumes, the image, the private engine and the state."""
    if os.path.lexists(home):
        private.make_folder(home)
    _end_daemon(home)
    host = private.read(home / HOST)
    recorded = private.read(home / DIRECTORY)
    directory = private.recorded_folder(home / DIRECTORY)
    if recorded and host == PrivateEngine(Path(recorded) / "engine").host:
        # If the folder is gone or another user's, so is the engine.
        if directory:
            PrivateEngine(directory / "engine").destroy()
    elif host and answers(host):
        _purge(host)
    elif host:
        raise RuntimeError(
            f"{host} does not answer, so its sandboxes cannot be removed: start the engine"
        )
    if directory:
        shutil.rmtree(directory, ignore_errors=True)
    shutil.rmtree(home, ignore_errors=True)
    say("the demonstration is removed")


def _end_daemon(home: Path) -> None:
    text = private.read(home / PID)
    if text.isdigit() and "reconciler" in processes.command_line(int(text)):
        processes.end(int(text), 30)


def _purge(host: str) -> None:
    own = quote(json.dumps({"label": [_LABEL]}))
    for row in request(host, "GET", f"/containers/json?all=1&filters={own}").json():
        request(host, "DELETE", f"/containers/{row['Id']}?force=1&v=1", timeout=60)
    for volume in request(host, "GET", f"/volumes?filters={own}").json()["Volumes"] or []:
        request(host, "DELETE", f"/volumes/{volume['Name']}?force=1")
    for network in request(host, "GET", f"/networks?filters={own}").json():
        request(host, "DELETE", f"/networks/{network['Id']}")
    request(host, "DELETE", f"/images/{quote(DEMO_IMAGE)}")
