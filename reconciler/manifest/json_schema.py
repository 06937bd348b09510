"""The JSON Schema of the desired file, made from the models, for editors and other programs."""

from __future__ import annotations

import copy
import json
from typing import Any, Final

from reconciler.core.spec import ManifestFile

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
# Mappings of which a record may say a part, since it is laid over its spec key by key.
_MERGED: Final = ("WorkspaceSpec", "UlimitSpec", "ResourcesSpec")
_SUFFIX: Final = "Override"

Schema = dict[str, Any]


def json_schema() -> Schema:
    """The schema of one desired file (draft 2020-12)."""
    schema = ManifestFile.model_json_schema(mode="validation")
    schema["$schema"] = DIALECT
    schema["title"] = "reconciler: desired sandboxes"
    for name in ("specs", "sandboxes"):
        schema["properties"][name] = _nullable(schema["properties"][name])
    _close_names(schema)
    _add_overrides(schema["$defs"])
    return schema


def json_schema_text() -> str:
    """The schema as the text of its file."""
    return json.dumps(json_schema(), indent=2) + "\n"


def _nullable(schema: Schema) -> Schema:
    """A section of which every line is commented out is null, and as good as an empty one."""
    outer: Schema = {
        key: schema.pop(key) for key in ("title", "description", "default") if key in schema
    }
    return {**outer, "anyOf": [schema, {"type": "null"}]}


def _close_names(schema: Any) -> None:
    """A mapping whose keys have a pattern has no others."""
    if isinstance(schema, dict) and "patternProperties" in schema:
        schema["additionalProperties"] = False
    parts = schema.values() if isinstance(schema, dict) else schema
    for part in parts if isinstance(schema, dict | list) else ():
        _close_names(part)


def _add_overrides(definitions: dict[str, Schema]) -> None:
    for name in _MERGED:
        override = copy.deepcopy(definitions[name])
        override.pop("required", None)
        definitions[name + _SUFFIX] = override
    for user in ("RecordSpec", "ResourcesSpec" + _SUFFIX):
        _redirect(definitions[user])


def _redirect(schema: Any) -> None:
    if isinstance(schema, dict) and schema.get("$ref", "").rpartition("/")[2] in _MERGED:
        schema["$ref"] += _SUFFIX
    parts = schema.values() if isinstance(schema, dict) else schema
    for part in parts if isinstance(schema, dict | list) else ():
        _redirect(part)
