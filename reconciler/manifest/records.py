"""Resolve the declared records: lay each over its spec, validate it, and expand replicas."""

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
    from reconciler.manifest.specs import ResolvedSpec, SpecDefaults
    from reconciler.manifest.yaml12.composer import Place

MAX_SANDBOXES: Final = 20_000
# All records together, each replica counted with its whole spec.
MAX_VALUES: Final = 4_000_000
# A search for the closest name takes time for each spec, so only the first errors get a hint.
_MAX_HINTS: Final = 20
_NAME: Final = re.compile(NAME_PATTERN)
_PLACEHOLDER: Final = {"image": "unknown"}


@dataclass(frozen=True, slots=True)
class DeclaredRecord:
    """One declared sandbox. ``spec`` has all layers merged.

    ``file`` and ``line`` are the position of the declaration, which replicas share.
    ``env_file_at`` is the position that names its env file, in the record or its spec.
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
    """Return the usable records by sandbox name, and the held keys with the reasons."""
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
        self._declared_by: dict[str, Entry] = {}
        self._values = 0
        self._hints = 0

    def resolve(self, entry: Entry) -> None:
        if self.report.over_limit:
            return
        data, problems = entry.node.data, entry.problems()
        if not isinstance(data, dict):
            message = 'a sandbox must be a mapping that names its spec: "{spec: NAME}"'
            self.held[entry.name] = problems or self.report.add(entry.node.diagnostic(message))
            return
        # The keys that are no overrides: spec, state, replicas.
        head: RecordSpec | None = None
        try:
            head = RecordSpec.model_validate({k: data[k] for k in data if k in RECORD_ONLY})
        except ValidationError as error:
            found = explain(error, Subject(entry.key, entry.node, RecordSpec))
            problems += self.report.add(*found)
        base = self.specs.get(head.spec) if head else None
        copies = head.replicas if head and head.replicas else 1
        self._values += copies * (entry.node.size + (base.size if base else 0))
        if self._values > MAX_VALUES:
            self._reject(entry, f"too much: all records come to more than {MAX_VALUES} values")
            self.held[entry.name] = problems
            return
        spec, invalid = self._effective_spec(entry, base)
        problems += invalid
        if base is not None:
            problems += base.problems
        elif head is not None:
            self._hints += 1
            hint = did_you_mean(head.spec, self.specs) if self._hints <= _MAX_HINTS else ""
            place = entry.node.child("spec") or entry.key
            problems += self.report.add(place.diagnostic(f'no such spec: "{head.spec}"{hint}'))
        if problems or head is None or spec is None:
            self.held[entry.name] = problems
        else:
            self._add_replicas(entry, head, spec)

    def _effective_spec(
        self, entry: Entry, base: ResolvedSpec | None
    ) -> tuple[SandboxSpec | None, tuple[Diagnostic, ...]]:
        spec = base.spec if base else None
        overrides = {k: v for k, v in entry.node.data.items() if k not in RECORD_ONLY}
        if not overrides:
            return spec, ()
        layer = overridden(base, overrides, self.defaults)
        try:
            # Without a valid spec under it, only the record's own keys are checked.
            return SandboxSpec.model_validate(layer if spec else {**_PLACEHOLDER, **layer}), ()
        except ValidationError as error:
            whole = spec is not None
            subject = Subject(entry.key, entry.node, SandboxSpec, RECORD_ONLY, whole=whole)
            return None, self.report.add(*explain(error, subject))

    def _add_replicas(self, entry: Entry, head: RecordSpec, spec: SandboxSpec) -> None:
        names = [entry.name]
        if head.replicas is not None:
            names = [f"{entry.name}-{number}" for number in range(1, head.replicas + 1)]
        if len(self.records) + len(names) > MAX_SANDBOXES:
            self._reject(entry, f"more than {MAX_SANDBOXES} sandboxes")
            return
        if names and not _NAME.fullmatch(names[-1]):
            message = f'the name of its last replica, "{names[-1]}", is too long'
            self.held[entry.name] = self.report.add(entry.key.diagnostic(message))
            return
        taken = next((name for name in names if name in self._declared_by), None)
        if taken is not None:
            # It is unknown which of the two entries is meant, so both are held.
            other = self._declared_by[taken]
            place = f"{other.key.file}:{other.key.line}"
            message = f'"{taken}" is already declared by "{other.name}" in {place}'
            problems = self.report.add(entry.key.diagnostic(message))
            self.held[entry.name] = self.held[other.name] = problems
            for name, by in self._declared_by.items():
                if by is other:
                    self.records.pop(name, None)
            return
        env_file_at = entry.node.place_of("env_file") or self.specs[head.spec].env_file_at
        for name in names:
            self._declared_by[name] = entry
            self.records[name] = DeclaredRecord(
                name, head.spec, head.state, spec, entry.key.file, entry.key.line, env_file_at
            )

    def _reject(self, entry: Entry, message: str) -> None:
        self.report.over_limit = True
        self.report.reject(entry.key.diagnostic(message))
