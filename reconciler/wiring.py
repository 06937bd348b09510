"""The whole loop, wired together: what the daemon runs, and what ``apply`` and ``plan`` borrow."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from reconciler.core.container_config import Surroundings
from reconciler.core.model import Verb
from reconciler.core.priority import Priority
from reconciler.core.units import FOREVER
from reconciler.manifest.env_files import EnvFiles
from reconciler.manifest.secrets import Secrets
from reconciler.manifest.sync import Intake
from reconciler.observe.cache import Cache
from reconciler.observe.engine_access import Permits
from reconciler.observe.informer import Informer
from reconciler.observe.owners import Owners
from reconciler.observe.ownership import Ownership
from reconciler.observe.probes import Prober
from reconciler.observe.snapshots import Sources, Views
from reconciler.reconcile.circuit_breaker import Lanes
from reconciler.reconcile.controller import Controller
from reconciler.reconcile.executor import Executor
from reconciler.reconcile.exits import Exits
from reconciler.reconcile.external_changes import Outside
from reconciler.reconcile.identity import Identities
from reconciler.reconcile.mass_delete_guard import Guard
from reconciler.reconcile.orphans import Collector
from reconciler.reconcile.queue import WorkQueue
from reconciler.reconcile.retries import Failures
from reconciler.reconcile.workers import Dispatcher
from reconciler.resources.disk_guard import DiskGuard
from reconciler.resources.image_gc import Images
from reconciler.resources.image_pulls import Puller
from reconciler.telemetry.supervision import supervise
from reconciler.threads import BoundedCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reconciler.core.errors import EngineError
    from reconciler.core.model import Health
    from reconciler.engine.protocol import Engine
    from reconciler.manifest.sync import Reading
    from reconciler.resources.disk_guard import Measure
    from reconciler.settings import Settings
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Reporter
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
        reporter: Reporter,
        monotonic: Callable[[], float] = time.monotonic,
        measure: Measure | None = None,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.store = store
        self.reporter = reporter
        self.queue = WorkQueue(monotonic)
        self._calls = BoundedCalls()
        self.env_files = EnvFiles(self._calls)
        self._secrets = Secrets(store, env_files=self.env_files, clock=monotonic)
        self.around = Surroundings(
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
            reporter=reporter,
        )
        self.informer = Informer(
            engine,
            cache=self.cache,
            owners=self.owners,
            enqueue=self.queue.add,
            wanted=self._wanted,
            is_wanted=lambda key: key in store.records or key in store.deleted,
            on_first_sync=self._adopt,
            on_removed=lambda: self.lanes.on_done(Verb.REMOVE),
            clock=monotonic,
            resync_interval=settings.resync_interval,
            reporter=reporter,
        )
        self.images = Images(
            engine,
            store=store,
            in_use=self._images_in_use,
            pinned=settings.pinned_images,
            min_age=settings.image_min_age,
            reporter=reporter,
            clock=store.clock,
        )
        self.disk = DiskGuard(
            engine,
            store=store,
            state_dir=settings.state_dir,
            limits=settings.disk_limits,
            collect=self.images.collect,
            on_change=self.informer.enqueue_all,
            reporter=reporter,
            clock=monotonic,
            measure=measure,
        )
        self.puller = Puller(
            engine,
            on_done=self._on_pulled,
            reporter=reporter,
            clock=monotonic,
            pulling=self.images.pulling,
        )
        self.prober = Prober(
            engine,
            on_verdict=self._on_verdict,
            on_doubt=self._on_doubt,
            engine_answers=self.informer.synced.is_set,
            engine_info=lambda: self.informer.info,
            reporter=reporter,
            clock=store.clock,
        )
        self.intake = Intake(
            settings.desired,
            settings=settings,
            store=store,
            env_files=self.env_files,
            calls=self._calls,
            secrets=self._secrets,
            reporter=reporter,
            enqueue=self.queue.add,
        )
        self._identities = Identities(
            store,
            port_range=settings.port_range,
            address=settings.publish_address,
            clock=monotonic,
            reporter=reporter,
        )
        self.lanes = Lanes(
            limit=max(settings.workers * 3 // 4, 1),
            limits=_removals(settings.concurrent_removals),
            cache=self.cache,
            informer=self.informer,
            sandboxes=lambda: len(self._wanted()),
            wake=lambda key: self.queue.add(key, Priority.EVENT),
            wake_all=self.informer.enqueue_all,
            reporter=reporter,
            clock=monotonic,
        )
        self.guard = Guard(
            store,
            reporter=reporter,
            count=settings.brake_count,
            percent=settings.brake_percent,
        )
        self.views = Views(self._sources())
        self.collector = Collector(
            store,
            reporter=reporter,
            gc_grace=settings.gc_grace,
            volume_retain=_seconds(settings.volume_retain),
        )
        self._controller = self._make_controller()
        self.dispatcher = Dispatcher(
            self.queue,
            reconcile=self._controller.reconcile,
            ready=self.informer.synced,
            workers=settings.workers,
            reporter=reporter,
        )

    def _sources(self) -> Sources:
        return Sources(
            store=self.store,
            cache=self.cache,
            informer=self.informer,
            puller=self.puller,
            prober=self.prober,
            open_circuits=self.lanes.hung,
            env_files=self.env_files,
            around=self.around,
            ownership=self.ownership,
            orphan_held=self.guard.holds,
            no_ports=self._identities.problem,
            is_held=self.intake.is_held,
            held_because=self.intake.held_because,
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
            around=self.around,
            ownership=self.ownership,
            durable=self.store.flush,
            lanes=self.lanes,
        )
        return Controller(
            store=self.store,
            exits=Exits(
                self.engine,
                store=self.store,
                reporter=self.reporter,
                connections=lambda: self.informer.connections,
            ),
            views=self.views,
            cache=self.cache,
            executor=executor,
            identities=self._identities,
            puller=self.puller,
            prober=self.prober,
            lanes=self.lanes,
            outside=Outside(store=self.store, reporter=self.reporter),
            failures=Failures(
                store=self.store, views=self.views, lanes=self.lanes, reporter=self.reporter
            ),
            collector=self.collector,
            informer=self.informer,
            reporter=self.reporter,
            enqueue=self.queue.add,
            publish_address=self.settings.publish_address,
        )

    # --- life ---------------------------------------------------------------------------------

    def tasks(self) -> Mapping[str, Factory]:
        """What runs for as long as the daemon does, by name. Each is supervised."""
        tasks: dict[str, Factory] = {
            "informer": self.informer.run,
            "dispatcher": self.dispatcher.run,
            "manifest-watch": self.intake.follow,
            "sweeper": self._keep_sweeping,
            "disk": self.disk.run,
            "permits": Permits(self.engine, self.reporter).run,
        }
        return {name: partial(supervise, name, run, self.reporter) for name, run in tasks.items()}

    async def read_manifest(self, *, allow_mass_delete: bool = False) -> Reading:
        """Take in the desired file, and everything that was declared before."""
        reading = await self.intake.read(allow_mass_delete=allow_mass_delete)
        for name in self._wanted():
            self.queue.add(name, Priority.RESYNC)
        return reading

    async def observe(self) -> None:
        """One full observation, for those who only look.

        Raises:
            EngineError: the engine cannot be asked.
        """
        await self.informer.sync_once()
        await self.disk.look()

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
                self.images.renew()
                await self.images.settle()

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
        return {*self.store.records, *self.store.deleted, *self.intake.held_names()}

    def _adopt(self) -> None:
        # Before anything new is leased, what exists keeps what it has.
        for key in self.cache.keys() & set(self.store.records):
            self._identities.adopt(key, self.cache.observed(key))


def _removals(limit: int) -> dict[Verb, int]:
    """Many removals at once have been seen to deadlock an engine, and are no faster."""
    return {Verb.REMOVE: limit, Verb.REMOVE_VOLUME: limit}


def _seconds(retain: float | str) -> float | None:
    return None if retain == FOREVER else float(retain)
