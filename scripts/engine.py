"""Run private Docker engines beside any other, for `make demo`, the tests and CI.

python3 -m scripts.engine ensure DIR          print the DOCKER_HOST of an engine that answers
python3 -m scripts.engine stop DIR            stop the private engine in DIR and remove everything
python3 -m scripts.engine ensure-image NAME   create the busybox image on $DOCKER_HOST
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from scripts import bridge, debian, private, processes
from scripts.image import ensure_image
from scripts.unixhttp import DEFAULT_HOST, answers

if TYPE_CHECKING:
    from collections.abc import Sequence

# The engine's socket is DIR/docker.sock, and a unix socket's path holds 107 bytes.
_LONGEST_DIRECTORY = 90
_MNT_DETACH = 2
_DEFAULT_SOCKET = Path(DEFAULT_HOST.removeprefix("unix://"))
_PID = re.compile(r"[1-9]\d{0,9}")
# Where containerd puts the sockets of its shims.
_SHIM_SOCKET = re.compile(r"/run/containerd/s/[0-9a-f]{64}")
# A network's bridge is named by this much of its id.
_ID = 12
_CONTAINERD_TOML = """\
version = 2
root = "{0}/containerd-data"
state = "{0}/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{0}/containerd.sock"
"""


class PrivateEngine:
    """A dockerd and its containerd that share no file, socket, bridge or cgroup with another.

    It works without iptables: a second dockerd that used them would flush the chains of the
    first. Ports published on 127.0.0.1 work through Docker's userland proxy; containers reach
    the host and each other, but no other network.

    All state is in the directory, so any process can stop what another one started.
    """

    def __init__(
        self, directory: Path, *, live_restore: bool = False, arguments: Sequence[str] = ()
    ) -> None:
        self.directory = directory.absolute()
        self.live_restore = live_restore
        self.arguments = arguments
        self.socket = self.directory / "docker.sock"
        self.host = f"unix://{self.socket}"
        self._children: set[int] = set()

    @property
    def pid(self) -> int | None:
        """The running dockerd's pid."""
        return self._pid("dockerd")

    def start(self, timeout: float = 60) -> None:
        """Start what is not running, and return when the engine answers."""
        if len(str(self.directory)) > _LONGEST_DIRECTORY:
            raise ValueError(
                f"{self.directory} is too long for a unix socket below it: use a shorter path"
            )
        private.make_folder(self.directory)
        if self._pid("containerd") is None:
            self._start_containerd()
        if self.pid is None:
            self._start_dockerd()
        self._wait(timeout)

    def terminate(self, timeout: float = 60) -> None:
        """Stop dockerd as a service manager does. Its containers stop too, unless live-restore."""
        if pid := self.pid:
            processes.end(pid, timeout)
        self._reap()

    def kill(self) -> None:
        """Kill dockerd with SIGKILL. Its containers keep running until the next start."""
        if pid := self.pid:
            processes.kill(pid)
        self._reap()

    def restart(self, *, live_restore: bool | None = None) -> None:
        """Stop dockerd if it runs, and start it on the same data."""
        self.terminate()
        self.live_restore = self.live_restore if live_restore is None else live_restore
        self.start()

    def destroy(self) -> None:
        """Stop and remove everything, in any state.

        RuntimeError if the directory is not ours: its files name processes to kill.
        """
        if not os.path.lexists(self.directory):
            return
        private.make_folder(self.directory)
        own = self._read_bridge()
        if own:
            processes.empty_cgroup(own)
        self.terminate(20)
        self._end_shims()
        if containerd := self._pid("containerd"):
            processes.end(containerd, 10)
        self._reap()
        _unmount_below(self.directory)
        if own:
            processes.empty_cgroup(own)
            processes.remove_cgroup(own)
            for name in self._networks():
                bridge.remove(name)
            bridge.remove(own)
        shutil.rmtree(self.directory, ignore_errors=True)

    def logs(self, lines: int = 40) -> str:
        """Return the end of what the engine logged."""
        try:
            text = (self.directory / "dockerd.log").read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _start_containerd(self) -> None:
        config = self.directory / "containerd.toml"
        private.write(config, _CONTAINERD_TOML.format(self.directory))
        self._spawn("containerd", "--config", str(config))

    def _start_dockerd(self) -> None:
        at = self.directory
        own = self._read_bridge() or self._claim_bridge()
        private.write(at / "daemon.json", "{}")
        # No --default-address-pool: with it, every restart deletes the host's docker0.
        # A pid file left by SIGKILL keeps dockerd from starting once its number is used again.
        (at / "docker.pid").unlink(missing_ok=True)
        self._spawn(
            "dockerd",
            f"--config-file={at}/daemon.json",
            f"--host={self.host}",
            f"--data-root={at}/data",
            f"--exec-root={at}/exec",
            f"--pidfile={at}/docker.pid",
            f"--containerd={at}/containerd.sock",
            f"--bridge={own}",
            f"--cgroup-parent=/{own}",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            "--iptables=false",
            "--ip-masq=false",
            "--ip-forward=false",
            f"--live-restore={str(self.live_restore).lower()}",
            *self.arguments,
        )

    def _end_shims(self) -> None:
        """Kill what survives a SIGKILL of dockerd, and remove sockets outside our directory."""
        # containerd forgets the addresses as soon as it notices a dead shim.
        files = self.directory.glob("containerd/*/*/*/address")
        sockets = [private.read(file).strip().removeprefix("unix://") for file in files]
        for pid in processes.find("containerd-shim", self.directory):
            processes.kill(pid)
        for socket in filter(_SHIM_SOCKET.fullmatch, sockets):
            Path(socket).unlink(missing_ok=True)

    def _spawn(self, program: str, *arguments: str) -> None:
        pid = processes.spawn(program, *arguments, log=self.directory / f"{program}.log")
        self._children.add(pid)
        private.write(self.directory / f"{program}.pid", str(pid))

    def _wait(self, timeout: float) -> None:
        def settled() -> bool:
            return answers(self.host, timeout=2) or self.pid is None

        if not processes.wait_for(settled, timeout) or self.pid is None:
            raise RuntimeError(f"the private engine does not start; its log ends:\n{self.logs()}")

    def _pid(self, program: str) -> int | None:
        """Find the process, even if another process of ours started it."""
        self._reap()
        text = private.read(self.directory / f"{program}.pid")
        if not _PID.fullmatch(text):
            return None
        pid = int(text)
        # A child's command line is empty briefly after its exec; another process may reuse a pid.
        ours = pid in self._children or f"{self.directory}/" in processes.command_line(pid)
        return pid if ours and processes.alive(pid) else None

    def _reap(self) -> None:
        self._children = {pid for pid in self._children if not processes.reap(pid)}

    def _claim_bridge(self) -> str:
        own = bridge.claim()
        private.write(self.directory / "bridge", own)
        return own

    def _read_bridge(self) -> str | None:
        own = private.read(self.directory / "bridge")
        return own if bridge.is_name(own) else None

    def _networks(self) -> list[str]:
        """List the bridges of our networks: their names hold ids that are in our store."""
        try:
            store = (self.directory / "data/network/files/local-kv.db").read_bytes()
        except OSError:
            return []
        ids = {name: name.removeprefix("br-") for name in bridge.names() if name.startswith("br-")}
        return [name for name, own in ids.items() if len(own) == _ID and own.encode() in store]


def _unmount_below(directory: Path) -> None:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    libc = ctypes.CDLL(None)
    for point in reversed(points):
        if point.startswith(f"{directory}/"):
            libc.umount2(point.encode(), _MNT_DETACH)


def ensure(directory: Path) -> str:
    """Return the DOCKER_HOST of an engine that answers; start a private one if there is none."""
    if host := debian.running_engine():
        return host
    debian.provide("engine")
    # Under systemd the package starts a service, whose socket exists before it answers.
    if _DEFAULT_SOCKET.exists() and processes.wait_for(lambda: answers(DEFAULT_HOST), 5):
        return DEFAULT_HOST
    engine = PrivateEngine(directory)
    try:
        engine.start()
    except BaseException:
        engine.destroy()
        raise
    debian.say(f"no Docker engine answered: a private one runs at {engine.host}")
    return engine.host


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="scripts.engine", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("ensure", "stop"):
        commands.add_parser(name).add_argument("directory", type=Path)
    commands.add_parser("ensure-image").add_argument("name")
    asked = parser.parse_args(arguments)
    try:
        _run(asked)
    except (RuntimeError, ValueError, OSError, subprocess.CalledProcessError) as error:
        debian.say(f"error: {error}")
        return 1
    return 0


def _run(asked: argparse.Namespace) -> None:
    if asked.command == "ensure":
        sys.stdout.write(f"{ensure(asked.directory)}\n")
    elif asked.command == "stop":
        PrivateEngine(asked.directory).destroy()
    else:
        ensure_image(os.environ.get("DOCKER_HOST", DEFAULT_HOST), asked.name)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
