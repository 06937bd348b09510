"""A Debian whose first process is systemd, in a container of a private engine."""

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts import rootfs
from scripts.image import import_image
from tests.harness import engines
from tests.harness.docker import Docker
from tests.harness.waiting import wait_until

ROOT = Path(__file__).parent.parent.parent
# What Debian's docker.io makes; the daemon's user is to be a member of it.
DOCKER_GROUP = 990
PATIENCE = 120

_IMAGE = "reconciler-systemd:latest"
_NAME = "machine"
_CGROUPS = Path("/sys/fs/cgroup")
_PROJECT = (
    *("pyproject.toml", "requirements.txt", "requirements-build.txt", "README.md", "LICENSE"),
    *("config", "reconciler", "systemd"),
)
# The engine's socket stands where Docker's own does, also after a reboot: /run is emptied.
_PREPARE = f"""
groupadd --system --gid {DOCKER_GROUP} docker
echo 'L /run/docker.sock - - - - /engine/docker.sock' > /etc/tmpfiles.d/docker.conf
systemd-tmpfiles --create docker.conf
"""


class Machine:
    """What is done on it is done by its root's shell, as a user would."""

    def __init__(self, docker: Docker) -> None:
        self.docker = docker

    def boot(self) -> None:
        """Start it, and return when systemd has started all that it is to start at once."""
        self.docker.start(_NAME)
        wait_until(lambda: self.run("systemctl is-system-running")[1] in _UP, PATIENCE)

    def power_off(self) -> None:
        """Kill every process at once."""
        self.docker.kill(_NAME)
        self.wait_off()

    def wait_off(self) -> None:
        wait_until(lambda: self.docker.state(_NAME) == "exited", PATIENCE)

    @property
    def root(self) -> Path:
        """Its file system, as a path of this machine's, until it reboots."""
        return Path(f"/proc/{self.docker.inspect(_NAME)['State']['Pid']}/root")

    def run(self, script: str, *arguments: str) -> tuple[int, str]:
        """Run a script with these as $1 and so on; return its exit code and all its output."""
        code, output = self.docker.exec(_NAME, "bash", "-ec", script, "bash", *arguments)
        return code, output.strip()

    def sh(self, script: str, *arguments: str) -> str:
        """Run a script, which must end well; return its output."""
        code, output = self.run(script, *arguments)
        assert code == 0, f"exit code {code} of {script}\n{output}"
        return output

    def write(self, path: str, text: str) -> None:
        """Replace a file's content and keep its owner and mode, by a rename."""
        self.sh('mkdir -p "${1%/*}"; cp -p "$1" "$1~" 2>/dev/null || touch "$1~"', path)
        # Not as an argument, which would have to be short.
        (self.root / f"{path.lstrip('/')}~").write_text(text)
        self.sh('mv "$1~" "$1"', path)

    def journal(self, *arguments: str, since: str = "") -> list[dict[str, Any]]:
        """Return the entries that `journalctl ARGUMENTS` finds, with all their fields."""
        self.settle_journal()
        # Not --after-cursor: beside a filter it passes over the first entry that it should show.
        begin = [f"--cursor={since}"] if since else []
        output = self.sh('journalctl --quiet --all -o json "$@"', *begin, *arguments)
        entries = [json.loads(line) for line in output.splitlines()]
        return [entry for entry in entries if entry["__CURSOR"] != since]

    def settle_journal(self) -> None:
        """Return when everything logged so far is in the journal."""
        self.sh("journalctl --sync")

    def cursor(self) -> str:
        """Return the journal's end, from which `journal` shall look."""
        return str(self.journal("-n", "1")[0]["__CURSOR"])


# Degraded is up, too: what failed is for a test to tell.
_UP = {"running", "degraded"}


@contextmanager
def machine(home: Path, engine: Path) -> Iterator[Machine]:
    """Boot a machine that has the project in /project, wheels, and an engine's folder.

    It shares the network with this machine, so that 127.0.0.1 is where the engine publishes ports.
    """
    project = _project(home / "project")
    binds = [f"{engine}:/engine", f"{project}:/project", f"{rootfs.wheels()}:/wheels:ro"]
    with engines.private_engine(f"machine-{secrets.token_hex(3)}") as outer:
        docker = Docker(outer.host, timeout=PATIENCE)
        with rootfs.rootfs().open("rb") as tar:
            import_image(outer.host, _IMAGE, tar)
        docker.create(
            _NAME,
            "/sbin/init",
            image=_IMAGE,
            host_config=_host_config(binds),
            Env=["container=docker"],
            StopSignal="SIGRTMIN+3",
        )
        own = Machine(docker)
        own.boot()
        own.sh(_PREPARE)
        yield own


def _project(folder: Path) -> Path:
    """Copy what an install needs; a test may change it."""
    folder.mkdir(parents=True)
    for name in _PROJECT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


def _host_config(binds: list[str]) -> dict[str, Any]:
    groups, tmpfs = _cgroups()
    return {
        "Binds": [*groups, *binds],
        "Tmpfs": {"/run": "", "/tmp": "", **tmpfs},
        "CapAdd": ["SYS_ADMIN", "NET_ADMIN"],
        "SecurityOpt": ["seccomp=unconfined"],
        "CgroupnsMode": "host",
        "NetworkMode": "host",
    }


def _cgroups() -> tuple[list[str], dict[str, str]]:
    """Say how it sees control groups; it makes its own below its container's.

    Each hierarchy of version 1 is mounted alone: in this machine's own folder of them, systemd
    would make more, and make it read-only for everybody.
    """
    if (_CGROUPS / "cgroup.procs").exists():
        return [f"{_CGROUPS}:{_CGROUPS}:rw"], {}
    own = [folder for folder in sorted(_CGROUPS.iterdir()) if (folder / "cgroup.procs").exists()]
    return [f"{folder}:{folder}:rw" for folder in own if not folder.is_symlink()], {
        str(_CGROUPS): ""
    }
