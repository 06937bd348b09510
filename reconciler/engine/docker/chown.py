"""Resolve the owner of a workspace, and build the archive that sets it. Pure.

A new volume belongs to root, and the engine's API has no call to change that. But an archive that
is put into a container that has not started yet sets the owner of its entries. The volume's root is
an entry of its parent's archive, because Docker mounts all volumes before it unpacks. Docker skips
an entry called ``.``, and with go-archive 0.3 (as in Debian's 28.5.2) rejects ``../workspace``.
Podman mounts no volume: it changes the folder below the mount, and the volume takes over the
folder's owner at its first use.
"""

from __future__ import annotations

import base64
import io
import json
import posixpath
import re
import tarfile
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from reconciler.core.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reconciler.core.spec import SandboxSpec

ARCHIVE_HEAD: Final = 1 << 16
ACCOUNTS_BYTES: Final = 1 << 20
_NUMERIC: Final = re.compile(r"\d{1,10}")
_NUMBERS: Final = re.compile(r"/(\d{1,10})\.(\d{1,10})/?$")
_PERMISSIONS: Final = 0o777
# Where Go's file modes have what the last three octal digits of Unix's do not hold.
_SPECIAL: Final = ((1 << 23, 0o4000), (1 << 22, 0o2000), (1 << 20, 0o1000))
_SYMLINK: Final = 1 << 27
_FIELDS: Final = 4


@dataclass(frozen=True, slots=True)
class Owner:
    """A numeric user id and group id."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Place:
    """What is at a path in a container: its mode, and the target if it is a link."""

    mode: int
    link: str


@dataclass(frozen=True, slots=True)
class Head:
    """The first entry of an archive. ``content`` is empty unless it is a file."""

    owner: Owner
    link: str
    content: bytes


def can_write_beside(path: str, spec: SandboxSpec) -> bool:
    """Return whether the container itself accepts an archive at the parent of ``path``."""
    parent = PurePosixPath(posixpath.normpath(path)).parent
    fixed = (mount.container_path for mount in spec.mounts if mount.mode == "ro")
    return not spec.security.read_only and not any(map(parent.is_relative_to, fixed))


def remapped_root(root_dir: str, options: Sequence[str]) -> Owner | None:
    """Return which host owner a container's root is with userns-remap; None without it.

    Such an engine keeps its data in a folder that is named UID.GID.
    """
    numbers = _NUMBERS.search(root_dir)
    if numbers is None or "name=userns" not in options:
        return None
    return Owner(int(numbers[1]), int(numbers[2]))


def is_remapped(seen: Owner, owner: Owner, root: Owner) -> bool:
    """Return whether ``seen`` on the host is ``owner`` in a container with root mapped to ``root``.

    One or more ranges map a container's ids. Beyond the first range, only a change from root can be
    detected.
    """
    first = Owner(root.uid + owner.uid, root.gid + owner.gid)
    return seen == first or (seen.uid not in {0, root.uid} and owner.uid != 0)


def is_root(user: str) -> bool:
    """Return whether a container's user is root, who owns a new volume."""
    return user.partition(":")[0] in {"", "0", "root"}


def numeric(user: str) -> Owner | None:
    """Parse ``uid:gid``; None if the image's account files are needed."""
    uid, _, gid = user.partition(":")
    whole = _NUMERIC.fullmatch(uid) and _NUMERIC.fullmatch(gid)
    return Owner(int(uid), int(gid)) if whole else None


def resolve(user: str, passwd: str, group: str) -> Owner:
    """Return the owner of ``uid``, ``name``, ``name:group`` or a mix, by the engine's rules.

    Raises:
        Refused: the image has no such user or group.
    """
    name, _, wanted = user.partition(":")
    account = _find(passwd, name)
    if account is None and not _NUMERIC.fullmatch(name):
        raise Refused(f"user {name!r} is not in the image's /etc/passwd: correct `user`")
    uid, gid = (int(account[2]), int(account[3])) if account else (int(name), 0)
    if wanted:
        entry = _find(group, wanted)
        if entry is None and not _NUMERIC.fullmatch(wanted):
            raise Refused(f"group {wanted!r} is not in the image's /etc/group: correct `user`")
        gid = int(entry[2]) if entry else int(wanted)
    return Owner(uid, gid)


def place(header: str) -> Place:
    """Decode the engine's header about a path.

    Raises:
        ValueError, KeyError: it cannot be decoded.
    """
    stat = json.loads(base64.b64decode(header))
    mode = int(stat["mode"])
    special = sum(unix for go, unix in _SPECIAL if mode & go)
    # Podman sends the path itself as the target of what is no link.
    link = str(stat["linkTarget"]) if mode & _SYMLINK else ""
    return Place(mode & _PERMISSIONS | special, link)


def folders_between(path: str, working_dir: str) -> list[str]:
    """Return the folders from below ``path`` to ``working_dir``, relative, outermost first."""
    top = PurePosixPath(posixpath.normpath(path))
    folder = PurePosixPath(posixpath.normpath(working_dir))
    if not folder.is_relative_to(top):
        return []
    below = folder.relative_to(top).parts
    return ["/".join(below[: end + 1]) for end in range(len(below))]


def chown_archive(top: str, modes: Mapping[str, int], owner: Owner, now: float) -> bytes:
    """Build an archive that sets the owner of the folder ``top`` and of folders below it.

    ``modes`` maps their relative paths to their modes; the empty path is ``top``.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for relative, mode in modes.items():
            header = tarfile.TarInfo(posixpath.normpath(posixpath.join(top, relative)))
            header.type, header.mode, header.mtime = tarfile.DIRTYPE, mode, int(now)
            header.uid, header.gid = owner.uid, owner.gid
            archive.addfile(header)
    return buffer.getvalue()


def head(archive: bytes) -> Head:
    """Return the first entry of an archive, of which the beginning is enough.

    Raises:
        ValueError: not an archive, or an empty one.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as entries:
            entry = entries.next()
            if entry is None:
                raise ValueError("an empty archive")
    except (tarfile.TarError, EOFError) as error:
        raise ValueError("not an archive") from error
    link = entry.linkname if entry.issym() else ""
    end = entry.offset_data + (entry.size if entry.isfile() else 0)
    return Head(Owner(entry.uid, entry.gid), link, archive[entry.offset_data : end])


def _find(accounts: str, name: str) -> list[str] | None:
    """Return the fields of the account with this name, else of the one with this number."""
    lines = [line.split(":") for line in accounts.splitlines()]
    valid = [line for line in lines if len(line) >= _FIELDS and _NUMERIC.fullmatch(line[2])]
    by_name = (line for line in valid if line[0] == name)
    by_number = (line for line in valid if line[2] == name)
    return next(by_name, None) or next(by_number, None)
