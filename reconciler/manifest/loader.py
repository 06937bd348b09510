"""Load the desired file, or a folder of them, as records that are ready to be reconciled.

All problems are reported at once, with file, line and column. Each holds back as little as
possible: a record, the records of a spec, or the whole load if a file cannot be parsed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from reconciler.core.errors import Diagnostic
from reconciler.manifest.documents import collect_declarations, read_contents
from reconciler.manifest.records import DeclaredRecord, resolve_records
from reconciler.manifest.specs import SpecDefaults, resolve_specs
from reconciler.manifest.text_file import TransientReadError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from reconciler.core.errors import ManifestError
    from reconciler.manifest.documents import Contents

__all__ = [
    "DeclaredRecord",
    "Loaded",
    "SpecDefaults",
    "env_file_errors",
    "failed",
    "load",
    "parse",
    "read_contents",
]

_NO_RECORDS: Final[Mapping[str, DeclaredRecord]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Loaded:
    """The outcome of loading the desired file.

    ``records`` are the usable ones by sandbox name, replicas expanded. ``held`` are the keys under
    ``sandboxes:`` that cannot be used, with the reasons. ``specs`` counts the declared specs.

    ``fatal``: a file could not be read or parsed, so ``records`` is empty, and a missing record
    means nothing. ``must_retry``: fatal for a reason that may pass by itself. ``empty``: a file is
    missing or holds nothing; ``sandboxes: {}`` is not empty, since somebody wrote it.
    """

    records: Mapping[str, DeclaredRecord] = field(default_factory=lambda: _NO_RECORDS)
    held: Mapping[str, tuple[Diagnostic, ...]] = field(default_factory=dict)
    diagnostics: tuple[Diagnostic, ...] = ()
    fatal: bool = False
    empty: bool = False
    must_retry: bool = False
    specs: int = 0

    def env_paths(self) -> set[Path]:
        """Return the env files that the records name."""
        named = (record.spec.env_file for record in self.records.values())
        return {Path(name) for name in named if name is not None}

    def hold_reasons(self, name: str) -> tuple[Diagnostic, ...]:
        """Return why a sandbox must stay as last accepted, or nothing.

        A held record may have had replicas before, so it also holds ``name-1`` and so on.
        """
        if name in self.records:
            return ()
        base, _, number = name.rpartition("-")
        replica_of = self.held.get(base, ()) if number.isdecimal() else ()
        return self.held.get(name, replica_of)

    def is_held(self, name: str) -> bool:
        """Return whether a sandbox must stay as last accepted."""
        return bool(self.hold_reasons(name))


def load(path: Path, defaults: SpecDefaults | None = None) -> Loaded:
    """Load a desired file, or a folder's ``*.yaml`` files in name order. Blocks; never raises.

    A missing file is an empty one, with a diagnostic.
    """
    return parse(read_contents(path), defaults)


def parse(contents: Contents, defaults: SpecDefaults | None = None) -> Loaded:
    """Parse the text of the desired files, in limited time and without reading anything."""
    declared = collect_declarations(contents)
    defaults = defaults or SpecDefaults()
    specs = resolve_specs(declared, defaults)
    records, held = resolve_records(declared, specs, defaults)
    report = declared.report
    return Loaded(
        records=_NO_RECORDS if report.fatal else MappingProxyType(records),
        held=held,
        diagnostics=report.all(),
        fatal=report.fatal,
        empty=report.empty,
        must_retry=report.must_retry,
        specs=len(declared.specs),
    )


def failed(error: ManifestError) -> Loaded:
    """Return the outcome of a load that an error ended."""
    must_retry = isinstance(error, TransientReadError)
    return Loaded(diagnostics=error.diagnostics, fatal=True, must_retry=must_retry)


def env_file_errors(
    records: Iterable[DeclaredRecord], errors: Mapping[str, ManifestError]
) -> tuple[Diagnostic, ...]:
    """Return the problems of env files, each at the position that names the file.

    ``errors`` has the error of each env file that cannot be used, by path.
    """
    found: set[Diagnostic] = set()
    for record in records:
        place, path = record.env_file_at, record.spec.env_file
        if place is not None and path is not None and path in errors:
            found |= {Diagnostic(*place, f"env_file {it}") for it in errors[path].diagnostics}
    return tuple(sorted(found))
