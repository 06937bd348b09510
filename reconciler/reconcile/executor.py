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
    from collections.abc import Mapping

    from reconciler.core.action import Action
    from reconciler.core.container_config import ContainerConfig
    from reconciler.core.observed import ResourceLimits
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
                match action.verb:
                    case Verb.PULL:
                        self._puller.request(snapshot.key, action.target)
                    case Verb.CREATE_VOLUME:
                        nonce = self._ownership.intend(snapshot.key, action.target)
                        volume_labels = labels(self._instance_config, snapshot.key, nonce)
                        workspace = snapshot.desired and snapshot.desired.spec.workspace
                        retain = format_retain(workspace.retain) if workspace else None
                        volume_labels |= {naming.LABEL_RETAIN: retain} if retain else {}
                        await self._store.flush()
                        made = await self._engine.create_volume(action.target, volume_labels)
                        if (volume := self._ownership.admit_volume(made)) is None:
                            raise volume_taken(made, snapshot.key)
                        self._cache.put_volume(volume)
                    case Verb.REMOVE_VOLUME:
                        found = await self._engine.inspect_volume(action.target)
                        # Another volume may have that name by now.
                        volume = self._ownership.admit_volume(found) if found else None
                        if volume is not None and not volume.adopted:
                            await self._engine.remove_volume(action.target)
                        self._cache.drop_volume(action.target)
                    case Verb.CREATE:
                        assert snapshot.desired is not None
                        config = self._config(snapshot, action.target)
                        await self._store.flush()
                        try:
                            id_ = await self._engine.create(config)
                        except EngineError:
                            # An unknown container or volume may have the name.
                            self._cache.request_listing(snapshot.key)
                            raise
                        nonce = config.labels[naming.LABEL_NONCE]
                        self._ownership.note_container(snapshot.key, id_, nonce)
                        self._cache.mark_dirty(snapshot.key, id_)
                        image = snapshot.desired.spec.image
                        self._puller.mark(snapshot.key, image, ImageState.UNKNOWN)
                    case _:
                        return await self._change_container(snapshot, action)
            except (EngineUnavailable, Unreadable):
                self._cache.request_listing(snapshot.key)
                raise
            finally:
                if action.container_id:
                    self._cache.mark_dirty(snapshot.key, action.container_id)
        return None

    async def _change_container(self, snapshot: Snapshot, action: Action) -> ResourceLimits | None:
        id_, container = action.container_id, snapshot.observed.container(action.container_id)
        match action.verb:
            case Verb.START:
                assert container is not None
                if container.started_at is not None:
                    # The start erases how the last run ended, and after a crash of the daemon it
                    # must not look like someone else's: so the memory is written first.
                    await self._try_durable()
                wanted = (
                    snapshot.desired is not None and snapshot.desired.spec.workspace is not None
                )
                if wanted and container.started_at is None and container.volumes:
                    stand_in = self._config(snapshot, snapshot.names.stand_in)
                    await self._store.flush()
                    await self._engine.prepare(id_, stand_in)
                await self._engine.start(id_)
            case Verb.STOP:
                assert container is not None
                timeout = (snapshot.desired.spec if snapshot.desired else container).stop_timeout
                await self._engine.stop(id_, timeout)
            case Verb.PAUSE:
                await self._try_durable()
                await self._engine.pause(id_)
            case Verb.UNPAUSE:
                await self._engine.unpause(id_)
            case Verb.UPDATE:
                assert snapshot.memory.baseline is not None
                return await self._engine.update(id_, snapshot.memory.baseline.limits)
            case Verb.RENAME:
                await self._engine.rename(id_, action.new_name)
            case Verb.REMOVE:
                await self._engine.remove(id_)
        return None

    async def _try_durable(self) -> None:
        """Write the memory; a full disk must not stop the action."""
        with suppress(StoreError):
            await self._store.flush()

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
