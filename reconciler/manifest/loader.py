"""The desired file, or a folder of them, as records that are ready to be converged.

What cannot be used is reported with file, line and column, all of it in one go, and holds back no
more than it touches: a record, the records of a spec, or (where it cannot be told what the file
asks for) the whole load.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from reconciler.core.errors import Diagnostic
from reconciler.manifest.documents import gather, read
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
    "load",
    "read",
    "understand",
    "unusable",
]

_NO_RECORDS: Final[Mapping[str, DeclaredRecord]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the desired file says.

    ``records`` are the usable ones by sandbox name, replicas expanded. ``held`` are the keys under
    ``sandboxes:`` that cannot be used, with the reasons. ``fatal``: a file could not be read or
    understood as a whole, so nothing is known about what is not said, and ``records`` is empty.
    ``empty``: a file holds nothing, or is gone; one that says
    ``sandboxes: {}`` means it. ``unread``: it is fatal for now only, and has to be tried again.
    ``specs`` counts the specs that are declared.
    """

    records: Mapping[str, DeclaredRecord] = field(default_factory=lambda: _NO_RECORDS)
    held: Mapping[str, tuple[Diagnostic, ...]] = field(default_factory=dict)
    diagnostics: tuple[Diagnostic, ...] = ()
    fatal: bool = False
    empty: bool = False
    unread: bool = False
    specs: int = 0

    def env_paths(self) -> set[Path]:
        """The env files that the records name."""
        named = (record.spec.env_file for record in self.records.values())
        return {Path(name) for name in named if name is not None}

    def held_because(self, name: str) -> tuple[Diagnostic, ...]:
        """Why a sandbox that was accepted before must stay as it was; nothing if it need not.

        A held record may have had replicas before, so it holds ``name-1`` and so on too.
        """
        if name in self.records:
            return ()
        base, _, number = name.rpartition("-")
        replica_of = self.held.get(base, ()) if number.isdecimal() else ()
        return self.held.get(name, replica_of)

    def is_held(self, name: str) -> bool:
        """Whether a sandbox that was accepted before must stay as it was."""
        return bool(self.held_because(name))


def load(path: Path, defaults: SpecDefaults | None = None) -> Loaded:
    """Read a desired file, or a folder's ``*.yaml`` files in name order. Blocks; never raises.

    A file that is not there is an empty one, with a diagnostic that says so.
    """
    return understand(read(path), defaults)


def understand(contents: Contents, defaults: SpecDefaults | None = None) -> Loaded:
    """What the text of the desired files declares. Takes a bounded time and reads nothing."""
    declared = gather(contents)
    defaults = defaults or SpecDefaults()
    specs = resolve_specs(declared, defaults)
    records, held = resolve_records(declared, specs, defaults)
    fatal = declared.report.fatal
    return Loaded(
        records=_NO_RECORDS if fatal else MappingProxyType(records),
        held=held,
        diagnostics=declared.report.all(),
        fatal=fatal,
        empty=declared.report.blank,
        unread=declared.report.unread,
        specs=len(declared.specs),
    )


def unusable(error: ManifestError) -> Loaded:
    """The outcome of a reading that failed as a whole."""
    return Loaded(
        diagnostics=error.diagnostics, fatal=True, unread=isinstance(error, TransientReadError)
    )


def env_file_errors(
    records: Iterable[DeclaredRecord], refused: Mapping[str, ManifestError]
) -> tuple[Diagnostic, ...]:
    """What is wrong with the env files, each at the place that names it.

    ``refused`` has the error of each env file that cannot be used, by path.
    """
    found: set[Diagnostic] = set()
    for record in records:
        place, path = record.env_file_at, record.spec.env_file
        if place is not None and path is not None and path in refused:
            found |= {Diagnostic(*place, f"env_file {it}") for it in refused[path].diagnostics}
    return tuple(sorted(found))
