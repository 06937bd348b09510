"""Read credentials for an image's registry from where Docker's clients keep them.

config.json is read at each pull, so a `docker login` takes effect at once. A secret only goes into
the header of the request to the engine.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import re
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from reconciler.core.errors import PullFailed, SettingsError, Unreadable
from reconciler.engine.docker.errors import decode_errors
from reconciler.engine.docker.host import read_config
from reconciler.engine.docker.stream import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.threads import BoundedCalls

Config = dict[str, Any]

_HELPER: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_TOKEN_USER: Final = "<token>"  # noqa: S105 - marks a token, and is no secret
# Bytes.
_LONGEST_OUTPUT: Final = 1 << 20
_CHUNK: Final = 1 << 16
# Seconds to wait for a killed helper.
_KILL_TIMEOUT: Final = 2.0
_NONE_FOUND: Final = b"credentials not found"


async def auth_header(
    registry: str, index: str, environ: Mapping[str, str], seconds: float, files: BoundedCalls
) -> dict[str, str]:
    """Return the header that carries the credentials; empty without any.

    Args:
        registry: Host of the registry; empty for the engine's default one.
        index: Address of the engine's default registry.
        environ: Names the folder of config.json, and the PATH of credential helpers.
        seconds: Time limit of a credential helper.
        files: Reads config.json.

    Raises:
        PullFailed: config.json cannot be read, or a credential helper is missing or fails.
    """
    try:
        config: Config = await files.run("config.json", read_config, environ)
    except SettingsError as error:
        raise PullFailed(str(error)) from error
    except OSError as error:
        raise PullFailed(
            f"Docker's config.json cannot be read ({error.strerror}): check the file and its "
            "permissions"
        ) from error
    server = index if is_default(registry, index) else registry
    found = await _from_helper(config, server, environ, seconds) or _from_file(config, server)
    if not found:
        return {}
    credentials = json.dumps({**found, "serveraddress": server})
    return {"X-Registry-Auth": base64.urlsafe_b64encode(credentials.encode()).decode()}


def is_default(registry: str, index: str) -> bool:
    """Return whether the host is another name of the engine's default registry."""
    host = _host(index)
    return not registry or host == registry or host.endswith(f".{registry}")


async def _from_helper(
    config: Config, server: str, environ: Mapping[str, str], seconds: float
) -> dict[str, str]:
    """Ask the credential helper of the server; empty without a helper or an entry."""
    helpers = config.get("credHelpers")
    named = _lookup(helpers, server) if isinstance(helpers, dict) else None
    helper = named or config.get("credsStore") or ""
    if not helper:
        return {}
    if not (isinstance(helper, str) and _HELPER.fullmatch(helper)):
        raise PullFailed(
            "Docker's config.json names a credential helper with an invalid name: correct "
            "`credHelpers` or `credsStore`"
        )
    code, output = await _run(helper, server.encode(), environ, seconds)
    if code:
        if _NONE_FOUND in output:
            return {}
        raise _failed(helper, f"it ended with exit code {code}")
    try:
        with decode_errors("credentials"):
            answer = parse_json(output)
    except Unreadable as error:
        raise _failed(helper, "its output is not JSON") from error
    if not isinstance(answer, dict) or not answer:
        return {}
    try:
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except KeyError as error:
        raise _failed(helper, "its output lacks a name or a secret") from error
    if user == _TOKEN_USER:
        return {"identitytoken": secret}
    return {"username": user, "password": secret}


async def _run(
    helper: str, server: bytes, environ: Mapping[str, str], seconds: float
) -> tuple[int, bytes]:
    """Run a credential helper; return its exit code and the beginning of its output."""
    try:
        process = await asyncio.create_subprocess_exec(
            f"docker-credential-{helper}",
            "get",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=dict(environ),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "its environment is invalid"
        raise _failed(helper, f"it cannot be run ({why})") from error
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(seconds):
            with suppress(ConnectionError):
                process.stdin.write(server)
                await process.stdin.drain()
            process.stdin.close()
            output = b""
            while chunk := await process.stdout.read(_CHUNK):
                output = (output + chunk)[:_LONGEST_OUTPUT]
            return await process.wait(), output
    except TimeoutError as error:
        await _kill(process)
        raise _failed(helper, f"it took longer than {seconds:g} s") from error
    except BaseException:
        await _kill(process)
        raise


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the helper and its children, which may hold its output open."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_KILL_TIMEOUT):
            while await process.stdout.read(_CHUNK):
                pass
            await process.wait()
    except TimeoutError:
        # A child in another session keeps the output open.
        process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001


def _failed(helper: str, why: str) -> PullFailed:
    return PullFailed(
        f"the credential helper docker-credential-{helper} failed: {why}; fix it, or remove it "
        "from Docker's config.json"
    )


def _from_file(config: Config, server: str) -> dict[str, str]:
    """Read the credentials that `docker login` stored in config.json itself."""
    auths = config.get("auths")
    entry = _lookup(auths, server) if isinstance(auths, dict) else None
    if not isinstance(entry, dict):
        return {}
    if token := entry.get("identitytoken"):
        return {"identitytoken": str(token)}
    user, password = entry.get("username"), entry.get("password")
    with suppress(binascii.Error, ValueError, TypeError):
        name, colon, secret = base64.b64decode(entry.get("auth") or "").decode().partition(":")
        if colon:
            user, password = name, secret.rstrip("\0")
    return {"username": str(user), "password": str(password)} if user else {}


def _lookup(entries: dict[str, Any], server: str) -> Any:
    """Return the entry of the server, else of its host: keys may be URLs or hosts."""
    if server in entries:
        return entries[server]
    host = _host(server)
    return next((value for key, value in entries.items() if _host(key) == host), None)


def _host(address: str) -> str:
    return address.partition("://")[2].partition("/")[0] or address.partition("/")[0]
