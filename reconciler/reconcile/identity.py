"""Lease identities: the session key and the host ports that a sandbox keeps for life."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

import base62

from reconciler.core.errors import ReconcilerError, is_out_of_files
from reconciler.core.snapshot import Identity
from reconciler.telemetry import events
from reconciler.telemetry.redact import redactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from reconciler.core.observed import Observed
    from reconciler.core.spec import SandboxSpec
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder

_KEY_BYTES: Final = 32
_QUARANTINE: Final = 600.0


class IdentityLeases:
    """Leases session keys and host ports, durable before a container is created with them.

    Only the engine knows, at the start of a container, whether a port is free; binding it here is a
    hint. A port that the engine refuses is in quarantine: not leased again for a while.
    """

    def __init__(
        self,
        store: Store,
        *,
        port_range: tuple[int, int],
        address: str,
        clock: Callable[[], float],
        recorder: Recorder,
    ) -> None:
        self._store = store
        self._first, self._last = port_range
        self._address = address
        self._clock = clock
        self._recorder = recorder
        self._next = self._first
        self._quarantine: dict[int, float] = {}
        self._hidden: dict[str, str] = {}
        self._problems: dict[str, str] = {}
        for key, identity in store.identities.items():
            self._hide(key, identity.session_key)

    def problem(self, key: str) -> str:
        """Return why the sandbox has no lease of its host ports; empty if it has."""
        return self._problems.get(key, "")

    def lease(self, key: str, spec: SandboxSpec, observed: Observed) -> None:
        """Adopt or lease the sandbox's identity; on failure, keep the reason for ``problem``."""
        self.adopt(key, observed)
        try:
            self.ensure(key, spec)
        except ReconcilerError as error:
            self._problems[key] = str(error)
        else:
            self._problems.pop(key, None)

    def adopt(self, key: str, observed: Observed) -> None:
        """Take over the session key and ports of an existing container, if none are stored."""
        if self._store.identity(key) is not None:
            return
        # The oldest of those that run, else the oldest.
        for container in sorted(observed.containers, key=lambda c: (not c.live, c.created_at)):
            if container.session_key:
                ports = {
                    container_port: host_port
                    for container_port, host_port in container.ports.items()
                    if self._store.leased.get(host_port, key) == key
                }
                self._store.put_identity(key, Identity(container.session_key, ports))
                self._recorder.tell(
                    events.SandboxAdopted(
                        sandbox=key, cause="its container exists already", container=container.name
                    )
                )
                return

    def ensure(self, key: str, spec: SandboxSpec) -> Identity:
        """Return the sandbox's identity; lease a host port for each port that the spec publishes.

        Raises:
            ReconcilerError: no host port is free in the range.
        """
        known = self._store.identity(key) or Identity(base62.encodebytes(os.urandom(_KEY_BYTES)))
        wanted = [port.container_port for port in spec.ports]
        ports = {port: known.ports[port] for port in wanted if port in known.ports}
        for port in wanted:
            if port not in ports:
                ports[port] = self._allocate(ports.values())
        identity = Identity(known.session_key, ports)
        if identity != self._store.identity(key):
            self._store.put_identity(key, identity)
        self._hide(key, identity.session_key)
        return identity

    def _hide(self, key: str, secret: str) -> None:
        former = self._hidden.get(key)
        if former == secret:
            return
        if former is not None:
            redactor.forget(former)
        redactor.register(secret)
        self._hidden[key] = secret

    def sweep(self) -> None:
        """Forget the session keys of sandboxes that are gone, and expired quarantines."""
        now = self._clock()
        self._quarantine = {port: end for port, end in self._quarantine.items() if end > now}
        for key in [key for key in self._hidden if self._store.identity(key) is None]:
            redactor.forget(self._hidden.pop(key))
        for key in self._problems.keys() - self._store.records.keys():
            del self._problems[key]

    def replace(self, key: str, taken: int | None) -> bool:
        """Lease another port in place of ``taken``, or of every port if that is None.

        Return whether the sandbox had such a lease.

        Raises:
            ReconcilerError: no host port is free in the range.
        """
        identity = self._store.identity(key)
        ports = dict(identity.ports) if identity else {}
        lost = {c: h for c, h in ports.items() if taken is None or h == taken}
        if identity is None or not lost:
            return False
        for container_port, host_port in lost.items():
            self._quarantine[host_port] = self._clock() + _QUARANTINE
            ports[container_port] = self._allocate(ports.values())
            self._recorder.tell(
                events.PortReplaced(
                    sandbox=key,
                    cause=f"port {host_port} is in use by another process",
                    old_port=host_port,
                    port=ports[container_port],
                )
            )
        self._store.put_identity(key, Identity(identity.session_key, ports))
        return True

    def _allocate(self, chosen: Iterable[int]) -> int:
        now, mine = self._clock(), set(chosen)
        span = self._last - self._first + 1
        for step in range(span):
            port = self._first + (self._next - self._first + step) % span
            reserved = port in mine or port in self._store.leased
            if reserved or self._quarantine.get(port, 0.0) > now:
                continue
            if can_bind(self._address, port):
                self._next = port + 1
                return port
        raise ReconcilerError(
            f"no host port is free in {self._first}-{self._last}; widen the port_range setting",
        )


def can_bind(address: str, port: int) -> bool:
    """Whether the port can be bound, as far as this process can tell."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        # If this process is out of files, only the engine can tell.
        return is_out_of_files(error)
    return True
