"""Desired files for the tests of the loader."""

from pathlib import Path

from reconciler.manifest.loader import Loaded, SpecDefaults, load

SPEC = "version: 1\nspecs:\n  web: {image: web:1, ports: [{name: A, container_port: 80}]}\n"
HEAD = SPEC + "sandboxes:\n"


def loaded(path: Path, content: str | bytes, defaults: SpecDefaults | None = None) -> Loaded:
    """Write ``content`` to ``path``, and load it."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load(path, defaults)


def messages(found: Loaded) -> list[str]:
    """Return its diagnostics without the file name."""
    return [f"{d.line}:{d.column}: {d.message}" for d in found.diagnostics]
