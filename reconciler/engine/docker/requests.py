"""Build requests of Docker's API as values. Pure."""

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
_OWN_CONNECTION: Final = {"Connection": "close"}
_TAR: Final = {"Content-Type": "application/x-tar"}
# Bytes of a response. A container's environment may take 2 MiB; a list of 30,000 takes 60 MiB.
_LONGEST_OBJECT: Final = 8 << 20
LONGEST_LIST: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. ``path`` has no leading slash, and its segments are quoted.

    ``longest`` limits the body of a response that is no stream, in bytes.
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
        """Whether the request changes something on the engine."""
        return self.method not in {"GET", "HEAD"}


def get(path: str, **params: str) -> Request:
    """Build a request that changes nothing."""
    return Request("GET", path, params)


def post(path: str, body: Any = None, **params: str) -> Request:
    """Build a change, with ``body`` as JSON unless it is None."""
    content = None if body is None else json.dumps(body).encode()
    return Request("POST", path, params, content, _JSON)


def delete(path: str, **params: str) -> Request:
    """Build a removal."""
    return Request("DELETE", path, params)


def container(container_id: str, verb: str) -> str:
    """Return the path of a verb of one container."""
    return f"containers/{quote(container_id, safe='')}/{verb}"


def connect(network: str, container_id: str) -> Request:
    """Connect a container to a network."""
    return post(f"networks/{quote(network, safe='')}/connect", {"Container": container_id})


def volume(name: str) -> str:
    """Return the path of one volume."""
    return f"volumes/{quote(name, safe='')}"


def image(name: str) -> str:
    """Return the path of one image."""
    return f"images/{quote(name, safe='/:@')}"


def containers_of(instance: str) -> Request:
    """List an instance's containers, in every phase."""
    return _list("containers/json", all="1", filters=_labelled(instance))


def volumes_of(instance: str) -> Request:
    """List an instance's volumes."""
    return _list("volumes", filters=_labelled(instance))


def images() -> Request:
    """List all images except intermediate layers of builds."""
    return _list("images/json")


def events(since: float) -> Request:
    """Subscribe to the events of containers and volumes that may change the observed state.

    The engine sends its headers just before it subscribes: ``since`` closes that gap. There is no
    filter for labels, because the events of volumes carry none.
    """
    filters = {"type": ["container", "volume"], "event": CONTAINER_EVENTS}
    return get("events", since=f"{since:.3f}", filters=json.dumps(filters))


def logs(container_id: str, lines: int, *, follow: bool, since: float = 0.0) -> Request:
    """Read the last lines of a container's log, and follow it. ``since`` is seconds of the epoch.

    The connection is not reused: an engine that shuts down would still accept it.
    """
    path = container(container_id, "logs")
    span = {"tail": str(lines), "since": f"{since:.9f}", "follow": str(int(follow))}
    return Request("GET", path, {"stdout": "1", "stderr": "1", **span}, headers=_OWN_CONNECTION)


def exec_create(container_id: str, command: Sequence[str]) -> Request:
    """Create an exec of the command in a container."""
    body = {"Cmd": list(command), "AttachStdout": True, "AttachStderr": True}
    return post(container(container_id, "exec"), body)


def exec_start(exec_id: str) -> Request:
    """Start an exec and stream its output until it ends."""
    return post(f"exec/{exec_id}/start", {"Detach": False, "Tty": False})


def pull(repository: str, tag: str, headers: Mapping[str, str]) -> Request:
    """Pull one image."""
    params = {"fromImage": repository, "tag": tag}
    return Request("POST", "images/create", params, None, {**_JSON, **headers})


def read_archive(container_id: str, path: str) -> Request:
    """Read a file or folder of a container as an archive."""
    return Request("GET", container(container_id, "archive"), {"path": path})


def stat(container_id: str, path: str) -> Request:
    """Ask what is at a path of a container; the response is a header."""
    return Request("HEAD", container(container_id, "archive"), {"path": path})


def put_archive(container_id: str, path: str, archive: bytes) -> Request:
    """Unpack an archive in a container's folder. A folder never replaces a file there."""
    target = container(container_id, "archive")
    return Request("PUT", target, {"path": path, "noOverwriteDirNonDir": "1"}, archive, _TAR)


def samples(instance: str) -> dict[str, Request]:
    """Return a harmless request for each part of the API that the daemon uses.

    The one for POST needs CONTAINERS, and the one for EXEC needs POST.
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
