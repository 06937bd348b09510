"""Whose a workspace is to be, and the archive that makes it so. Pure.

A new volume belongs to root. Nothing in the engine's API changes that, but an archive put into a
container that has not started yet sets the owner of what it holds. The volume's root is an entry
of its parent's archive: Docker mounts all volumes before it unpacks. It passes over an entry called
``.``, and with go-archive 0.3 (as in Debian's 28.5.2) refuses ``../workspace``. Podman mounts none:
it changes the folder below, whose owner the volume takes over at its first use.
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
    from collections.abc import Iterator, Mapping, Sequence

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
    """Numbers of a user and of a group."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Place:
    """What a path in a container leads to: permissions, and the target where it is a link."""

    mode: int
    link: str


@dataclass(frozen=True, slots=True)
class Head:
    """The first entry of an archive. ``content`` is empty for what is not a file."""

    owner: Owner
    link: str
    content: bytes


def can_write_beside(path: str, spec: SandboxSpec) -> bool:
    """Whether the engine takes an archive at the parent of ``path``, in the container itself."""
    parent = PurePosixPath(posixpath.normpath(path)).parent
    fixed = (mount.container_path for mount in spec.mounts if mount.mode == "ro")
    return not spec.security.read_only and not any(map(parent.is_relative_to, fixed))


def remapped_root(root_dir: str, options: Sequence[str]) -> Owner | None:
    """What root in a container is on the host of an engine with userns-remap; None without it.

    Such an engine keeps its data in a folder that is called by these two numbers.
    """
    numbers = _NUMBERS.search(root_dir)
    if numbers is None or "name=userns" not in options:
        return None
    return Owner(int(numbers[1]), int(numbers[2]))


def is_remapped(seen: Owner, owner: Owner, root: Owner) -> bool:
    """Whether ``seen`` on the host is ``owner`` in a container whose root is ``root`` there.

    The ids of a container are mapped by one range or more. Beyond the first range only a change
    from root shows.
    """
    first = Owner(root.uid + owner.uid, root.gid + owner.gid)
    return seen == first or (seen.uid not in {0, root.uid} and owner.uid != 0)


def is_root(user: str) -> bool:
    """A container's user that is root, as which a new volume is made."""
    return user.partition(":")[0] in {"", "0", "root"}


def numeric(user: str) -> Owner | None:
    """The owner that ``uid:gid`` names; None where the container's accounts are needed."""
    uid, _, gid = user.partition(":")
    whole = _NUMERIC.fullmatch(uid) and _NUMERIC.fullmatch(gid)
    return Owner(int(uid), int(gid)) if whole else None


def resolve(user: str, passwd: str, group: str) -> Owner:
    """The owner that ``uid``, ``name``, ``name:group`` or a mix names, as the engine takes it.

    Raises:
        Refused: the image knows no such user or group.
    """
    name, _, wanted = user.partition(":")
    account = _find(passwd, name)
    if account is None and not _NUMERIC.fullmatch(name):
        raise Refused(f"user {name!r} is not in the image's /etc/passwd: correct `user`")
    uid, gid = (int(account[2]), int(account[3])) if account else (int(name), 0)
    return Owner(uid, _group(wanted, group) if wanted else gid)


def place(header: str) -> Place:
    """What the engine's header about a path says.

    Raises:
        ValueError: it cannot be read; KeyError: it lacks something.
    """
    stat = json.loads(base64.b64decode(header))
    mode = int(stat["mode"])
    special = sum(unix for go, unix in _SPECIAL if mode & go)
    # Podman names a target, the path itself, also for what is no link.
    link = str(stat["linkTarget"]) if mode & _SYMLINK else ""
    return Place(mode & _PERMISSIONS | special, link)


def way_down(path: str, working_dir: str) -> list[str]:
    """The folders below ``path`` that lead to ``working_dir``, relative, the outermost first."""
    top = PurePosixPath(posixpath.normpath(path))
    folder = PurePosixPath(posixpath.normpath(working_dir))
    if not folder.is_relative_to(top):
        return []
    below = folder.relative_to(top).parts
    return ["/".join(below[: end + 1]) for end in range(len(below))]


def chown_archive(top: str, modes: Mapping[str, int], owner: Owner, now: float) -> bytes:
    """An archive that gives the folder ``top`` and those below it to ``owner``.

    ``modes`` are theirs by relative path; the empty path is ``top`` itself.
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
    """The first entry of an archive, of which only the beginning need be given.

    Raises:
        ValueError: there is none.
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


def _group(wanted: str, group: str) -> int:
    entry = _find(group, wanted)
    if entry is None and not _NUMERIC.fullmatch(wanted):
        raise Refused(f"group {wanted!r} is not in the image's /etc/group: correct `user`")
    return int(entry[2]) if entry else int(wanted)


def _find(accounts: str, name: str) -> list[str] | None:
    """The line of a name or else of a number."""
    lines = list(_accounts(accounts))
    by_name = (line for line in lines if line[0] == name)
    by_number = (line for line in lines if line[2] == name)
    return next(by_name, None) or next(by_number, None)


def _accounts(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) >= _FIELDS and _NUMERIC.fullmatch(fields[2]):
            yield fields
