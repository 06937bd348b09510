"""The store against a model: after any steps, a kill leaves what the last flush wrote."""

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from reconciler.core.disk_pressure import PulledImage
from reconciler.core.restart import Death, End, Run, SandboxMemory
from reconciler.core.snapshot import Identity
from reconciler.store.store import Orphan, Record, Store
from tests.store.conftest_store import opened, record

names = st.sampled_from(["alice", "bob", "carol", "dave"])
ports = st.dictionaries(st.integers(80, 82), st.integers(30000, 30004), max_size=3)
images = st.sampled_from(["one", "two"])
times = st.floats(0, 1e10)
deaths = st.builds(
    Death,
    container_id=st.text(max_size=3),
    seen_at=times,
    exit_code=st.integers(0, 255),
    oom_killed=st.booleans(),
    finished_at=st.none() | times,
    unseen=st.booleans(),
    error=st.text(max_size=5),
    log_tail=st.lists(st.text(max_size=5), max_size=3).map(tuple),
)
memories = st.builds(
    SandboxMemory,
    restarts=st.integers(0, 2**40),
    streak=st.integers(0, 9),
    run=st.none() | st.builds(Run, st.text(max_size=3), st.none() | times, times),
    ended=st.none()
    | st.builds(End, st.text(max_size=3), st.none() | times, st.none() | times, st.integers()),
    not_before=st.none() | times,
    death=st.none() | deaths,
)


@dataclass
class Model:
    records: dict[str, Record] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    identities: dict[str, Identity] = field(default_factory=dict)
    memories: dict[str, SandboxMemory] = field(default_factory=dict)
    orphans: dict[str, Orphan] = field(default_factory=dict)
    images: dict[str, PulledImage] = field(default_factory=dict)
    ledger: list[int] = field(default_factory=list)

    def copy(self) -> "Model":
        return Model(*(type(part)(part) for part in vars(self).values()))

    def leased(self) -> dict[int, str]:
        return {p: name for name, it in self.identities.items() for p in it.ports.values()}


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="store-model-"))
        self.lives = 0
        self.runner = asyncio.Runner()
        self.store: Store = self.runner.run(opened(self.state_dir))
        self.model = Model()
        self.durable = Model()

    @property
    def state_dir(self) -> Path:
        return self.folder / str(self.lives)

    @rule(wanted=st.dictionaries(names, images), unwanted=st.sets(names))
    def accept(self, wanted: dict[str, str], unwanted: set[str]) -> None:
        records = {name: record(name, image=image) for name, image in wanted.items()}
        changes = self.store.accept(records, unwanted)
        gone = (unwanted & self.model.records.keys()) - wanted.keys()
        assert changes.added == wanted.keys() - self.model.records.keys()
        assert changes.removed == gone
        for name in gone:
            del self.model.records[name]
        self.model.records |= records
        self.model.deleted = (self.model.deleted | gone) - wanted.keys()

    @rule(name=names)
    def forget(self, name: str) -> None:
        self.store.forget(name)
        if name in self.model.records:
            return
        self.model.deleted.discard(name)
        self.model.memories.pop(name, None)
        if known := self.model.identities.get(name):
            self.model.identities[name] = Identity(known.session_key)

    @rule(name=names)
    def drop_key(self, name: str) -> None:
        self.store.drop_key(name)
        if name not in self.model.records:
            self.model.identities.pop(name, None)

    @rule(name=names, key=st.text("ab", min_size=1, max_size=2), wanted=ports)
    def put_identity(self, name: str, key: str, wanted: dict[int, int]) -> None:
        leased = self.model.leased()
        values = list(wanted.values())
        free = len(set(values)) == len(values)
        free = free and all(leased.get(port, name) == name for port in values)
        try:
            self.store.put_identity(name, Identity(key, wanted))
        except ValueError:
            assert not free
        else:
            assert free
            self.model.identities[name] = Identity(key, wanted)

    @rule(name=names, memory=memories)
    def put_memory(self, name: str, memory: SandboxMemory) -> None:
        self.store.put_memory(name, memory)
        self.model.memories[name] = memory

    @rule(name=names, since=times, retain=st.none() | times)
    def note_orphan(self, name: str, since: float, retain: float | None) -> None:
        self.store.note_orphan("volume", f"volume-{name}", name, since, retain)
        known = self.model.orphans.get(f"volume-{name}")
        orphan = Orphan(name, known.since if known else since, retain)
        self.model.orphans[f"volume-{name}"] = orphan

    @rule(name=names)
    def drop_orphan(self, name: str) -> None:
        self.store.drop_orphan("volume", f"volume-{name}")
        self.model.orphans.pop(f"volume-{name}", None)

    @rule(id_=images, used_at=times)
    def put_image(self, id_: str, used_at: float) -> None:
        self.model.images[id_] = PulledImage(f"{id_}:1", 1.0, used_at)
        self.store.put_image(id_, self.model.images[id_])

    @rule(id_=images)
    def drop_image(self, id_: str) -> None:
        self.store.drop_image(id_)
        self.model.images.pop(id_, None)

    @rule(name=st.none() | names, cause=st.text(max_size=5))
    def append(self, name: str | None, cause: str) -> None:
        self.model.ledger.append(self.store.append("event", name, cause, {"cause": cause}).id)

    @rule()
    def flush(self) -> None:
        self.runner.run(self.store.flush())
        assert self.store.pending == 0
        self.durable = self.model.copy()

    @rule()
    def kill(self) -> None:
        """Open the files again as they are, as after a kill."""
        before = self.state_dir
        self.lives += 1
        shutil.copytree(before, self.state_dir)
        self.abandon()
        self.store = self.runner.run(opened(self.state_dir))
        self.model = self.durable.copy()

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        store, model = self.store, self.model
        assert store.unreadable == {}
        assert store.records == model.records
        assert store.deleted.keys() == model.deleted
        assert store._identities.values == model.identities
        assert store.leased == model.leased()
        assert store._memories.values == model.memories
        assert store.orphans["volume"] == model.orphans
        assert store.images == model.images
        entries = self.runner.run(store.events(limit=10_000))
        assert [entry.id for entry in entries] == model.ledger

    def abandon(self) -> None:
        self.runner.run(self.store._worker.run(self.store._database.close))
        self.store._worker.end()

    def teardown(self) -> None:
        self.abandon()
        self.runner.close()
        shutil.rmtree(self.folder)


TestStoreModel = StoreMachine.TestCase
TestStoreModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
