"""Credentials for an image's registry, from where Docker's own clients keep them.

config.json is read anew for each pull: a `docker login` counts at once. A secret is only ever put
into the header that the engine is sent.
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
from reconciler.engine.docker.bounded_json import decode
from reconciler.engine.docker.errors import understood
from reconciler.engine.docker.host import read_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.threads import BoundedCalls

Config = dict[str, Any]

_HELPER: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_TOKEN_USER: Final = "<token>"  # noqa: S105 - how a helper marks a token, not a secret
_LONGEST_ANSWER: Final = 1 << 20
_CHUNK: Final = 1 << 16
_END: Final = 2.0
_NONE_FOUND: Final = b"credentials not found"


async def auth_header(
    registry: str, index: str, environ: Mapping[str, str], seconds: float, files: BoundedCalls
) -> dict[str, str]:
    """The header that carries the credentials; empty where there are none.

    ``registry`` is a host, or empty for the engine's default one, whose address ``index`` is. A
    credential helper may take ``seconds``.

    Raises:
        PullFailed: config.json cannot be read, or a credential helper is missing or fails.
    """
    try:
        config: Config = await files.run("config.json", read_config, environ)
    except SettingsError as error:
        raise PullFailed(str(error)) from error
    except OSError as error:
        raise PullFailed(f"Docker's config.json cannot be read: {error.strerror}") from error
    server = index if is_default(registry, index) else registry
    found = await _from_helper(config, server, environ, seconds) or _from_file(config, server)
    return {"X-Registry-Auth": _encode({**found, "serveraddress": server})} if found else {}


def is_default(registry: str, index: str) -> bool:
    """The host is another name of the engine's default registry."""
    host = _host(index)
    return not registry or host == registry or host.endswith(f".{registry}")


async def _from_helper(
    config: Config, server: str, environ: Mapping[str, str], seconds: float
) -> dict[str, str]:
    helper = _helper_of(config, server)
    if not helper:
        return {}
    answer = await _ask(helper, server, environ, seconds)
    if not answer:
        return {}
    try:
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except KeyError as error:
        raise _broken(helper, "its answer lacks a name or a secret") from error
    if user == _TOKEN_USER:
        return {"identitytoken": secret}
    return {"username": user, "password": secret}


def _helper_of(config: Config, server: str) -> str:
    helpers = config.get("credHelpers")
    named = _lookup(helpers, server) if isinstance(helpers, dict) else None
    helper = named or config.get("credsStore") or ""
    if helper and not (isinstance(helper, str) and _HELPER.fullmatch(helper)):
        raise PullFailed("Docker's config.json names a credential helper that no program can have")
    return str(helper)


async def _ask(
    helper: str, server: str, environ: Mapping[str, str], seconds: float
) -> dict[str, Any]:
    """What the helper says, or nothing where it knows no such server."""
    code, output = await _run(helper, server.encode(), environ, seconds)
    if code:
        if _NONE_FOUND in output:
            return {}
        raise _broken(helper, f"it ended with {code}")
    try:
        with understood("credentials"):
            answer = decode(output)
    except Unreadable as error:
        raise _broken(helper, "its answer is not JSON") from error
    return answer if isinstance(answer, dict) else {}


async def _run(
    helper: str, server: bytes, environ: Mapping[str, str], seconds: float
) -> tuple[int, bytes]:
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
        why = error.strerror if isinstance(error, OSError) else "its environment"
        raise _broken(helper, f"it cannot be run ({why})") from error
    try:
        async with asyncio.timeout(seconds):
            return await _talk(process, server)
    except TimeoutError as error:
        await _kill(process)
        raise _broken(helper, f"it took longer than {seconds:g} s") from error
    except BaseException:
        await _kill(process)
        raise


async def _talk(process: asyncio.subprocess.Process, server: bytes) -> tuple[int, bytes]:
    """Its exit code, and what it answers as far as an answer can be long, once it has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(ConnectionError):
        process.stdin.write(server)
        await process.stdin.drain()
    process.stdin.close()
    output = b""
    while chunk := await process.stdout.read(_CHUNK):
        output = (output + chunk)[:_LONGEST_ANSWER]
    return await process.wait(), output


async def _kill(process: asyncio.subprocess.Process) -> None:
    """End it, and what it has started, which may hold its output open."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_END):
            while await process.stdout.read(_CHUNK):
                pass
            await process.wait()
    except TimeoutError:
        # A child in a session of its own keeps the output open.
        process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001


def _broken(helper: str, what: str) -> PullFailed:
    return PullFailed(
        f"the credential helper docker-credential-{helper} gave nothing: {what}; fix it, or take "
        "it out of Docker's config.json"
    )


def _from_file(config: Config, server: str) -> dict[str, str]:
    auths = config.get("auths")
    entry = _lookup(auths, server) if isinstance(auths, dict) else None
    if not isinstance(entry, dict):
        return {}
    if token := entry.get("identitytoken"):
        return {"identitytoken": str(token)}
    user, password = _decode(entry.get("auth")) or (entry.get("username"), entry.get("password"))
    return {"username": str(user), "password": str(password)} if user else {}


def _decode(auth: object) -> tuple[str, str] | None:
    if not isinstance(auth, str):
        return None
    try:
        user, colon, password = base64.b64decode(auth).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return (user, password.rstrip("\0")) if colon else None


def _lookup(entries: dict[str, Any], server: str) -> Any:
    """An entry by the server's very name, else by its host: files hold URLs as well as hosts."""
    if server in entries:
        return entries[server]
    host = _host(server)
    return next((value for key, value in entries.items() if _host(key) == host), None)


def _host(address: str) -> str:
    return address.partition("://")[2].partition("/")[0] or address.partition("/")[0]


def _encode(credentials: dict[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(credentials).encode()).decode()
