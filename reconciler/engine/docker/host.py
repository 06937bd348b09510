"""Find the engine as Docker's clients do.

In this order: the setting, ``DOCKER_HOST``, ``DOCKER_CONTEXT``, the current context of Docker's
config.json, the system's socket.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from reconciler.core.errors import SettingsError
from reconciler.engine.docker.stream import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEFAULT: Final = "unix:///var/run/docker.sock"
_MAX_BYTES: Final = 1 << 20
_PEM: Final = ("ca.pem", "cert.pem", "key.pem")
_USER: Final = re.compile(r"//[^/]*@")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a client connects to. ``socket`` is empty for TCP.

    ``hint`` names another engine on this host, for the error message when this one is the default
    and does not answer.
    """

    url: str
    socket: str = ""
    ssl: ssl.SSLContext | None = None
    hint: str = ""


@dataclass(frozen=True, slots=True)
class _Certificates:
    folder: Path | None
    verify: bool


def resolve(docker_host: str | None, environ: Mapping[str, str]) -> Endpoint:
    """Return the endpoint that ``docker_host`` names, else the environment. Reads files.

    Raises:
        SettingsError: a value is malformed, or a file cannot be read.
    """
    if named := docker_host or environ.get("DOCKER_HOST"):
        return _endpoint(named, _certificates(environ))
    context = environ.get("DOCKER_CONTEXT") or read_config(environ).get("currentContext")
    if isinstance(context, str) and context not in {"", "default"}:
        return _of_context(context, _config_folder(environ))
    # A rootless engine is never chosen automatically: it would seem to have lost every sandbox.
    folder = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    socket = Path(folder) / "docker.sock"
    hint = f"; a rootless engine is here: set DOCKER_HOST=unix://{socket}"
    return replace(_endpoint(_DEFAULT, None), hint=hint if os.path.lexists(socket) else "")


def address(docker_host: str | None) -> str:
    """Return the path of the engine's socket, or its URL; empty if the configuration is broken."""
    try:
        found = resolve(docker_host, os.environ)
    except SettingsError:
        # The first call to the engine reports the error.
        return ""
    return found.socket or found.url


def read_config(environ: Mapping[str, str]) -> dict[str, object]:
    """Return the content of Docker's config.json; empty without one.

    Raises:
        SettingsError: it cannot be read, or is not a JSON object.
    """
    folder = _config_folder(environ)
    return _read_json(folder / "config.json") if folder else {}


def _config_folder(environ: Mapping[str, str]) -> Path | None:
    """Return the folder of Docker's config.json; None for a user without a home."""
    if named := environ.get("DOCKER_CONFIG"):
        return Path(named)
    if home := environ.get("HOME"):
        return Path(home) / ".docker"
    try:
        return Path.home() / ".docker"
    except RuntimeError:
        return None


def _read_json(path: Path) -> dict[str, object]:
    """Return the object in a JSON file; empty if there is no such file.

    Raises:
        SettingsError: it cannot be read, or is not a JSON object.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read ({error.strerror}): let this user read it, or set "
            "DOCKER_HOST and DOCKER_CONFIG"
        ) from error
    try:
        content = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: not JSON: fix the file, or move it away") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: not a JSON object: fix the file, or move it away")
    return content


def _of_context(name: str, config: Path | None) -> Endpoint:
    digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()
    contexts = (config or Path()) / "contexts"
    meta = _read_json(contexts / "meta" / digest / "meta.json") if config else {}
    try:
        docker = meta["Endpoints"]["docker"]  # type: ignore[index]
        host, skip = str(docker["Host"]), bool(docker.get("SkipTLSVerify", False))
    except (AttributeError, KeyError, TypeError) as error:
        raise SettingsError(
            f"Docker's context {name[:100]!r} has no usable endpoint: check `docker context "
            "inspect`, or set DOCKER_HOST"
        ) from error
    folder = contexts / "tls" / digest / "docker"
    return _endpoint(host, _Certificates(folder, not skip) if _exists(folder) else None)


def _certificates(environ: Mapping[str, str]) -> _Certificates | None:
    verify = bool(environ.get("DOCKER_TLS_VERIFY"))
    if not verify and not environ.get("DOCKER_TLS"):
        return None
    named = environ.get("DOCKER_CERT_PATH")
    if named and not any(_exists(Path(named) / name) for name in _PEM):
        raise SettingsError(
            f"DOCKER_CERT_PATH: {named} contains none of {', '.join(_PEM)}: correct it, or unset "
            "DOCKER_TLS_VERIFY"
        )
    folder = Path(named) if named else _config_folder(environ)
    return _Certificates(folder, verify)


def _endpoint(host: str, certificates: _Certificates | None) -> Endpoint:
    scheme, _, rest = host.strip().partition("://")
    scheme = scheme.lower()
    if scheme == "unix":
        socket = rest or _DEFAULT.removeprefix("unix://")
        return Endpoint("unix://localhost", socket)
    if scheme not in {"tcp", "http", "https"} or not rest:
        raise _malformed(host)
    address = rest.rstrip("/")
    secure = certificates is not None or scheme == "https"
    if address.rpartition("]")[2].rpartition("@")[2].count(":") == 0:
        address += ":2376" if secure else ":2375"
    try:
        # A malformed port only raises when it is read.
        valid = bool(urlsplit(f"//{address}").hostname and urlsplit(f"//{address}").port)
    except ValueError:
        valid = False
    if not valid:
        raise _malformed(f"{scheme}://{address}")
    context = _ssl_context(certificates) if certificates else None
    return Endpoint(f"{'https' if secure else 'http'}://{address}", ssl=context)


def _malformed(host: str) -> SettingsError:
    shown = _USER.sub("//***@", host)[:100]
    return SettingsError(
        f"docker host {shown!r}: must be unix:///path/to.sock or tcp://host:port; reach an "
        "engine over ssh by forwarding its socket (ssh -L)"
    )


def _exists(path: Path) -> bool:
    """Check whether a file exists: TLS must not be left out because the user may not look.

    Path.exists returns False in that case since Python 3.14.

    Raises:
        SettingsError: the user may not search the file's directory.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read: {error.strerror}; let this user read it, or set DOCKER_HOST "
            "and DOCKER_CERT_PATH"
        ) from error
    return True


def _ssl_context(certificates: _Certificates) -> ssl.SSLContext:
    folder = certificates.folder
    try:
        context = ssl.create_default_context()
        if not certificates.verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if folder is None:
            return context
        if certificates.verify and _exists(folder / "ca.pem"):
            context.load_verify_locations(folder / "ca.pem")
        if _exists(folder / "cert.pem"):
            context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"{folder}: ca.pem, cert.pem or key.pem is unusable ({error.strerror or error}): "
            "correct the files, or DOCKER_CERT_PATH"
        ) from error
    return context
