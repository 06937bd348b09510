"""Load the settings of this process from flags, variables and the settings file."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, InitSettingsSource

from reconciler.core.errors import Diagnostic, ManifestError, SettingsError
from reconciler.manifest.text_file import read_yaml
from reconciler.manifest.validation_errors import Subject, did_you_mean, explain
from reconciler.manifest.yaml12.composer import Budget, Node, compose
from reconciler.settings import Settings, config_path

if TYPE_CHECKING:
    from pathlib import Path

_PREFIX: Final = "RECONCILER_"
# Variables of this project's tests. A daemon that a test starts may inherit them.
_TEST_PREFIXES: Final = ("RECONCILER_TEST_", "RECONCILER_TORTURE_")
_FIELDS: Final = tuple(f"{name}: " for name in Settings.model_fields)


def load(config: Path | None = None, **flags: Any) -> Settings:
    """Return the settings of this process. A flag that is None is not set.

    Raises:
        SettingsError: the file, a variable or a flag is wrong. The message has one line for each
            problem: ``FILE:LINE:COL: message``, or the name of the variable or flag.
    """
    path = config or config_path()
    file, problems = _read_file(path) if path else (Node("settings", 1, 1, children={}), [])
    variables, unknown = _read_variables()
    problems += unknown
    given = {name: value for name, value in flags.items() if value is not None}
    in_file = file.children if isinstance(file.children, dict) else {}
    usable = {name: node.data for name, node in in_file.items() if not node.broken}
    sources = (
        InitSettingsSource(Settings, given),
        EnvSettingsSource(Settings),
        InitSettingsSource(Settings, usable),
    )
    try:
        settings = Settings(_build_sources=(sources, {}))
    except ValidationError as error:
        # One tree of all values, so that each problem is reported at the source of its value.
        of_flags = {
            name: _node(value, f"--{name.replace('_', '-')}") for name, value in given.items()
        }
        file.children = {**in_file, **variables, **of_flags}
        for it in explain(error, Subject(file, file, Settings)):
            # A flag or a variable has no line, and its name already says the field.
            message = (
                it.message.partition(": ")[2] if it.message.startswith(_FIELDS) else it.message
            )
            problems.append(it if it.line else f"{it.file}: {message}")
    if problems:
        raise SettingsError("\n".join(dict.fromkeys(map(str, problems))))
    return settings


def _read_file(path: Path) -> tuple[Node, list[Diagnostic | str]]:
    """Return the file's top-level mapping, and the problems of its syntax and its keys."""
    try:
        composed = compose(read_yaml(path), str(path), Budget())
    except FileNotFoundError as error:
        raise SettingsError(f"{path}: no such file") from error
    except ManifestError as error:
        raise SettingsError(str(error)) from error
    root = composed.root
    problems: list[Diagnostic | str] = list(composed.problems)
    if root is None or root.data is None or not isinstance(root.children, dict):
        if root is not None and root.data is not None:
            problems.append(root.diagnostic('must hold settings as "name: value" lines'))
        return Node(str(path), 1, 1, children={}), problems
    for name, key in root.keys.items():
        if name not in Settings.model_fields:
            hint = did_you_mean(name, Settings.model_fields)
            problems.append(key.diagnostic(f'no such setting: "{name}"{hint}'))
    return root, problems


def _read_variables() -> tuple[dict[str, Node], list[str]]:
    """Return the variables of settings as nodes, and the problems of all others with our prefix.

    pydantic-settings ignores the case of their names.
    """
    nodes: dict[str, Node] = {}
    unknown: list[str] = []
    for variable in sorted(os.environ):
        upper = variable.upper()
        name = upper.removeprefix(_PREFIX).lower()
        if not upper.startswith(_PREFIX) or upper.startswith(_TEST_PREFIXES):
            continue
        if name in Settings.model_fields:
            value: Any = os.environ[variable]
            if value.startswith("["):
                with contextlib.suppress(ValueError):
                    value = json.loads(value)
            nodes[name] = _node(value, variable)
        elif variable != "RECONCILER_CONFIG":
            close = difflib.get_close_matches(name, Settings.model_fields, n=1)
            hint = f"did you mean {_PREFIX}{close[0].upper()}?" if close else "unset it"
            unknown.append(f"{variable}: no such setting: {hint}")
    return nodes, unknown


def _node(value: Any, source: str) -> Node:
    """Return a value that is in no file as a node; line 0 marks it."""
    node = Node(source, 0, 0, data=value)
    if isinstance(value, dict):
        node.children = {str(key): _node(item, source) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        node.children = [_node(item, source) for item in value]
    return node
