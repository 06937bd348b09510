"""Decide which objects of the engine are ours. docs/adr/0010-ownership.md has the reasons.

Labels alone prove nothing: ``docker commit`` copies them into an image, and from there into every
container of that image. An object is ours if its labels name this instance and

* its owner label names this database, and the database knows the object: a container by its id, a
  volume by its name, or either by the nonce that was stored before its creation; or
* its owner label names a lost database, and the object still has the name it was created with.

Everything else is foreign: never renamed, stopped, removed, adopted or counted.
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

    from reconciler.core.observed import Claim, Container, Volume
    from reconciler.engine.protocol import Engine
    from reconciler.store.store import Store

_NONCE_BYTES: Final = 8
# Container ids that are kept for one sandbox: an engine may return with an older container.
_MOST_IDS: Final = 32
# Nonces that are kept after their object was seen.
_MOST_USED: Final = 2
_LOST: Final = "lost-owners"
_RIVALS: Final = "rival-owners"


class Ownership:
    """Decides for one database. ``prefix`` is the prefix of container names.

    ``lost`` and ``rivals`` are the owner ids of lost databases and of other live daemons.
    """

    def __init__(self, engine: Engine, store: Store, *, instance: str, prefix: str) -> None:
        self._engine = engine
        self._store = store
        self._instance = instance
        self._prefix = prefix
        self.lost = _read(store, _LOST)
        self.rivals = _read(store, _RIVALS)

    # --- creation and adoption ------------------------------------------------------------------

    def intend(self, sandbox: str, name: str) -> str:
        """Store and return the nonce for an object that is about to be created as ``name``.

        It stays the same until the object is seen, so that a create with a lost response can be
        repeated.
        """
        claim = self._store.claim(sandbox)
        nonce = claim.pending.get(name)
        if nonce is None:
            nonce = secrets.token_hex(_NONCE_BYTES)
            self._put(sandbox, replace(claim, pending={**claim.pending, name: nonce}))
        return nonce

    def note_container(self, sandbox: str, container_id: str, nonce: str) -> None:
        """Store a container that was created or found with the nonce: its id is the proof now."""
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
        """Take over objects on a user's request; return the names of those that were found.

        Args:
            sandbox: The name of the sandbox.
            volume: Its workspace, with or without our labels; None: the volume with its name.

        Raises:
            NotFound: there is neither such a volume nor a container with the sandbox's name.
            Refused: the volume is the workspace of another sandbox.
        """
        base = naming.container_name(self._prefix, sandbox)
        wanted = volume or naming.volume_of(base)
        other = self._store.claimed_volumes.get(wanted, sandbox)
        if other != sandbox:
            raise Refused(f"volume {wanted} is the workspace of {other}; adopt another one")
        found = await self._engine.inspect_volume(wanted)
        if volume is not None and found is None:
            raise NotFound(f"volume {volume} does not exist; see `docker volume ls`")
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
        """Return why nothing may be created: ``instance`` was changed. Empty if it was not."""
        claim = self._store.claim(sandbox)
        made = claim.containers or claim.volumes
        if not made or claim.instance == self._instance:
            return ""
        return (
            f"its container and workspace belong to instance {claim.instance!r}, and `instance` is "
            f"now {self._instance!r}; set it back, or remove the old container and run "
            f"`reconciler adopt {sandbox}`"
        )

    def volumes_of(self, sandbox: str) -> tuple[str, ...]:
        """Return the names of the volumes that belong to the sandbox."""
        return self._store.claim(sandbox).volumes

    # --- classification -------------------------------------------------------------------------

    async def admit(self, container: Container) -> bool:
        """Whether a container with our instance label is ours; store the proof.

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
        """Return the volume as a workspace of ours and store the proof; None if it is foreign."""
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
        """Whether its labels come from its image, which is then a commit of a sandbox."""
        try:
            labels = await self._engine.image_labels(container.image_id)
        except (NotFound, Forbidden):
            return False
        same = labels.get(naming.LABEL_NONCE, "") == container.nonce
        return naming.LABEL_INSTANCE in labels and same

    # --- other databases ------------------------------------------------------------------------

    def note_lost(self, owners: Iterable[str]) -> None:
        """Mark owners as lost: their objects with unchanged names become ours."""
        self.lost |= set(owners) - self.rivals
        _write(self._store, _LOST, self.lost)

    def note_rival(self, owner: str) -> None:
        """Mark an owner as alive: its objects are never taken over."""
        self.lost.discard(owner)
        self.rivals.add(owner)
        _write(self._store, _LOST, self.lost)
        _write(self._store, _RIVALS, self.rivals)


def _read(store: Store, fact: str) -> set[str]:
    return set(json.loads(store.fact(fact) or "[]"))


def _write(store: Store, fact: str, owners: set[str]) -> None:
    store.put_fact(fact, json.dumps(sorted(owners)))


def volume_taken(volume: Volume, sandbox: str) -> NameTaken:
    """Return the error for a foreign volume with the name of the sandbox's workspace."""
    origin, first = "has none of our labels", ""
    if volume.instance:
        origin = f"belongs to instance {volume.instance!r}, owner {volume.owner or 'unknown'!r}"
        first = "stop the daemon that created it and "
    return NameTaken(
        f"volume {volume.name} exists and {origin}; to use it as the workspace of {sandbox}, "
        f"{first}run `reconciler adopt {sandbox}`. It is not changed or removed until then"
    )
