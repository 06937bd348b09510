"""A Docker host in memory: its objects, the engine's rules, and changes by other users."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from reconciler.core import naming
from reconciler.core.container_config import ContainerConfig
from reconciler.core.errors import (
    Busy,
    EngineUnavailable,
    ImageNotFound,
    NameTaken,
    NotFound,
    PortTaken,
    Refused,
    Unstartable,
)
from reconciler.core.observed import Check, CheckState, Container, Phase, ResourceLimits, Volume
from reconciler.engine.protocol import EventKind
from tests.fakes.shell import run

IMAGE = "reconciler-test:latest"
_KILLED = 137
_LOG_LINES = 1000


@dataclass
class Box:
    """One container: its inspection, and what only the engine knows.

    ``joined`` is the id of the network or container that its network refers to.
    """

    seen: Container
    labels: Mapping[str, str]
    config: ContainerConfig | None = None
    joined: str = ""
    log: deque[str] = field(default_factory=lambda: deque(maxlen=_LOG_LINES))


@dataclass
class FakeVolume:
    labels: Mapping[str, str]
    created_at: float
    owner: str | None = None


def labels(instance: str, sandbox: str, **more: str) -> dict[str, str]:
    """Return the labels of an object that was created by hand for a sandbox."""
    extra = {f"{naming.LABEL}{key.replace('_', '-')}": value for key, value in more.items()}
    return {naming.LABEL_INSTANCE: instance, naming.LABEL_SANDBOX: sandbox, **extra}


Subscriber = Callable[[EventKind, str, str, Mapping[str, str], str], None]


class FakeHost:
    """A host that the engines of several instances share, so that there are foreign objects.

    ``images`` are present, ``registry`` can be pulled; those in ``checked`` have a HEALTHCHECK.
    ``missing`` are folders that the host lacks. Times come from ``clock``, and no two are equal.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.boxes: dict[str, Box] = {}
        self.volumes: dict[str, FakeVolume] = {}
        self.markers: dict[str, FakeVolume] = {}
        self.images = {IMAGE}
        self.checked: set[str] = set()
        self.image_labels: dict[str, Mapping[str, str]] = {}
        self.image_size = 100 << 20
        self.registry: set[str] = set()
        self.missing = {"/nonexistent"}
        self.networks = {name: name for name in ("bridge", "host", "none")}
        self.runtimes = {None, "runc"}
        self.taken_ports: set[int] = set()
        self.down = False
        self.subscribers: dict[Subscriber, Callable[[], None]] = {}
        self._clock = clock
        self._ids = (f"{number:064x}" for number in itertools.count(1))
        self._last = 0.0

    # --- changes by others

    def kill(self, name: str, exit_code: int = _KILLED, *, oom: bool = False) -> None:
        box = self.box(name)
        if box.seen.live:
            self.end(box, exit_code, oom=oom)

    def docker_pause(self, name: str) -> None:
        self.pause(self.box(name))

    def docker_unpause(self, name: str) -> None:
        self.unpause(self.box(name))

    def docker_stop(self, name: str) -> None:
        self.kill(name, 0)

    def docker_update(self, name: str, **limits: Any) -> None:
        box = self.box(name)
        self.update(box, replace(box.seen.limits, **limits))

    def disconnect(self, name: str) -> None:
        """``docker network disconnect``, which emits no event of the container."""
        box = self.box(name)
        box.seen = replace(box.seen, limits=replace(box.seen.limits, network=""))

    def update(self, box: Box, limits: ResourceLimits) -> None:
        box.seen = replace(box.seen, limits=limits)
        self.emit(box, "update")

    def docker_restart(self, name: str) -> None:
        self.docker_stop(name)
        self.docker_start(name)

    def engine_restarts(self, name: str, times: int) -> None:
        """Restart the container by a restart policy that somebody has set."""
        box = self.box(name)
        for _ in range(times):
            self.kill(name)
            self.start(box)
        count = box.seen.engine_restarts + times
        box.seen = replace(box.seen, engine_restarts=count)

    def docker_start(self, name: str) -> None:
        self.start(self.box(name))

    def rename(self, name: str, new: str) -> None:
        self.rename_box(self.box(name), new)

    def remove(self, name: str) -> None:
        self.drop(self.box(name))

    def remove_volume(self, name: str) -> None:
        self.drop_volume(name)

    def take_port(self, port: int) -> None:
        self.taken_ports.add(port)

    def free_port(self, port: int) -> None:
        self.taken_ports.discard(port)

    def add_network(self, name: str) -> None:
        self.networks[name] = next(self._ids)

    def remove_network(self, name: str) -> None:
        del self.networks[name]

    def add_container(
        self,
        name: str,
        labels: Mapping[str, str] | None = None,
        *,
        phase: Phase = Phase.RUNNING,
        ports: Mapping[int, int] | None = None,
        image: str = IMAGE,
    ) -> str:
        """Create a container without an engine of ours, and return its id."""
        box = self._make(name, labels or {}, ports or {})
        box.seen = replace(box.seen, image=image, image_id=id_of(image))
        if phase is not Phase.CREATED:
            self.start(box)
        box.seen = replace(box.seen, phase=phase)
        return box.seen.id

    def commit(self, name: str, image: str) -> None:
        """Create an image of a container, as a person does; it inherits the labels."""
        box = self.box(name)
        self.images.add(tagged(image))
        self.image_labels[id_of(image)] = dict(box.labels)

    def run_image(self, name: str, image: str, **labels: str) -> str:
        """Run a container from an image, as a person does, and return its id.

        It inherits the image's labels; ``labels`` with full names are added.
        """
        inherited = self.image_labels.get(id_of(image), {})
        return self.add_container(name, {**inherited, **labels}, image=image)

    def add_volume(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        self.make_volume(name, labels or {})

    def set_phase(self, name: str, phase: Phase) -> None:
        box = self.box(name)
        box.seen = replace(box.seen, phase=phase)

    def stop_engine(self) -> None:
        """Stop the engine: its containers and event streams end."""
        for box in self.boxes.values():
            if box.seen.live:
                self.end(box, 0)
        self.down = True
        self.end_streams()

    def crash_engine(self) -> None:
        """Crash the engine: containers end without an event, and their exit codes are lost."""
        for box in self.boxes.values():
            if box.seen.live:
                box.seen = replace(
                    box.seen, phase=Phase.EXITED, finished_at=self.now(), exit_code=255
                )
        self.down = True
        self.end_streams()

    def start_engine(self) -> None:
        self.down = False

    def restart_engine(self) -> None:
        self.stop_engine()
        self.start_engine()

    def end_streams(self) -> None:
        for end in self.subscribers.values():
            end()

    # --- the engine's rules

    def check_up(self) -> None:
        if self.down:
            raise EngineUnavailable("the fake engine is down")

    def now(self) -> float:
        self._last = max(self._clock(), self._last + 1e-6)
        return self._last

    def box(self, key: str) -> Box:
        box = self.boxes.get(key) or self._by_name(key)
        if box is None:
            raise NotFound(f"no such container: {key}")
        return box

    def find(self, key: str) -> Box | None:
        return self.boxes.get(key) or self._by_name(key)

    def create(self, config: ContainerConfig) -> str:
        self._check_spec(config)
        box = self._make(config.name, config.labels, config.ports)
        volume = config.volume
        if volume and volume not in self.volumes:
            self.make_volume(volume, config.labels)
        box.config = config
        box.seen = replace(
            box.seen,
            volumes=frozenset({volume} if volume else ()),
            image=config.spec.image,
            image_id=id_of(config.spec.image),
            stop_timeout=config.spec.stop_timeout,
            session_key=config.env.get(naming.SESSION_KEY_VARIABLE),
            limits=_limits_of(config),
        )
        if other := self._shares_network_of(box):
            box.joined = other.seen.id
        return box.seen.id

    def start(self, box: Box) -> None:
        if box.seen.phase is Phase.PAUSED:
            raise Busy("cannot start a paused container")
        if box.seen.live:
            return
        self._check_start(box)
        box.joined = self._network_of(box)
        box.seen = replace(
            box.seen, phase=Phase.RUNNING, started_at=self.now(), exit_code=0, oom_killed=False
        )
        checked = box.seen.image in self.checked and box.config is not None
        if checked and box.config.spec.healthcheck == "image":
            box.seen = replace(box.seen, check=Check(CheckState.STARTING))
        self.emit(box, "start")
        command = box.config.spec.command if box.config else None
        lines, code = run(command or ())
        box.log.extend(lines)
        if code is not None:
            self.end(box, code)

    def end(self, box: Box, code: int, *, oom: bool = False) -> None:
        box.seen = replace(
            box.seen, phase=Phase.EXITED, finished_at=self.now(), exit_code=code, oom_killed=oom
        )
        self._end_check(box)
        self.emit(box, "die")

    def check(self, name: str, state: CheckState) -> None:
        """Add a result of the HEALTHCHECK that leads to this state."""
        box = self.box(name)
        former = box.seen.check
        assert former is not None
        box.seen = replace(box.seen, check=Check(state, f"result {self.now()}"))
        if state is not former.state:
            self.emit(box, "health_status")

    def _end_check(self, box: Box) -> None:
        # By Docker's rule, a stopped container is unhealthy; there is no event.
        if box.seen.check:
            check = replace(box.seen.check, state=CheckState.UNHEALTHY)
            box.seen = replace(box.seen, check=check)

    def pause(self, box: Box) -> None:
        if box.seen.phase is Phase.PAUSED:
            return
        if box.seen.phase is not Phase.RUNNING:
            raise Busy(f"container {box.seen.id} is not running")
        box.seen = replace(box.seen, phase=Phase.PAUSED)
        self._end_check(box)
        self.emit(box, "pause")

    def unpause(self, box: Box) -> None:
        if box.seen.phase is Phase.PAUSED:
            box.seen = replace(box.seen, phase=Phase.RUNNING)
            self.emit(box, "unpause")

    def rename_box(self, box: Box, new: str) -> None:
        if box.seen.name == new:
            return
        self._check_name(new)
        box.seen = replace(box.seen, name=new)
        self.emit(box, "rename")

    def drop(self, box: Box) -> None:
        if box.seen.live:
            self.end(box, _KILLED)
        del self.boxes[box.seen.id]
        self.emit(box, "destroy")

    def make_volume(self, name: str, labels: Mapping[str, str]) -> FakeVolume:
        kept = self._volumes_like(name)
        if name not in kept:
            kept[name] = FakeVolume(dict(labels), self.now())
            self._publish(EventKind.VOLUME, name, "create", {}, name)
        return kept[name]

    def _volumes_like(self, name: str) -> dict[str, FakeVolume]:
        # Most tests ignore the marker volumes of daemons.
        return self.markers if name.startswith(naming.MARKER_PREFIX) else self.volumes

    def drop_volume(self, name: str) -> None:
        users = [box.seen.name for box in self.boxes.values() if name in box.seen.volumes]
        if users:
            raise Busy(f"volume {name} is in use by {users[0]}")
        if self._volumes_like(name).pop(name, None) is not None:
            self._publish(EventKind.VOLUME, name, "destroy", {}, name)

    def volume(self, name: str) -> Volume | None:
        made = self._volumes_like(name).get(name)
        if made is None:
            return None
        marks = made.labels
        return Volume(
            name,
            marks.get(naming.LABEL_SANDBOX) or naming.garbage_key(name),
            marks.get(naming.LABEL_RETAIN, ""),
            instance=marks.get(naming.LABEL_INSTANCE, ""),
            owner=marks.get(naming.LABEL_OWNER, ""),
            nonce=marks.get(naming.LABEL_NONCE, ""),
            base=marks.get(naming.LABEL_CONTAINER, ""),
        )

    def volumes_of(self, instance: str) -> Iterator[Volume]:
        for name in (*self.volumes, *self.markers):
            volume = self.volume(name)
            if volume is not None and volume.instance == instance:
                yield volume

    def image_ids(self) -> set[str]:
        return {id_of(image) for image in self.images}

    def drop_image(self, image_id: str) -> None:
        """Remove an image; Busy if it has two names or a container uses it."""
        names = [image for image in self.images if id_of(image) == image_id]
        if len(names) > 1:
            raise Busy(f"image {image_id} is named {len(names)} times: it must be forced")
        for box in self.boxes.values():
            if box.seen.image_id == image_id:
                raise Busy(f"image {image_id} is being used by container {box.seen.id}")
        self.images -= set(names)

    def emit(self, box: Box, what: str) -> None:
        self._publish(EventKind.CONTAINER, box.seen.id, what, box.labels, box.seen.name)

    def _publish(
        self, kind: EventKind, key: str, what: str, labels: Mapping[str, str], name: str
    ) -> None:
        for subscriber in list(self.subscribers):
            subscriber(kind, key, what, labels, name)

    def _make(self, name: str, labels: Mapping[str, str], ports: Mapping[int, int]) -> Box:
        self._check_name(name)
        seen = Container(
            id=next(self._ids),
            name=name,
            sandbox=labels.get(naming.LABEL_SANDBOX) or naming.garbage_key(name),
            spec=labels.get(naming.LABEL_SPEC, ""),
            spec_hash=labels.get(naming.LABEL_SPEC_HASH, ""),
            phase=Phase.CREATED,
            created_at=self.now(),
            ports=dict(ports),
            owner=labels.get(naming.LABEL_OWNER, ""),
            nonce=labels.get(naming.LABEL_NONCE, ""),
            base=labels.get(naming.LABEL_CONTAINER, ""),
        )
        box = self.boxes[seen.id] = Box(seen, dict(labels))
        self.emit(box, "create")
        return box

    def _by_name(self, name: str) -> Box | None:
        return next((box for box in self.boxes.values() if box.seen.name == name), None)

    def _check_name(self, name: str) -> None:
        holder = self._by_name(name)
        if holder is not None:
            raise NameTaken(
                f"container {holder.seen.id[:12]} has the name {name}: remove or rename it"
            )

    def _check_spec(self, config: ContainerConfig) -> None:
        spec = config.spec
        if tagged(spec.image) not in self.images:
            raise ImageNotFound(f"no such image: {spec.image}")
        for mount in spec.mounts:
            if any(mount.host_path.startswith(path) for path in self.missing):
                raise Refused(f"bind source path does not exist: {mount.host_path}")
        if spec.security.runtime not in self.runtimes:
            raise Refused(f"unknown runtime: {spec.security.runtime}")

    def _check_start(self, box: Box) -> None:
        held = self.taken_ports.union(
            *(other.seen.ports.values() for other in self.boxes.values() if other.seen.live)
        )
        for port in box.seen.ports.values():
            if port in held:
                raise PortTaken(f"port {port} is already allocated", port)
        self._network_of(box)
        spec = box.config.spec if box.config else None
        if spec and any(device in self.missing for device in spec.resources.devices):
            raise Refused("error gathering device information: no such file or directory")
        if spec and spec.command and spec.command[0].startswith("no-such"):
            raise Refused(f"exec: {spec.command[0]!r}: executable file not found")

    def _shares_network_of(self, box: Box) -> Box | None:
        mode = box.config.spec.network.mode if box.config else ""
        kind, _, name = mode.partition(":")
        return self.find(box.joined or name) if kind == "container" else None

    def _network_of(self, box: Box) -> str:
        """Return the id that a start joins: the one joined before, else the one with the name."""
        mode = box.config.spec.network.mode if box.config else "bridge"
        if mode.startswith("container:"):
            other = self._shares_network_of(box)
            if other is None:
                gone = Unstartable if box.joined else Refused
                raise gone(f"no such container: {box.joined or mode}")
            if not other.seen.live:
                raise Refused(f"cannot join network of a non running container: {other.seen.id}")
            return other.seen.id
        if box.joined and box.joined not in self.networks.values():
            raise Unstartable(f"network {box.joined} not found")
        if mode not in self.networks:
            raise Refused(f"network {mode} not found")
        return self.networks[mode]


def _limits_of(config: ContainerConfig) -> ResourceLimits:
    """Fill in the limits as the engine does: memory plus swap is twice the memory."""
    resources = config.spec.resources
    memory = resources.memory or 0
    cpus, pids = round((resources.cpus or 0) * 1e9), resources.pids or 0
    mode = config.spec.network.mode
    network = "" if ":" in mode or mode in {"none", "host"} else mode
    return ResourceLimits(
        nano_cpus=cpus, memory=memory, memory_swap=2 * memory, pids=pids, network=network
    )


def id_of(image: str) -> str:
    """Return the image id of a name; ``one:1`` and ``one:1=mine`` name the same image."""
    return image if image.startswith("sha256:") else f"sha256:{tagged(image).partition('=')[0]}"


def tagged(image: str) -> str:
    """Return the full name of an image, with the default tag."""
    last = image.rpartition("/")[2]
    return image if ":" in last or "@" in last else f"{image}:latest"
