import socket
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def datagrams(tmp_path: Path) -> Iterator[socket.socket]:
    """A unix socket that receives datagrams, as the journal and the service manager have."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.settimeout(5)
        yield listener
