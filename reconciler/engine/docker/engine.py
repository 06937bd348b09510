"""Implement the engine protocol with Docker's API."""

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
from reconciler.core.observed import Phase
from reconciler.engine.docker import decode, errors, requests
from reconciler.engine.docker.client import Client
from reconciler.engine.docker.create import JSON_FILE, create_body, limits_after, update_body
from reconciler.engine.docker.errors import decode_errors
from reconciler.engine.docker.exec_logs import ExecLogs
from reconciler.engine.docker.images import Images
from reconciler.engine.docker.requests import delete, get, post
from reconciler.engine.docker.stream import Lines, lines_of
from reconciler.engine.docker.workspace import Workspaces
from reconciler.engine.protocol import Listing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from reconciler.core.container_config import ContainerConfig
    from reconciler.core.observed import Container, ResourceLimits, Volume
    from reconciler.engine.docker.errors import Translator
    from reconciler.engine.protocol import EngineEvent, EngineInfo, Image, PullProgress

_MOST_WARNINGS: Final = 32
_NO_VOLUMES: Final[Mapping[str, Any]] = {"Volumes": []}
_LONGEST_EVENT: Final = 1 << 20
# Seconds between two checks for a removal, growing so that a slow engine is not kept busy.
_REMOVAL_POLL: Final = 0.02
_LONGEST_REMOVAL_POLL: Final = 1.0
# Seconds to wait for a removal that another request started.
_OTHER_REMOVAL: Final = 5.0
_EVENT_OVERLAP: Final = 1.0
# Seconds; the engine's default log driver only changes with a restart.
_LOG_DRIVER_SECONDS: Final = 60.0


class DockerEngine:
    """One Docker engine, or one that speaks its API, as one instance sees it.

    It connects at first use, and again at the next use if that failed. Changes may take
    ``call_timeout`` seconds each, reads ``read_timeout``, a whole pull ``pull_timeout``.
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
        self._exec_logs = ExecLogs(self._client, read_timeout, call_timeout)
        self._default_log_driver: tuple[str, float] | None = None

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    def forbidden(self) -> Sequence[Forbidden]:
        """Return one error for each part of the API that was forbidden recently."""
        return self._client.forbidden

    def warnings(self) -> Sequence[str]:
        """Return each distinct warning that the engine sent when it created containers."""
        return tuple(self._warnings)

    async def access(self) -> Mapping[str, Forbidden | None]:
        """Try each part of the API that the daemon uses; map it to its error if it is forbidden.

        A part that needs a forbidden one is left out. The requests change nothing, because their
        objects do not exist.

        Raises:
            EngineUnavailable: the engine does not answer.
        """
        found: dict[str, Forbidden | None] = {}
        for part, request in requests.samples(self._instance).items():
            needed = {"POST": "CONTAINERS", "EXEC": "POST"}.get(part, "")
            if needed and (needed not in found or found[needed] is not None):
                continue
            found[part] = None
            try:
                await self._read(request)
            except Forbidden as error:
                found[part] = error
            except EngineUnavailable:
                raise
            except EngineError:
                continue  # allowed; such as NotFound
        return found

    async def ping(self) -> None:
        """Return if the engine answers, else raise."""
        await self._unless_forbidden(get("_ping"))

    async def info(self) -> EngineInfo:
        """Return the engine's name, versions, data folder and abilities."""
        version = await self._unless_forbidden(get("version"))
        about = await self._unless_forbidden(get("info"))
        with decode_errors("itself"):
            info = decode.info(
                version,
                about,
                local=self._client.is_local,
                api_version=self._client.api_version,
            )
        try:
            bridge = await self._read(get("networks/bridge"))
            with decode_errors("its default bridge"):
                return replace(info, gateway=decode.gateway(bridge))
        except EngineError:
            # It has no bridge, or a proxy hides it: then nothing depends on its address.
            return info

    # --- observed state -----------------------------------------------------------------------

    async def list(self) -> Listing:
        """List containers in every phase, volumes, and the rows that cannot be decoded."""
        containers = await self._read(requests.containers_of(self._instance))
        volumes = await self._unless_forbidden(requests.volumes_of(self._instance))
        with decode_errors("its containers and volumes"):
            good, broken = decode.rows(containers, decode.summary)
            rows = decode.volume_rows(_NO_VOLUMES if volumes is None else volumes)
            good_volumes, broken_volumes = decode.rows(rows, decode.volume)
        return Listing(good, good_volumes, broken, broken_volumes, sees_volumes=volumes is not None)

    async def inspect(self, container_id: str) -> Container | None:
        """Return a container by id or name; None if missing or of another instance."""
        answer = await self._inspect(container_id)
        if answer is None:
            return None
        with decode_errors(f"container {container_id[:12]}"):
            return decode.container(answer, self._instance)

    async def inspect_volume(self, name: str) -> Volume | None:
        """Return a volume by name, with any labels; None if it is missing."""
        try:
            answer = await self._read(get(requests.volume(name)))
        except NotFound:
            return None
        with decode_errors(f"volume {name}"):
            return decode.volume(answer)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        """Iterate over events from now on; those of the second before may come too."""

        async def events(lines: AsyncIterator[bytes]) -> AsyncIterator[EngineEvent]:
            with suppress(EngineUnavailable):
                async for line in lines:
                    event = decode.event(line, self._instance)
                    if event is not None:
                        yield event

        request = requests.events(time.time() - _EVENT_OVERLAP)
        async with self._client.stream(request, self._read_timeout) as chunks:
            yield events(lines_of(chunks, Lines(_LONGEST_EVENT)))

    # --- volumes ------------------------------------------------------------------------------

    async def create_volume(self, name: str, labels: Mapping[str, str]) -> Volume:
        """Create the volume and return it. Docker returns one that already exists."""
        body = {"Name": name, "Labels": dict(labels)}
        answer = await self._change(post("volumes/create", body))
        with decode_errors(f"volume {name}"):
            return decode.volume(answer)

    async def remove_volume(self, name: str) -> None:
        """Remove the volume, with any labels. One that is gone is a success.

        Raises:
            Busy: a container still uses it.
        """
        with suppress(NotFound):
            await self._change(delete(requests.volume(name)))

    # --- containers ---------------------------------------------------------------------------

    async def create(self, config: ContainerConfig) -> str:
        """Create the container, without starting it, and return its id.

        Raises:
            Busy: a container that is being removed still has the name.
            ImageNotFound: the image is missing.
            NameTaken: another container has the name.
            Refused: the engine rejects it: a mount's source is missing, an option is wrong.
        """
        body = create_body(config, await self._log_driver())
        request = post("containers/create", body, name=config.name)
        try:
            answer = await self._change(request, errors.on_create)
        except NameTaken as error:
            return await self._adopt(config, error)
        with decode_errors("a new container"):
            container_id = decode.identifier(answer)
            fresh = [text for text in decode.warnings(answer) if text not in self._warnings]
        self._warnings += fresh[: _MOST_WARNINGS - len(self._warnings)]
        await self._check_runtime(container_id, config)
        return container_id

    async def _log_driver(self) -> str:
        """Return the engine's default log driver; json-file if it does not say."""
        now = asyncio.get_running_loop().time()
        if self._default_log_driver is None or now >= self._default_log_driver[1]:
            try:
                driver = decode.log_driver(await self._read(get("info")))
            except EngineUnavailable:
                raise
            except EngineError:
                driver = ""
            self._default_log_driver = (driver or JSON_FILE, now + _LOG_DRIVER_SECONDS)
        return self._default_log_driver[0]

    async def _check_runtime(self, container_id: str, config: ContainerConfig) -> None:
        """Refuse a container with another runtime: Podman up to 6.1 ignores the requested one."""
        wanted = config.spec.security.runtime
        answer = await self._inspect(container_id) if wanted else None
        if answer is None:
            return
        with decode_errors("a container"):
            used = str(answer["HostConfig"]["Runtime"])
        if used != wanted:
            await self.remove(container_id)
            raise Refused(
                f"the engine ignores the runtime {wanted!r}: make it the engine's default and "
                "remove `security.runtime`"
            )

    async def _adopt(self, config: ContainerConfig, error: NameTaken) -> str:
        """Return the id of a container that an earlier create made, whose response was lost."""
        holder = await self._inspect(config.name)
        if holder is None:
            raise Busy(
                f"the container name {config.name} is not free yet: its last owner is being removed"
            ) from error
        with decode_errors("a container"):
            short = decode.identifier(holder)[:12]
            image = errors.cut(str(holder["Config"]["Image"]))
            container = decode.container(holder, self._instance)
        nonce = config.labels[naming.LABEL_NONCE]
        if container is None or not nonce or container.nonce != nonce:
            raise NameTaken(
                f"container {short} (image {image}) has the name {config.name}, and this daemon "
                "did not create it: remove or rename it"
            ) from error
        return container.id

    async def prepare(self, container_id: str, stand_in: ContainerConfig) -> None:
        """Set the owner of the workspace to the sandbox's user, before the first start.

        Raises:
            Refused: the user is not in the image, or the engine does not change the owner.
        """
        await self._workspaces.set_owner(container_id, stand_in)

    async def start(self, container_id: str) -> None:
        """Start the container.

        Raises:
            PortTaken: another process uses a host port.
            Refused: it cannot be started: no such program, no such device.
            Unstartable: leftovers of an earlier run are in the way.
        """
        await self._do(container_id, "start", errors.on_start_of(container_id))

    async def stop(self, container_id: str, grace: float) -> None:
        """Send the stop signal, kill after ``grace`` seconds, return when it has exited."""
        seconds = math.ceil(grace)
        request = post(requests.container(container_id, "stop"), t=str(seconds))
        with suppress(NotFound):
            await self._client.call(request, seconds + self._call_timeout)

    async def pause(self, container_id: str) -> None:
        """Freeze the container's processes."""
        with suppress(errors.AlreadyDone):
            await self._do(container_id, "pause", errors.on_pause)

    async def unpause(self, container_id: str) -> None:
        """Continue the container's processes."""
        with suppress(errors.AlreadyDone):
            await self._do(container_id, "unpause", errors.on_unpause)

    async def update(self, container_id: str, limits: ResourceLimits) -> ResourceLimits:
        """Change limits and restart policy, without a restart.

        Returns:
            The limits as the engine words them after the change: no limit may read as a high one.

        Raises:
            Refused: the engine rejects it, such as a limit below current use, or ignores it.
        """
        before = await self.inspect(container_id)
        info = await self._read(get("info"))
        if before is None:
            raise NotFound(f"container {container_id[:12]} is gone")
        if limits.network and not before.limits.network:
            await self._change(requests.connect(limits.network, container_id), errors.common)
            before = replace(before, limits=replace(before.limits, network=limits.network))
            if before.limits == limits:
                return limits
        with decode_errors("itself"):
            cores, memory = int(info["NCPU"]), int(info["MemTotal"])
        body = update_body(limits, before.limits, cores=cores, host_memory=memory)
        path = requests.container(container_id, "update")
        await self._change(post(path, body), errors.on_update)
        after = await self.inspect(container_id)
        requested = limits_after(body, limits)
        unchanged = sorted(
            name
            for name, value in requested.items()
            if after is not None and getattr(after.limits, name) != value
        )
        if unchanged:
            raise Refused(
                f"the engine reports success but did not change {', '.join(unchanged)}: check "
                "whether the host's kernel supports this limit"
            )
        # Not `after.limits`: others may have changed the other fields since the first inspection.
        return replace(limits, **requested)

    async def rename(self, container_id: str, name: str) -> None:
        """Rename the container.

        Raises:
            NameTaken: another container has the name.
        """
        request = post(requests.container(container_id, "rename"), name=name)
        with suppress(errors.AlreadyDone):
            await self._change(request, errors.on_rename)

    async def remove(self, container_id: str) -> None:
        """Kill and remove the container with its anonymous volumes; return when it is gone.

        Raises:
            EngineTimeout: it still exists after ``call_timeout`` seconds and is not being removed.
            Removing: the engine is still removing it; many files take long.
        """
        request = delete(f"containers/{container_id}", force="1", v="1")
        try:
            async with asyncio.timeout(self._call_timeout) as limit:
                try:
                    await self._change(request)
                except NotFound:
                    pass
                except Busy:
                    # Another request removes it, whose response does not come here.
                    seconds = min(self._call_timeout, _OTHER_REMOVAL)
                    limit.reschedule(asyncio.get_running_loop().time() + seconds)
                # The name is free once the container is gone, a moment after the response.
                pause = _REMOVAL_POLL
                while await self._inspect(container_id) is not None:
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _LONGEST_REMOVAL_POLL)
        except (TimeoutError, EngineTimeout) as error:
            await self._raise_unless_removed(container_id, error)

    async def _raise_unless_removed(self, container_id: str, error: Exception) -> None:
        """Distinguish a slow removal from a wedged engine.

        A wedged engine hangs earlier: when it kills the container's processes.
        """
        container, short = await self.inspect(container_id), container_id[:12]
        if container is None:
            return
        if container.phase is Phase.REMOVING:
            raise Removing(
                f"the engine is still removing container {short}: wait until it is done"
            ) from error
        raise EngineTimeout(
            f"the engine did not remove container {short} within {self._call_timeout:g} s: check "
            "whether it is overloaded or stuck"
        ) from error

    # --- images -------------------------------------------------------------------------------

    async def has_image(self, image: str) -> bool:
        """Return whether a create would find the image."""
        return await self._images.has(image)

    async def image_id(self, image: str) -> str | None:
        """Return the id of the image that a create would find; None without one."""
        return await self._images.id_of(image)

    async def image_labels(self, image_id: str) -> Mapping[str, str]:
        """Return the labels that a container inherits from this image."""
        return await self._images.labels(image_id)

    async def images(self) -> Sequence[Image]:
        """List all images of the host except intermediate layers of builds."""
        return await self._images.all()

    async def remove_image(self, image_id: str) -> None:
        """Remove an unused image; one that is gone is a success.

        Raises:
            Busy: it is in use, or has more than one name.
        """
        await self._images.remove(image_id, self._call_timeout)

    async def pull(self, image: str, progress: Callable[[PullProgress], None]) -> None:
        """Pull the image with the user's own credentials for its registry.

        Raises:
            PullFailed: the registry does not provide it.
        """
        await self._images.pull(image, progress)

    # --- logs and commands --------------------------------------------------------------------

    async def log_tail(self, container_id: str, lines: int, *, since: float = 0.0) -> Sequence[str]:
        """Return the last lines of both streams, each cut at 4096 bytes."""
        return await self._exec_logs.log_tail(container_id, lines, since)

    def follow_logs(
        self, container_id: str, lines: int
    ) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Iterate over the last lines and new ones, until the container or connection ends."""
        return self._exec_logs.follow_logs(container_id, lines)

    async def run_in(self, container_id: str, command: Sequence[str], limit: float) -> int:
        """Run a command in the container and return its exit code.

        Raises:
            CommandTimeout: it did not end within ``limit`` seconds; it keeps running.
        """
        return await self._exec_logs.run(container_id, command, limit)

    # --- requests -----------------------------------------------------------------------------

    async def _inspect(self, container_id: str) -> dict[str, Any] | None:
        request = get(requests.container(container_id, "json"))
        try:
            answer: dict[str, Any] = await self._read(request)
        except NotFound:
            return None
        with decode_errors(f"container {container_id[:12]}"):
            return answer if decode.is_asked_for(answer, container_id) else None

    async def _unless_forbidden(self, request: requests.Request) -> Any:
        """Return the response; None if the request is forbidden."""
        try:
            answer = await self._read(request)
        except Forbidden:
            return None
        if answer is None:
            raise errors.unreadable(str(request), TypeError("null"))
        return answer

    async def _read(self, request: requests.Request) -> Any:
        return await self._client.call(request, self._read_timeout)

    async def _change(
        self, request: requests.Request, translator: Translator = errors.common
    ) -> Any:
        return await self._client.call(request, self._call_timeout, translator)

    async def _do(self, container_id: str, verb: str, translator: Translator) -> None:
        await self._change(post(requests.container(container_id, verb)), translator)
