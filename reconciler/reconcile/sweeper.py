"""Periodic housekeeping: drop what is kept of objects that no longer exist."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from reconciler.manifest.secrets import Secrets
    from reconciler.observe.cache import Cache
    from reconciler.observe.informer import Informer
    from reconciler.reconcile.identity import IdentityLeases
    from reconciler.reconcile.mass_delete_guard import MassDeleteGuard
    from reconciler.reconcile.orphans import OrphanTracker
    from reconciler.resources.image_gc import ImageCollector
    from reconciler.store.store import Store

_INTERVAL: Final = 30.0


class Sweeper:
    """Sweeps every 30 seconds, the first time after the first interval."""

    def __init__(
        self,
        *,
        store: Store,
        secrets: Secrets,
        informer: Informer,
        cache: Cache,
        orphans: OrphanTracker,
        guard: MassDeleteGuard,
        identities: IdentityLeases,
        images: ImageCollector,
    ) -> None:
        self._store = store
        self._secrets = secrets
        self._informer = informer
        self._cache = cache
        self._orphans = orphans
        self._guard = guard
        self._identities = identities
        self._images = images

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL)
            self._store.save_time()
            self._secrets.renew()
            # After a failed list, a missing object may still exist.
            if self._informer.complete:
                self._orphans.sweep(*self._cache.ids())
                self._guard.report()
                self._identities.sweep()
                self._images.mark_used()
                await self._images.resolve_pulls()
