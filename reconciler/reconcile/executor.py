"""The one way out to the engine: each verb of a plan, done once.

Every call has the engine's own timeout. What a call changed is marked for inspection, so the next
decision sees what the engine says and not what was hoped for.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from reconciler.core import naming
from reconciler.core.container_config import InstanceConfig, blueprint, is_leased, labels
from reconciler.core.errors import (
    EngineError,
    EngineUnavailable,
    ReconcilerError,
    Refused,
    StoreError,
    Unreadable,
)
from reconciler.core.model import ImageState, Verb
from reconciler.core.replacement import names_of, wanted_volume
from reconciler.core.units import format_retain
from reconciler.observe.ownership import volume_taken

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from reconciler.core.container_config import ContainerConfig
    from reconciler.core.model import Action, Container, Snapshot
    from reconciler.engine.protocol import Engine
    from reconciler.manifest.env_files import EnvFiles
    from reconciler.observe.cache import Cache
    from reconciler.observe.ownership import Ownership
    from reconciler.reconcile.circuit_breaker import CircuitBreakers
    from reconciler.resources.image_pulls import ImagePuller


class Executor:
    """Does actions. ``durable`` returns once all that was leased is on disk."""

    def __init__(
        self,
        engine: Engine,
        *,
        cache: Cache,
        puller: ImagePuller,
        env_files: EnvFiles,
        instance_config: InstanceConfig,
        ownership: Ownership,
        durable: Callable[[], Awaitable[None]],
        breakers: CircuitBreakers,
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._puller = puller
        self._env_files = env_files
        self._instance_config = instance_config
        self._ownership = ownership
        self._durable = durable
        self._breakers = breakers
        self._handlers: Mapping[Verb, Callable[[Snapshot, Action], Awaitable[None]]] = {
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

    async def execute(self, snapshot: Snapshot, action: Action) -> None:
        """Do one action.

        Raises:
            Postponed: the engine was not asked: it is not the key's turn.
            EngineError: the engine did not do it, or it is not known whether it did.
            ReconcilerError: it could not be asked for.
        """
        async with self._breakers.enter(action.verb, snapshot.key):
            try:
                await self._handlers[action.verb](snapshot, action)
            except (EngineUnavailable, Unreadable):
                self._cache.doubt(snapshot.key)
                raise
            finally:
                if action.container_id:
                    self._cache.touch(snapshot.key, action.container_id)

    async def _pull(self, snapshot: Snapshot, action: Action) -> None:
        self._puller.request(snapshot.key, action.target)

    async def _create_volume(self, snapshot: Snapshot, action: Action) -> None:
        marks = self._volume_labels(snapshot, self._ownership.intend(snapshot.key, action.target))
        await self._durable()
        found = await self._engine.create_volume(action.target, marks)
        volume = self._ownership.admit_volume(found)
        if volume is None:
            raise volume_taken(found, snapshot.key)
        self._cache.put_volume(volume)

    def _volume_labels(self, snapshot: Snapshot, nonce: str) -> dict[str, str]:
        marks = labels(self._instance_config, snapshot.key, nonce)
        workspace = snapshot.desired and snapshot.desired.spec.workspace
        if not workspace:
            return marks
        return {**marks, naming.LABEL_RETAIN: format_retain(workspace.retain)}

    async def _create(self, snapshot: Snapshot, action: Action) -> None:
        wanted = self._blueprint(snapshot, action.target)
        await self._durable()
        try:
            made = await self._engine.create(wanted)
        except EngineError:
            # Somebody else's volume or container may be in the way, or ours that nobody knew of.
            self._cache.doubt(snapshot.key)
            raise
        self._ownership.note_container(snapshot.key, made, wanted.labels[naming.LABEL_NONCE])
        self._cache.touch(snapshot.key, made)
        if snapshot.desired is not None:
            self._puller.mark(snapshot.key, snapshot.desired.spec.image, ImageState.UNKNOWN)

    async def _start(self, snapshot: Snapshot, action: Action) -> None:
        container = _container(snapshot, action)
        if container.started_at is not None:
            # A start wipes out how the last run ended, and must not be taken for that of others.
            await self._try_durable()
        wanted = snapshot.desired is not None and snapshot.desired.spec.workspace is not None
        if wanted and container.started_at is None and container.volumes:
            stand_in = self._blueprint(snapshot, names_of(snapshot).stand_in)
            await self._durable()
            await self._engine.prepare(action.container_id, stand_in)
        await self._engine.start(action.container_id)

    async def _stop(self, snapshot: Snapshot, action: Action) -> None:
        grace = _container(snapshot, action).stop_timeout
        if snapshot.desired is not None:
            grace = snapshot.desired.spec.stop_timeout
        await self._engine.stop(action.container_id, grace)

    async def _try_durable(self) -> None:
        """Write what is remembered; a full disk is no reason not to go on."""
        with suppress(StoreError):
            await self._durable()

    async def _pause(self, _view: Snapshot, action: Action) -> None:
        await self._try_durable()
        await self._engine.pause(action.container_id)

    async def _unpause(self, _view: Snapshot, action: Action) -> None:
        await self._engine.unpause(action.container_id)

    async def _update(self, snapshot: Snapshot, action: Action) -> None:
        baseline = snapshot.memory.baseline
        assert baseline is not None
        await self._engine.update(action.container_id, baseline.limits)

    async def _rename(self, _view: Snapshot, action: Action) -> None:
        await self._engine.rename(action.container_id, action.new_name)

    async def _remove(self, _view: Snapshot, action: Action) -> None:
        await self._engine.remove(action.container_id)

    async def _remove_volume(self, _view: Snapshot, action: Action) -> None:
        found = await self._engine.inspect_volume(action.target)
        # The volume of that name may be another by now.
        volume = self._ownership.admit_volume(found) if found else None
        if volume is not None and not volume.adopted:
            await self._engine.remove_volume(action.target)
        self._cache.drop_volume(action.target)

    def _blueprint(self, snapshot: Snapshot, name: str) -> ContainerConfig:
        assert snapshot.desired is not None
        if not is_leased(snapshot.desired.spec, snapshot.desired.identity):
            raise Refused(
                snapshot.desired.problem or "it has no port and no key yet: wait for them"
            )
        return blueprint(
            snapshot.desired,
            name,
            self._instance_config,
            self._env(snapshot.desired.spec.env_file),
            volume=wanted_volume(snapshot),
            nonce=self._ownership.intend(snapshot.key, name),
        )

    def _env(self, path: str | None) -> Mapping[str, str]:
        if path is None:
            return {}
        file = self._env_files.get(path)
        if isinstance(file, ReconcilerError):
            raise file
        return file.values


def _container(snapshot: Snapshot, action: Action) -> Container:
    found = snapshot.observed.container(action.container_id)
    assert found is not None
    return found
