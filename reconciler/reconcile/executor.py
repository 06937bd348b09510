"""Do one action on the engine.

Every call has the engine's timeout. The object that it changed is marked for inspection, so the
next decision is made from the engine's state and not from an expectation.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from reconciler.core import naming
from reconciler.core.action import Verb
from reconciler.core.container_config import InstanceConfig, container_config, is_leased, labels
from reconciler.core.errors import (
    EngineError,
    EngineUnavailable,
    ReconcilerError,
    Refused,
    StoreError,
    Unreadable,
)
from reconciler.core.snapshot import ImageState
from reconciler.core.units import format_retain
from reconciler.observe.ownership import volume_taken

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from reconciler.core.action import Action
    from reconciler.core.container_config import ContainerConfig
    from reconciler.core.observed import Container, ResourceLimits
    from reconciler.core.snapshot import Snapshot
    from reconciler.engine.protocol import Engine
    from reconciler.manifest.env_files import EnvFiles
    from reconciler.observe.cache import Cache
    from reconciler.observe.ownership import Ownership
    from reconciler.reconcile.circuit_breaker import CircuitBreakers
    from reconciler.resources.image_pulls import ImagePuller
    from reconciler.store.store import Store


class Executor:
    """Does one action at a time for a key, within the limits of the circuit breakers."""

    def __init__(
        self,
        engine: Engine,
        *,
        store: Store,
        cache: Cache,
        puller: ImagePuller,
        env_files: EnvFiles,
        instance_config: InstanceConfig,
        ownership: Ownership,
        breakers: CircuitBreakers,
    ) -> None:
        self._engine = engine
        self._store = store
        self._cache = cache
        self._puller = puller
        self._env_files = env_files
        self._instance_config = instance_config
        self._ownership = ownership
        self._breakers = breakers
        self._handlers: Mapping[
            Verb, Callable[[Snapshot, Action], Awaitable[ResourceLimits | None]]
        ] = {
            Verb.PULL: self._pull,
            Verb.CREATE_VOLUME: self._create_volume,
            Verb.CREATE: self._create,
            Verb.START: self._start,
            Verb.STOP: self._stop,
            Verb.PAUSE: self._pause,
            Verb.UNPAUSE: self._unpause,
            Verb.UPDATE: self._update,
            Verb.RENAME: self._rename,
            Verb.REMOVE: self._remove,
            Verb.REMOVE_VOLUME: self._remove_volume,
        }

    async def execute(self, snapshot: Snapshot, action: Action) -> ResourceLimits | None:
        """Do one action.

        Returns:
            After an update, the limits of the container as the engine words them.

        Raises:
            Throttled: the engine was not asked.
            EngineError: the engine did not do it, or it is unknown whether it did.
            ReconcilerError: something that the action needs is missing.
        """
        async with self._breakers.enter(action.verb, snapshot.key):
            try:
                return await self._handlers[action.verb](snapshot, action)
            except (EngineUnavailable, Unreadable):
                self._cache.request_listing(snapshot.key)
                raise
            finally:
                if action.container_id:
                    self._cache.mark_dirty(snapshot.key, action.container_id)

    async def _pull(self, snapshot: Snapshot, action: Action) -> None:
        self._puller.request(snapshot.key, action.target)

    async def _create_volume(self, snapshot: Snapshot, action: Action) -> None:
        nonce = self._ownership.intend(snapshot.key, action.target)
        volume_labels = labels(self._instance_config, snapshot.key, nonce)
        workspace = snapshot.desired and snapshot.desired.spec.workspace
        if workspace:
            volume_labels[naming.LABEL_RETAIN] = format_retain(workspace.retain)
        await self._store.flush()
        found = await self._engine.create_volume(action.target, volume_labels)
        volume = self._ownership.admit_volume(found)
        if volume is None:
            raise volume_taken(found, snapshot.key)
        self._cache.put_volume(volume)

    async def _create(self, snapshot: Snapshot, action: Action) -> None:
        config = self._config(snapshot, action.target)
        await self._store.flush()
        try:
            created = await self._engine.create(config)
        except EngineError:
            # An unknown container or volume may have the name.
            self._cache.request_listing(snapshot.key)
            raise
        self._ownership.note_container(snapshot.key, created, config.labels[naming.LABEL_NONCE])
        self._cache.mark_dirty(snapshot.key, created)
        if snapshot.desired is not None:
            self._puller.mark(snapshot.key, snapshot.desired.spec.image, ImageState.UNKNOWN)

    async def _start(self, snapshot: Snapshot, action: Action) -> None:
        container = _container(snapshot, action)
        if container.started_at is not None:
            # The start erases how the last run ended, and after a crash of the daemon it must not
            # look like someone else's: so the memory is written first.
            await self._try_durable()
        wanted = snapshot.desired is not None and snapshot.desired.spec.workspace is not None
        if wanted and container.started_at is None and container.volumes:
            stand_in = self._config(snapshot, snapshot.names.stand_in)
            await self._store.flush()
            await self._engine.prepare(action.container_id, stand_in)
        await self._engine.start(action.container_id)

    async def _stop(self, snapshot: Snapshot, action: Action) -> None:
        grace = _container(snapshot, action).stop_timeout
        if snapshot.desired is not None:
            grace = snapshot.desired.spec.stop_timeout
        await self._engine.stop(action.container_id, grace)

    async def _try_durable(self) -> None:
        """Write the memory; a full disk must not stop the action."""
        with suppress(StoreError):
            await self._store.flush()

    async def _pause(self, _snapshot: Snapshot, action: Action) -> None:
        await self._try_durable()
        await self._engine.pause(action.container_id)

    async def _unpause(self, _snapshot: Snapshot, action: Action) -> None:
        await self._engine.unpause(action.container_id)

    async def _update(self, snapshot: Snapshot, action: Action) -> ResourceLimits:
        baseline = snapshot.memory.baseline
        assert baseline is not None
        return await self._engine.update(action.container_id, baseline.limits)

    async def _rename(self, _snapshot: Snapshot, action: Action) -> None:
        await self._engine.rename(action.container_id, action.new_name)

    async def _remove(self, _snapshot: Snapshot, action: Action) -> None:
        await self._engine.remove(action.container_id)

    async def _remove_volume(self, _snapshot: Snapshot, action: Action) -> None:
        found = await self._engine.inspect_volume(action.target)
        # Another volume may have that name by now.
        volume = self._ownership.admit_volume(found) if found else None
        if volume is not None and not volume.adopted:
            await self._engine.remove_volume(action.target)
        self._cache.drop_volume(action.target)

    def _config(self, snapshot: Snapshot, name: str) -> ContainerConfig:
        desired = snapshot.desired
        env: Mapping[str, str] = {}
        assert desired is not None
        if not is_leased(desired.spec, desired.identity):
            blocker = snapshot.blocker(Verb.CREATE)
            raise Refused(blocker.reason if blocker else "no port and session key are leased yet")
        if desired.spec.env_file is not None:
            file = self._env_files.get(desired.spec.env_file)
            if isinstance(file, ReconcilerError):
                raise file
            env = file.values
        return container_config(
            desired,
            name,
            self._instance_config,
            env,
            volume=snapshot.wanted_volume,
            nonce=self._ownership.intend(snapshot.key, name),
        )


def _container(snapshot: Snapshot, action: Action) -> Container:
    found = snapshot.observed.container(action.container_id)
    assert found is not None
    return found
