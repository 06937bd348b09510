"""The settings of a process, read from flags, variables and the settings file."""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from reconciler.core.errors import Diagnostic, ManifestError, SettingsError
from reconciler.manifest.text_file import read_yaml
from reconciler.manifest.validation_errors import Subject, did_you_mean, explain_details
from reconciler.manifest.yaml12.composer import Budget, Node, compose
from reconciler.settings import Settings, config_path, file_values

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic_core import ErrorDetails

_PREFIX: Final = "RECONCILER_"
# How alike a variable and a setting must be, from 0 to 1, to be taken for a typing error.
_NEARLY: Final = 0.8


def load(config: Path | None = None, **flags: Any) -> Settings:
    """Read the settings of this process. Flags that are None do not count.

    Raises:
        SettingsError: the file, a variable or a flag is wrong. The message has a line for each
            problem: ``FILE:LINE:COL: message``, or the name of the variable or flag.
    """
    path = config or config_path()
    root, problems = _read(path) if path else (Node("", 1, 1), [])
    given = {name: value for name, value in flags.items() if value is not None}
    problems += _misspelled_variables()
    values = {name: node.data for name, node in _children(root).items() if not node.broken}
    try:
        with file_values(values):
            settings = Settings(**given)
    except ValidationError as error:
        problems += _explain(error, root, given)
    if problems:
        raise SettingsError("\n".join(dict.fromkeys(map(str, problems))))
    return settings


def _read(path: Path) -> tuple[Node, list[Diagnostic | str]]:
    """Return the file's top-level mapping, and what is wrong with its form and its keys."""
    empty = Node(str(path), 1, 1)
    try:
        composed = compose(read_yaml(path), str(path), Budget())
    except FileNotFoundError as error:
        raise SettingsError(f"{path}: no such file") from error
    except ManifestError as error:
        raise SettingsError(str(error)) from error
    root = composed.root
    problems: list[Diagnostic | str] = list(composed.problems)
    if root is None or root.data is None:
        return empty, problems
    if not isinstance(root.children, dict):
        return empty, [*problems, root.diagnostic('must hold settings as "name: value" lines')]
    for name, key in root.keys.items():
        if name not in Settings.model_fields:
            hint = did_you_mean(name, Settings.model_fields)
            problems.append(key.diagnostic(f'no such setting: "{name}"{hint}'))
    return root, problems


def _children(root: Node) -> Mapping[str, Node]:
    return root.children if isinstance(root.children, dict) else {}


def _misspelled_variables() -> list[str]:
    """Name the variables that are nearly a setting's. Others may belong to other programs."""
    problems = []
    for variable in sorted(os.environ):
        name = variable.removeprefix(_PREFIX).partition("__")[0].lower()
        if not variable.startswith(_PREFIX) or name in {*Settings.model_fields, "config"}:
            continue
        for meant in difflib.get_close_matches(name, Settings.model_fields, 1, _NEARLY):
            hint = f"did you mean {_PREFIX}{meant.upper()}?"
            problems.append(f"{variable}: no such setting: {hint}")
    return problems


def _explain(
    error: ValidationError, root: Node, flags: Mapping[str, Any]
) -> list[Diagnostic | str]:
    """Say of each problem where its value came from: a flag, a variable or the file."""
    in_file: list[ErrorDetails] = []
    problems: list[Diagnostic | str] = []
    for detail in error.errors(include_url=False, include_input=False):
        message = detail["msg"].removeprefix("Value error, ")
        field = str(detail["loc"][0]) if detail["loc"] else message.partition(":")[0]
        variable = f"{_PREFIX}{field.upper()}"
        if field in flags:
            problems.append(_named(f"--{field.replace('_', '-')}", field, message))
        elif variable in os.environ:
            problems.append(_named(variable, field, message))
        elif field in _children(root):
            in_file.append(detail)
        else:
            problems.append(_named(field, field, message))
    return [*explain_details(in_file, Subject(root, root, Settings)), *problems]


def _named(source: str, field: str, message: str) -> str:
    return f"{source}: {message.removeprefix(f'{field}: ')}"
