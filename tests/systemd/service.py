"""The service on its machine, installed by the steps of its README, and its engine."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from scripts.engine import PrivateEngine
from tests.e2e.world import World
from tests.harness.docker import Docker
from tests.harness.instance import Instance
from tests.harness.waiting import wait_until
from tests.systemd.machine import PATIENCE, ROOT, Machine

T = TypeVar("T")
UNIT = "reconciler.service"
DESIRED = "/etc/reconciler/desired.yaml"
WAITING = "waiting for the engine"
# As the shipped file declares them: every kind of probe, and every state.
STATUSES = {
    "alice": "RUNNING",
    "bob": "PAUSED",
    "carol": "STOPPED",
    "dave": "RUNNING",
    "parrot": "RUNNING",
    "pool-1": "RUNNING",
    "pool-2": "RUNNING",
}

_DROP_INS = f"/run/systemd/system/{UNIT}.d"
# There is no package index: what pip would get from one is in the folder of wheels.
_OFFLINE = "export PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels; cd /project"


class Service:
    """Stands where tests/e2e has a daemon's process; `reset` brings back what was installed."""

    process = None

    def __init__(self, machine: Machine, engine: PrivateEngine, ports: range) -> None:
        self.machine = machine
        self.engine = engine
        self.instance = Instance("default", "oh-agent-server-", ports, Docker(engine.host))
        self.desired = (ROOT / "config" / "desired.yaml").read_text()

    def follow_readme(self, heading: str, number: int = 0, *, user: str = "root") -> str:
        """Run a block of commands of systemd/README.md, each of which must end well."""
        script = f"{_OFFLINE}\n{_blocks(heading)[number]}"
        return self.machine.sh('runuser -u "$1" -- bash -ec "$2"', user, script)

    def reset(self) -> None:
        """Restore the installed state after a test, and wait for it."""
        self.engine.live_restore = False
        self.engine.start()
        self.machine.boot()
        self.write(self.desired)
        if self.machine.run(f"rm -r {_DROP_INS} && systemctl daemon-reload")[0] == 0:
            self.machine.sh(f"systemctl restart {UNIT}")
        self.machine.sh(f"systemctl start {UNIT}")
        World(self).wait_status(**STATUSES)
        World(self).converge(*STATUSES)

    def reconfigure(self, **lines: str) -> None:
        """Override lines of the unit, and restart it."""
        text = "".join(f"{name}={value}\n" for name, value in lines.items())
        self.machine.write(f"{_DROP_INS}/test.conf", f"[Service]\n{text}")
        self.machine.sh(f"systemctl daemon-reload; systemctl restart {UNIT}")

    # What systemd says of it

    def show(self, name: str) -> str:
        """Return a property as `systemctl show` has it."""
        return self.machine.sh(f"systemctl show -P {name} {UNIT}")

    @property
    def pid(self) -> str:
        """The main process's number on its machine; 0 where there is none."""
        return self.show("MainPID")

    def wait_text(self, words: str) -> str:
        """Wait until the status line has these words; return the line."""

        def logged() -> str:
            text = self.show("StatusText")
            return text if words in text else ""

        return self.wait_until(logged, PATIENCE)

    def wait_restarts(self, number: int) -> None:
        """Wait until systemd has started it again, and it is ready."""
        self.wait_until(lambda: int(self.show("NRestarts")) >= number, PATIENCE)
        self.wait_until(lambda: self.show("ActiveState") == "active", PATIENCE)

    def events(self, cursor: str) -> list[str]:
        """Return the names of the events that it has logged since."""
        entries = self.machine.journal("-u", UNIT, since=cursor)
        return [entry["EVENT"] for entry in entries if "EVENT" in entry]

    # What a world asks of a daemon

    @property
    def runtime_dir(self) -> Path:
        return self.machine.root / "run" / "reconciler"

    def write(self, text: str) -> None:
        """Save the desired file."""
        self.machine.write(DESIRED, text)

    def wait_until(self, predicate: Callable[[], T], timeout: float = PATIENCE) -> T:
        return wait_until(predicate, timeout, self.tail)

    def tail(self) -> str:
        """Return the output that a person would read first."""
        return self.machine.run(f"systemctl status --no-pager --full --lines=40 {UNIT}")[1]


def _blocks(heading: str) -> list[str]:
    text = (ROOT / "systemd" / "README.md").read_text()
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
