"""Snapshots of one sandbox, ``alice``: a plain one with the changes that a test needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from reconciler.core import naming
from reconciler.core.action import Blocker, Source, Verb
from reconciler.core.decide import decide
from reconciler.core.health import Health, Verdict
from reconciler.core.observed import Container, Observed, Phase, Volume
from reconciler.core.plan import plan
from reconciler.core.restart import End, Failure, SandboxMemory
from reconciler.core.snapshot import Desired, Identity, Snapshot
from reconciler.core.spec import DesiredState, SandboxSpec

PREFIX: Final = "oh-agent-server-"
KEY: Final = "alice"
NAME: Final = naming.container_name(PREFIX, KEY)
NEXT: Final = naming.successor_name(PREFIX, KEY)
PREV: Final = naming.predecessor_name(PREFIX, KEY)
PREP: Final = naming.stand_in_name(PREFIX, KEY)
VOLUME: Final = naming.volume_name(PREFIX, KEY)
NOW: Final = 1_000_000.0
HASH: Final = "1:new"
OLD: Final = "1:old"
PORTS: Final = {8000: 30000}
IDENTITY: Final = Identity("secret-key", PORTS)
HEALTH: Final = {"path": "/health", "startup_grace": "60s", "failures": 3}


def spec(**fields: Any) -> SandboxSpec:
    plain = {
        "image": "demo:1",
        "ports": [{"name": "HTTP", "container_port": 8000}],
        "workspace": {"path": "/workspace"},
    }
    return SandboxSpec.model_validate({**plain, **fields})


def desired(
    state: str = "running",
    *,
    spec_hash: str | None = HASH,
    identity: Identity | None = IDENTITY,
    **fields: Any,
) -> Desired:
    return Desired(
        name=KEY,
        state=DesiredState(state),
        spec_name="demo",
        spec=spec(**fields),
        spec_hash=spec_hash,
        identity=identity,
    )


def blocked(source: Source, reason: str) -> tuple[Blocker, ...]:
    """Return the blockers of a snapshot with this reason; none if it is empty."""
    verb = None if source in {Source.ENGINE, Source.RECORD} else Verb.CREATE
    return (Blocker(verb, None, reason, source),) if reason else ()


def container(
    name: str = NAME,
    phase: Phase = Phase.RUNNING,
    spec_hash: str = HASH,
    **changes: Any,
) -> Container:
    """Return a container with the leased port and the workspace; started unless CREATED."""
    started = None if phase is Phase.CREATED else NOW - 100
    finished = NOW - 10 if phase in {Phase.EXITED, Phase.DEAD} else None
    plain = Container(
        id=f"id-{name.removeprefix(NAME).split('.')[1] if '.' in name else name}",
        name=name,
        sandbox=KEY,
        spec="demo",
        spec_hash=spec_hash,
        phase=phase,
        created_at=NOW - 200,
        started_at=started,
        finished_at=finished,
        ports=PORTS,
        volumes=frozenset({VOLUME}),
    )
    return replace(plain, **changes)


def volume(name: str = VOLUME, **changes: Any) -> Volume:
    return replace(Volume(name, KEY), **changes)


def snapshot(
    wanted: Desired | None,
    *containers: Container,
    volumes: tuple[Volume, ...] = (volume(),),
    **changes: Any,
) -> Snapshot:
    plain = Snapshot(
        key=KEY,
        prefix=PREFIX,
        desired=wanted,
        observed=Observed(containers, volumes),
        now=NOW,
    )
    return replace(plain, **changes)


def failing(
    *verbs: Verb,
    spec_hash: str = HASH,
    due: float = NOW + 30,
    cause: str = "no",
    on: Container | str = "",
) -> SandboxMemory:
    """Return the memory after each of the verbs failed once, a second ago."""
    target = on if isinstance(on, str) else on.id
    failures = (Failure(verb, spec_hash, cause, 1, NOW - 1, due, target) for verb in verbs)
    return SandboxMemory(failures=tuple(failures))


def health(verdict: Verdict, of: Container, **changes: Any) -> Health:
    return replace(Health(of.id, of.started_at, NOW - 100, verdict, since=NOW), **changes)


def ended(of: Container, due: float | None = None, **changes: Any) -> SandboxMemory:
    """Return the memory of the container's end: a death if ``due`` is set, else our own stop."""
    return SandboxMemory(ended=End.of(of), not_before=due, **changes)


def short(text: str) -> str:
    """Shorten the names to ``alice``, ``next``, ``prev``, ``prep``, ``workspace``."""
    names = {VOLUME: "workspace", NEXT: "next", PREV: "prev", PREP: "prep", NAME: KEY}
    for name, short_name in names.items():
        text = text.replace(name, short_name)
    return text


def step(of: Snapshot) -> str:
    """Return the decision as ``verb target (cause)``, or the wait with its end and reason."""
    decision = decide(of)
    if decision.action is not None:
        return short(str(decision.action))
    timed = "" if decision.wait_until is None else f" until +{decision.wait_until - of.now:g}"
    return f"wait{timed}: {decision.waiting_for}" if timed or decision.waiting_for else "nothing"


def steps(of: Snapshot) -> list[str]:
    """Return the actions of the plan, without causes."""
    return [short(str(action)).partition(" (")[0] for action in plan(of).actions]
