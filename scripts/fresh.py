"""Run `make demo` and `make test` on bare Debians, in a new root of each release.

python3 -m scripts.fresh [SUITE...]    for example: python3 -m scripts.fresh trixie sid

Each root has Python, git, make and a clone of the committed HEAD, and its own view of mounts,
processes and control groups; it shares this machine's network. Prints a table; what each command
printed is kept below build/fresh/. Exits with 1 if anything failed.
"""

# ruff: noqa: S603, S607 - the programs are Debian's own, found by PATH

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scripts import debian, processes, rootfs
from scripts.engine import PrivateEngine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SUITES = ("bookworm", "trixie", "sid")
_ROOT = Path(__file__).parent.parent
_STORE = _ROOT / "build" / "fresh"
_PACKAGES = ("python3", "git", "make")
_PROJECT = "project"
_CGROUPS = Path("/sys/fs/cgroup")
# Not the file of the package ca-certificates, which an install replaces.
_CERTIFICATES = "/etc/ssl/pip.pem"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Seconds; on a quiet machine a whole run takes some 20 minutes.
_LONGEST = {"demo": 1200, "demo-clean": 300, "test": 4 * 3600}
_MNT_DETACH = 2
_COUNTS = re.compile(r"(\d+) (passed|failed|skipped|errors?)\b")


class Row(NamedTuple):
    """The result of one suite; `problem` names the first command that failed."""

    suite: str
    python: str = "-"
    engine: str = "-"
    demo: str = "-"
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    problem: str = ""


class Bare:
    """A started root; commands run in it by `run`."""

    def __init__(self, root: Path, init: int, groups: Sequence[Path], log: Path) -> None:
        self.root, self.init, self.groups, self.log = root, init, groups, log

    def run(self, *command: str, timeout: float = 60) -> tuple[int, str]:
        """Run a command in the project's folder; return its exit code and output."""
        enter = _joining(self.groups)
        enter += ["nsenter", f"--target={self.init}", "--mount", "--pid", "--cgroup", "--root"]
        inner = ["env", "-i", "-C", f"/{_PROJECT}", *_environment(), *command]
        with self.log.open("ab+") as log:
            begin = log.seek(0, os.SEEK_END)
            log.write(f"$ {' '.join(command)}\n".encode())
            log.flush()
            with suppress(subprocess.TimeoutExpired):
                code = subprocess.run(
                    [*enter, *inner],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    timeout=timeout,
                    check=False,
                ).returncode
                log.seek(begin)
                return code, log.read().decode(errors="replace")
            log.write(f"no end within {timeout} s\n".encode())
            log.seek(begin)
            return 1, log.read().decode(errors="replace")


def main(suites: Sequence[str]) -> int:
    """Run each suite in turn, and print the results."""
    debian.provide("fresh")
    unknown = sorted(set(suites) - set(SUITES))
    if unknown:
        raise RuntimeError(f"unknown suite {', '.join(unknown)}: choose from {', '.join(SUITES)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rows = [_try(suite) for suite in suites or SUITES]
    _print(rows)
    return 1 if any(row.problem for row in rows) else 0


def _try(suite: str) -> Row:
    log = _STORE / f"{suite}.log"
    _STORE.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    try:
        with _bare(suite, log) as bare:
            row = _prove(suite, bare)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        row = Row(suite, problem=str(error))
    if row.problem:
        debian.say(f"{suite}: {row.problem}; its output is {log}")
    return row


def _prove(suite: str, bare: Bare) -> Row:
    """Run the commands, up to the first that fails."""
    python = bare.run("python3", "--version")[1].split()[-1]
    row = Row(suite, python)
    debian.say(f"{suite}: make demo on Python {python}")
    begin = time.monotonic()
    if bare.run("env", "DEMO_ONCE=1", "make", "demo", timeout=_LONGEST["demo"])[0]:
        return row._replace(problem="make demo failed")
    row = row._replace(demo=f"{time.monotonic() - begin:.0f}", engine=_version(bare))
    if bare.run("make", "demo-clean", timeout=_LONGEST["demo-clean"])[0] or _daemons(bare):
        return row._replace(problem="make demo-clean failed, or left an engine running")
    debian.say(f"{suite}: make test with {row.engine}")
    code, output = bare.run("make", "test", timeout=_LONGEST["test"])
    counts = {"passed": 0, "failed": 0, "skipped": 0, "error": 0}
    for line in output.splitlines():
        if re.search(r" in [\d.]+s( \(|\b)", line):
            for number, kind in _COUNTS.findall(line):
                counts[kind.removesuffix("s")] += int(number)
    bad = counts["failed"] + counts["error"]
    row = row._replace(passed=counts["passed"], failed=bad, skipped=counts["skipped"])
    if code or bad or not row.passed:
        return row._replace(problem="make test failed")
    return row._replace(problem="tests were skipped" if row.skipped else "")


def _version(bare: Bare) -> str:
    words = bare.run("dockerd", "--version")[1].splitlines()[-1].split()
    return f"Docker {words[2].strip(',')}" if len(words) > 2 else "-"  # noqa: PLR2004


def _daemons(bare: Bare) -> list[int]:
    """List the pids, on this machine, of the engines that run in the root."""
    running = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [
        pid
        for pid in running
        if processes.command_line(pid).split(" ")[0].endswith(("dockerd", "containerd"))
        and _root_of(pid) == bare.root
    ]


def _root_of(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/root").readlink()
    except OSError:
        return None


def _print(rows: Sequence[Row]) -> None:
    heads = ("SUITE", "PYTHON", "ENGINE", "DEMO_S", "PASSED", "FAILED", "SKIPPED", "RESULT")
    lines = [heads] + [(*map(str, row[:-1]), row.problem or "ok") for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())  # noqa: T201


@contextmanager
def _bare(suite: str, log: Path) -> Iterator[Bare]:
    """Create a root, start its first process, and remove everything afterwards."""
    with ExitStack() as stack:
        # Not in /tmp, which may be small or an overlay: the engine's data is below it.
        root = Path(tempfile.mkdtemp(prefix=f"{suite}-", dir=_STORE))
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        _unpack(suite, root)
        stack.callback(_destroy_engines, root)
        groups = _make_cgroups(root.name)
        stack.callback(processes.remove_cgroup, root.name)
        stack.callback(processes.empty_cgroup, root.name)
        init = stack.enter_context(_init(root, groups, log))
        yield Bare(root, init, groups, log)


def _unpack(suite: str, root: Path) -> None:
    root.chmod(0o755)
    rootfs.bootstrap(suite, root, _PACKAGES)
    # Packages must not start their services, which would change this machine's network.
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    given = {"/etc/resolv.conf": "/etc/resolv.conf", "/etc/hosts": "/etc/hosts"}
    if certificates := _pip_settings().get("cert"):
        given[certificates] = _CERTIFICATES
    for source, target in given.items():
        copy = root / target.removeprefix("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.unlink(missing_ok=True)
        copy.write_bytes(Path(source).read_bytes())
    head = _output("git", "-C", str(_ROOT), "rev-parse", "HEAD").strip()
    _output("git", "clone", "--quiet", "--no-hardlinks", str(_ROOT), str(root / _PROJECT))
    _output("git", "-C", str(root / _PROJECT), "checkout", "--quiet", "--detach", head)


def _output(*command: str) -> str:
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def _environment() -> list[str]:
    """Return the environment of the commands, with this machine's package index."""
    own = {"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", "CI": "true"}
    proxies = {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")}
    return [f"{name}={value}" for name, value in {**proxies, **own, **_pip_index()}.items()]


def _pip_index() -> Mapping[str, str]:
    """Return pip's package sources, except local folders, which a root cannot reach."""
    settings = _pip_settings()
    index = {}
    for name in ("index-url", "extra-index-url", "trusted-host", "proxy", "default-timeout"):
        words = [word for word in settings.get(name, "").split() if not word.startswith("file:")]
        if words:
            index[f"PIP_{name.upper().replace('-', '_')}"] = " ".join(words)
    return {**index, "PIP_CERT": _CERTIFICATES} if "cert" in settings else index


def _pip_settings() -> Mapping[str, str]:
    """Read this machine's configuration of pip: files first, the environment last, which wins."""
    listed = _output(sys.executable, "-m", "pip", "config", "list").splitlines()
    lines = sorted(listed, key=lambda line: line.startswith(":env:"))
    pairs = (line.partition("=")[::2] for line in lines)
    return {key.rpartition(".")[2]: value.strip("'\"") for key, value in pairs}


@contextmanager
def _init(root: Path, groups: Sequence[Path], log: Path) -> Iterator[int]:
    """Start the root's first process, whose exit ends all others; yield its pid here."""
    hold = [sys.executable, "-m", "scripts.fresh", "--hold", str(root)]
    unshare = ["unshare", "--mount", "--pid", "--cgroup", "--ipc", "--fork", "--kill-child"]
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [*_joining(groups), *unshare, *hold],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the first process of the root does not start")
        yield int(json.loads(line)["pid"])
    finally:
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()
        process.stdout.close()


def _joining(groups: Sequence[Path]) -> list[str]:
    """Return the begin of a command that joins the root's control groups, then runs the rest."""
    inner = [group / "init" if (group / "init").exists() else group for group in groups]
    script = "".join(f"echo 0 > {group}/cgroup.procs && " for group in inner)
    return ["sh", "-c", f'{script}exec "$@"', "sh"]


def _make_cgroups(name: str) -> list[Path]:
    """Create a control group for the root in each hierarchy, version 1 or 2."""
    hierarchies = [point for point, kind in _cgroup_mounts() if kind != "tmpfs"]
    groups = []
    for hierarchy in hierarchies:
        group = hierarchy / name
        group.mkdir(exist_ok=True)
        # In version 1, no process can join before these have values.
        for file in ("cpuset.cpus", "cpuset.mems"):
            with suppress(OSError):
                if (hierarchy / file).exists() and (group / file).exists():
                    (group / file).write_text((hierarchy / file).read_text())
        groups.append(group)
    return groups


def _cgroup_mounts() -> list[tuple[Path, str]]:
    """List the mounts at and below /sys/fs/cgroup, with their types, outermost first."""
    rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    mounts = {Path(row[4]): row[row.index("-") + 1] for row in rows}
    return [(at, kind) for at, kind in mounts.items() if at.is_relative_to(_CGROUPS)]


def _destroy_engines(root: Path) -> None:
    """Remove the bridges that killed engines left in the network that we share."""
    for pattern in ("tmp/*/*/bridge", "tmp/*/bridge"):
        for file in root.glob(pattern):
            PrivateEngine(file.parent).destroy()


def hold(root: Path) -> None:
    """Run as the first process of the root: mount, change root, and reap until EOF."""
    # The pid on this machine; read it before the new /proc is mounted.
    pid = int(os.readlink("/proc/self"))  # noqa: PTH115
    _mount_all(root)
    _pivot(root)
    sys.stdout.write(f"{json.dumps({'pid': pid})}\n")
    sys.stdout.flush()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sys.stdin.read()


def _pivot(root: Path) -> None:
    """Make the folder the root of the mount namespace.

    A command in a container joins the mount namespace. After a mere chroot, runc would run it in
    this machine's root.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    os.chdir(root)
    if libc.pivot_root(b".", b".") or libc.umount2(b".", _MNT_DETACH):
        raise OSError(ctypes.get_errno(), "cannot enter the root", str(root))
    os.chdir("/")


def _mount_all(root: Path) -> None:
    mounts = _cgroup_mounts()
    options = _cgroup_options()
    _mount("--make-rprivate", "/")
    _mount("--bind", str(root), str(root))
    _mount("-t", "proc", "proc", f"{root}/proc")
    _mount("-t", "sysfs", "sysfs", f"{root}/sys")
    _mount("--rbind", "/dev", f"{root}/dev")
    _mount("-t", "tmpfs", "tmpfs", f"{root}/dev/shm")  # noqa: S108 - a mount point
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", f"{root}/run")
    for at, kind in mounts:
        inner = root / at.relative_to("/")
        inner.mkdir(exist_ok=True)
        _mount("-t", kind, "-o", options[at], kind, str(inner))
    if (_CGROUPS, "cgroup2") in mounts:
        _delegate(root / _CGROUPS.relative_to("/"))


def _cgroup_options() -> dict[Path, str]:
    rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    options = {}
    for row in rows:
        kind, _, words = row[row.index("-") + 1 :][:3]
        # The names of controllers, which cgroup2 does not take.
        options[Path(row[4])] = "rw" if kind == "cgroup2" else words
    return options


def _delegate(group: Path) -> None:
    """Delegate version 2's controllers; a group that does so may not contain processes."""
    inner = group / "init"
    inner.mkdir()
    (inner / "cgroup.procs").write_text("0")
    for controller in (group / "cgroup.controllers").read_text().split():
        with suppress(OSError):
            (group / "cgroup.subtree_control").write_text(f"+{controller}")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--hold"]:
        hold(Path(sys.argv[2]))
        sys.exit(0)
    try:
        status = main(sys.argv[1:])
    except (RuntimeError, OSError, subprocess.CalledProcessError) as failure:
        debian.say(f"error: {failure}")
        status = 1
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
