"""A small synchronous client of Docker's API, independent of the project's client."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from scripts.image import TEST_IMAGE
from scripts.unixhttp import request
from tests.harness.waiting import wait_until

INSTANCE_LABEL = "io.sandbox-reconciler.instance"
SANDBOX_LABEL = "io.sandbox-reconciler.sandbox"
NOT_FOUND = 404
CONFLICT = 409


class DockerError(Exception):
    """The engine refused."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class Docker:
    """One engine. Each call opens a connection; names and ids both work."""

    def __init__(self, host: str, timeout: float = 60) -> None:
        self.host = host
        self.timeout = timeout

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Make any call. Booleans become 1 and 0, mappings JSON, and None is left out."""
        content = None if body is None else json.dumps(body).encode()
        answer = self._request(method, path, content, **query)
        return json.loads(answer) if answer.strip() else None

    # Containers

    def create(
        self,
        name: str,
        *command: str,
        image: str = TEST_IMAGE,
        labels: Mapping[str, str] | None = None,
        ports: Mapping[int, int] | None = None,
        host_config: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> str:
        """Create a container; `ports` maps the container's to the host's, on 127.0.0.1."""
        bindings = {f"{inner}/tcp": _binding(outer) for inner, outer in (ports or {}).items()}
        body = {
            "Image": image,
            "Cmd": list(command) or None,
            "Labels": dict(labels or {}),
            "ExposedPorts": {port: {} for port in bindings},
            "HostConfig": {"PortBindings": bindings, **(host_config or {})},
            **config,
        }
        return str(self.call("POST", "/containers/create", body, name=name)["Id"])

    def run(self, name: str, *command: str, **options: Any) -> str:
        """Create and start, with `create`'s options."""
        container = self.create(name, *command, **options)
        self.start(container)
        return container

    def start(self, name: str) -> None:
        self._change(name, "start")

    def stop(self, name: str, timeout: int = 1) -> None:
        self._change(name, "stop", t=timeout)

    def restart(self, name: str, timeout: int = 1) -> None:
        self._change(name, "restart", t=timeout)

    def pause(self, name: str) -> None:
        self._change(name, "pause")

    def unpause(self, name: str) -> None:
        self._change(name, "unpause")

    def kill(self, name: str, signal: str = "KILL") -> None:
        self._change(name, "kill", signal=signal)

    def rename(self, name: str, new: str) -> None:
        self.call("POST", f"/containers/{name}/rename", name=new)

    def rm(self, name: str, *, force: bool = True, volumes: bool = False) -> None:
        self.call("DELETE", f"/containers/{name}", force=force, v=volumes)

    def inspect(self, name: str) -> dict[str, Any]:
        return dict(self.call("GET", f"/containers/{name}/json"))

    def exists(self, name: str) -> bool:
        return self.state(name) is not None

    def state(self, name: str) -> str | None:
        """Return `running`, `paused`, `exited`..., or None if it is missing."""
        try:
            return str(self.inspect(name)["State"]["Status"])
        except DockerError as error:
            if error.status != NOT_FOUND:
                raise
            return None

    def env(self, name: str) -> dict[str, str]:
        return dict(item.split("=", 1) for item in self.inspect(name)["Config"]["Env"])

    def ports(self, name: str) -> dict[int, int]:
        """Return the host's port for each of the container's, as asked for at its creation."""
        bindings = self.inspect(name)["HostConfig"]["PortBindings"] or {}
        return {int(k.split("/")[0]): int(v[0]["HostPort"]) for k, v in bindings.items() if v}

    def containers(self, instance: str | None = None, **filters: list[str]) -> list[dict[str, Any]]:
        """List containers in every state, of one instance where it is given."""
        return list(
            self.call("GET", "/containers/json", all=True, filters=_filters(instance, filters))
        )

    def names(self, instance: str | None = None, **filters: list[str]) -> list[str]:
        return sorted(row["Names"][0].lstrip("/") for row in self.containers(instance, **filters))

    def exec(self, name: str, *command: str, user: str = "") -> tuple[int, str]:
        """Run a command inside; return its exit code and both its outputs."""
        body = {"Cmd": command, "User": user, "AttachStdout": True, "AttachStderr": True}
        run = self.call("POST", f"/containers/{name}/exec", body)["Id"]
        start = json.dumps({"Detach": False, "Tty": False}).encode()
        output = _demultiplex(self._request("POST", f"/exec/{run}/start", start))
        return int(self.call("GET", f"/exec/{run}/json")["ExitCode"]), output

    def logs(self, name: str) -> str:
        path = f"/containers/{name}/logs"
        return _demultiplex(self._request("GET", path, stdout=True, stderr=True))

    # Volumes, networks, images, the engine itself

    def volumes(
        self, instance: str | None = None, *, markers: bool = False
    ) -> dict[str, dict[str, Any]]:
        """Return the volumes by name; those that mark a daemon only where they are asked for."""
        answer = self.call("GET", "/volumes", filters=_filters(instance, {}))
        volumes = {volume["Name"]: volume for volume in answer["Volumes"] or []}
        kept = (n for n in volumes if markers or not n.startswith("reconciler-owner-"))
        return {name: volumes[name] for name in kept}

    def create_volume(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        self.call("POST", "/volumes/create", {"Name": name, "Labels": dict(labels or {})})

    def rm_volume(self, name: str, *, force: bool = False) -> None:
        self.call("DELETE", f"/volumes/{name}", force=force)

    def networks(self, instance: str | None = None) -> dict[str, dict[str, Any]]:
        """Return the networks by name."""
        answer = self.call("GET", "/networks", filters=_filters(instance, {}))
        return {network["Name"]: network for network in answer}

    def create_network(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        body = {"Name": name, "CheckDuplicate": True, "Labels": dict(labels or {})}
        self.call("POST", "/networks/create", body)

    def rm_network(self, name: str) -> None:
        self.call("DELETE", f"/networks/{name}")

    def disconnect(self, network: str, container: str) -> None:
        """Disconnect the container from the network."""
        body = {"Container": container, "Force": True}
        self.call("POST", f"/networks/{network}/disconnect", body)

    def images(self) -> list[dict[str, Any]]:
        return list(self.call("GET", "/images/json"))

    def image(self, name: str) -> dict[str, Any]:
        return dict(self.call("GET", f"/images/{quote(name)}/json"))

    def commit(self, container: str, image: str) -> None:
        """Create an image of a container, as ``docker commit`` does."""
        repository, _, tag = image.rpartition(":")
        self.call("POST", "/commit", container=container, repo=repository, tag=tag)

    def tag(self, image: str, repository: str, tag: str = "latest") -> None:
        self.call("POST", f"/images/{quote(image)}/tag", repo=repository, tag=tag)

    def rm_image(self, name: str, *, force: bool = True) -> None:
        self.call("DELETE", f"/images/{quote(name)}", force=force)

    def info(self) -> dict[str, Any]:
        return dict(self.call("GET", "/info"))

    def version(self) -> dict[str, Any]:
        return dict(self.call("GET", "/version"))

    def events(self, since: float, until: float, **filters: list[str]) -> list[dict[str, Any]]:
        """Return the events between two times; the end must not be far in the future."""
        body = self._request("GET", "/events", since=since, until=until, filters=filters or None)
        return [json.loads(line) for line in body.splitlines() if line.strip()]

    def purge(self, instance: str) -> None:
        """Remove everything with the instance's label, including what is being created."""
        wait_until(lambda: self._purged(instance))

    def _purged(self, instance: str) -> bool:
        paths = [
            *(f"/containers/{row['Id']}" for row in self.containers(instance)),
            *(f"/volumes/{volume}" for volume in self.volumes(instance, markers=True)),
            *(f"/networks/{network}" for network in self.networks(instance)),
        ]
        for path in paths:
            self._forget(path)
        return not paths

    def _forget(self, path: str) -> None:
        try:
            self.call("DELETE", path, force=True, v=True)
        except DockerError as error:
            if error.status not in {NOT_FOUND, CONFLICT}:
                raise

    def _change(self, name: str, action: str, **query: Any) -> None:
        self.call("POST", f"/containers/{name}/{action}", **query)

    def _request(self, method: str, path: str, body: bytes | None = None, **query: Any) -> bytes:
        target = f"{path}?{urlencode(_plain(query))}" if query else path
        answer = request(self.host, method, target, body, timeout=self.timeout)
        if answer.status >= 400:
            raise DockerError(answer.status, _message(answer.body))
        return answer.body


def labels(instance: str, sandbox: str, **more: str) -> dict[str, str]:
    """Return the labels of an instance's container or volume."""
    extra = {f"io.sandbox-reconciler.{k.replace('_', '-')}": v for k, v in more.items()}
    return {INSTANCE_LABEL: instance, SANDBOX_LABEL: sandbox, **extra}


def _binding(port: int) -> list[dict[str, str]]:
    return [{"HostIp": "127.0.0.1", "HostPort": str(port)}]


def _filters(instance: str | None, filters: Mapping[str, list[str]]) -> dict[str, list[str]]:
    own = [f"{INSTANCE_LABEL}={instance}"] if instance else []
    return {**filters, "label": [*filters.get("label", []), *own]}


def _plain(query: Mapping[str, Any]) -> dict[str, Any]:
    plain = {k: int(v) if isinstance(v, bool) else v for k, v in query.items() if v is not None}
    return {k: json.dumps(v) if isinstance(v, dict) else v for k, v in plain.items()}


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")


def _demultiplex(stream: bytes) -> str:
    """Join both outputs; each piece has a header of eight bytes that ends with its length."""
    pieces = []
    while stream:
        length = int.from_bytes(stream[4:8], "big")
        pieces.append(stream[8 : 8 + length])
        stream = stream[8 + length :]
    return b"".join(pieces).decode(errors="replace")
