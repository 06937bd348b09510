"""Which objects of the engine are ours. docs/adr/0010-ownership.md says why it is so.

Labels alone prove nothing: ``docker commit`` copies them into an image, and from there into every
container that somebody runs from it. An object is ours where its labels name this instance and

* its owner label names this database, and the database knows the object: a container by its id, a
  volume by its name, and either by the nonce that was noted before it was asked for; or
* its owner label names a database that is lost, and the object has the very name that it was made
  under.

Everything else is foreign: not renamed, stopped, removed, adopted or counted.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reconciler.core import naming
from reconciler.core.errors import Forbidden, NameTaken, NotFound, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reconciler.core.model import Claim, Container, Volume
    from reconciler.engine.protocol import Engine
    from reconciler.store.store import Store

_NONCE_BYTES: Final = 8
# Ids that are remembered of one sandbox: an engine may come back with an older container.
_MOST_IDS: Final = 32
# Nonces that are remembered after their object was seen.
_MOST_USED: Final = 2
_LOST: Final = "lost-owners"
_RIVALS: Final = "rival-owners"


class Ownership:
    """Decides for one database, from what it noted. ``prefix`` is that of container names."""

    def __init__(self, engine: Engine, store: Store, *, instance: str, prefix: str) -> None:
        self._engine = engine
        self._store = store
        self._instance = instance
        self._prefix = prefix
        self.lost = _read(store, _LOST)
        self.rivals = _read(store, _RIVALS)

    # --- before and after an object is made ----------------------------------------------------

    def intend(self, sandbox: str, name: str) -> str:
        """The nonce for an object that is to be made under ``name``, noted before it is asked for.

        It stays the same until the object was seen, so that a create whose answer was lost can be
        asked for again.
        """
        claim = self._store.claim(sandbox)
        nonce = claim.pending.get(name)
        if nonce is None:
            nonce = secrets.token_hex(_NONCE_BYTES)
            self._put(sandbox, replace(claim, pending={**claim.pending, name: nonce}))
        return nonce

    def note_container(self, sandbox: str, container_id: str, nonce: str) -> None:
        """The container was made, or found, with that nonce: from now on its id is the proof."""
        claim = self._store.claim(sandbox)
        kept = tuple(known for known in claim.containers if known != container_id)
        seen = {held: name for name, held in claim.pending.items() if held == nonce}
        self._put(
            sandbox,
            replace(
                claim,
                pending={n: held for n, held in claim.pending.items() if held != nonce},
                used=dict([*claim.used.items(), *seen.items()][-_MOST_USED:]),
                containers=(*kept, container_id)[-_MOST_IDS:],
            ),
        )

    def _note_volume(self, sandbox: str, volume: Volume) -> None:
        claim = self._store.claim(sandbox)
        pending = {n: held for n, held in claim.pending.items() if held != volume.nonce}
        kept = tuple(known for known in claim.volumes if known != volume.name)
        self._put(sandbox, replace(claim, pending=pending, volumes=(*kept, volume.name)))

    def _put(self, sandbox: str, claim: Claim) -> None:
        self._store.put_claim(sandbox, replace(claim, instance=self._instance))

    async def adopt(self, sandbox: str, volume: str | None) -> tuple[str, ...]:
        """Take over what a person says is the sandbox's; returns the names of what was found.

        Args:
            sandbox: The sandbox's name.
            volume: Its workspace, with or without our labels; None: the one with its own name.

        Raises:
            NotFound: there is neither such a volume nor a container with the sandbox's own name.
            Refused: the volume is another sandbox's workspace.
        """
        base = naming.container_name(self._prefix, sandbox)
        wanted = volume or naming.volume_of(base)
        other = self._store.claimed_volumes.get(wanted, sandbox)
        if other != sandbox:
            raise Refused(f"volume {wanted} is the workspace of {other}: adopt another one")
        found = await self._engine.inspect_volume(wanted)
        if volume is not None and found is None:
            raise NotFound(f"volume {volume} does not exist: see `docker volume ls`")
        container = await self._engine.inspect(base)
        if found is not None:
            self._note_volume(sandbox, found)
        mine = container is not None and container.sandbox == sandbox
        if container is not None and mine:
            self.note_container(sandbox, container.id, container.nonce)
        taken = {found.name: found.name} if found else {}
        taken |= {container.id: base} if container is not None and mine else {}
        if not taken:
            raise NotFound(f"neither volume {wanted} nor a container {base} of {sandbox} exists")
        claim = self._store.claim(sandbox)
        self._put(sandbox, replace(claim, adopted=tuple({*claim.adopted, *taken})))
        return tuple(taken.values())

    def problem(self, sandbox: str) -> str:
        """Why nothing may be made for the sandbox: ``instance`` was changed; else empty."""
        claim = self._store.claim(sandbox)
        made = claim.containers or claim.volumes
        if not made or claim.instance == self._instance:
            return ""
        return (
            f"its container and workspace are of instance {claim.instance!r}, and `instance` is "
            f"{self._instance!r} now: set it back, or remove the old container and run "
            f"`reconciler adopt {sandbox}`"
        )

    def volumes_of(self, sandbox: str) -> tuple[str, ...]:
        """The names of the volumes that are known to be the sandbox's."""
        return self._store.claim(sandbox).volumes

    # --- whose an object is ---------------------------------------------------------------------

    async def admit(self, container: Container) -> bool:
        """Whether a container with our instance label is ours. Notes what proves it.

        Raises:
            EngineError: the engine could not be asked about its image.
        """
        sandbox = container.sandbox
        claim = self._store.claim(sandbox)
        if container.id in claim.adopted:
            return True
        if container.owner in self.rivals or naming.is_garbage(sandbox):
            return False
        if container.id in claim.containers:
            return True
        if container.owner == self._store.owner:
            late = bool(container.nonce) and claim.used.get(container.nonce) == container.name
            proven = bool(container.nonce) and container.nonce in claim.pending.values()
            proven = proven or (late and not await self._inherits(container))
        else:
            base = container.base or naming.container_name(self._prefix, sandbox)
            named = container.name in naming.made_names(base, sandbox)
            proven = (
                named and self._is_lost(container.owner) and not await self._inherits(container)
            )
        if proven:
            self.note_container(sandbox, container.id, container.nonce)
        return proven

    def admit_volume(self, volume: Volume) -> Volume | None:
        """The volume as a workspace of ours, or None. Notes what proves it."""
        sandbox = self._store.claimed_volumes.get(volume.name)
        adopted = sandbox is not None and volume.name in self._store.claim(sandbox).adopted
        if volume.owner in self.rivals and not adopted:
            return None
        if sandbox is not None:
            ours = volume.instance == self._instance
            return replace(volume, sandbox=sandbox, adopted=not ours)
        sandbox = volume.sandbox
        if volume.instance != self._instance or naming.is_garbage(sandbox):
            return None
        if volume.owner == self._store.owner:
            proven = (
                bool(volume.nonce) and volume.nonce in self._store.claim(sandbox).pending.values()
            )
        else:
            base = volume.base or naming.container_name(self._prefix, sandbox)
            proven = self._is_lost(volume.owner) and volume.name == naming.volume_of(base)
        if not proven:
            return None
        self._note_volume(sandbox, volume)
        return volume

    def _is_lost(self, owner: str) -> bool:
        return not owner or owner in self.lost

    async def _inherits(self, container: Container) -> bool:
        """Whether its labels come from its image: somebody ran a snapshot of a sandbox."""
        try:
            labels = await self._engine.image_labels(container.image_id)
        except (NotFound, Forbidden):
            return False
        same = labels.get(naming.LABEL_NONCE, "") == container.nonce
        return naming.LABEL_INSTANCE in labels and same

    # --- other databases ------------------------------------------------------------------------

    def note_lost(self, owners: Iterable[str]) -> None:
        """No daemon answers for these owners: what has its own name is taken over."""
        self.lost |= set(owners) - self.rivals
        _write(self._store, _LOST, self.lost)

    def note_rival(self, owner: str) -> None:
        """A daemon with this owner is alive: nothing of it is ever taken over."""
        self.lost.discard(owner)
        self.rivals.add(owner)
        _write(self._store, _LOST, self.lost)
        _write(self._store, _RIVALS, self.rivals)


def _read(store: Store, fact: str) -> set[str]:
    return set(json.loads(store.fact(fact) or "[]"))


def _write(store: Store, fact: str, owners: set[str]) -> None:
    store.put_fact(fact, json.dumps(sorted(owners)))


def volume_taken(volume: Volume, sandbox: str) -> NameTaken:
    """The error for a volume that is in the way of a sandbox's workspace, and what to do."""
    whose, first = "has no labels of ours", ""
    if volume.instance:
        whose = f"is of instance {volume.instance!r}, owner {volume.owner or 'unknown'!r}"
        first = "stop the daemon that made it, and "
    return NameTaken(
        f"volume {volume.name} exists and {whose}: to use it as the workspace of {sandbox}, {first}"
        f"run `reconciler adopt {sandbox}`; it is never removed or changed otherwise"
    )
