"""The whole loop, wired together: what the daemon runs, and what ``apply`` and ``plan`` borrow."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from reconciler.core.container_config import InstanceConfig
from reconciler.core.model import Verb
from reconciler.core.priority import Priority
from reconciler.core.units import FOREVER
from reconciler.manifest.env_files import EnvFiles
from reconciler.manifest.secrets import Secrets
from reconciler.manifest.sync import ManifestSync
from reconciler.observe.cache import Cache
from reconciler.observe.engine_access import EngineAccess
from reconciler.observe.informer import Informer
from reconciler.observe.owners import Owners
from reconciler.observe.ownership import Ownership
from reconciler.observe.probes import Prober
from reconciler.observe.snapshots import SnapshotBuilder, Sources
from reconciler.reconcile.circuit_breaker import CircuitBreakers
from reconciler.reconcile.controller import Controller
from reconciler.reconcile.executor import Executor
from reconciler.reconcile.exits import ExitTracker
from reconciler.reconcile.external_changes import ExternalChanges
from reconciler.reconcile.identity import IdentityLeases
from reconciler.reconcile.mass_delete_guard import Guard
from reconciler.reconcile.orphans import OrphanTracker
from reconciler.reconcile.queue import WorkQueue
from reconciler.reconcile.retries import Retries
from reconciler.reconcile.workers import Workers
from reconciler.resources.disk_guard import DiskGuard
from reconciler.resources.image_gc import ImageCollector
from reconciler.resources.image_pulls import ImagePuller
from reconciler.telemetry.supervision import supervise
from reconciler.threads import BoundedCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reconciler.core.errors import EngineError
    from reconciler.core.model import Health
    from reconciler.engine.protocol import Engine
    from reconciler.manifest.sync import SyncResult
    from reconciler.resources.disk_guard import Measure
    from reconciler.settings import Settings
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder
    from reconciler.telemetry.supervision import Factory

_SWEEP_EVERY: Final = 30.0


class Manager:
    """Owns every part of the loop for one engine, one store and one desired file."""

    def __init__(
        self,
        settings: Settings,
        *,
        engine: Engine,
        store: Store,
        recorder: Recorder,
        monotonic: Callable[[], float] = time.monotonic,
        measure: Measure | None = None,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.store = store
        self.recorder = recorder
        self.queue = WorkQueue(monotonic)
        self._calls = BoundedCalls()
        self.env_files = EnvFiles(self._calls)
        self._secrets = Secrets(store, env_files=self.env_files, clock=monotonic)
        self.instance_config = InstanceConfig(
            instance=settings.instance,
            owner=store.owner,
            prefix=settings.container_name_prefix,
            publish_address=settings.publish_address,
            webhook_url=settings.webhook,
        )
        self.ownership = Ownership(
            engine, store, instance=settings.instance, prefix=settings.container_name_prefix
        )
        self.cache = Cache(
            engine,
            monotonic,
            ownership=self.ownership,
            claimed_volumes=store.claimed_volumes,
        )
        self.owners = Owners(
            engine,
            store,
            ownership=self.ownership,
            instance=settings.instance,
            on_rival=self._judge_again,
            recorder=recorder,
        )
        self.informer = Informer(
            engine,
            cache=self.cache,
            owners=self.owners,
            enqueue=self.queue.add,
            wanted=self._wanted,
            is_wanted=lambda key: key in store.records or key in store.deleted,
            on_first_sync=self._adopt,
            on_removed=lambda: self.breakers.on_done(Verb.REMOVE),
            clock=monotonic,
            resync_interval=settings.resync_interval,
            recorder=recorder,
        )
        self.images = ImageCollector(
            engine,
            store=store,
            in_use=self._images_in_use,
            pinned=settings.pinned_images,
            min_age=settings.image_min_age,
            recorder=recorder,
            clock=store.clock,
        )
        self.disk = DiskGuard(
            engine,
            store=store,
            state_dir=settings.state_dir,
            limits=settings.disk_limits,
            collect=self.images.collect,
            on_change=self.informer.enqueue_all,
            recorder=recorder,
            clock=monotonic,
            measure=measure,
        )
        self.puller = ImagePuller(
            engine,
            on_done=self._on_pulled,
            recorder=recorder,
            clock=monotonic,
            pulling=self.images.pulling,
        )
        self.prober = Prober(
            engine,
            on_verdict=self._on_verdict,
            on_doubt=self._on_doubt,
            engine_answers=self.informer.synced.is_set,
            engine_info=lambda: self.informer.info,
            recorder=recorder,
            clock=store.clock,
        )
        self.manifest_sync = ManifestSync(
            settings.desired,
            settings=settings,
            store=store,
            env_files=self.env_files,
            calls=self._calls,
            secrets=self._secrets,
            recorder=recorder,
            enqueue=self.queue.add,
        )
        self._identities = IdentityLeases(
            store,
            port_range=settings.port_range,
            address=settings.publish_address,
            clock=monotonic,
            recorder=recorder,
        )
        self.breakers = CircuitBreakers(
            limit=max(settings.workers * 3 // 4, 1),
            limits=_removals(settings.concurrent_removals),
            cache=self.cache,
            informer=self.informer,
            sandboxes=lambda: len(self._wanted()),
            wake=lambda key: self.queue.add(key, Priority.EVENT),
            wake_all=self.informer.enqueue_all,
            recorder=recorder,
            clock=monotonic,
        )
        self.guard = Guard(
            store,
            recorder=recorder,
            count=settings.brake_count,
            percent=settings.brake_percent,
        )
        self.snapshots = SnapshotBuilder(self._sources())
        self.collector = OrphanTracker(
            store,
            recorder=recorder,
            gc_grace=settings.gc_grace,
            volume_retain=_seconds(settings.volume_retain),
        )
        self._controller = self._make_controller()
        self.dispatcher = Workers(
            self.queue,
            reconcile=self._controller.reconcile,
            ready=self.informer.synced,
            workers=settings.workers,
            recorder=recorder,
        )

    def _sources(self) -> Sources:
        return Sources(
            store=self.store,
            cache=self.cache,
            informer=self.informer,
            puller=self.puller,
            prober=self.prober,
            open_circuits=self.breakers.hung,
            env_files=self.env_files,
            instance_config=self.instance_config,
            ownership=self.ownership,
            orphan_held=self.guard.holds,
            no_ports=self._identities.problem,
            is_held=self.manifest_sync.is_held,
            held_because=self.manifest_sync.held_because,
            hold=lambda: self.disk.hold,
            blind=lambda: "" if self.informer.synced.is_set() else self.informer.error,
            gc_grace=self.settings.gc_grace,
            pause_grace=self.settings.foreign_pause_grace,
        )

    def _make_controller(self) -> Controller:
        executor = Executor(
            self.engine,
            cache=self.cache,
            puller=self.puller,
            env_files=self.env_files,
            instance_config=self.instance_config,
            ownership=self.ownership,
            durable=self.store.flush,
            breakers=self.breakers,
        )
        return Controller(
            store=self.store,
            exits=ExitTracker(
                self.engine,
                store=self.store,
                recorder=self.recorder,
                connections=lambda: self.informer.connections,
            ),
            snapshots=self.snapshots,
            cache=self.cache,
            executor=executor,
            identities=self._identities,
            puller=self.puller,
            prober=self.prober,
            breakers=self.breakers,
            external_changes=ExternalChanges(store=self.store, recorder=self.recorder),
            failures=Retries(
                store=self.store,
                snapshots=self.snapshots,
                breakers=self.breakers,
                recorder=self.recorder,
            ),
            collector=self.collector,
            informer=self.informer,
            recorder=self.recorder,
            enqueue=self.queue.add,
            publish_address=self.settings.publish_address,
        )

    # --- life ---------------------------------------------------------------------------------

    def tasks(self) -> Mapping[str, Factory]:
        """What runs for as long as the daemon does, by name. Each is supervised."""
        tasks: dict[str, Factory] = {
            "informer": self.informer.run,
            "dispatcher": self.dispatcher.run,
            "manifest-watch": self.manifest_sync.follow,
            "sweeper": self._keep_sweeping,
            "disk": self.disk.run,
            "permits": EngineAccess(self.engine, self.recorder).run,
        }
        return {name: partial(supervise, name, run, self.recorder) for name, run in tasks.items()}

    async def read_manifest(self, *, allow_mass_delete: bool = False) -> SyncResult:
        """Take in the desired file, and everything that was declared before."""
        reading = await self.manifest_sync.read(allow_mass_delete=allow_mass_delete)
        for name in self._wanted():
            self.queue.add(name, Priority.RESYNC)
        return reading

    async def observe(self) -> None:
        """One full observation, for those who only look.

        Raises:
            EngineError: the engine cannot be asked.
        """
        await self.informer.sync_once()
        await self.disk.measure()

    async def close(self) -> None:
        """End what runs in the background. The sandboxes go on."""
        await self.prober.close()
        await self.puller.close()
        await self.owners.close()

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_EVERY)
            self.store.save_time()
            self._secrets.renew()
            if self.informer.complete:
                self.collector.sweep(*self.cache.ids())
                self.guard.report()
                self._identities.sweep()
                self.images.mark_used()
                await self.images.resolve_pulls()

    # --- wiring -------------------------------------------------------------------------------

    def _on_pulled(self, key: str, image: str, error: EngineError | None) -> None:
        self._controller.on_pulled(key, image, error)

    def _on_verdict(self, key: str, health: Health) -> None:
        self._controller.on_verdict(key, health)

    def _on_doubt(self, key: str) -> None:
        self._controller.inspect_again(key)

    def _images_in_use(self) -> set[str] | None:
        # A record that cannot be read may name any image.
        certain = self.informer.complete and self.store.desired_known and not self.store.held
        return self.cache.image_ids() if certain else None

    def _judge_again(self) -> None:
        self.cache.judge_again()
        self.informer.enqueue_all()

    def _wanted(self) -> set[str]:
        return {*self.store.records, *self.store.deleted, *self.manifest_sync.held_names()}

    def _adopt(self) -> None:
        # Before anything new is leased, what exists keeps what it has.
        for key in self.cache.keys() & set(self.store.records):
            self._identities.adopt(key, self.cache.observed(key))


def _removals(limit: int) -> dict[Verb, int]:
    """Many removals at once have been seen to deadlock an engine, and are no faster."""
    return {Verb.REMOVE: limit, Verb.REMOVE_VOLUME: limit}


def _seconds(retain: float | str) -> float | None:
    return None if retain == FOREVER else float(retain)
