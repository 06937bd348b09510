"""Gives a workspace to the sandbox's user, before the first start."""

from __future__ import annotations

import posixpath
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from reconciler.core.errors import Forbidden, NotFound, Refused
from reconciler.engine.docker import chown as owners
from reconciler.engine.docker import decode as codec
from reconciler.engine.docker import requests
from reconciler.engine.docker.chown import Place
from reconciler.engine.docker.create import stand_in_body
from reconciler.engine.docker.errors import understood

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from reconciler.core.container_config import ContainerConfig
    from reconciler.core.spec import WorkspaceSpec
    from reconciler.engine.docker.chown import Head, Owner
    from reconciler.engine.docker.client import Client

_STAT: Final = "X-Docker-Container-Path-Stat"
# In every answer of Podman's. What it reads back as the owner is the container's user, always.
_PODMAN: Final = "Libpod-API-Version"
_MOST_LINKS: Final = 8
_FRESH: Final = Place(mode=0o755, link="")


class _Config(NamedTuple):
    """A container's, with the image's own where the spec says nothing."""

    image: str
    user: str
    working_dir: str


class Workspaces:
    """The workspaces of one engine. To read or write an archive costs it some 50 ms of a core.

    So the owner is set without a look at the one before, and the outcome is read back until it was
    right once.
    """

    def __init__(self, client: Client, seconds: float) -> None:
        self._client = client
        self._seconds = seconds
        self._proven = False
        self._podman = False

    async def settle(self, container_id: str, blueprint: ContainerConfig) -> None:
        """Set the owner of the volume's root, and of the folders from there to the working dir.

        The engine makes those that lack, for root. Modes, and what else is there, stay.

        Raises:
            Refused: the user is not in the image, or the engine does not change the owner.
        """
        workspace = blueprint.spec.workspace
        if workspace is None or blueprint.volume is None:
            return
        config = await self._config(container_id)
        owner = await self._wanted(container_id, workspace, config.user)
        if owner is not None:
            target, place = await self._find(container_id, workspace.path)
            folders = owners.way_down(workspace.path, config.working_dir)
            modes = {"": place.mode, **await self._modes(container_id, target, folders)}
            async with self._open(container_id, config.image, blueprint, target) as opened:
                await self._give(opened, target, modes, owner)

    async def _config(self, container_id: str) -> _Config:
        request = requests.get(requests.container(container_id, "json"))
        answer: Any = await self._client.call(request, self._seconds)
        with understood("a container's user"):
            own = answer["Config"]
            return _Config(
                codec.text(answer["Image"]), str(own["User"] or ""), str(own["WorkingDir"] or "")
            )

    @asynccontextmanager
    async def _open(
        self, container_id: str, image: str, blueprint: ContainerConfig, path: str
    ) -> AsyncIterator[str]:
        """The container, or where it takes no archives, one that stands in for it.

        A crash leaves the latter behind: the sandbox's next pass removes it. Podman takes archives
        always.
        """
        if self._podman or owners.can_write_beside(path, blueprint.spec):
            yield container_id
            return
        body = stand_in_body(image, path, blueprint)
        request = requests.post("containers/create", body, name=blueprint.name)
        answer: Any = await self._client.call(request, self._seconds)
        with understood("a new container"):
            stand_in = codec.identifier(answer)
        try:
            yield stand_in
        finally:
            removal = requests.delete(f"containers/{stand_in}", force="1", v="1")
            with suppress(NotFound):
                await self._client.call(removal, self._seconds)

    async def _wanted(self, container_id: str, workspace: WorkspaceSpec, user: str) -> Owner | None:
        chosen = workspace.owner or user
        if workspace.owner is None and owners.is_root(user):
            return None
        return owners.numeric(chosen) or await self._look_up(container_id, chosen)

    async def _look_up(self, container_id: str, user: str) -> Owner:
        passwd = await self._accounts(container_id, "/etc/passwd")
        group = await self._accounts(container_id, "/etc/group") if ":" in user else ""
        return owners.resolve(user, passwd, group)

    async def _accounts(self, container_id: str, path: str) -> str:
        try:
            for _ in range(_MOST_LINKS):
                entry = await self._head(container_id, path, owners.ACCOUNTS_BYTES)
                if not entry.link:
                    return entry.content.decode(errors="replace")
                path = _target(path, entry.link)
        except NotFound:
            return ""
        raise Refused(f"{path}: too many links in the image")

    async def _give(
        self, container_id: str, path: str, modes: Mapping[str, int], owner: Owner
    ) -> None:
        archive = owners.chown_archive(posixpath.basename(path), modes, owner, time.time())
        request = requests.put_archive(container_id, posixpath.dirname(path), archive)
        await self._client.call(request, self._seconds)
        if not self._proven and not self._podman:
            await self._prove(container_id, path, owner)

    async def _prove(self, container_id: str, path: str, owner: Owner) -> None:
        entry = await self._head(container_id, path, owners.ARCHIVE_HEAD)
        if entry.owner != owner and not await self._is_remapped(entry.owner, owner):
            raise Refused(
                f"the engine does not give {path} to {owner.uid}:{owner.gid}: set "
                "`workspace.owner` to the folder's owner in the image"
            )
        self._proven = True

    async def _is_remapped(self, seen: Owner, owner: Owner) -> bool:
        """Whether ``seen``, an owner on the host, is ``owner`` in a user namespace."""
        try:
            about = await self._client.call(requests.get("info"), self._seconds)
        except Forbidden:
            return True  # nothing is known against it
        with understood("itself"):
            root = owners.remapped_root(about["DockerRootDir"], about.get("SecurityOptions") or ())
        return root is not None and owners.is_remapped(seen, owner, root)

    async def _modes(
        self, container_id: str, path: str, folders: Sequence[str]
    ) -> Mapping[str, int]:
        """The folders' modes, down to the first link: where that leads is its owner's affair."""
        modes = {}
        for folder in folders:
            try:
                place = await self._stat(container_id, posixpath.join(path, folder))
            except NotFound:
                place = _FRESH
            if place.link:
                break
            modes[folder] = place.mode
        return modes

    async def _find(self, container_id: str, path: str) -> tuple[str, Place]:
        """Where a path ends, links followed, and what is there."""
        for _ in range(_MOST_LINKS):
            place = await self._stat(container_id, path)
            if not place.link:
                return posixpath.normpath(path), place
            path = _target(path, place.link)
        raise Refused(f"{path}: too many links in the image")

    async def _stat(self, container_id: str, path: str) -> Place:
        request = requests.stat(container_id, path)
        headers = await self._client.headers(request, self._seconds)
        self._podman = _PODMAN in headers
        with understood(f"{path} in a container"):
            return owners.place(headers[_STAT])

    async def _head(self, container_id: str, path: str, limit: int) -> Head:
        request = requests.read_archive(container_id, path)
        archive = bytearray()
        async with self._client.stream(request, self._seconds) as chunks:
            async for chunk in chunks:
                archive += chunk
                if len(archive) >= limit:
                    break
        with understood(f"{path} in a container"):
            return owners.head(bytes(archive))


def _target(path: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
