"""The records of the desired files: each laid over its spec, checked, and multiplied."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from reconciler.core.naming import NAME_PATTERN
from reconciler.core.spec import RECORD_ONLY, DesiredState, RecordSpec, SandboxSpec
from reconciler.manifest.specs import overridden
from reconciler.manifest.validation_errors import Subject, did_you_mean, explain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.core.errors import Diagnostic
    from reconciler.manifest.documents import Declarations, Entry, Report
    from reconciler.manifest.specs import Layer, ResolvedSpec, SpecDefaults
    from reconciler.manifest.yaml12.composer import Place

MAX_SANDBOXES: Final = 20_000
# What all records may amount to together, each replica counted with its whole spec.
MAX_VALUES: Final = 4_000_000
# To find the name that was meant costs as much as there are specs, so only the first get a hint.
_MAX_HINTS: Final = 20
_NAME: Final = re.compile(NAME_PATTERN)
_PLACEHOLDER: Final = {"image": "unknown"}
_NOT_A_RECORD: Final = 'a sandbox must be a mapping that names its spec: "{spec: NAME}"'


@dataclass(frozen=True, slots=True)
class DeclaredRecord:
    """One sandbox that should exist. ``spec`` is what it is made from, all layers merged.

    ``file`` and ``line`` say where it is declared; replicas share the place. ``env_file_at`` is
    where its env file is named, in the record or its spec.
    """

    name: str
    spec_name: str
    state: DesiredState
    spec: SandboxSpec
    file: str
    line: int
    env_file_at: Place | None = None


if TYPE_CHECKING:
    Records = dict[str, DeclaredRecord]
    Held = dict[str, tuple[Diagnostic, ...]]


def resolve_records(
    declared: Declarations,
    specs: Mapping[str, ResolvedSpec],
    defaults: SpecDefaults,
) -> tuple[Records, Held]:
    """The usable records by sandbox name, and the keys that are held back, with the reasons."""
    resolver = _Resolver(declared.report, specs, defaults)
    for entry in declared.sandboxes.values():
        resolver.resolve(entry)
    return resolver.records, resolver.held


@dataclass
class _Resolver:
    report: Report
    specs: Mapping[str, ResolvedSpec]
    defaults: SpecDefaults
    records: Records = field(default_factory=dict)
    held: Held = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._made_by: dict[str, Entry] = {}
        self._values = 0
        self._hints = 0

    def resolve(self, entry: Entry) -> None:
        if self.report.crowded:
            return
        problems = entry.problems()
        if not isinstance(entry.node.data, dict):
            problems = problems or self.report.add(entry.node.diagnostic(_NOT_A_RECORD))
            self.held[entry.name] = problems
            return
        head, found = self._head(entry)
        base = self.specs.get(head.spec if head else "")
        if self._spend(entry, base, copies=head.replicas if head and head.replicas else 1):
            self.held[entry.name] = problems
            return
        spec, more = self._effective(entry, base)
        problems += self.report.add(*found, *more)
        problems += self._reference(entry, head)
        if problems or head is None or spec is None:
            self.held[entry.name] = problems
            return
        self._multiply(entry, head, spec)

    def _head(self, entry: Entry) -> tuple[RecordSpec | None, tuple[Diagnostic, ...]]:
        """What a record says beside its overrides: spec, state, replicas."""
        said = {key: value for key, value in entry.node.data.items() if key in RECORD_ONLY}
        try:
            return RecordSpec.model_validate(said), ()
        except ValidationError as error:
            return None, tuple(explain(error, Subject(entry.key, entry.node, RecordSpec)))

    def _reference(self, entry: Entry, head: RecordSpec | None) -> tuple[Diagnostic, ...]:
        """What is wrong with the spec that a record names."""
        if head is None:
            return ()
        spec = self.specs.get(head.spec)
        if spec is not None:
            return spec.problems
        self._hints += 1
        hint = did_you_mean(head.spec, self.specs) if self._hints <= _MAX_HINTS else ""
        place = entry.node.child("spec") or entry.key
        return self.report.add(place.diagnostic(f'no spec is called "{head.spec}"{hint}'))

    def _effective(
        self,
        entry: Entry,
        base: ResolvedSpec | None,
    ) -> tuple[SandboxSpec | None, tuple[Diagnostic, ...]]:
        overrides = {k: v for k, v in entry.node.data.items() if k not in RECORD_ONLY}
        if not overrides:
            return (base.spec if base else None), ()
        return _validate(entry, overridden(base, overrides, self.defaults), base)

    def _spend(self, entry: Entry, base: ResolvedSpec | None, copies: int) -> bool:
        """Say whether this record is one too many to be worked out."""
        self._values += copies * (entry.node.size + (base.size if base else 0))
        if self._values > MAX_VALUES:
            self._crowded(entry, f"too much: all records come to more than {MAX_VALUES} values")
        return self.report.crowded

    def _crowded(self, entry: Entry, message: str) -> None:
        self.report.crowded = True
        self.report.end(entry.key.diagnostic(message))

    def _multiply(self, entry: Entry, head: RecordSpec, spec: SandboxSpec) -> None:
        names = _names(entry.name, head.replicas)
        if len(self.records) + len(names) > MAX_SANDBOXES:
            self._crowded(entry, f"more than {MAX_SANDBOXES} sandboxes")
        elif problems := self._unusable(entry, names):
            self.held[entry.name] = problems
        else:
            self._add(entry, names, head, spec)

    def _unusable(self, entry: Entry, names: list[str]) -> tuple[Diagnostic, ...]:
        if names and not _NAME.fullmatch(names[-1]):
            message = f'its last replica, "{names[-1]}", has too long a name'
            return self.report.add(entry.key.diagnostic(message))
        taken = next((name for name in names if name in self._made_by), None)
        return self._collision(entry, taken) if taken else ()

    def _collision(self, entry: Entry, name: str) -> tuple[Diagnostic, ...]:
        other = self._made_by[name]
        message = f'"{name}" is already made by "{other.name}" in {other.key.file}:{other.key.line}'
        problems = self.report.add(entry.key.diagnostic(message))
        # Which of the two is meant cannot be told, so neither is touched.
        self.held[other.name] = problems
        for made in [made for made, by in self._made_by.items() if by is other]:
            self.records.pop(made, None)
        return problems

    def _add(self, entry: Entry, names: list[str], head: RecordSpec, spec: SandboxSpec) -> None:
        base = self.specs[head.spec]
        env_file_at = entry.node.place_of("env_file") or base.env_file_at
        for name in names:
            self._made_by[name] = entry
            self.records[name] = DeclaredRecord(
                name, head.spec, head.state, spec, entry.key.file, entry.key.line, env_file_at
            )


def _validate(
    entry: Entry,
    layer: Layer,
    base: ResolvedSpec | None,
) -> tuple[SandboxSpec | None, tuple[Diagnostic, ...]]:
    sound = base is not None and base.spec is not None
    # Without a sound spec under it, the record is checked for what it says itself.
    checked = layer if sound else {**_PLACEHOLDER, **layer}
    try:
        return SandboxSpec.model_validate(checked), ()
    except ValidationError as error:
        subject = Subject(entry.key, entry.node, SandboxSpec, RECORD_ONLY, whole=sound)
        return None, tuple(explain(error, subject))


def _names(name: str, replicas: int | None) -> list[str]:
    if replicas is None:
        return [name]
    return [f"{name}-{number}" for number in range(1, replicas + 1)]
