"""Composition root: build the parts of the reconciler and connect them.

``build`` reads in the direction of the data: the desired file, the engine's state, the resources of
the host, one snapshot of all that for each key, and the controller that acts on it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from reconciler.core.action import Verb
from reconciler.core.container_config import InstanceConfig
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
from reconciler.observe.snapshots import SnapshotBuilder
from reconciler.reconcile.circuit_breaker import CircuitBreakers
from reconciler.reconcile.controller import Controller
from reconciler.reconcile.executor import Executor
from reconciler.reconcile.exits import ExitTracker
from reconciler.reconcile.external_changes import ExternalChanges
from reconciler.reconcile.identity import IdentityLeases
from reconciler.reconcile.mass_delete_guard import MassDeleteGuard
from reconciler.reconcile.orphans import OrphanTracker
from reconciler.reconcile.outcomes import Outcomes
from reconciler.reconcile.queue import WorkQueue
from reconciler.reconcile.retries import Retries
from reconciler.reconcile.sweeper import Sweeper
from reconciler.reconcile.workers import Workers
from reconciler.resources.disk_guard import DiskGuard
from reconciler.resources.image_gc import ImageCollector
from reconciler.resources.image_pulls import ImagePuller
from reconciler.telemetry.supervision import supervise
from reconciler.threads import BoundedCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reconciler.core.errors import EngineError
    from reconciler.engine.protocol import Engine
    from reconciler.manifest.sync import SyncResult
    from reconciler.resources.disk_guard import Measure
    from reconciler.settings import Settings
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder
    from reconciler.telemetry.supervision import Factory


@dataclass(frozen=True, slots=True, kw_only=True)
class Manager:
    """The connected parts for one engine, one store and one desired file.

    ``tasks`` are the long-lived tasks of the daemon by name, each supervised.
    """

    settings: Settings
    engine: Engine
    store: Store
    recorder: Recorder
    manifest_sync: ManifestSync
    queue: WorkQueue
    ownership: Ownership
    cache: Cache
    owners: Owners
    informer: Informer
    images: ImageCollector
    disk: DiskGuard
    puller: ImagePuller
    prober: Prober
    identities: IdentityLeases
    breakers: CircuitBreakers
    guard: MassDeleteGuard
    orphans: OrphanTracker
    snapshots: SnapshotBuilder
    controller: Controller
    workers: Workers
    tasks: Mapping[str, Factory]

    async def read_manifest(self, *, allow_mass_delete: bool = False) -> SyncResult:
        """Read the desired file into the store."""
        return await self.manifest_sync.read(allow_mass_delete=allow_mass_delete)

    async def observe(self) -> None:
        """Do one full observation without events, as a command needs it.

        Raises:
            EngineError: the engine could not be asked.
        """
        await self.informer.sync_once()
        await self.disk.measure()

    async def close(self) -> None:
        """End the background work. The sandboxes keep running."""
        await self.prober.close()
        await self.puller.close()
        await self.owners.close()


def build(
    settings: Settings,
    *,
    engine: Engine,
    store: Store,
    recorder: Recorder,
    monotonic: Callable[[], float] = time.monotonic,
    measure: Measure | None = None,
) -> Manager:
    """Build all parts; nothing runs until ``tasks`` are started.

    ``measure`` returns the free space of a disk; None: ask the system.
    """
    queue = WorkQueue(monotonic)

    # --- the desired file
    calls = BoundedCalls()
    env_files = EnvFiles(calls)
    secrets = Secrets(store, env_files=env_files, clock=monotonic)
    manifest_sync = ManifestSync(
        settings.desired,
        settings=settings,
        store=store,
        env_files=env_files,
        calls=calls,
        secrets=secrets,
        recorder=recorder,
        enqueue=queue.add,
    )

    def wanted() -> set[str]:
        return {*store.records, *store.deleted, *manifest_sync.held_names()}

    # --- the engine's state
    ownership = Ownership(
        engine, store, instance=settings.instance, prefix=settings.container_name_prefix
    )
    cache = Cache(engine, monotonic, ownership=ownership, claimed_volumes=store.claimed_volumes)
    owners = Owners(
        engine,
        store,
        cache=cache,
        ownership=ownership,
        instance=settings.instance,
        recorder=recorder,
    )
    identities = IdentityLeases(
        store,
        port_range=settings.port_range,
        address=settings.publish_address,
        clock=monotonic,
        recorder=recorder,
    )

    def enqueue_all() -> None:
        for key in {*cache.keys(), *wanted()}:
            queue.add(key, Priority.RESYNC)

    def adopt_existing() -> None:
        # Before a port or key is leased, existing containers keep theirs.
        for key in cache.keys() & store.records.keys():
            identities.adopt(key, cache.observed(key))

    breakers = CircuitBreakers(
        limit=max(settings.workers * 3 // 4, 1),
        # Many parallel removals have deadlocked an engine, and are no faster.
        limits=dict.fromkeys((Verb.REMOVE, Verb.REMOVE_VOLUME), settings.concurrent_removals),
        cache=cache,
        sandboxes=lambda: len(wanted()),
        wake=lambda key: queue.add(key, Priority.EVENT),
        wake_all=enqueue_all,
        recorder=recorder,
        clock=monotonic,
    )
    informer = Informer(
        engine,
        cache=cache,
        owners=owners,
        enqueue=queue.add,
        enqueue_all=enqueue_all,
        is_wanted=lambda key: key in store.records or key in store.deleted,
        on_first_sync=adopt_existing,
        on_removed=partial(breakers.note_answer, Verb.REMOVE),
        clock=monotonic,
        resync_interval=settings.resync_interval,
        recorder=recorder,
    )

    def inspect_again(key: str) -> None:
        cache.mark_key_dirty(key)
        queue.add(key, Priority.EVENT)

    prober = Prober(
        engine,
        on_verdict=lambda key, _: queue.add(key, Priority.EVENT),
        request_inspection=inspect_again,
        engine_answers=informer.synced.is_set,
        engine_info=lambda: informer.info,
        recorder=recorder,
        clock=store.clock,
    )

    # --- images and disks

    def images_in_use() -> set[str] | None:
        # A record that cannot be read may name any image.
        certain = informer.complete and store.desired_known and not store.held
        return cache.image_ids() if certain else None

    images = ImageCollector(
        engine,
        store=store,
        in_use=images_in_use,
        pinned=settings.pinned_images,
        min_age=settings.image_min_age,
        recorder=recorder,
        clock=store.clock,
    )
    disk = DiskGuard(
        engine,
        store=store,
        state_dir=settings.state_dir,
        limits=settings.disk_limits,
        collect=images.collect,
        on_change=enqueue_all,
        recorder=recorder,
        clock=monotonic,
        measure=measure,
    )

    def on_pulled(key: str, image: str, error: EngineError | None) -> None:
        if error is not None:
            retries.note_pull(key, image, error)
        queue.add(key, Priority.EVENT)

    puller = ImagePuller(
        engine,
        on_done=on_pulled,
        recorder=recorder,
        clock=monotonic,
        pulling=images.pulling,
    )

    # --- snapshots, and the controller that acts on them
    instance_config = InstanceConfig(
        instance=settings.instance,
        owner=store.owner,
        prefix=settings.container_name_prefix,
        publish_address=settings.publish_address,
        webhook_url=settings.webhook,
    )
    guard = MassDeleteGuard(
        store,
        recorder=recorder,
        count=settings.brake_count,
        percent=settings.brake_percent,
    )
    snapshots = SnapshotBuilder(
        store=store,
        cache=cache,
        informer=informer,
        puller=puller,
        prober=prober,
        disk=disk,
        manifest_sync=manifest_sync,
        env_files=env_files,
        instance_config=instance_config,
        ownership=ownership,
        open_circuits=breakers.open_circuits,
        is_orphan_held=guard.holds,
        port_problem=identities.problem,
        gc_grace=settings.gc_grace,
        pause_grace=settings.foreign_pause_grace,
    )
    retries = Retries(store=store, snapshots=snapshots, breakers=breakers, recorder=recorder)
    retain = settings.volume_retain
    orphans = OrphanTracker(
        store,
        recorder=recorder,
        gc_grace=settings.gc_grace,
        volume_retain=None if retain == FOREVER else float(retain),
    )
    controller = Controller(
        store=store,
        exits=ExitTracker(engine, store=store, informer=informer, recorder=recorder),
        external_changes=ExternalChanges(store=store, recorder=recorder),
        snapshots=snapshots,
        cache=cache,
        executor=Executor(
            engine,
            store=store,
            cache=cache,
            puller=puller,
            env_files=env_files,
            instance_config=instance_config,
            ownership=ownership,
            breakers=breakers,
        ),
        outcomes=Outcomes(
            store=store,
            cache=cache,
            identities=identities,
            puller=puller,
            retries=retries,
            recorder=recorder,
        ),
        identities=identities,
        puller=puller,
        prober=prober,
        breakers=breakers,
        retries=retries,
        orphans=orphans,
        informer=informer,
        recorder=recorder,
        publish_address=settings.publish_address,
    )
    workers = Workers(
        queue,
        reconcile=controller.reconcile,
        ready=informer.synced,
        workers=settings.workers,
        recorder=recorder,
    )
    sweeper = Sweeper(
        store=store,
        secrets=secrets,
        informer=informer,
        cache=cache,
        orphans=orphans,
        guard=guard,
        identities=identities,
        images=images,
    )
    runs: dict[str, Factory] = {
        "informer": informer.run,
        "workers": workers.run,
        "manifest-watch": manifest_sync.follow,
        "sweeper": sweeper.run,
        "disk": disk.run,
        "engine-access": EngineAccess(engine, recorder).run,
    }
    return Manager(
        settings=settings,
        engine=engine,
        store=store,
        recorder=recorder,
        manifest_sync=manifest_sync,
        queue=queue,
        ownership=ownership,
        cache=cache,
        owners=owners,
        informer=informer,
        images=images,
        disk=disk,
        puller=puller,
        prober=prober,
        identities=identities,
        breakers=breakers,
        guard=guard,
        orphans=orphans,
        snapshots=snapshots,
        controller=controller,
        workers=workers,
        tasks={name: partial(supervise, name, run, recorder) for name, run in runs.items()},
    )
