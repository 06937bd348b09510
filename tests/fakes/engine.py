"""An engine in memory: fast, at any scale, with faults and delays on request."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

from reconciler.core import naming
from reconciler.core.container_config import ContainerConfig
from reconciler.core.errors import (
    Busy,
    CommandTimeout,
    Forbidden,
    NotFound,
    PullFailed,
    Unreadable,
)
from reconciler.core.observed import Container, Phase, ResourceLimits, Volume
from reconciler.engine.protocol import (
    BrokenRow,
    EngineEvent,
    EngineInfo,
    EventKind,
    Image,
    Listing,
    PullProgress,
    Summary,
)
from reconciler.liveness import waiting
from tests.fakes.host import Box, FakeHost, id_of, tagged
from tests.fakes.shell import run

ROOT = "/fake"
_READS = frozenset(
    {
        *("ping", "info", "list", "inspect", "inspect_volume", "events", "has_image", "image_id"),
        *("create_marker", "remove_marker"),
        *("image_labels", "images", "log_tail", "run_in"),
    }
)
_POLL = 0.01


@dataclass(frozen=True)
class _Fault:
    error: Exception
    after: bool


class FakeEngine:
    """One instance's view of a host.

    ``calls`` holds each verb with its target, in the order of their starts. ``latency`` maps verbs
    to seconds of ``sleep`` before the work, ``answering`` to seconds after it. A verb has the name
    of the protocol's method, except for the marker volumes of daemons: ``create_marker`` and
    ``remove_marker``, which count as reads.
    """

    def __init__(
        self,
        host: FakeHost | None = None,
        *,
        instance: str = "default",
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.host = host or FakeHost()
        self.instance = instance
        self.calls: list[tuple[str, str]] = []
        self.latency: dict[str, float] = {}
        self.answering: dict[str, float] = {}
        self.closed = False
        # Names of containers with undecodable rows and inspections.
        self.unreadable: set[str] = set()
        # Verbs, and parts of the API, that are forbidden.
        self.warned: list[str] = []
        self.denied: dict[str, set[str]] = {}
        self.root, self.local = ROOT, True
        self.gateway = ""
        self._sleep = sleep
        self._faults: dict[str, deque[_Fault]] = defaultdict(deque)
        self._hung: dict[str, asyncio.Event] = {}
        self._hanging: set[tuple[object, ...]] = set()

    # --- faults on request

    def fail_next(
        self, verb: str, error: Exception, times: int = 1, *, after: bool = False
    ) -> None:
        """Let the next calls of a verb fail; with ``after``, after their work."""
        self._faults[verb].extend([_Fault(error, after)] * times)

    def hang(self, verb: str) -> None:
        """Block the calls of a verb, before their work, until ``release``."""
        self._hung.setdefault(verb, asyncio.Event())

    def release(self, verb: str) -> None:
        self._hung.pop(verb).set()

    def count(self, verb: str) -> int:
        return sum(called == verb for called, _ in self.calls)

    @property
    def changes(self) -> list[tuple[str, str]]:
        """The calls that change something, successful or not."""
        return [call for call in self.calls if call[0] not in _READS]

    @asynccontextmanager
    async def _doing(self, verb: str, target: str = "") -> AsyncIterator[None]:
        self.calls.append((verb, target))
        if hung := self._hung.get(verb):
            await hung.wait()
        latency = self.latency.get(verb, 0.0)
        with waiting(latency):
            await self._sleep(latency)
        self.host.check_up()
        for part, verbs in self.denied.items():
            if verb.replace("marker", "volume") in verbs:
                raise Forbidden(f"{verb} is forbidden: allow {part}=1", part)
        faults = self._faults[verb]
        fault = faults.popleft() if faults else None
        if fault and not fault.after:
            raise fault.error
        yield
        if seconds := self.answering.get(verb):
            await self._sleep(seconds)
        if fault:
            raise fault.error

    # --- the protocol

    async def connect(self) -> None:
        async with self._doing("connect"):
            pass

    async def close(self) -> None:
        self.closed = True

    def forbidden(self) -> Sequence[Forbidden]:
        return [Forbidden(f"{part} is forbidden", part) for part in sorted(self.denied)]

    def warnings(self) -> Sequence[str]:
        return self.warned

    async def ping(self) -> None:
        async with self._doing("ping"):
            pass

    async def info(self) -> EngineInfo:
        async with self._doing("info"):
            return EngineInfo(
                "Fake", "1.0", "1.41", self.root, local=self.local, gateway=self.gateway
            )

    async def list(self) -> Listing:
        async with self._doing("list"):
            ours = [box.seen for box in self.host.boxes.values() if self._ours(box)]
            rows = [_summary(seen) for seen in ours if seen.name not in self.unreadable]
            broken = [
                BrokenRow(seen.id, seen.sandbox, "the row is undecodable")
                for seen in ours
                if seen.name in self.unreadable
            ]
            sees = "VOLUMES" not in self.denied
            volumes = self.host.volumes_of(self.instance) if sees else ()
            return Listing(tuple(rows), tuple(volumes), tuple(broken), sees_volumes=sees)

    async def inspect(self, container_id: str) -> Container | None:
        async with self._doing("inspect", container_id):
            box = self.host.find(container_id)
            if box and box.seen.name in self.unreadable:
                raise Unreadable(f"container {container_id[:12]} cannot be decoded")
            return box.seen if box and self._ours(box) else None

    async def inspect_volume(self, name: str) -> Volume | None:
        async with self._doing("inspect_volume", _call("inspect", name)[1]):
            return self.host.volume(name)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        queue: asyncio.Queue[EngineEvent | None] = asyncio.Queue()

        def publish(
            kind: EventKind, key: str, what: str, labels: Mapping[str, str], name: str
        ) -> None:
            if (event := self._event(kind, key, what, labels, name)) is not None:
                queue.put_nowait(event)

        async with self._doing("events"):
            self.host.subscribers[publish] = lambda: queue.put_nowait(None)
        try:
            yield _until_none(queue)
        finally:
            self.host.subscribers.pop(publish, None)

    def _event(
        self, kind: EventKind, key: str, what: str, labels: Mapping[str, str], name: str
    ) -> EngineEvent | None:
        if kind is EventKind.VOLUME:
            ours = key.startswith((naming.volume_of(""), naming.marker_prefix(self.instance)))
            return EngineEvent(kind, key, what, "", self.host.now()) if ours else None
        if labels.get(naming.LABEL_INSTANCE) != self.instance:
            return None
        sandbox = labels.get(naming.LABEL_SANDBOX) or naming.garbage_key(name)
        return EngineEvent(kind, key, what, sandbox, self.host.now())

    async def create_volume(self, name: str, labels: Mapping[str, str]) -> Volume:
        async with self._doing(*_call("create", name)):
            self.host.make_volume(name, labels)
            made = self.host.volume(name)
            assert made is not None
            return made

    async def remove_volume(self, name: str) -> None:
        async with self._doing(*_call("remove", name)):
            self.host.drop_volume(name)

    async def create(self, config: ContainerConfig) -> str:
        async with self._doing("create", config.name):
            holder = self.host.find(config.name)
            nonce = config.labels[naming.LABEL_NONCE]
            if holder and self._ours(holder) and nonce and holder.seen.nonce == nonce:
                return holder.seen.id
            return self.host.create(config)

    async def prepare(self, container_id: str, config: ContainerConfig) -> None:
        async with self._doing("prepare", container_id):
            self.host.box(container_id)
            workspace = config.spec.workspace
            if config.volume and workspace:
                owner = workspace.owner or config.spec.user
                self.host.volumes[config.volume].owner = owner

    async def start(self, container_id: str) -> None:
        async with self._doing("start", container_id):
            self.host.start(self.host.box(container_id))

    async def stop(self, container_id: str, grace: float) -> None:  # noqa: ARG002
        async with self._doing("stop", container_id):
            box = self.host.find(container_id)
            if box and box.seen.live:
                self.host.end(box, 0)

    async def pause(self, container_id: str) -> None:
        async with self._doing("pause", container_id):
            self.host.pause(self.host.box(container_id))

    async def update(self, container_id: str, limits: ResourceLimits) -> ResourceLimits:
        async with self._doing("update", container_id):
            self.host.update(self.host.box(container_id), limits)
        return limits

    async def unpause(self, container_id: str) -> None:
        async with self._doing("unpause", container_id):
            self.host.unpause(self.host.box(container_id))

    async def rename(self, container_id: str, name: str) -> None:
        async with self._doing("rename", container_id):
            self.host.rename_box(self.host.box(container_id), name)

    async def remove(self, container_id: str) -> None:
        async with self._doing("remove", container_id):
            with suppress(NotFound):
                self.host.drop(self.host.box(container_id))

    async def has_image(self, image: str) -> bool:
        async with self._doing("has_image", image):
            return tagged(image) in self.host.images

    async def image_id(self, image: str) -> str | None:
        async with self._doing("image_id", image):
            id_ = id_of(image)
            return id_ if id_ in self.host.image_ids() else None

    async def image_labels(self, image_id: str) -> Mapping[str, str]:
        async with self._doing("image_labels", image_id):
            if image_id not in self.host.image_ids():
                raise NotFound(f"no such image: {image_id}")
            return self.host.image_labels.get(image_id, {})

    async def images(self) -> Sequence[Image]:
        async with self._doing("images"):
            names = sorted(self.host.images)
            size = self.host.image_size
            return [
                Image(id_, tuple(name for name in names if id_of(name) == id_), size)
                for id_ in sorted(self.host.image_ids())
            ]

    async def remove_image(self, image_id: str) -> None:
        async with self._doing("remove_image", image_id):
            self.host.drop_image(image_id)

    async def pull(self, image: str, progress: Callable[[PullProgress], None]) -> None:
        async with self._doing("pull", image):
            if tagged(image) not in self.host.registry:
                raise PullFailed(f"{image}: not found")
            progress(PullProgress(0, 1, 0, 100))
            self.host.images.add(tagged(image))
            progress(PullProgress(1, 1, 100, 100))

    async def log_tail(
        self,
        container_id: str,
        lines: int,
        *,
        since: float = 0.0,  # noqa: ARG002 - lines here have no time
    ) -> Sequence[str]:
        async with self._doing("log_tail", container_id):
            log = list(self.host.box(container_id).log)
            return tuple(log[-lines:]) if lines else ()

    @asynccontextmanager
    async def follow_logs(self, container_id: str, lines: int) -> AsyncIterator[AsyncIterator[str]]:
        async with self._doing("follow_logs", container_id):
            box = self.host.box(container_id)
        yield self._following(box, lines)

    async def _following(self, box: Box, lines: int) -> AsyncIterator[str]:
        seen = max(0, len(box.log) - lines)
        while True:
            for line in list(box.log)[seen:]:
                seen += 1
                yield line
            if not box.seen.live:
                return
            await asyncio.sleep(_POLL)

    async def run_in(self, container_id: str, command: Sequence[str], limit: float) -> int:
        async with self._doing("run_in", container_id):
            if self.host.box(container_id).seen.phase is not Phase.RUNNING:
                raise Busy(f"container {container_id} is not running")
            if command[0].startswith("no-such"):
                return 126
            _, code = run(command)
            if code is None:
                self._hang(self.host.box(container_id).seen, command, limit)
            return code

    def _hang(self, seen: Container, command: Sequence[str], limit: float) -> NoReturn:
        # A hanging command lasts until its container's run ends.
        place = (seen.id, seen.started_at, *command)
        if place in self._hanging:
            raise CommandTimeout("the same command was started earlier and has not ended")
        self._hanging.add(place)
        raise CommandTimeout(f"the command did not end within {limit:g} s")

    def _ours(self, box: Box) -> bool:
        return box.labels.get(naming.LABEL_INSTANCE) == self.instance


def _call(verb: str, name: str) -> tuple[str, str]:
    # The name of a marker is random, so calls are recorded without it.
    return (
        (f"{verb}_marker", "")
        if name.startswith(naming.MARKER_PREFIX)
        else (f"{verb}_volume", name)
    )


def _summary(seen: Container) -> Summary:
    return Summary(seen.id, seen.name, seen.sandbox, seen.phase, seen.owner)


async def _until_none(queue: asyncio.Queue[EngineEvent | None]) -> AsyncIterator[EngineEvent]:
    while (event := await queue.get()) is not None:
        yield event
