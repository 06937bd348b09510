"""Measure the code: files, lines, functions, and private functions that are used once.

python3 -m scripts.shape            print a table of the packages
python3 -m scripts.shape FOLDER...  list the private functions below FOLDER that are used once
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

_ROOT = Path(__file__).parent.parent
_PACKAGE = _ROOT / "reconciler"


class Helper(NamedTuple):
    """A private function that its file uses once."""

    path: Path
    line: int
    name: str
    lines: int


class Shape(NamedTuple):
    """The numbers of some files."""

    files: int
    lines: int
    functions: int
    helpers: tuple[Helper, ...]

    @property
    def share(self) -> float:
        """The share of the functions that are private and used once."""
        return len(self.helpers) / max(self.functions, 1)


def measure(paths: list[Path]) -> Shape:
    """Measure Python files. A function with a decorator is not a helper: the decorator uses it."""
    lines = functions = 0
    helpers: list[Helper] = []
    for path in paths:
        text = path.read_text()
        nodes = list(ast.walk(ast.parse(text)))
        used = Counter(node.attr for node in nodes if isinstance(node, ast.Attribute))
        used.update(node.id for node in nodes if isinstance(node, ast.Name))
        lines += text.count("\n")
        for node in nodes:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            functions += 1
            private = node.name.startswith("_") and not node.name.startswith("__")
            if private and used[node.name] == 1 and not node.decorator_list:
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                helpers.append(Helper(path, node.lineno, node.name, size))
    return Shape(len(paths), lines, functions, tuple(helpers))


def packages() -> dict[str, Shape]:
    """Measure each package below `reconciler`, the modules beside them, and all."""
    folders = sorted(path.parent for path in _PACKAGE.glob("*/__init__.py"))
    parts = {folder.name: sorted(folder.rglob("*.py")) for folder in folders}
    parts["(modules)"] = sorted(_PACKAGE.glob("*.py"))
    parts["reconciler"] = sorted(_PACKAGE.rglob("*.py"))
    return {name: measure(paths) for name, paths in parts.items()}


def main() -> int:
    """Print the table, or the helpers of the folders that are named."""
    if names := sys.argv[1:]:
        for name in names:
            for helper in measure(sorted(Path(name).rglob("*.py"))).helpers:
                print(f"{helper.path}:{helper.line}: {helper.name}, {helper.lines} lines")  # noqa: T201
        return 0
    print(f"{'PACKAGE':12} {'FILES':>5} {'LINES':>6} {'FUNCTIONS':>9} {'USED ONCE':>9}")  # noqa: T201
    for name, shape in packages().items():
        print(  # noqa: T201
            f"{name:12} {shape.files:5} {shape.lines:6} {shape.functions:9} {shape.share:9.1%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
