"""Export records as a desired file that loads as the same records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import yaml
from pydantic import ValidationError

from reconciler.core.spec import DesiredState, SandboxSpec, layer_of
from reconciler.manifest.specs import SpecDefaults
from reconciler.manifest.yaml12.scalars import resolve_plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reconciler.manifest.records import DeclaredRecord
    from reconciler.manifest.specs import Layer

_HEADER: Final = "# yaml-language-server: $schema=desired.schema.json\n"
_WIDTH: Final = 1 << 16
_NO_DEFAULTS: Final = SpecDefaults()
_MISSING: Final = object()


def export(records: Iterable[DeclaredRecord], defaults: SpecDefaults = _NO_DEFAULTS) -> str:
    """Return YAML that ``load`` with the same defaults reads as these records.

    A spec holds what all its records have in common, and a record holds the rest.
    """
    groups: dict[str, list[DeclaredRecord]] = {}
    for record in sorted(records, key=lambda record: record.name):
        groups.setdefault(record.spec_name, []).append(record)
    specs: Layer = {}
    sandboxes: Layer = {}
    for name, group in sorted(groups.items()):
        layers = []
        for record in group:
            # What the spec sets, and the defaults that would replace what it leaves out.
            layer = layer_of(record.spec)
            whole = record.spec.model_dump(mode="json", include={"mounts", "ports", "health"})
            added = defaults.under(layer).keys() - layer.keys()
            layers.append({**layer, **{key: whole[key] for key in whole if key in added}})
        image = {"image": layers[0]["image"]}
        shared = layers[0].items()
        common = {k: v for k, v in shared if all(k in it and it[k] == v for it in layers)}
        # The common part may be invalid: a probe that all share may need a port that they do not.
        try:
            SandboxSpec.model_validate(defaults.under(image | common))
            specs[name] = image | common
        except ValidationError:
            specs[name] = image
        for record, layer in zip(group, layers, strict=True):
            sandboxes[record.name] = {
                "spec": name,
                **({} if record.state is DesiredState.RUNNING else {"state": str(record.state)}),
                **{k: v for k, v in layer.items() if specs[name].get(k, _MISSING) != v},
            }
    content = {"version": 1, "specs": specs, "sandboxes": sandboxes}
    return _HEADER + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=_WIDTH)


class _Dumper(yaml.SafeDumper):
    """Writes text that a YAML 1.2 reader resolves to the same value."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the signature is the library's
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        try:
            needs_quotes = resolve_plain(data) != data
        except ValueError:
            needs_quotes = True
        style = '"' if needs_quotes else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)
