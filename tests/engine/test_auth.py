import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.errors import PullFailed
from reconciler.engine.docker.auth import auth_header, is_default
from reconciler.threads import BoundedCalls

INDEX = "https://index.example/v1/"


class Home:
    """A folder with Docker's config.json and the programs that it names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {"DOCKER_CONFIG": str(folder), "PATH": f"{folder}:{os.environ['PATH']}"}

    def write(self, **config: Any) -> None:
        (self.folder / "config.json").write_text(json.dumps(config))

    def helper(self, name: str, script: str) -> None:
        path = self.folder / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    async def ask(self, registry: str, seconds: float = 5) -> dict[str, str] | None:
        header = await auth_header(registry, INDEX, self.environ, seconds, BoundedCalls(seconds))
        if not header:
            return None
        decoded: dict[str, str] = json.loads(base64.urlsafe_b64decode(header["X-Registry-Auth"]))
        return decoded


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def entry(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


async def test_a_missing_config_means_no_credentials(home: Home) -> None:
    assert await home.ask("host.example") is None


@pytest.mark.parametrize(
    "key", ["host.example:5000", "https://host.example:5000", "https://host.example:5000/v2/"]
)
async def test_a_login_is_found_by_its_host(home: Home, key: str) -> None:
    home.write(auths={key: entry("me", "pass:word")})
    found = {"username": "me", "password": "pass:word", "serveraddress": "host.example:5000"}
    assert await home.ask("host.example:5000") == found
    assert await home.ask("host.example") is None


@pytest.mark.parametrize("registry", ["", "index.example", "example"])
async def test_all_names_of_the_default_registry_match(home: Home, registry: str) -> None:
    home.write(auths={INDEX: entry("me", "pass")})
    found = await home.ask(registry)
    assert found is not None
    assert found["serveraddress"] == INDEX


def test_other_registries_are_not_the_default() -> None:
    assert not is_default("other.example", INDEX)
    assert not is_default("ndex.example", INDEX)


async def test_identity_tokens_and_plain_entries_are_read(home: Home) -> None:
    home.write(auths={"a.example": {"identitytoken": "t"}, "b.example": {"username": "me"}})
    assert await home.ask("a.example") == {"identitytoken": "t", "serveraddress": "a.example"}
    found = await home.ask("b.example")
    assert found is not None
    assert found["username"] == "me"


@pytest.mark.parametrize("auth", ["%%%", "bm9jb2xvbg==", 7, "/w=="])
async def test_an_unreadable_entry_is_ignored(home: Home, auth: Any) -> None:
    home.write(auths={"a.example": {"auth": auth}})
    assert await home.ask("a.example") is None


async def test_the_credential_store_is_used(home: Home) -> None:
    answer = '{"ServerURL": "x", "Username": "me", "Secret": "s"}'
    home.helper("safe", f"read server; [ $server = a.example ] && echo '{answer}'")
    home.write(credsStore="safe")
    found = {"username": "me", "password": "s", "serveraddress": "a.example"}
    assert await home.ask("a.example") == found


async def test_a_registry_helper_precedes_the_store(home: Home) -> None:
    home.helper("one", 'echo \'{"Username": "<token>", "Secret": "t"}\'')
    home.helper("safe", "exit 1")
    home.write(credsStore="safe", credHelpers={"a.example": "one"})
    assert await home.ask("a.example") == {"identitytoken": "t", "serveraddress": "a.example"}


async def test_auths_are_used_if_the_store_has_no_entry(home: Home) -> None:
    home.helper("safe", "echo 'credentials not found in native keychain'; exit 1")
    home.write(credsStore="safe", auths={"a.example": entry("me", "pass")})
    found = await home.ask("a.example")
    assert found is not None
    assert found["username"] == "me"
    assert await home.ask("b.example") is None


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo locked; exit 3", "it ended with exit code 3"),
        ("echo nonsense", "is not JSON"),
        ("printf '\\377\\376'", "is not JSON"),
        ("head -c 500000 /dev/zero | tr '\\0' '['", "is not JSON"),
        ("yes", "took longer than"),
        ("exec <&- sleep 60", "took longer than"),
        ("sleep 60 & echo '{}'", "took longer than"),
        ("setsid sleep 3 & echo '{}'", "took longer than"),
        ('echo \'{"Username": "me"}\'', "lacks a name or a secret"),
        ("exec sleep 60", "took longer than"),
    ],
)
async def test_a_failing_helper_is_named(home: Home, script: str, words: str) -> None:
    home.helper("safe", script)
    home.write(credsStore="safe")
    with pytest.raises(PullFailed, match=f"docker-credential-safe.*{words}"):
        await home.ask("a.example", seconds=0.5)


async def test_a_missing_helper_is_named(home: Home) -> None:
    home.write(credsStore="none")
    with pytest.raises(PullFailed, match=r"docker-credential-none.*cannot be run"):
        await home.ask("a.example")


@pytest.mark.parametrize("name", ["../evil", "a b", 7])
async def test_an_invalid_helper_name_is_rejected(home: Home, name: Any) -> None:
    home.write(credsStore=name)
    with pytest.raises(PullFailed, match="with an invalid name"):
        await home.ask("a.example")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\0", b"\xff", b"[" * 500_000, b"NaN"])
async def test_an_unreadable_config_is_named(home: Home, content: bytes) -> None:
    (home.folder / "config.json").write_bytes(content)
    with pytest.raises(PullFailed, match=r"config\.json"):
        await home.ask("a.example")


@pytest.mark.parametrize("kind", ["folder", "loop", "pipe"])
async def test_a_config_that_is_no_file_is_named(home: Home, kind: str) -> None:
    path = home.folder / "config.json"
    match kind:
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case _:
            os.mkfifo(path)
    with pytest.raises(PullFailed, match=r"config\.json"):
        await home.ask("a.example", seconds=0.3)


async def test_without_a_home_there_are_no_credentials(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    home.environ = {"PATH": os.environ["PATH"]}
    assert await home.ask("a.example") is None


def no_home() -> Path:
    """Behave as Path.home() for a user without a passwd entry."""
    raise RuntimeError("Could not determine home directory.")


async def test_malformed_values_are_no_credentials(home: Home) -> None:
    home.write(auths=[1], credHelpers="x", credsStore=None)
    assert await home.ask("a.example") is None
