"""Responses of a real engine (20.10.24), shortened to what is decoded and a little more."""

from typing import Any

LABELS = {
    "io.sandbox-reconciler.instance": "mine",
    "io.sandbox-reconciler.sandbox": "alice",
    "io.sandbox-reconciler.spec": "agent",
    "io.sandbox-reconciler.spec-hash": "1:abc",
}
ID = "a" * 64
CONTAINER: dict[str, Any] = {
    "Id": ID,
    "Created": "2026-01-02T03:04:05.123456789Z",
    "Path": "/sbin/docker-init",
    "Args": ["--", "sleep", "60"],
    "State": {
        "Status": "running",
        "Running": True,
        "Paused": False,
        "OOMKilled": False,
        "Pid": 4242,
        "ExitCode": 0,
        "Error": "",
        "StartedAt": "2026-01-02T03:04:06.5Z",
        "FinishedAt": "0001-01-01T00:00:00Z",
    },
    "Image": "sha256:" + "b" * 64,
    "Name": "/oh-agent-server-alice",
    "RestartCount": 0,
    "HostConfig": {
        "NetworkMode": "bridge",
        "PortBindings": {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "30000"}]},
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "Runtime": "runc",
    },
    "Mounts": [
        {"Type": "bind", "Source": "/srv", "Destination": "/srv"},
        {
            "Type": "volume",
            "Name": "openhands-workspace-oh-agent-server-alice",
            "Destination": "/workspace",
        },
    ],
    "Config": {
        "Image": "agent:1",
        "Labels": LABELS,
        "Env": ["PATH=/bin", "OH_SESSION_API_KEYS_0=secret"],
        "StopTimeout": 10,
        "Tty": False,
        "User": "",
        "WorkingDir": "",
    },
}
ROW: dict[str, Any] = {
    "Id": ID,
    "Names": ["/oh-agent-server-alice"],
    "Image": "agent:1",
    "Labels": LABELS,
    "State": "running",
    "Status": "Up 2 seconds",
}
VOLUME: dict[str, Any] = {
    "CreatedAt": "2026-01-02T03:04:05Z",
    "Driver": "local",
    "Labels": LABELS,
    "Name": "openhands-workspace-oh-agent-server-alice",
    "Scope": "local",
}
IMAGE: dict[str, Any] = {
    "Containers": -1,
    "Created": 1767323045,
    "Id": "sha256:" + "b" * 64,
    "RepoDigests": None,
    "RepoTags": ["agent:1"],
    "Size": 1_000_000,
}
VERSION: dict[str, Any] = {
    "Components": [{"Name": "Engine", "Version": "20.10.24"}],
    "Version": "20.10.24",
    "ApiVersion": "1.41",
    "MinAPIVersion": "1.12",
}
INFO: dict[str, Any] = {
    "DockerRootDir": "/var/lib/docker",
    "SecurityOptions": ["name=seccomp,profile=default"],
    "IndexServerAddress": "https://index.docker.io/v1/",
}
EVENT: dict[str, Any] = {
    "Type": "container",
    "Action": "die",
    "Actor": {"ID": ID, "Attributes": {**LABELS, "name": "oh-agent-server-alice"}},
    "timeNano": 1_500_000_000,
}
