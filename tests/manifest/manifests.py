"""Desired files for the tests of their reader, and what it says of them."""

from pathlib import Path

from reconciler.manifest.loader import Loaded, SpecDefaults, load

SPEC = "version: 1\nspecs:\n  web: {image: web:1, ports: [{name: A, container_port: 80}]}\n"
HEAD = SPEC + "sandboxes:\n"


def loaded(path: Path, content: str | bytes, defaults: SpecDefaults | None = None) -> Loaded:
    """What the reader finds once ``content`` is at ``path``."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load(path, defaults)


def complaints(found: Loaded) -> list[str]:
    """Its diagnostics without the file's name."""
    return [f"{d.line}:{d.column}: {d.message}" for d in found.diagnostics]
