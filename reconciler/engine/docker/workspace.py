"""Set the owner of a workspace to the sandbox's user, before the first start."""

from __future__ import annotations

import posixpath
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from reconciler.core.errors import Forbidden, NotFound, Refused
from reconciler.engine.docker import chown, decode, requests
from reconciler.engine.docker.chown import Place
from reconciler.engine.docker.create import stand_in_body
from reconciler.engine.docker.errors import decode_errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from reconciler.core.container_config import ContainerConfig
    from reconciler.engine.docker.chown import Head, Owner
    from reconciler.engine.docker.client import Client

_STAT: Final = "X-Docker-Container-Path-Stat"
# In every response of Podman. The owner that Podman reads back always is the container's user.
_PODMAN: Final = "Libpod-API-Version"
_MOST_LINKS: Final = 8
_NEW_FOLDER: Final = Place(mode=0o755, link="")


class Workspaces:
    """The workspaces of one engine.

    Reading or writing an archive costs the engine some 50 ms of a core. So the owner is set without
    reading the current one, and the result is read back only until it was right once.
    """

    def __init__(self, client: Client, seconds: float) -> None:
        self._client = client
        self._seconds = seconds
        self._verified = False
        self._podman = False

    async def set_owner(self, container_id: str, config: ContainerConfig) -> None:
        """Set the owner of the volume's root, and of the folders from there to the working dir.

        Missing folders are created. Modes and other content stay.

        Raises:
            Refused: the user is not in the image, or the engine does not change the owner.
        """
        workspace = config.spec.workspace
        if workspace is None or config.volume is None:
            return
        request = requests.get(requests.container(container_id, "json"))
        answer: Any = await self._client.call(request, self._seconds)
        with decode_errors("a container's user"):
            image = decode.text(answer["Image"])
            # With the image's values for what the spec does not set.
            user, working_dir = (str(answer["Config"][key] or "") for key in ("User", "WorkingDir"))
        if workspace.owner is None and chown.is_root(user):
            return
        chosen = workspace.owner or user
        owner = chown.numeric(chosen)
        if owner is None:
            passwd = await self._accounts(container_id, "/etc/passwd")
            group = await self._accounts(container_id, "/etc/group") if ":" in chosen else ""
            owner = chown.resolve(chosen, passwd, group)
        path, place = await self._find(container_id, workspace.path)
        # Down to the first link: its target has an owner already.
        modes = {"": place.mode}
        for folder in chown.folders_between(workspace.path, working_dir):
            try:
                place = await self._stat(container_id, posixpath.join(path, folder))
            except NotFound:
                place = _NEW_FOLDER
            if place.link:
                break
            modes[folder] = place.mode
        async with self._writable(container_id, image, config, path) as writable:
            archive = chown.chown_archive(posixpath.basename(path), modes, owner, time.time())
            upload = requests.put_archive(writable, posixpath.dirname(path), archive)
            await self._client.call(upload, self._seconds)
            if not self._verified and not self._podman:
                await self._verify(writable, path, owner)

    @asynccontextmanager
    async def _writable(
        self, container_id: str, image: str, config: ContainerConfig, path: str
    ) -> AsyncIterator[str]:
        """Yield the id of a container that accepts archives: this one, or a temporary stand-in.

        A crash leaves the stand-in behind, and the sandbox's next pass removes it. Podman always
        accepts archives.
        """
        if self._podman or chown.can_write_beside(path, config.spec):
            yield container_id
            return
        body = stand_in_body(image, path, config)
        request = requests.post("containers/create", body, name=config.name)
        answer: Any = await self._client.call(request, self._seconds)
        with decode_errors("a new container"):
            stand_in = decode.identifier(answer)
        try:
            yield stand_in
        finally:
            removal = requests.delete(f"containers/{stand_in}", force="1", v="1")
            with suppress(NotFound):
                await self._client.call(removal, self._seconds)

    async def _accounts(self, container_id: str, path: str) -> str:
        try:
            for _ in range(_MOST_LINKS):
                entry = await self._head(container_id, path, chown.ACCOUNTS_BYTES)
                if not entry.link:
                    return entry.content.decode(errors="replace")
                path = _target(path, entry.link)
        except NotFound:
            return ""
        raise Refused(f"{path}: more than 8 links in the image: correct the image")

    async def _verify(self, container_id: str, path: str, owner: Owner) -> None:
        """Raise Refused unless the folder has the owner now, or its id in a user namespace."""
        entry = await self._head(container_id, path, chown.ARCHIVE_HEAD)
        if entry.owner != owner:
            try:
                info = await self._client.call(requests.get("info"), self._seconds)
            except Forbidden:
                self._verified = True  # it cannot be checked
                return
            with decode_errors("itself"):
                options = info.get("SecurityOptions") or ()
                root = chown.remapped_root(info["DockerRootDir"], options)
            if root is None or not chown.is_remapped(entry.owner, owner, root):
                raise Refused(
                    f"the engine does not change the owner of {path} to {owner.uid}:{owner.gid}: "
                    "set `workspace.owner` to the folder's owner in the image"
                )
        self._verified = True

    async def _find(self, container_id: str, path: str) -> tuple[str, Place]:
        """Follow links; return the final path and what is there."""
        for _ in range(_MOST_LINKS):
            place = await self._stat(container_id, path)
            if not place.link:
                return posixpath.normpath(path), place
            path = _target(path, place.link)
        raise Refused(f"{path}: more than 8 links in the image: correct the image")

    async def _stat(self, container_id: str, path: str) -> Place:
        request = requests.stat(container_id, path)
        headers = await self._client.headers(request, self._seconds)
        self._podman = _PODMAN in headers
        with decode_errors(f"{path} in a container"):
            return chown.place(headers[_STAT])

    async def _head(self, container_id: str, path: str, limit: int) -> Head:
        request = requests.read_archive(container_id, path)
        archive = bytearray()
        async with self._client.stream(request, self._seconds) as chunks:
            async for chunk in chunks:
                archive += chunk
                if len(archive) >= limit:
                    break
        with decode_errors(f"{path} in a container"):
            return chown.head(bytes(archive))


def _target(path: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
