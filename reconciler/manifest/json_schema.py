"""Generate the JSON Schema of the desired file from the models, for editors and other tools."""

from __future__ import annotations

import copy
import json
from typing import Any, Final

from reconciler.core.spec import ManifestFile

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
# A record may set a part of these mappings, because it is laid over its spec key by key.
_MERGED: Final = ("WorkspaceSpec", "UlimitSpec", "ResourcesSpec")
_SUFFIX: Final = "Override"

Schema = dict[str, Any]


def json_schema() -> Schema:
    """Return the schema of one desired file (draft 2020-12)."""
    schema = ManifestFile.model_json_schema(mode="validation")
    schema["$schema"] = DIALECT
    schema["title"] = "reconciler: desired sandboxes"
    for name in ("specs", "sandboxes"):
        section = schema["properties"][name]
        keep = [key for key in ("title", "description", "default") if key in section]
        outer = {key: section.pop(key) for key in keep}
        # A section whose lines are all commented out is null.
        schema["properties"][name] = {**outer, "anyOf": [section, {"type": "null"}]}
    _close_names(schema)
    definitions = schema["$defs"]
    for name in _MERGED:
        definitions[name + _SUFFIX] = copy.deepcopy(definitions[name])
        definitions[name + _SUFFIX].pop("required", None)
    for user in ("RecordSpec", "ResourcesSpec" + _SUFFIX):
        _redirect(definitions[user])
    return schema


def json_schema_text() -> str:
    """Return the text of ``config/desired.schema.json``."""
    return json.dumps(json_schema(), indent=2) + "\n"


def _close_names(schema: Any) -> None:
    """Forbid other keys in each mapping whose keys have a pattern."""
    if isinstance(schema, dict) and "patternProperties" in schema:
        schema["additionalProperties"] = False
    parts = schema.values() if isinstance(schema, dict) else schema
    for part in parts if isinstance(schema, dict | list) else ():
        _close_names(part)


def _redirect(schema: Any) -> None:
    """Refer to the variant without required keys of each merged mapping."""
    if isinstance(schema, dict) and schema.get("$ref", "").rpartition("/")[2] in _MERGED:
        schema["$ref"] += _SUFFIX
    parts = schema.values() if isinstance(schema, dict) else schema
    for part in parts if isinstance(schema, dict | list) else ():
        _redirect(part)
