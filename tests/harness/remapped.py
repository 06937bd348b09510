"""An engine that maps the user ids of containers (``userns-remap``)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts import processes
from scripts.engine import PrivateEngine
from scripts.image import TEST_IMAGE, ensure_image
from tests.harness.docker import Docker
from tests.harness.engines import directory_of

FIRST_ID = 300000
_RANGES = f"nobody:{FIRST_ID}:65536\nnogroup:{FIRST_ID}:65536\n"
# The host's files of id ranges stay unchanged: only the engine's processes see others.
_BEGIN = """
mount --make-rprivate / && mount --bind "$0" /etc/subuid && mount --bind "$0" /etc/subgid &&
exec "$@"
"""


class RemappedEngine(PrivateEngine):
    """Its dockerd and containerd share a mount namespace with a range of ids for ``nobody``."""

    def _spawn(self, program: str, *arguments: str) -> None:
        if program == "containerd":
            ranges = self.directory / "ranges"
            ranges.write_text(_RANGES)
            within = ("unshare", "--mount", "sh", "-c", _BEGIN, str(ranges))
        else:
            within = ("nsenter", "--mount", "--target", str(self._pid("containerd")))
            arguments = (*arguments, "--userns-remap=nobody:nogroup")
        log = self.directory / f"{program}.log"
        pid = processes.spawn(*within, program, *arguments, log=log)
        self._children.add(pid)
        (self.directory / f"{program}.pid").write_text(str(pid))


@contextmanager
def remapped_engine(name: str) -> Iterator[Docker]:
    """Run one with the test image."""
    directory: Path = directory_of(name)
    engine = RemappedEngine(directory)
    directory.mkdir()
    # A container's root is ``nobody`` here, and has to reach its files.
    for folder in (directory.parent, directory):
        folder.chmod(0o711)
    try:
        engine.start()
        ensure_image(engine.host, TEST_IMAGE)
        yield Docker(engine.host)
    finally:
        engine.destroy()
