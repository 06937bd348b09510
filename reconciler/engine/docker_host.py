"""Where the engine is, found as Docker's own clients find it.

A setting, then ``DOCKER_HOST``, then ``DOCKER_CONTEXT``, then the current context of Docker's
config.json, then the system's socket.
"""

from __future__ import annotations

import hashlib
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reconciler.core.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEFAULT: Final = "unix:///var/run/docker.sock"
_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a client connects to. ``socket`` is empty where the engine is reached over TCP."""

    url: str
    socket: str = ""
    ssl: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class _Certificates:
    folder: Path
    verify: bool


def resolve(docker_host: str | None, environ: Mapping[str, str]) -> Endpoint:
    """The engine that ``docker_host``, else the environment, names. Reads files.

    Raises:
        SettingsError: what names it is malformed, or a file that it needs cannot be read.
    """
    if named := docker_host or environ.get("DOCKER_HOST"):
        return _endpoint(named, _certificates(environ))
    context = environ.get("DOCKER_CONTEXT") or _current_context(environ)
    if context in {"", "default"}:
        return _endpoint(_DEFAULT, None)
    return _of_context(context, config_folder(environ) / "contexts")


def config_folder(environ: Mapping[str, str]) -> Path:
    """Where Docker's clients keep config.json."""
    if named := environ.get("DOCKER_CONFIG"):
        return Path(named)
    home = environ.get("HOME")
    return (Path(home) if home else Path.home()) / ".docker"


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file; empty where there is no such file.

    Raises:
        SettingsError: it cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_BYTES))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{path}: is not JSON: mend it, or move it away") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: must hold a JSON object: mend it, or move it away")
    return content


def _current_context(environ: Mapping[str, str]) -> str:
    named = read_json(config_folder(environ) / "config.json").get("currentContext", "")
    return named if isinstance(named, str) else ""


def _of_context(name: str, contexts: Path) -> Endpoint:
    digest = hashlib.sha256(name.encode()).hexdigest()
    meta = read_json(contexts / "meta" / digest / "meta.json")
    try:
        docker = meta["Endpoints"]["docker"]  # type: ignore[index]
        host, skip = str(docker["Host"]), bool(docker.get("SkipTLSVerify", False))
    except (AttributeError, KeyError, TypeError) as error:
        raise SettingsError(
            f"Docker's context {name!r} has no usable endpoint: see `docker context inspect {name}`"
        ) from error
    folder = contexts / "tls" / digest / "docker"
    return _endpoint(host, _Certificates(folder, not skip) if folder.is_dir() else None)


def _certificates(environ: Mapping[str, str]) -> _Certificates | None:
    verify = bool(environ.get("DOCKER_TLS_VERIFY"))
    if not verify and not environ.get("DOCKER_TLS"):
        return None
    named = environ.get("DOCKER_CERT_PATH")
    return _Certificates(Path(named) if named else config_folder(environ), verify)


def _endpoint(host: str, certificates: _Certificates | None) -> Endpoint:
    scheme, _, rest = host.strip().partition("://")
    if scheme == "unix":
        socket = rest or _DEFAULT.removeprefix("unix://")
        return Endpoint("unix://localhost", socket)
    if scheme in {"tcp", "http", "https"} and rest:
        return _over_tcp(scheme, rest.rstrip("/"), certificates)
    raise SettingsError(
        f"docker host {host[:100]!r}: must be unix:///path/to.sock or tcp://host:port; reach an "
        "engine over ssh by forwarding its socket (ssh -L)"
    )


def _over_tcp(scheme: str, address: str, certificates: _Certificates | None) -> Endpoint:
    secure = certificates is not None or scheme == "https"
    if address.rpartition("]")[2].count(":") == 0:
        address += ":2376" if secure else ":2375"
    context = _ssl_context(certificates) if certificates else None
    return Endpoint(f"{'https' if secure else 'http'}://{address}", ssl=context)


def _ssl_context(certificates: _Certificates) -> ssl.SSLContext:
    folder = certificates.folder
    try:
        context = ssl.create_default_context()
        if not certificates.verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        elif (folder / "ca.pem").exists():
            context.load_verify_locations(folder / "ca.pem")
        if (folder / "cert.pem").exists():
            context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"{folder}: ca.pem, cert.pem or key.pem cannot be used: {error.strerror or error}"
        ) from error
    return context
