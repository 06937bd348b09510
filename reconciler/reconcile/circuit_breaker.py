"""How many changes of a kind are under way, and whether the engine hangs at that kind.

An engine can wedge: it answers questions, and some changes hang until it is restarted. Asking again
then only piles up what hangs, so after a few timeouts in a row one call of the kind is tried now
and then, and all other kinds go on. A slow engine is not wedged, for calls still end; nor is one
at which a single container hangs; nor a dead one, which answers no list either.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from reconciler.core.errors import EngineError, EngineTimeout, EngineUnavailable, Throttled
from reconciler.core.model import Verb
from reconciler.telemetry import events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from reconciler.observe.cache import Cache
    from reconciler.observe.informer import Informer
    from reconciler.telemetry.recorder import Recorder

# Timeouts in a row after which a kind of change is taken to hang.
_PATIENCE: Final = 3
# A list that is answered so long after a change was asked for shows that the engine lives.
_SETTLED: Final = 1.0
_FIRST_TRIAL: Final = 30.0
_LONGEST_TRIAL: Final = 300.0


@dataclass(slots=True)
class _Breaker:
    """One kind of change. Seconds are monotonic.

    ``answers`` is set where the engine answered a list while a call hung.
    """

    limit: int
    under_way: int = 0
    waiting: OrderedDict[str, None] = field(default_factory=OrderedDict)
    hung_keys: set[str] = field(default_factory=set)
    hung: int = 0
    answers: bool = False
    trial_at: float = 0.0
    trial_every: float = _FIRST_TRIAL

    def recover(self) -> None:
        self.hung_keys.clear()
        self.hung, self.answers = 0, False
        self.trial_at, self.trial_every = 0.0, _FIRST_TRIAL

    def await_trial(self, now: float) -> None:
        self.trial_at = now + self.trial_every
        self.trial_every = min(self.trial_every * 2, _LONGEST_TRIAL)


class CircuitBreakers:
    """One lane a verb. ``clock`` is monotonic; ``wake`` enqueues a key that waited for its turn.

    ``limits`` gives the calls of a verb that may be under way at once, ``limit`` those of all other
    verbs. ``sandboxes`` counts the sandboxes there are. ``wake_all`` enqueues every key.
    """

    def __init__(
        self,
        *,
        limit: int,
        limits: Mapping[Verb, int],
        cache: Cache,
        informer: Informer,
        sandboxes: Callable[[], int],
        wake: Callable[[str], None],
        wake_all: Callable[[], None],
        recorder: Recorder,
        clock: Callable[[], float],
    ) -> None:
        self._breakers = {verb: _Breaker(limits.get(verb, limit)) for verb in Verb}
        self._cache = cache
        self._informer = informer
        self._sandboxes = sandboxes
        self._wake = wake
        self._wake_all = wake_all
        self._recorder = recorder
        self._clock = clock
        self._connection = 0
        self._said = False

    @asynccontextmanager
    async def enter(self, verb: Verb, key: str) -> AsyncIterator[None]:
        """The turn for one call; how it ends is taken into account.

        Raises:
            Postponed: it is not the key's turn. Once there is room, the key is woken.
        """
        lane = self._breakers[verb]
        self._admit(lane, verb, key)
        began = self._clock()
        lane.under_way += 1
        try:
            yield
        except EngineTimeout:
            self._note_hang(lane, key, began)
            raise
        except EngineUnavailable:
            raise
        except EngineError:
            self._note_answer(lane)
            raise
        else:
            self._note_answer(lane)
        finally:
            lane.under_way -= 1
            self._wake_next(lane)

    def _admit(self, lane: _Breaker, verb: Verb, key: str) -> None:
        now = self._clock()
        if self._hangs(lane):
            if now < lane.trial_at:
                raise Throttled(f"the engine hangs at every {verb}")
            lane.await_trial(now)
        elif lane.under_way >= lane.limit:
            lane.waiting[key] = None
            raise Throttled(f"{lane.under_way} others are at {verb}")
        lane.waiting.pop(key, None)

    def _note_hang(self, lane: _Breaker, key: str, began: float) -> None:
        lane.hung += 1
        lane.hung_keys.add(key)
        lane.answers = lane.answers or self._cache.listed_at >= began + _SETTLED
        if self._hangs(lane) and lane.trial_at == 0.0:
            lane.await_trial(self._clock())

    def _note_answer(self, lane: _Breaker) -> None:
        hung = self._hangs(lane)
        lane.recover()
        if hung:
            self._wake_all()

    def _wake_next(self, lane: _Breaker) -> None:
        for key in list(lane.waiting)[: max(lane.limit - lane.under_way, 0)]:
            del lane.waiting[key]
            self._wake(key)

    def _hangs(self, lane: _Breaker) -> bool:
        if lane.hung < _PATIENCE:
            return False
        return len(lane.hung_keys) > 1 or self._sandboxes() == 1

    def _hanging(self) -> dict[Verb, _Breaker]:
        return {verb: lane for verb, lane in self._breakers.items() if self._hangs(lane)}

    def on_done(self, verb: Verb) -> None:
        """The engine did such a change, whoever asked for it: it does not hang at that kind."""
        self._note_answer(self._breakers[verb])

    # --- what is known of the engine ----------------------------------------------------------

    def hung(self) -> dict[Verb, float]:
        """The verbs at which the engine hangs, and in how many seconds each is tried again."""
        now = self._clock()
        return {verb: max(lane.trial_at - now, 0.0) for verb, lane in self._hanging().items()}

    @property
    def wedged(self) -> str:
        """What is wrong, and what to do about it; empty while the engine is not wedged."""
        hanging = self._hanging()
        if not any(lane.answers for lane in hanging.values()):
            return ""
        verbs = " and ".join(sorted(map(str, hanging)))
        return (
            f"the engine answers questions, but hangs at {verbs}: restart it, for instance with "
            "`systemctl restart docker`"
        )

    def review(self) -> None:
        """Say it, once, when the engine is wedged, and when it no longer is."""
        if self._informer.connections != self._connection:
            # Perhaps another engine process: what hung in the last one is no more.
            self._connection = self._informer.connections
            for lane in self._breakers.values():
                lane.recover()
        problem = self.wedged
        if problem and not self._said:
            self._said = True
            self._recorder.log(events.EngineWedged(error=problem, verbs=sorted(self.hung())))
        elif self._said and not self.hung():
            self._said = False
            self._recorder.log(events.EngineUnwedged())
