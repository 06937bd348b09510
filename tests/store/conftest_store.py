"""Helpers of the store's tests."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reconciler.core.errors import StoreError
from reconciler.core.spec import DesiredState, SandboxSpec
from reconciler.store.store import Record, Store

NOBODY = 65534
NOW = 1_000_000.0


@dataclass
class Listener:
    """Records troubles and recoveries, in order."""

    heard: list[str] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def trouble(self, error: StoreError) -> None:
        self.heard.append(f"trouble: {error}")

    def recovered(self) -> None:
        self.heard.append("recovered")
        self.over.set()


async def opened(state_dir: Path, listener: Listener | None = None, **options: Any) -> Store:
    listener = listener or Listener()
    defaults = {"wall": lambda: NOW, "retry": 0.01}
    return await Store.open(
        state_dir,
        on_trouble=listener.trouble,
        on_recovered=listener.recovered,
        **(defaults | options),
    )


def record(name: str, *, created_at: float = 1.0, **spec: Any) -> Record:
    whole = SandboxSpec.model_validate({"image": "demo", **spec})
    return Record(name, "agent", DesiredState.RUNNING, whole, created_at)


@contextmanager
def small_disk(folder: Path, size: str = "512k") -> Iterator[Path]:
    """Mount a small file system while the block runs."""
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", folder], check=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)


def fill(folder: Path) -> Path:
    """Fill the disk; unlink the returned file to free the space."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    return filler


@contextmanager
def unprivileged() -> Iterator[None]:
    """Run the block as the user nobody."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
