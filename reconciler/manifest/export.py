"""Records as the text of a desired file that loads back to the same records."""

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


def export(records: Iterable[DeclaredRecord], defaults: SpecDefaults = _NO_DEFAULTS) -> str:
    """YAML that ``load`` with the same defaults reads back as these records.

    A spec holds what all its records have in common, a record what it has beside that.
    """
    groups: dict[str, list[DeclaredRecord]] = {}
    for record in sorted(records, key=lambda record: record.name):
        groups.setdefault(record.spec_name, []).append(record)
    specs: Layer = {}
    sandboxes: Layer = {}
    for name, group in sorted(groups.items()):
        layers = [_explicit(record.spec, defaults) for record in group]
        specs[name] = _common(layers, defaults)
        for record, layer in zip(group, layers, strict=True):
            sandboxes[record.name] = _said(record, specs[name], layer)
    content = {"version": 1, "specs": specs, "sandboxes": sandboxes}
    return _HEADER + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=_WIDTH)


def _explicit(spec: SandboxSpec, defaults: SpecDefaults) -> Layer:
    """What a spec says, and what it would be given if it did not say it."""
    layer = layer_of(spec)
    whole = spec.model_dump(mode="json", include={"mounts", "ports", "health"})
    filled = defaults.under(layer)
    return {**layer, **{key: whole[key] for key in whole if key in filled and key not in layer}}


def _common(layers: list[Layer], defaults: SpecDefaults) -> Layer:
    first = layers[0]
    shared = {
        key: value
        for key, value in first.items()
        if all(key in layer and layer[key] == value for layer in layers)
    }
    common = {"image": first["image"], **shared}
    return common if _is_valid(defaults.under(common)) else {"image": first["image"]}


def _is_valid(layer: Layer) -> bool:
    """Whether it can stand alone: a probe that all share may need a port that they do not."""
    try:
        SandboxSpec.model_validate(layer)
    except ValidationError:
        return False
    return True


def _said(record: DeclaredRecord, spec: Layer, layer: Layer) -> Layer:
    state = {} if record.state is DesiredState.RUNNING else {"state": str(record.state)}
    own = {key: value for key, value in layer.items() if spec.get(key, _MISSING) != value}
    return {"spec": record.spec_name, **state, **own}


_MISSING: Final = object()


class _Dumper(yaml.SafeDumper):
    """Writes what a YAML 1.2 reader takes for the same value."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the signature is the library's
        return True


def _write_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    quoted = '"' if not _reads_as_itself(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=quoted)


def _reads_as_itself(text: str) -> bool:
    try:
        return resolve_plain(text) == text
    except ValueError:
        return False


_Dumper.add_representer(str, _write_text)
