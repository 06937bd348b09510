"""``doctor`` warns if the host weakens the promises of SECURITY.md."""

import os
from pathlib import Path

import pytest

from reconciler.cli.commands.doctor_checks import weaknesses
from reconciler.engine.docker.host import Endpoint
from reconciler.settings import Settings


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A host without a weakness."""
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    (folder / "desired.yaml").touch(0o640)
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "docker.sock").touch(0o660)
    return tmp_path


def found(home: Path, endpoint: Endpoint | None = None, **more: str) -> list[str]:
    settings = Settings(
        desired=home / "etc/desired.yaml", state_dir=home / "state", **{"docker_host": None, **more}
    )
    known = endpoint or Endpoint("unix://localhost", str(home / "docker.sock"))
    return [what.replace(f"{home}/", "") for what, _ in weaknesses(settings, known)]


def test_secure_host_has_no_weakness(home: Path) -> None:
    assert found(home) == []


def test_missing_paths_are_skipped(tmp_path: Path) -> None:
    assert found(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("path", "mode", "weakness"),
    [
        ("etc/desired.yaml", 0o666, "every user can write etc/desired.yaml"),
        ("etc", 0o777, "every user can write etc"),
        ("state", 0o755, "other users can access state"),
        ("docker.sock", 0o666, "every local user can become root through docker.sock"),
    ],
)
def test_open_mode_is_found(home: Path, path: str, mode: int, weakness: str) -> None:
    (home / path).chmod(mode)
    assert found(home) == [weakness]


def test_sticky_folder_protects_its_files(home: Path) -> None:
    (home / "etc").chmod(0o1777)
    assert found(home) == []


def test_state_directory_of_another_user_is_found(home: Path) -> None:
    if os.geteuid() != 0:
        pytest.fail("this test changes owners: run it as root")
    os.chown(home / "state", 65534, 65534)
    assert found(home) == ["state is owned by uid 65534"]


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1"])
def test_publish_address_beyond_this_host_is_found(home: Path, address: str) -> None:
    (what,) = found(home, publish_address=address)
    assert address in what


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_publish_address_is_fine(home: Path, address: str) -> None:
    assert found(home, publish_address=address) == []


def test_engine_without_tls_is_found(home: Path) -> None:
    (what,) = found(home, Endpoint("tcp://192.0.2.1:2375"))
    assert what == "tcp://192.0.2.1:2375 is used without TLS"
