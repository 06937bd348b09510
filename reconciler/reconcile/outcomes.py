"""Record the outcome of an action: what it means for the sandbox's memory, ports and image."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from structlog.contextvars import bound_contextvars

from reconciler.core.action import Verb
from reconciler.core.errors import (
    EngineError,
    EngineTimeout,
    ImageNotFound,
    NotFound,
    PortTaken,
    ReconcilerError,
)
from reconciler.core.observed import Phase
from reconciler.core.restart import (
    Baseline,
    Pause,
    after_own_stop,
    after_restart,
    after_run,
    after_start,
    is_crash_loop_reported,
)
from reconciler.core.snapshot import ImageState
from reconciler.core.spec import PullPolicy
from reconciler.reconcile.action_events import announce
from reconciler.telemetry import events

if TYPE_CHECKING:
    from reconciler.core.action import Action
    from reconciler.core.observed import Container, ResourceLimits
    from reconciler.core.snapshot import Snapshot
    from reconciler.observe.cache import Cache
    from reconciler.reconcile.identity import IdentityLeases
    from reconciler.reconcile.retries import Retries
    from reconciler.resources.image_pulls import ImagePuller
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder


class Outcomes:
    """Updates memory, leases and image state after each action, and reports the action."""

    def __init__(
        self,
        *,
        store: Store,
        cache: Cache,
        identities: IdentityLeases,
        puller: ImagePuller,
        retries: Retries,
        recorder: Recorder,
    ) -> None:
        self._store = store
        self._cache = cache
        self._identities = identities
        self._puller = puller
        self._retries = retries
        self._recorder = recorder
        # By key: how often its ports were replaced since it last started.
        self._port_moves: Counter[str] = Counter()

    def forget(self, key: str) -> None:
        """Drop what is remembered of a sandbox that is gone."""
        self._port_moves.pop(key, None)

    async def succeeded(
        self, snapshot: Snapshot, action: Action, limits: ResourceLimits | None, seconds: float
    ) -> None:
        """Record an action that the engine did within ``seconds``; ``limits`` are those it set."""
        key, verb = snapshot.key, action.verb
        after = None
        if verb is Verb.STOP:
            after = await self._inspect(key, action.container_id)
        # Read after the inspection: a pull may have failed meanwhile.
        memory = self._store.memory(key)
        if verb is Verb.START:
            self._port_moves.pop(key, None)
            memory = after_start(memory)
        if verb is Verb.UNPAUSE:
            # Marked as ours until it is seen to run, so that it is not resumed twice.
            pause = Pause(action.container_id, ours=True, since=snapshot.now)
            memory = replace(memory, pause=pause)
        if limits is not None:
            memory = replace(memory, baseline=Baseline(action.container_id, limits))
        if action.restart:
            if verb is Verb.STOP and snapshot.desired is not None:
                memory = after_run(memory, snapshot.health, snapshot.desired.spec.restart)
            memory = after_restart(memory)
        if verb is Verb.STOP and after and after.phase is Phase.EXITED:
            memory = after_own_stop(memory, after)
        if memory is not self._store.memory(key):
            self._store.put_memory(key, memory)
        announce(self._recorder, snapshot, action, seconds)
        if action.restart and is_crash_loop_reported(memory.streak):
            self._recorder.tell(
                events.SandboxRestartLoop(sandbox=key, cause=action.cause, in_a_row=memory.streak)
            )

    async def _inspect(self, key: str, container_id: str) -> Container | None:
        await self._cache.refresh(key)
        return self._cache.observed(key).container(container_id)

    async def failed(self, snapshot: Snapshot, action: Action, error: ReconcilerError) -> None:
        """Record an action that failed, with its backoff where it has to be retried as it is.

        Raises:
            EngineError: it is not known whether the container still exists.
        """
        if isinstance(error, PortTaken):
            try:
                replaced = self._identities.replace(snapshot.key, error.port)
            except ReconcilerError as exhausted:
                self._retries.note(snapshot, action, exhausted)
                return
            self._port_moves[snapshot.key] += 1
            # A port that is not leased is of an older spec. If the next port is taken too, the
            # engine may refuse every port. Both need a backoff.
            if replaced and self._port_moves[snapshot.key] == 1:
                return
        elif isinstance(error, ImageNotFound):
            assert snapshot.desired is not None
            spec, was_fresh = snapshot.desired.spec, snapshot.image is ImageState.FRESH
            if spec.pull is not PullPolicy.NEVER:
                self._puller.mark(snapshot.key, spec.image, ImageState.ABSENT)
                if not was_fresh:
                    return
        elif isinstance(error, NotFound):
            self._cache.request_listing(snapshot.key)
            target = action.container_id
            if await self._inspect(snapshot.key, target) is None and target:
                # The container itself is gone: the next decision starts from that.
                return
        timed_out = isinstance(error, EngineTimeout)
        event = events.ActionTimedOut if timed_out else events.ActionFailed
        self._retries.note(snapshot, action, error, event)

    def had_no_effect(self, snapshot: Snapshot, action: Action) -> None:
        """Record that the engine reported success and nothing changed."""
        error = EngineError(
            f"the engine reports that {action.verb} of {action.target} succeeded, but nothing "
            "changed; see the engine's log"
        )
        with bound_contextvars(sandbox=snapshot.key, cause=action.cause):
            self._retries.note(snapshot, action, error)
