"""The desired files taken together: which specs and sandboxes they declare, and where."""

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
# Bytes, about.
MAX_TOTAL: Final = 64 << 20
_KEYS: Final = ("version", "specs", "sandboxes")
_NAME: Final = re.compile(NAME_PATTERN)
_MISSING: Final = "no such file or folder"
_START: Final = 'write "version: 1" and below it specs: and sandboxes:'
# Hidden files, and the lock files and copies that editors keep beside a file that is open.
_SKIPPED: Final = (".", "#")


@dataclass(slots=True)
class Report:
    """The complaints of one load. ``fatal``: nothing may be used. ``blank``: a file holds nothing.

    ``crowded``: there is more than may be worked out. ``unread``: another try may find more.
    """

    said: set[Diagnostic] = field(default_factory=set)
    fatal: bool = False
    blank: bool = False
    crowded: bool = False
    unread: bool = False

    def add(self, *diagnostics: Diagnostic) -> tuple[Diagnostic, ...]:
        """Complain, and hand the complaints back."""
        self.said.update(diagnostics)
        return diagnostics

    def end(self, *diagnostics: Diagnostic) -> None:
        """Complain of what makes the whole load unusable."""
        self.add(*diagnostics)
        self.fatal = True

    def nothing(self, path: Path, message: str) -> None:
        """Complain of what is not there, or empty."""
        self.add(Diagnostic(str(path), 1, 1, message))
        self.blank = True

    def all(self) -> tuple[Diagnostic, ...]:
        """In the order of file, line and column."""
        return tuple(sorted(self.said))


@dataclass(frozen=True, slots=True)
class Entry:
    """One spec or sandbox: its name, the key it stands under, and what it says.

    ``problem`` is what is wrong with the name itself.
    """

    name: str
    key: Node
    node: Node
    problem: Diagnostic | None = None

    def problems(self) -> tuple[Diagnostic, ...]:
        """What was complained of while it was read."""
        return ((self.problem,) if self.problem else ()) + tuple(self.node.problems())


@dataclass(frozen=True, slots=True)
class Contents:
    """The text of each desired file, or why it has none; ``report`` has what else is wrong."""

    report: Report = field(default_factory=Report)
    files: Mapping[Path, str | ManifestError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Declarations:
    """All that the files declare, by name, in the order of the files."""

    report: Report = field(default_factory=Report)
    specs: dict[str, Entry] = field(default_factory=dict)
    sandboxes: dict[str, Entry] = field(default_factory=dict)


def is_manifest_name(name: str) -> bool:
    """Whether a file of this name in a folder is a desired file."""
    return name.endswith(".yaml") and not name.startswith(_SKIPPED)


def read(path: Path) -> Contents:
    """Read a file, or the ``*.yaml`` files of a folder.

    Blocks for as long as the file system does: run it in ``reconciler.threads``.
    """
    report = Report()
    files: dict[Path, str | ManifestError] = {}
    room = MAX_TOTAL
    for file in _files(path, report):
        try:
            text = read_yaml(file)
        except FileNotFoundError:
            missing = "a link that leads nowhere" if _is_link(file) else _MISSING
            report.nothing(file, missing)
            report.fatal = report.fatal or file != path
        except ManifestError as error:
            files[file] = error
        else:
            files[file] = text
            room -= len(text)
        if room < 0:
            message = f"these files hold more than {MAX_TOTAL >> 20} MB, the most that is read"
            report.end(Diagnostic(str(path), 1, 1, message))
            break
    return Contents(report, files)


def _is_link(path: Path) -> bool:
    # Path.is_symlink raises for a folder that may not be entered.
    return os.path.islink(path)  # noqa: PTH114


def gather(contents: Contents) -> Declarations:
    """Find what the files declare."""
    declared = Declarations(contents.report)
    budget = Budget()
    for file, text in contents.files.items():
        root = _root(file, text, budget, declared.report)
        if root is not None:
            _declare(root, declared)
    return declared


def _files(path: Path, report: Report) -> list[Path]:
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            return [path]
        found = sorted(file for file in path.iterdir() if is_manifest_name(file.name))
    except (FileNotFoundError, ValueError):
        return [path]
    except OSError as error:
        refused = unreadable(path, error)
        report.unread = isinstance(refused, TransientReadError)
        report.end(*refused.diagnostics)
        return []
    if not found:
        report.nothing(path, "this folder holds no *.yaml file")
    if len(found) > MAX_FILES:
        report.end(Diagnostic(str(path), 1, 1, f"more than {MAX_FILES} files"))
    return found[:MAX_FILES]


def _root(file: Path, text: str | ManifestError, budget: Budget, report: Report) -> Node | None:
    try:
        if isinstance(text, ManifestError):
            raise text
        composed = compose(text, str(file), budget)
    except ManifestError as error:
        report.unread = report.unread or isinstance(error, TransientReadError)
        report.end(*error.diagnostics)
        return None
    report.add(*composed.problems)
    if composed.root is None or composed.root.data is None:
        report.nothing(file, f"the file is empty: {_START}")
        return None
    return composed.root


def _declare(root: Node, declared: Declarations) -> None:
    report = declared.report
    if not isinstance(root.children, dict):
        report.end(root.diagnostic(f"not a desired file: {_START}"))
        return
    report.fatal = report.fatal or root.problem is not None
    _check_version(root, report)
    _check_keys(root, report)
    _collect(root, "specs", declared.specs, report)
    _collect(root, "sandboxes", declared.sandboxes, report)


def _check_version(root: Node, report: Report) -> None:
    version = root.child("version")
    if version is None:
        report.end(root.diagnostic('the key "version" is missing: write "version: 1" at the top'))
    elif type(version.data) is not int or version.data != VERSION:
        report.end(version.diagnostic(f"must be {VERSION}: no other version is known"))


def _check_keys(root: Node, report: Report) -> None:
    for name, key in root.keys.items():
        if name not in _KEYS:
            hint = did_you_mean(name, _KEYS) or f": known here are {', '.join(_KEYS)}"
            report.end(key.diagnostic(f'unknown key "{name}"{hint}'))


def _collect(root: Node, kind: str, known: dict[str, Entry], report: Report) -> None:
    section = root.child(kind)
    if section is None or (section.data is None and not section.broken):
        return
    report.fatal = report.fatal or section.problem is not None
    if not isinstance(section.children, dict):
        report.end(section.diagnostic("must be a mapping of names"))
        return
    for name, node in section.children.items():
        _enter(_entry(name, section.keys[name], node), kind, known, report)


def _entry(name: str, key: Node, node: Node) -> Entry:
    sound = node.problem or _NAME.fullmatch(name)
    return Entry(name, key, node, None if sound else key.diagnostic(f"not a name: {NAME_RULE}"))


def _enter(entry: Entry, kind: str, known: dict[str, Entry], report: Report) -> None:
    report.add(*entry.problems())
    first = known.setdefault(entry.name, entry)
    if first is not entry:
        place = f"{first.key.file}:{first.key.line}"
        report.end(entry.key.diagnostic(f'"{entry.name}" is already under {kind} in {place}'))
