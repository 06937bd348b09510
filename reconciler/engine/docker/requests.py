"""The requests that Docker's API takes, as values. Pure."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from reconciler.core import naming
from reconciler.engine.docker.decode import CONTAINER_EVENTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_JSON: Final = {"Content-Type": "application/json"}
_ALONE: Final = {"Connection": "close"}
_TAR: Final = {"Content-Type": "application/x-tar"}
# Bytes of an answer. One container's may hold an environment of 2 MiB; a list of 30,000 has 60 MiB.
_LONGEST_OBJECT: Final = 8 << 20
LONGEST_LIST: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. ``path`` has no leading slash, and its parts are quoted.

    ``longest`` is how many bytes the body of the answer may have, unless it is a stream.
    """

    method: str
    path: str
    params: Mapping[str, str] | None = None
    body: bytes | None = None
    headers: Mapping[str, str] | None = None
    longest: int = _LONGEST_OBJECT

    def __str__(self) -> str:
        return f"{self.method} /{self.path[:80]}"

    @property
    def changes(self) -> bool:
        """Whether the engine is asked to change something."""
        return self.method not in {"GET", "HEAD"}


def get(path: str, **params: str) -> Request:
    """A question."""
    return Request("GET", path, params)


def post(path: str, body: Any = None, **params: str) -> Request:
    """A change, with a body of JSON where there is one."""
    content = None if body is None else json.dumps(body).encode()
    return Request("POST", path, params, content, _JSON)


def delete(path: str, **params: str) -> Request:
    """A removal."""
    return Request("DELETE", path, params)


def container(container_id: str, verb: str) -> str:
    """The path of one container's verb."""
    return f"containers/{quote(container_id, safe='')}/{verb}"


def volume(name: str) -> str:
    """The path of one volume."""
    return f"volumes/{quote(name, safe='')}"


def image(name: str) -> str:
    """The path of one image."""
    return f"images/{quote(name, safe='/:@')}"


def containers_of(instance: str) -> Request:
    """An instance's containers, in every phase."""
    return _list("containers/json", all="1", filters=_labelled(instance))


def volumes_of(instance: str) -> Request:
    """An instance's volumes."""
    return _list("volumes", filters=_labelled(instance))


def images() -> Request:
    """All images but the layers of a build."""
    return _list("images/json")


def events(since: float) -> Request:
    """The events of containers and volumes that may change what is observed.

    The engine sends its headers just before it subscribes: ``since`` closes that gap. Labels are no
    filter, since a volume's events have none.
    """
    filters = {"type": ["container", "volume"], "event": CONTAINER_EVENTS}
    return get("events", since=f"{since:.3f}", filters=json.dumps(filters))


def logs(container_id: str, lines: int, *, follow: bool, since: float = 0.0) -> Request:
    """The end of a container's log, and what comes after it. ``since``: seconds, of the epoch.

    It is asked for over a connection of its own, which an engine that ends no longer takes.
    """
    path = container(container_id, "logs")
    span = {"tail": str(lines), "since": f"{since:.9f}", "follow": str(int(follow))}
    return Request("GET", path, {"stdout": "1", "stderr": "1", **span}, headers=_ALONE)


def exec_create(container_id: str, command: Sequence[str]) -> Request:
    """A command to be run in a container."""
    body = {"Cmd": list(command), "AttachStdout": True, "AttachStderr": True}
    return post(container(container_id, "exec"), body)


def exec_start(exec_id: str) -> Request:
    """Run it, and give its output until it ends."""
    return post(f"exec/{exec_id}/start", {"Detach": False, "Tty": False})


def pull(repository: str, tag: str, headers: Mapping[str, str]) -> Request:
    """Pull one image."""
    params = {"fromImage": repository, "tag": tag}
    return Request("POST", "images/create", params, None, {**_JSON, **headers})


def read_archive(container_id: str, path: str) -> Request:
    """A file or folder of a container, as an archive."""
    return Request("GET", container(container_id, "archive"), {"path": path})


def stat(container_id: str, path: str) -> Request:
    """What a path of a container leads to, told in a header."""
    return Request("HEAD", container(container_id, "archive"), {"path": path})


def put_archive(container_id: str, path: str, archive: bytes) -> Request:
    """Unpack an archive in a container's folder. No file there gives way to a folder."""
    target = container(container_id, "archive")
    return Request("PUT", target, {"path": path, "noOverwriteDirNonDir": "1"}, archive, _TAR)


def samples(instance: str) -> dict[str, Request]:
    """A request for each part of the API that is used, none of which changes anything.

    That for POST needs CONTAINERS, and that for EXEC needs POST.
    """
    nobody = f"reconciler-doctor-{secrets.token_hex(8)}"
    return {
        "CONTAINERS": containers_of(instance),
        "POST": post(container(nobody, "stop")),
        "EVENTS": get("events", since="1", until="1"),
        "EXEC": post(f"exec/{nobody}/start", {"Detach": True}),
        "IMAGES": get(f"images/{nobody}/json"),
        "INFO": get("info"),
        "VERSION": get("version"),
        "VOLUMES": volumes_of(instance),
    }


def _list(path: str, **params: str) -> Request:
    return Request("GET", path, params, longest=LONGEST_LIST)


def _labelled(instance: str) -> str:
    return json.dumps({"label": [f"{naming.LABEL_INSTANCE}={instance}"]})
