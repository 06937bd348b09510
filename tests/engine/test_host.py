import hashlib
import json
import os
import ssl
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.errors import EngineUnavailable, SettingsError
from reconciler.engine.docker import host as docker_host
from reconciler.engine.docker.engine import DockerEngine
from reconciler.engine.docker.host import resolve


def context(folder: Path, name: str, host: object, *, tls: bool = False) -> None:
    """Write a context as Docker's client does."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    meta = folder / "contexts" / "meta" / digest
    meta.mkdir(parents=True)
    endpoint = {"Host": host, "SkipTLSVerify": True}
    (meta / "meta.json").write_text(json.dumps({"Endpoints": {"docker": endpoint}}))
    if tls:
        (folder / "contexts" / "tls" / digest / "docker").mkdir(parents=True)


def environ(folder: Path, **more: str) -> dict[str, str]:
    return {"DOCKER_CONFIG": str(folder), **more}


def test_the_default_is_the_system_socket(tmp_path: Path) -> None:
    found = resolve(None, environ(tmp_path))
    assert (found.url, found.socket) == ("unix://localhost", "/var/run/docker.sock")


def test_the_configuration_is_below_home(tmp_path: Path) -> None:
    folder = tmp_path / ".docker"
    context(folder, "mine", "unix:///run/mine.sock")
    (folder / "config.json").write_text('{"currentContext": "mine"}')
    assert resolve(None, {"HOME": str(tmp_path)}).socket == "/run/mine.sock"


def test_the_order_of_settings_and_variables(tmp_path: Path) -> None:
    context(tmp_path, "current", "unix:///current.sock")
    context(tmp_path, "named", "unix:///named.sock")
    (tmp_path / "config.json").write_text('{"currentContext": "current"}')
    here = environ(tmp_path)
    assert resolve(None, here).socket == "/current.sock"
    here["DOCKER_CONTEXT"] = "named"
    assert resolve(None, here).socket == "/named.sock"
    here["DOCKER_HOST"] = "unix:///host.sock"
    assert resolve(None, here).socket == "/host.sock"
    assert resolve("unix:///setting.sock", here).socket == "/setting.sock"


def test_the_default_context_is_the_system_socket(tmp_path: Path) -> None:
    found = resolve(None, environ(tmp_path, DOCKER_CONTEXT="default"))
    assert found.socket == "/var/run/docker.sock"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("tcp://host", "http://host:2375"),
        ("tcp://host:99", "http://host:99"),
        ("http://host:99/", "http://host:99"),
        ("https://host", "https://host:2376"),
        ("tcp://[::1]", "http://[::1]:2375"),
        ("tcp://[::1]:99", "http://[::1]:99"),
    ],
)
def test_tcp_addresses_are_parsed(tmp_path: Path, host: str, url: str) -> None:
    found = resolve(host, environ(tmp_path))
    assert (found.url, found.socket, found.ssl) == (url, "", None)


@pytest.mark.parametrize(
    "host",
    [
        *("ssh://host", "host:2375", "tcp://", "fd://", "x", "npipe:////./pipe/docker_engine", " "),
        *("tcp://host:abc", "tcp://host:99999", "tcp://host:-1", "tcp://:2375", "tcp://[::1"),
        *("tcp://host:0", "unix:/run/docker.sock", "/run/docker.sock", "https://"),
    ],
)
def test_an_unusable_address_is_reported(tmp_path: Path, host: str) -> None:
    with pytest.raises(SettingsError, match="must be unix"):
        resolve(host, environ(tmp_path))


def test_a_password_in_an_address_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve("tcp://me:secret@host:abc", environ(tmp_path))
    assert "secret" not in str(caught.value)


def test_without_a_home_the_system_socket_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert resolve(None, {}).socket == "/var/run/docker.sock"
    assert resolve("tcp://host", {"DOCKER_TLS_VERIFY": "1"}).url == "https://host:2376"
    with pytest.raises(SettingsError, match="DOCKER_HOST"):
        resolve(None, {"DOCKER_CONTEXT": "mine"})


@pytest.mark.parametrize("content", ["{", "[" * 500_000, "[]", "NaN"])
def test_a_broken_configuration_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SettingsError, match=r"config\.json"):
        resolve(None, environ(tmp_path))
    assert resolve("unix:///x", environ(tmp_path)).socket == "/x"


def test_a_folder_without_certificates_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"DOCKER_CERT_PATH.*none of ca\.pem"):
        resolve("tcp://h", {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path / "no")})


def test_tls_without_certificates_trusts_the_systems(tmp_path: Path) -> None:
    found = resolve("tcp://host", environ(tmp_path, DOCKER_TLS_VERIFY="1"))
    assert found.url == "https://host:2376"
    assert found.ssl is not None
    assert found.ssl.check_hostname


def test_tls_without_verification(tmp_path: Path) -> None:
    found = resolve("tcp://host", environ(tmp_path, DOCKER_TLS="1"))
    assert found.ssl is not None
    assert not found.ssl.check_hostname


def test_certificates_are_read_from_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    context = ssl.SSLContext
    monkeypatch.setattr(context, "load_verify_locations", lambda _, ca: read.append(ca))
    monkeypatch.setattr(context, "load_cert_chain", lambda _, *files: read.extend(files))
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).touch()
    resolve("tcp://host", {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)})
    assert [path.name for path in read] == ["ca.pem", "cert.pem", "key.pem"]


def test_unusable_certificates_are_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")
    with pytest.raises(SettingsError, match=r"ca\.pem, cert\.pem or key\.pem"):
        resolve("tcp://host", {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)})


def test_a_context_uses_its_certificates(tmp_path: Path) -> None:
    context(tmp_path, "far", "tcp://far:2376", tls=True)
    found = resolve(None, environ(tmp_path, DOCKER_CONTEXT="far"))
    assert found.url == "https://far:2376"
    assert found.ssl is not None
    assert not found.ssl.check_hostname


@pytest.mark.parametrize(
    ("hidden", "environment"),
    [
        ("/tls/", {"DOCKER_CONTEXT": "far"}),
        ("ca.pem", {"DOCKER_HOST": "tcp://h", "DOCKER_TLS_VERIFY": "1"}),
        ("cert.pem", {"DOCKER_HOST": "tcp://h", "DOCKER_TLS": "1"}),
        ("ca.pem", {"DOCKER_HOST": "tcp://h", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/x"}),
    ],
)
def test_certificates_that_this_user_may_not_see_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: str, environment: dict[str, str]
) -> None:
    """Without them the daemon would use plain text, or trust any engine."""
    context(tmp_path, "far", "tcp://far:2376", tls=True)
    stat = os.stat

    # The tests may run as root, whom no folder keeps out.
    def refuse(path: Any, **more: Any) -> os.stat_result:
        if hidden in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **more)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(SettingsError, match="cannot be read: Permission denied"):
        resolve(None, environ(tmp_path, **environment))


def test_a_missing_context_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="context 'gone' has no usable endpoint"):
        resolve(None, environ(tmp_path, DOCKER_CONTEXT="gone"))


def test_an_unreadable_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SettingsError, match=r"config\.json: not JSON"):
        resolve(None, environ(tmp_path))


async def test_a_rootless_engine_is_suggested_but_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = environ(tmp_path, XDG_RUNTIME_DIR=str(tmp_path))
    assert resolve(None, here).hint == ""
    (tmp_path / "docker.sock").touch()
    found = resolve(None, here)
    assert found.socket == "/var/run/docker.sock"
    assert found.hint.endswith(f"set DOCKER_HOST=unix://{tmp_path}/docker.sock")
    monkeypatch.setattr(docker_host, "_DEFAULT", f"unix://{tmp_path}/none.sock")
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    engine = DockerEngine(instance="mine")
    with pytest.raises(EngineUnavailable, match="set DOCKER_HOST=unix://"):
        await engine.ping()
    await engine.close()


@pytest.mark.parametrize(
    "host", ["npipe:////./pipe/docker_engine", "fd://", "ssh://host", "tcp://"]
)
async def test_a_malformed_address_is_an_unavailable_engine(tmp_path: Path, host: str) -> None:
    engine = DockerEngine(instance="mine", docker_host=host)
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match="must be unix"):
            await engine.list()
    await engine.close()
