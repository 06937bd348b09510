"""Per-verb concurrency limit and circuit breaker.

An engine can be wedged: reads work, and some writes hang until it is restarted. Retrying only piles
up hanging calls. So after a few timeouts in a row the circuit for that verb opens, and one call at
a time probes whether the engine has recovered; other verbs continue. The circuit stays closed for a
slow engine, whose calls still end, for a single container that hangs, and for a dead engine, which
does not answer lists either.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from reconciler.core.action import Verb
from reconciler.core.errors import EngineError, EngineTimeout, EngineUnavailable, Throttled
from reconciler.telemetry import events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from reconciler.observe.cache import Cache
    from reconciler.telemetry.recorder import Recorder

# Timeouts in a row that open a circuit.
_TIMEOUT_LIMIT: Final = 3
# A list that is answered this many seconds after a call began shows that the engine is alive.
_SETTLED: Final = 1.0
# Seconds between two calls through an open circuit; doubled up to the limit.
_FIRST_PROBE: Final = 30.0
_LONGEST_PROBE: Final = 300.0


@dataclass(slots=True)
class _Circuit:
    """Calls of one verb. Times are monotonic, in seconds.

    ``timeouts`` counts those in a row, on the containers of ``timed_out``. ``engine_alive`` is set
    if the engine answered a list while a call hung. ``probe_at`` is 0 while the circuit is closed.
    """

    limit: int
    running: int = 0
    waiting: OrderedDict[str, None] = field(default_factory=OrderedDict)
    timeouts: int = 0
    timed_out: set[str] = field(default_factory=set)
    engine_alive: bool = False
    probe_at: float = 0.0
    probe_every: float = _FIRST_PROBE

    def close(self) -> None:
        self.timed_out.clear()
        self.timeouts, self.engine_alive = 0, False
        self.probe_at, self.probe_every = 0.0, _FIRST_PROBE

    def schedule_probe(self, now: float) -> None:
        self.probe_at = now + self.probe_every
        self.probe_every = min(self.probe_every * 2, _LONGEST_PROBE)


class CircuitBreakers:
    """One circuit for each verb. ``clock`` is monotonic.

    ``limits`` gives the number of parallel calls by verb, and ``limit`` that of all other verbs.
    ``sandboxes`` returns the number of sandboxes. ``wake`` enqueues a key that was throttled, and
    ``wake_all`` every key.
    """

    def __init__(
        self,
        *,
        limit: int,
        limits: Mapping[Verb, int],
        cache: Cache,
        sandboxes: Callable[[], int],
        wake: Callable[[str], None],
        wake_all: Callable[[], None],
        recorder: Recorder,
        clock: Callable[[], float],
    ) -> None:
        self._circuits = {verb: _Circuit(limits.get(verb, limit)) for verb in Verb}
        self._cache = cache
        self._sandboxes = sandboxes
        self._wake = wake
        self._wake_all = wake_all
        self._recorder = recorder
        self._clock = clock
        self._connections = 0
        self._wedge_reported = False

    @asynccontextmanager
    async def enter(self, verb: Verb, key: str) -> AsyncIterator[None]:
        """Take a slot for one call, and record its outcome.

        Raises:
            Throttled: the circuit is open, or all slots are taken. The key is woken later.
        """
        circuit, began = self._circuits[verb], self._clock()
        if self._is_open(circuit):
            if began < circuit.probe_at:
                raise Throttled(f"circuit open for {verb}")
            circuit.schedule_probe(began)
        elif circuit.running >= circuit.limit:
            circuit.waiting[key] = None
            raise Throttled(f"{circuit.running} calls of {verb} are running")
        circuit.waiting.pop(key, None)
        circuit.running += 1
        try:
            yield
        except EngineTimeout:
            circuit.timeouts += 1
            circuit.timed_out.add(key)
            circuit.engine_alive |= self._cache.listed_at >= began + _SETTLED
            if self._is_open(circuit) and circuit.probe_at == 0.0:
                circuit.schedule_probe(self._clock())
            raise
        except EngineUnavailable:
            raise
        except EngineError:
            self.note_answer(verb)
            raise
        else:
            self.note_answer(verb)
        finally:
            circuit.running -= 1
            for other in list(circuit.waiting)[: max(circuit.limit - circuit.running, 0)]:
                del circuit.waiting[other]
                self._wake(other)

    def note_answer(self, verb: Verb) -> None:
        """Close the circuit: the engine answered such a call, or reported that it did one."""
        circuit = self._circuits[verb]
        was_open = self._is_open(circuit)
        circuit.close()
        if was_open:
            self._wake_all()

    def _is_open(self, circuit: _Circuit) -> bool:
        if circuit.timeouts < _TIMEOUT_LIMIT:
            return False
        return len(circuit.timed_out) > 1 or self._sandboxes() == 1

    def open_circuits(self) -> dict[Verb, float]:
        """Return the seconds until the next half-open probe, for each verb with an open circuit."""
        now = self._clock()
        return {
            verb: max(circuit.probe_at - now, 0.0)
            for verb, circuit in self._circuits.items()
            if self._is_open(circuit)
        }

    @property
    def wedged(self) -> str:
        """What is wrong and what to do about it; empty unless the engine is wedged."""
        verbs = self.open_circuits()
        if not any(self._circuits[verb].engine_alive for verb in verbs):
            return ""
        return (
            f"the engine is wedged: reads work, but these calls hang: {', '.join(sorted(verbs))}; "
            "restart it, for instance with `systemctl restart docker`"
        )

    def report(self, connections: int) -> None:
        """Log once when the engine becomes wedged, and once when it no longer is.

        ``connections`` counts the connections to the engine.
        """
        if connections != self._connections:
            # The engine may have been restarted, which ended every call that hung.
            self._connections = connections
            for circuit in self._circuits.values():
                circuit.close()
        wedged, open_ = self.wedged, self.open_circuits()
        if wedged and not self._wedge_reported:
            self._wedge_reported = True
            self._recorder.log(events.EngineWedged(error=wedged, verbs=sorted(open_)))
        elif self._wedge_reported and not open_:
            self._wedge_reported = False
            self._recorder.log(events.EngineUnwedged())
