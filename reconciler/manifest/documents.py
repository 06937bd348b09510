"""Read the desired files, and collect the specs and sandboxes that they declare."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from reconciler.core.errors import Diagnostic, ManifestError
from reconciler.core.naming import NAME_PATTERN
from reconciler.manifest.text_file import TransientReadError, read_yaml, unreadable
from reconciler.manifest.validation_errors import NAME_RULE, did_you_mean
from reconciler.manifest.yaml12.composer import Budget, compose

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from reconciler.manifest.yaml12.composer import Node

VERSION: Final = 1
MAX_FILES: Final = 1000
# Characters, over all files.
MAX_TOTAL: Final = 64 << 20
_KEYS: Final = ("version", "specs", "sandboxes")
_NAME: Final = re.compile(NAME_PATTERN)
_START: Final = 'write "version: 1" and below it specs: and sandboxes:'
# Hidden files, and the lock files and copies that editors keep beside an open file.
_SKIPPED: Final = (".", "#")


@dataclass(slots=True)
class Report:
    """The problems of one load.

    ``fatal``: nothing may be used. ``empty``: a file holds nothing. ``over_limit``: there is more
    than may be processed. ``must_retry``: a file could not be read now.
    """

    diagnostics: set[Diagnostic] = field(default_factory=set)
    fatal: bool = False
    empty: bool = False
    over_limit: bool = False
    must_retry: bool = False

    def add(self, *diagnostics: Diagnostic) -> tuple[Diagnostic, ...]:
        """Add diagnostics, and return them."""
        self.diagnostics.update(diagnostics)
        return diagnostics

    def reject(self, *diagnostics: Diagnostic) -> None:
        """Add diagnostics that make the whole load unusable."""
        self.add(*diagnostics)
        self.fatal = True

    def add_empty(self, path: Path, message: str) -> None:
        """Add a file that is missing or empty."""
        self.add(Diagnostic(str(path), 1, 1, message))
        self.empty = True

    def all(self) -> tuple[Diagnostic, ...]:
        """Return all diagnostics by file, line and column."""
        return tuple(sorted(self.diagnostics))


@dataclass(frozen=True, slots=True)
class Entry:
    """One spec or sandbox: its name, its key and its value. ``problem`` is one of the name."""

    name: str
    key: Node
    node: Node
    problem: Diagnostic | None = None

    def problems(self) -> tuple[Diagnostic, ...]:
        """Return the problems of its name and of its YAML."""
        return ((self.problem,) if self.problem else ()) + tuple(self.node.problems())


@dataclass(frozen=True, slots=True)
class Contents:
    """The text of each desired file, or its error. ``report`` has the problems without a text."""

    report: Report = field(default_factory=Report)
    files: Mapping[Path, str | ManifestError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Declarations:
    """All specs and sandboxes that the files declare, by name, in the order of the files."""

    report: Report = field(default_factory=Report)
    specs: dict[str, Entry] = field(default_factory=dict)
    sandboxes: dict[str, Entry] = field(default_factory=dict)


def is_manifest_name(name: str) -> bool:
    """Return whether a file of this name in a folder is a desired file."""
    return name.endswith(".yaml") and not name.startswith(_SKIPPED)


def read_contents(path: Path) -> Contents:
    """Read a file, or the ``*.yaml`` files of a folder.

    Blocks for as long as the file system does: run it in ``reconciler.threads``.
    """
    report = Report()
    files: dict[Path, str | ManifestError] = {}
    room = MAX_TOTAL
    for file in _list_files(path, report):
        try:
            text = read_yaml(file)
        except FileNotFoundError:
            # Path.is_symlink raises for a folder that may not be entered.
            is_link = os.path.islink(file)  # noqa: PTH114
            report.add_empty(file, "a link to nothing" if is_link else "no such file or folder")
            report.fatal = report.fatal or file != path
        except ManifestError as error:
            files[file] = error
        else:
            files[file] = text
            room -= len(text)
        if room < 0:
            message = f"these files are larger than the limit of {MAX_TOTAL >> 20} MB"
            report.reject(Diagnostic(str(path), 1, 1, message))
            break
    return Contents(report, files)


def _list_files(path: Path, report: Report) -> list[Path]:
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            return [path]
        found = sorted(file for file in path.iterdir() if is_manifest_name(file.name))
    except (FileNotFoundError, ValueError):
        return [path]
    except OSError as error:
        refused = unreadable(path, error)
        report.must_retry = isinstance(refused, TransientReadError)
        report.reject(*refused.diagnostics)
        return []
    if not found:
        report.add_empty(path, "this folder holds no *.yaml file")
    if len(found) > MAX_FILES:
        report.reject(Diagnostic(str(path), 1, 1, f"more than {MAX_FILES} files"))
    return found[:MAX_FILES]


def collect_declarations(contents: Contents) -> Declarations:
    """Parse the files' texts, and collect what they declare."""
    report = contents.report
    declared = Declarations(report)
    budget = Budget()
    for file, text in contents.files.items():
        try:
            if isinstance(text, ManifestError):
                raise text
            composed = compose(text, str(file), budget)
        except ManifestError as error:
            report.must_retry = report.must_retry or isinstance(error, TransientReadError)
            report.reject(*error.diagnostics)
            continue
        report.add(*composed.problems)
        if composed.root is None or composed.root.data is None:
            report.add_empty(file, f"the file is empty: {_START}")
        elif isinstance(composed.root.children, dict):
            _collect_root(composed.root, declared)
        else:
            report.reject(composed.root.diagnostic(f"not a desired file: {_START}"))
    return declared


def _collect_root(root: Node, declared: Declarations) -> None:
    report = declared.report
    report.fatal = report.fatal or root.problem is not None
    version = root.child("version")
    if version is None:
        report.reject(
            root.diagnostic('the key "version" is missing: write "version: 1" at the top')
        )
    elif type(version.data) is not int or version.data != VERSION:
        report.reject(version.diagnostic(f"must be {VERSION}, the only known version"))
    for name, key in root.keys.items():
        if name not in _KEYS:
            hint = did_you_mean(name, _KEYS) or f": the known keys are {', '.join(_KEYS)}"
            report.reject(key.diagnostic(f'unknown key "{name}"{hint}'))
    for kind, known in (("specs", declared.specs), ("sandboxes", declared.sandboxes)):
        section = root.child(kind)
        # A section whose lines are all commented out is null.
        if section is None or (section.data is None and not section.broken):
            continue
        report.fatal = report.fatal or section.problem is not None
        if not isinstance(section.children, dict):
            report.reject(section.diagnostic("must be a mapping of names"))
            continue
        for name, node in section.children.items():
            key = section.keys[name]
            valid = node.problem or _NAME.fullmatch(name)
            problem = None if valid else key.diagnostic(f"not a valid name: {NAME_RULE}")
            entry = Entry(name, key, node, problem)
            report.add(*entry.problems())
            first = known.setdefault(name, entry)
            if first is not entry:
                place = f"{first.key.file}:{first.key.line}"
                report.reject(key.diagnostic(f'"{name}" is already under {kind} in {place}'))
