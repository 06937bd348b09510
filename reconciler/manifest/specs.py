"""The specs of the desired files, laid over the defaults that the settings give."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from reconciler.core.spec import MountSpec, PortSpec, SandboxSpec, merge
from reconciler.manifest.validation_errors import Subject, explain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.core.errors import Diagnostic
    from reconciler.manifest.documents import Declarations, Entry, Report
    from reconciler.manifest.yaml12.composer import Place

Layer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SpecDefaults:
    """What a spec has where it says nothing: the lowest layer. From the settings.

    ``health_check_path`` makes an http probe for what has a port and no ``health`` key at all.
    """

    mounts: tuple[MountSpec, ...] = ()
    exposed_ports: tuple[PortSpec, ...] = ()
    health_check_path: str | None = None

    def under(self, layer: Layer) -> Layer:
        """A spec's own words, or a spec's and a record's, laid over the defaults."""
        filled = {**_lists(self), **layer}
        if self.health_check_path and "health" not in layer and _has_reachable_port(filled):
            filled["health"] = {"path": self.health_check_path}
        return filled


@lru_cache(maxsize=4)
def _lists(defaults: SpecDefaults) -> Layer:
    lists = {"mounts": defaults.mounts, "ports": defaults.exposed_ports}
    return {key: [m.model_dump(mode="json") for m in ms] for key, ms in lists.items() if ms}


def _has_reachable_port(layer: Layer) -> bool:
    network = layer.get("network")
    mode = network.get("mode") if isinstance(network, dict) else None
    return bool(layer.get("ports")) and mode != "none"


@dataclass(frozen=True, slots=True)
class ResolvedSpec:
    """One spec: what it says itself, and what that amounts to; ``problems`` if it is unusable.

    ``env_file_at`` is where it names an env file.
    """

    layer: Layer
    size: int
    spec: SandboxSpec | None = None
    problems: tuple[Diagnostic, ...] = ()
    env_file_at: Place | None = None


def resolve_specs(declared: Declarations, defaults: SpecDefaults) -> Mapping[str, ResolvedSpec]:
    """Every spec by name, the unusable ones too."""
    return {
        name: _resolve(entry, defaults, declared.report) for name, entry in declared.specs.items()
    }


def _resolve(entry: Entry, defaults: SpecDefaults, report: Report) -> ResolvedSpec:
    node, problems = entry.node, entry.problems()
    if not isinstance(node.data, dict):
        message = "a spec must be a mapping that holds at least image:"
        return ResolvedSpec({}, 1, problems=problems or report.add(node.diagnostic(message)))
    spec, complaints = _validate(entry, defaults)
    problems += report.add(*complaints)
    usable = None if problems else spec
    return ResolvedSpec(node.data, node.size, usable, problems, node.place_of("env_file"))


def _validate(
    entry: Entry,
    defaults: SpecDefaults,
) -> tuple[SandboxSpec | None, tuple[Diagnostic, ...]]:
    try:
        return SandboxSpec.model_validate(defaults.under(entry.node.data)), ()
    except ValidationError as error:
        return None, tuple(explain(error, Subject(entry.key, entry.node, SandboxSpec)))


def overridden(resolved: ResolvedSpec | None, overrides: Layer, defaults: SpecDefaults) -> Layer:
    """A record's overrides over its spec over the defaults. An unknown spec says nothing."""
    return defaults.under(merge(resolved.layer if resolved else {}, overrides))
