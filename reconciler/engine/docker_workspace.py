"""Gives a workspace to the sandbox's user, before the first start."""

from __future__ import annotations

import posixpath
import time
from typing import TYPE_CHECKING, Any, Final

from reconciler.core.errors import NotFound, Refused
from reconciler.engine import docker_owner as owners
from reconciler.engine import docker_requests as requests
from reconciler.engine.docker_errors import understood

if TYPE_CHECKING:
    from reconciler.core.blueprint import Blueprint
    from reconciler.core.spec import WorkspaceSpec
    from reconciler.engine.docker_client import Client
    from reconciler.engine.docker_owner import Head, Owner

_MOST_LINKS: Final = 8


class WorkspaceOwner:
    """Works on one container that was created and not started."""

    def __init__(self, client: Client, container_id: str, seconds: float) -> None:
        self._client = client
        self._id = container_id
        self._seconds = seconds

    async def settle(self, blueprint: Blueprint) -> None:
        """Set the owner of the volume's root, where it is another; what is in it stays as it is.

        Raises:
            Refused: the user is not in the image, or the engine does not change the owner.
        """
        workspace = blueprint.spec.workspace
        if workspace is None or blueprint.volume is None:
            return
        owner = await self._wanted(workspace, blueprint.spec.user)
        if owner is not None:
            await self._give(workspace.path, owner)

    async def _wanted(self, workspace: WorkspaceSpec, user: str | None) -> Owner | None:
        if workspace.owner is not None:
            return owners.numeric(workspace.owner) or await self._look_up(workspace.owner)
        user = user or await self._image_user()
        if owners.is_root(user):
            return None
        return owners.numeric(user) or await self._look_up(user)

    async def _image_user(self) -> str:
        request = requests.get(requests.container(self._id, "json"))
        answer: Any = await self._client.call(request, self._seconds)
        with understood("a container's user"):
            return str(answer["Config"]["User"])

    async def _look_up(self, user: str) -> Owner:
        passwd = await self._accounts("/etc/passwd")
        group = await self._accounts("/etc/group")
        return owners.resolve(user, passwd, group)

    async def _accounts(self, path: str) -> str:
        try:
            _, entry = await self._read(path, owners.ACCOUNTS_BYTES)
        except NotFound:
            return ""
        return entry.content.decode(errors="replace")

    async def _give(self, path: str, owner: Owner) -> None:
        target, entry = await self._read(path, owners.ARCHIVE_HEAD)
        if entry.owner == owner:
            return
        archive = owners.chown_archive(target, owner, time.time())
        await self._client.call(requests.put_archive(self._id, target, archive), self._seconds)
        _, entry = await self._read(target, owners.ARCHIVE_HEAD)
        if entry.owner != owner:
            raise Refused(
                f"the engine does not give {path} to {owner.uid}:{owner.gid}: set "
                "`workspace.owner` to the folder's owner in the image"
            )

    async def _read(self, path: str, limit: int) -> tuple[str, Head]:
        """What is at a path, and where it really is: links at its end are followed."""
        for _ in range(_MOST_LINKS):
            archive = await self._beginning(path, limit)
            with understood(f"{path} in a container"):
                entry = owners.head(archive)
            if not entry.link:
                return path, entry
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), entry.link))
        raise Refused(f"{path}: too many links in the image")

    async def _beginning(self, path: str, limit: int) -> bytes:
        request = requests.read_archive(self._id, path)
        archive = bytearray()
        async with self._client.stream(request, self._seconds) as chunks:
            async for chunk in chunks:
                archive += chunk
                if len(archive) >= limit:
                    break
        return bytes(archive)
