"""Load the settings of this process from flags, variables and the settings file."""

from __future__ import annotations

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
    from collections.abc import Mapping
    from pathlib import Path

_PREFIX: Final = "RECONCILER_"
# Variables of this project's tests. A daemon that a test starts may inherit them.
_TEST_PREFIXES: Final = ("RECONCILER_TEST_", "RECONCILER_TORTURE_")


def load(config: Path | None = None, **flags: Any) -> Settings:
    """Return the settings of this process. A flag that is None is not set.

    Raises:
        SettingsError: the file, a variable or a flag is wrong. The message has one line for each
            problem: ``FILE:LINE:COL: message``, or the name of the variable or flag.
    """
    path = config or config_path()
    file, problems = _read_file(path) if path else (Node("settings", 1, 1, children={}), [])
    variables = _variables()
    problems += _unknown_variables(variables)
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
        origins = dict(in_file)
        for name in variables.keys() & Settings.model_fields.keys():
            origins[name] = _node(_decoded(os.environ[variables[name]]), variables[name])
        for name, value in given.items():
            origins[name] = _node(value, f"--{name.replace('_', '-')}")
        file.children = origins
        problems += map(_without_line, explain(error, Subject(file, file, Settings)))
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


def _variables() -> dict[str, str]:
    """Return the variables with our prefix, by the setting's name. Case does not matter."""
    return {
        variable[len(_PREFIX) :].lower(): variable
        for variable in sorted(os.environ)
        if variable.upper().startswith(_PREFIX)
        and not variable.upper().startswith(_TEST_PREFIXES)
        and variable != "RECONCILER_CONFIG"
    }


def _unknown_variables(variables: Mapping[str, str]) -> list[str]:
    problems = []
    for name, variable in variables.items():
        if name not in Settings.model_fields:
            close = difflib.get_close_matches(name, Settings.model_fields, n=1)
            hint = f"did you mean {_PREFIX}{close[0].upper()}?" if close else "unset it"
            problems.append(f"{variable}: no such setting: {hint}")
    return problems


def _node(value: Any, source: str) -> Node:
    """Return a value that is in no file as a node; line 0 marks it."""
    node = Node(source, 0, 0, data=value)
    if isinstance(value, dict):
        node.children = {str(key): _node(item, source) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        node.children = [_node(item, source) for item in value]
    return node


def _decoded(text: str) -> Any:
    """Return the list that a variable holds as JSON, or its text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, list) else text


def _without_line(diagnostic: Diagnostic) -> Diagnostic | str:
    """Return the text for a flag or a variable: it has no line, and its name is the field's."""
    if diagnostic.line:
        return diagnostic
    field = diagnostic.file.removeprefix("--").removeprefix(_PREFIX).replace("-", "_").lower()
    return f"{diagnostic.file}: {diagnostic.message.removeprefix(f'{field}: ')}"
