"""Resolve the declared specs: lay each over the defaults from the settings, and validate it."""

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
    from reconciler.manifest.documents import Declarations
    from reconciler.manifest.yaml12.composer import Place

Layer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SpecDefaults:
    """Defaults from the settings that every spec inherits: the lowest layer.

    ``health_check_path`` adds an http probe to a spec that has a port and no ``health`` key.
    """

    mounts: tuple[MountSpec, ...] = ()
    exposed_ports: tuple[PortSpec, ...] = ()
    health_check_path: str | None = None

    def under(self, layer: Layer) -> Layer:
        """Return a spec, or a spec with a record's overrides, laid over the defaults."""
        filled = {**_lists(self), **layer}
        if self.health_check_path and "health" not in layer and filled.get("ports"):
            network = filled.get("network")
            if not isinstance(network, dict) or network.get("mode") != "none":
                filled["health"] = {"path": self.health_check_path}
        return filled


@lru_cache(maxsize=4)
def _lists(defaults: SpecDefaults) -> Layer:
    lists = {"mounts": defaults.mounts, "ports": defaults.exposed_ports}
    return {key: [m.model_dump(mode="json") for m in ms] for key, ms in lists.items() if ms}


@dataclass(frozen=True, slots=True)
class ResolvedSpec:
    """One declared spec: its layer, and the validated spec, or the ``problems`` that prevent it.

    ``env_file_at`` is the position of its ``env_file`` key.
    """

    layer: Layer
    size: int
    spec: SandboxSpec | None = None
    problems: tuple[Diagnostic, ...] = ()
    env_file_at: Place | None = None


def resolve_specs(declared: Declarations, defaults: SpecDefaults) -> Mapping[str, ResolvedSpec]:
    """Return every spec by name, the unusable ones included."""
    report = declared.report
    resolved: dict[str, ResolvedSpec] = {}
    for name, entry in declared.specs.items():
        node, problems = entry.node, entry.problems()
        if not isinstance(node.data, dict):
            message = "a spec must be a mapping with at least the key image:"
            problems = problems or report.add(node.diagnostic(message))
            resolved[name] = ResolvedSpec({}, 1, problems=problems)
            continue
        spec = None
        try:
            spec = SandboxSpec.model_validate(defaults.under(node.data))
        except ValidationError as error:
            problems += report.add(*explain(error, Subject(entry.key, node, SandboxSpec)))
        usable = None if problems else spec
        env_file_at = node.place_of("env_file")
        resolved[name] = ResolvedSpec(node.data, node.size, usable, problems, env_file_at)
    return resolved


def overridden(resolved: ResolvedSpec | None, overrides: Layer, defaults: SpecDefaults) -> Layer:
    """Return a record's overrides over its spec, if that is known, over the defaults."""
    return defaults.under(merge(resolved.layer if resolved else {}, overrides))
