"""Docker as an Engine: what each method asks of it, and which refusals are successes."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from reconciler.core import naming
from reconciler.core.errors import (
    Busy,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    Forbidden,
    NameTaken,
    NotFound,
    Refused,
    Removing,
)
from reconciler.core.model import Phase
from reconciler.engine.docker import decode as codec
from reconciler.engine.docker import errors, requests
from reconciler.engine.docker.client import Client
from reconciler.engine.docker.create import JSON_FILE, create_body
from reconciler.engine.docker.errors import understood
from reconciler.engine.docker.exec_logs import Inside
from reconciler.engine.docker.images import Images
from reconciler.engine.docker.requests import delete, get, post
from reconciler.engine.docker.stream import Lines, lines_of
from reconciler.engine.docker.update import expected, update_body
from reconciler.engine.docker.workspace import Workspaces
from reconciler.engine.protocol import Listing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from reconciler.core.container_config import ContainerConfig
    from reconciler.core.model import Container, Limits, Volume
    from reconciler.engine.docker.errors import Translator
    from reconciler.engine.protocol import EngineEvent, EngineInfo, Image, PullProgress

_MOST_WARNINGS: Final = 32
_NO_VOLUMES: Final[Mapping[str, Any]] = {"Volumes": []}
_LONGEST_EVENT: Final = 1 << 20
# Seconds; an engine that takes long over a removal is not to be kept busy by being asked.
_GONE_POLL: Final = 0.02
_LONGEST_GONE_POLL: Final = 1.0
# Seconds to wait for a removal that another request began.
_BRIEFLY: Final = 5.0
_EVENT_OVERLAP: Final = 1.0
# Seconds; an engine has another log driver after a restart at the earliest.
_DRIVER_SECONDS: Final = 60.0


class DockerEngine:
    """One Docker engine, or one that speaks its API, seen by one instance.

    Reached at first use, and again at the next one where that failed. Changes may take
    ``call_timeout`` seconds each, questions ``read_timeout``, a whole pull ``pull_timeout``.
    """

    def __init__(
        self,
        *,
        instance: str,
        docker_host: str | None = None,
        call_timeout: float = 60.0,
        read_timeout: float = 15.0,
        pull_timeout: float = 3600.0,
    ) -> None:
        self._instance = instance
        self._call_timeout = call_timeout
        self._read_timeout = read_timeout
        self._client = Client(docker_host)
        self._images = Images(self._client, read_timeout, pull_timeout)
        self._workspaces = Workspaces(self._client, call_timeout)
        self._warnings: list[str] = []
        self._inside = Inside(self._client, read_timeout, call_timeout)
        self._driver: tuple[str, float] | None = None

    async def close(self) -> None:
        """Let go of every connection."""
        await self._client.close()

    def forbidden(self) -> Sequence[Forbidden]:
        """One error for each part of the API that was forbidden lately."""
        return self._client.forbidden

    def warnings(self) -> Sequence[str]:
        """What the engine warned of when it made containers: each text once."""
        return tuple(self._warnings)

    async def access(self) -> Mapping[str, Forbidden | None]:
        """Try each part of the engine's API that is used; the error where it is forbidden.

        A part that cannot be tried without another one that is forbidden is not in the answer.
        Nothing is changed: what is asked to be changed does not exist.

        Raises:
            EngineUnavailable: it does not answer.
        """
        found: dict[str, Forbidden | None] = {}
        for part, request in requests.samples(self._instance).items():
            needed = {"POST": "CONTAINERS", "EXEC": "POST"}.get(part, "")
            if needed and (needed not in found or found[needed] is not None):
                continue
            found[part] = None
            try:
                await self._ask(request)
            except Forbidden as error:
                found[part] = error
            except EngineUnavailable:
                raise
            except EngineError:
                continue  # such as that nobody has the name
        return found

    async def ping(self) -> None:
        """Return if the engine answers."""
        await self._unless_forbidden(get("_ping"))

    async def info(self) -> EngineInfo:
        """Who the engine is."""
        version = await self._unless_forbidden(get("version"))
        about = await self._unless_forbidden(get("info"))
        with understood("itself"):
            who = codec.info(
                version,
                about,
                local=self._client.is_local,
                api_version=self._client.api_version,
            )
        return replace(who, gateway=await self._gateway())

    async def _gateway(self) -> str:
        try:
            bridge = await self._ask(get("networks/bridge"))
            with understood("its default bridge"):
                return codec.gateway(bridge)
        except EngineError:
            # It has no bridge, or a proxy hides it: then nothing depends on its address.
            return ""

    # --- what is there ------------------------------------------------------------------------

    async def list(self) -> Listing:
        """Containers in every phase, and volumes; apart from them, the rows that cannot be read."""
        containers = await self._ask(requests.containers_of(self._instance))
        volumes = await self._unless_forbidden(requests.volumes_of(self._instance))
        with understood("what it has"):
            seen, broken = codec.rows(containers, codec.summary)
            kept, lost = codec.rows(
                codec.volume_rows(_NO_VOLUMES if volumes is None else volumes), codec.volume
            )
            return Listing(seen, kept, broken, lost, sees_volumes=volumes is not None)

    async def inspect(self, container_id: str) -> Container | None:
        """One container by id or name; None where it is not there or is not of this instance."""
        answer = await self._look(container_id)
        if answer is None:
            return None
        with understood(f"container {container_id[:12]}"):
            return codec.container(answer, self._instance)

    async def inspect_volume(self, name: str) -> Volume | None:
        """One volume by name, whatever labels it has; None where it is not there."""
        try:
            answer = await self._ask(get(requests.volume(name)))
        except NotFound:
            return None
        with understood(f"volume {name}"):
            return codec.volume(answer)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        """Events from now on; those of the second before may come too."""
        request = requests.events(time.time() - _EVENT_OVERLAP)
        async with self._client.stream(request, self._read_timeout) as chunks:
            yield self._decoded(lines_of(chunks, Lines(_LONGEST_EVENT)))

    async def _decoded(self, lines: AsyncIterator[bytes]) -> AsyncIterator[EngineEvent]:
        with suppress(EngineUnavailable):
            async for line in lines:
                event = codec.event(line, self._instance)
                if event is not None:
                    yield event

    # --- volumes ------------------------------------------------------------------------------

    async def create_volume(self, name: str, labels: Mapping[str, str]) -> Volume:
        """Make the volume and return it. Docker answers with the one that exists already."""
        body = {"Name": name, "Labels": dict(labels)}
        answer = await self._change(post("volumes/create", body))
        with understood(f"volume {name}"):
            return codec.volume(answer)

    async def remove_volume(self, name: str) -> None:
        """Remove the volume, whatever labels it has.

        Raises:
            Busy: a container still uses it.
        """
        with suppress(NotFound):
            await self._change(delete(requests.volume(name)))

    # --- containers ---------------------------------------------------------------------------

    async def create(self, blueprint: ContainerConfig) -> str:
        """Make the container, without starting it, and return its id.

        Raises:
            Busy: the name is still held by a container that is being removed.
            ImageNotFound: the image is not there.
            NameTaken: another container has the name.
            Refused: the engine will not make it: a mount's source is missing, an option is wrong.
        """
        body = create_body(blueprint, await self._log_driver())
        request = post("containers/create", body, name=blueprint.name)
        try:
            answer = await self._change(request, errors.on_create)
        except NameTaken as error:
            return await self._adopt(blueprint, error)
        with understood("a new container"):
            container_id = codec.identifier(answer)
            fresh = [text for text in codec.warnings(answer) if text not in self._warnings]
        self._warnings += fresh[: _MOST_WARNINGS - len(self._warnings)]
        await self._hold_to_runtime(container_id, blueprint)
        return container_id

    async def _log_driver(self) -> str:
        """Return the engine's own log driver; json-file where it does not say."""
        now = asyncio.get_running_loop().time()
        if self._driver is None or now >= self._driver[1]:
            try:
                driver = codec.log_driver(await self._ask(get("info")))
            except EngineUnavailable:
                raise
            except EngineError:
                driver = ""
            self._driver = (driver or JSON_FILE, now + _DRIVER_SECONDS)
        return self._driver[0]

    async def _hold_to_runtime(self, container_id: str, blueprint: ContainerConfig) -> None:
        """Podman (up to 6.1) passes over a runtime: what was to be isolated would not be."""
        wanted = blueprint.spec.security.runtime
        made = await self._look(container_id) if wanted else None
        if made is None:
            return
        with understood("a container"):
            used = str(made["HostConfig"]["Runtime"])
        if used != wanted:
            await self.remove(container_id)
            raise Refused(
                f"the engine does not take the runtime {wanted!r}: make it the engine's default "
                "and leave `security.runtime` out"
            )

    async def _adopt(self, blueprint: ContainerConfig, error: NameTaken) -> str:
        """A create that was never heard of left the container that is asked for."""
        holder = await self._look(blueprint.name)
        if holder is None:
            raise Busy(f"the name {blueprint.name} is not free yet") from error
        with understood("a container"):
            short = codec.identifier(holder)[:12]
            image = errors.cut(str(holder["Config"]["Image"]))
            container = codec.container(holder, self._instance)
        nonce = blueprint.labels[naming.LABEL_NONCE]
        if container is None or not nonce or container.nonce != nonce:
            raise NameTaken(
                f"container {short} (image {image}) has the name {blueprint.name}, and this daemon "
                "did not make it: remove or rename it"
            ) from error
        return container.id

    async def prepare(self, container_id: str, stand_in: ContainerConfig) -> None:
        """Make the workspace belong to the sandbox's user, before the first start.

        Raises:
            Refused: the user is not in the image, or the engine does not change the owner.
        """
        await self._workspaces.settle(container_id, stand_in)

    async def start(self, container_id: str) -> None:
        """Start it.

        Raises:
            PortTaken: a host port is held by somebody else.
            Refused: it cannot be started: no such program, no such device.
        """
        await self._do(container_id, "start", errors.on_start_of(container_id))

    async def stop(self, container_id: str, grace: float) -> None:
        """Ask it to end, kill it after ``grace`` seconds, return when it has ended."""
        seconds = math.ceil(grace)
        request = post(requests.container(container_id, "stop"), t=str(seconds))
        with suppress(NotFound):
            await self._client.call(request, seconds + self._call_timeout)

    async def pause(self, container_id: str) -> None:
        """Freeze its processes."""
        with suppress(errors.AlreadySo):
            await self._do(container_id, "pause", errors.on_pause)

    async def unpause(self, container_id: str) -> None:
        """Thaw its processes."""
        with suppress(errors.AlreadySo):
            await self._do(container_id, "unpause", errors.on_unpause)

    async def update(self, container_id: str, limits: Limits) -> None:
        """Give it these limits and this restart policy, without a restart.

        Raises:
            Refused: the engine will not, for instance as more is in use, or it had no effect.
        """
        seen = await self.inspect(container_id)
        about = await self._ask(get("info"))
        if seen is None:
            raise NotFound(f"container {container_id[:12]} is gone")
        with understood("itself"):
            cores, memory = int(about["NCPU"]), int(about["MemTotal"])
        body = update_body(limits, seen.limits, cores=cores, host_memory=memory)
        path = requests.container(container_id, "update")
        await self._change(post(path, body), errors.on_update)
        now = await self.inspect(container_id)
        kept = {
            name: value
            for name, value in expected(body, limits).items()
            if now is not None and getattr(now.limits, name) != value
        }
        if kept:
            raise Refused(
                f"the engine reports success, and did not change {', '.join(sorted(kept))}: see "
                "whether the host's kernel supports that limit"
            )

    async def rename(self, container_id: str, name: str) -> None:
        """Give it another name.

        Raises:
            NameTaken: another container has the name.
        """
        request = post(requests.container(container_id, "rename"), name=name)
        with suppress(errors.AlreadySo):
            await self._change(request, errors.on_rename)

    async def remove(self, container_id: str) -> None:
        """Kill it if it lives and remove it with its anonymous volumes; return when it is gone.

        Raises:
            EngineTimeout: it is not gone after ``call_timeout`` seconds, nor is it being removed.
            Removing: the engine is still at it; the more files a container has, the longer.
        """
        request = delete(f"containers/{container_id}", force="1", v="1")
        try:
            async with asyncio.timeout(self._call_timeout) as limit:
                try:
                    await self._change(request)
                except NotFound:
                    pass
                except Busy:
                    # Another removal is under way: there is no answer to wait for.
                    brief = min(self._call_timeout, _BRIEFLY)
                    limit.reschedule(asyncio.get_running_loop().time() + brief)
                # The name is free once the container is gone, a moment after a removal is answered.
                await self._until_gone(container_id)
        except (TimeoutError, EngineTimeout) as error:
            await self._judge_removal(container_id, error)

    async def _judge_removal(self, container_id: str, error: Exception) -> None:
        """Tell a removal that takes long from one that hangs.

        A wedged engine hangs before that, where it ends the container's processes.
        """
        container, short = await self.inspect(container_id), container_id[:12]
        if container is None:
            return
        if container.phase is Phase.REMOVING:
            why = f"the engine is still removing container {short}: wait for it"
            raise Removing(why) from error
        raise EngineTimeout(
            f"container {short} is not gone after {self._call_timeout:g} s: see whether the engine "
            "is overloaded or stuck"
        ) from error

    async def _until_gone(self, container_id: str) -> None:
        pause = _GONE_POLL
        while await self._look(container_id) is not None:
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_GONE_POLL)

    # --- images -------------------------------------------------------------------------------

    async def has_image(self, image: str) -> bool:
        """Whether a create would find the image."""
        return await self._images.has(image)

    async def image_id(self, image: str) -> str | None:
        """The id of the image that a create would find."""
        return await self._images.id_of(image)

    async def image_labels(self, image_id: str) -> Mapping[str, str]:
        """The labels that a container of this image inherits."""
        return await self._images.labels(image_id)

    async def images(self) -> Sequence[Image]:
        """All images of the host but the layers of a build."""
        return await self._images.all()

    async def remove_image(self, image_id: str) -> None:
        """Remove an image that nothing uses; one that is gone is a success.

        Raises:
            Busy: something uses it, or it has more than one name.
        """
        await self._images.remove(image_id, self._call_timeout)

    async def pull(self, image: str, progress: Callable[[PullProgress], None]) -> None:
        """Pull the image with the user's own credentials for its registry.

        Raises:
            PullFailed: it cannot be had.
        """
        await self._images.pull(image, progress)

    # --- inside a container -------------------------------------------------------------------

    async def log_tail(self, container_id: str, lines: int, *, since: float = 0.0) -> Sequence[str]:
        """The last lines of both streams, each cut at 4096 bytes."""
        return await self._inside.log_tail(container_id, lines, since)

    def follow_logs(
        self, container_id: str, lines: int
    ) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """The last lines, and more as they come; ends with the container or the connection."""
        return self._inside.follow_logs(container_id, lines)

    async def run_in(self, container_id: str, command: Sequence[str], limit: float) -> int:
        """Run a command in it and return its exit code. One that does not end keeps running.

        Raises:
            CommandTimeout: it did not end within ``limit`` seconds.
        """
        return await self._inside.run(container_id, command, limit)

    # --- how it is asked ----------------------------------------------------------------------

    async def _look(self, container_id: str) -> dict[str, Any] | None:
        request = get(requests.container(container_id, "json"))
        try:
            answer: dict[str, Any] = await self._ask(request)
        except NotFound:
            return None
        with understood(f"container {container_id[:12]}"):
            return answer if codec.is_asked_for(answer, container_id) else None

    async def _unless_forbidden(self, request: requests.Request) -> Any:
        """The answer; None where the question is forbidden."""
        try:
            answer = await self._ask(request)
        except Forbidden:
            return None
        if answer is None:
            raise errors.not_understood(str(request), TypeError("null"))
        return answer

    async def _ask(self, request: requests.Request) -> Any:
        return await self._client.call(request, self._read_timeout)

    async def _change(self, request: requests.Request, say: Translator = errors.common) -> Any:
        return await self._client.call(request, self._call_timeout, say)

    async def _do(self, container_id: str, verb: str, say: Translator) -> None:
        await self._change(post(requests.container(container_id, verb)), say)
