"""Translate Docker's error responses, by status and text, into this project's errors.

A translator takes the HTTP status and the engine's text. The text is shortened before it is shown.
The patterns match the wording of all supported engine versions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from reconciler.core.errors import (
    Busy,
    EngineError,
    EngineUnavailable,
    Forbidden,
    ImageNotFound,
    NameTaken,
    NotFound,
    PortTaken,
    PullFailed,
    ReconcilerError,
    Refused,
    Unreadable,
    Unstartable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

Translator = Callable[[int, str], EngineError]


class AlreadyDone(EngineError):
    """The object already is in the requested state. Never leaves this package."""


NO_CONNECTION: Final = 900
BAD_REQUEST: Final = 400
_FORBIDDEN: Final = 403
NOT_FOUND: Final = 404
CONFLICT: Final = 409
GATEWAY: Final = frozenset({502, 503, 504})
_LONGEST: Final = 256
# Characters at either end of a text that are searched.
_END: Final = 1 << 14
_GAP: Final = " … "

_PORT_TAKEN: Final = re.compile(r"port is already allocated|address already in use")
_PORTS: Final = (
    re.compile(r"host port (?:for )?\S*?:(\d+)(?::\S+)?(?:/\w+)?: "),
    re.compile(r":(\d+)(?:/\w+)?(?: failed)?: "),
)
# The latter two are Podman's, which passes on its database's text.
_NAME_TAKEN: Final = ("already in use", "UNIQUE constraint failed", "name is in use")
# From the runtime, containerd, and its shim, about state that already exists.
_LEFTOVERS: Final = re.compile(
    r"container with (?:given )?id (?:already )?exists|id already in use"
    r"|(?:container|task) [0-9a-f]{64}:? already exists|mkdir \S*containerd\S*: file exists",
    re.IGNORECASE,
)
# The network or container that this one joins. After the first start Docker knows it by id.
_MISSING: Final = re.compile(
    r"(?:no such container: |network (?=\S+ not found))(\S+)", re.IGNORECASE
)
_NOT_RUNNING: Final = re.compile(r"cannot join network of a non running container")
_SHORTAGE: Final = re.compile(
    r"resource temporarily unavailable|deadline exceeded|no space left|too many open files"
    r"|cannot allocate memory|context canceled|could not find bridge"
)
_PERMANENT: Final = re.compile(
    r"OCI runtime|shim task|executable file not found|no such file or directory"
    r"|could not select device driver|gathering device information|unable to find user"
    r"|permission denied|not a directory|does not exist|unknown runtime|invalid"
    r"|network \S+ not found|network not found|rlimit|unknown capability",
    re.IGNORECASE,
)

_ID: Final = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_IN_USE: Final = re.compile(r"image is in use|is being used|more than one tag|must be forced")


def cut(text: str) -> str:
    """Shorten the engine's text to one encodable line of at most 256 characters, with short ids.

    A longer text loses its middle: the beginning says what was tried, the end names the cause.
    """
    ends = text if len(text) <= 2 * _END else text[:_END] + _GAP + text[-_END:]
    line = " ".join(ends.split()).encode(errors="replace").decode()
    line = _ID.sub(r"\1", line)
    if len(line) <= _LONGEST:
        return line
    kept = _LONGEST - len(_GAP)
    return line[: kept // 2] + _GAP + line[-(kept - kept // 2) :]


def common(status: int, text: str) -> EngineError:
    """Translate an error that any request can get."""
    if status == NO_CONNECTION:
        return EngineUnavailable(
            f"{cut(text)}: check that the engine is running and that this user may use its socket"
        )
    if status in GATEWAY:
        return EngineUnavailable(f"the engine is not ready (status {status}): {cut(text)}")
    if is_other_version(status, text):
        return EngineUnavailable(f"the engine's API version changed: {cut(text)}")
    if "container state improper" in text:
        # Podman sends conflicts with status 409 or 500, depending on the verb.
        return Busy(cut(text))
    if "unknown user error" in text:
        # Podman resolves the container's user for every inspection.
        return Refused(f"{cut(text)}: correct `user`")
    return _BY_STATUS.get(status, EngineError)(cut(text))


_BY_STATUS: Final[dict[int, type[EngineError]]] = {
    BAD_REQUEST: Refused,
    _FORBIDDEN: Forbidden,
    NOT_FOUND: NotFound,
    CONFLICT: Busy,
}


def is_other_version(status: int, text: str) -> bool:
    """Return whether the engine no longer supports the negotiated API version."""
    return status == BAD_REQUEST and "client version" in text


def on_create(status: int, text: str) -> EngineError:
    """Translate to ImageNotFound, NameTaken or Refused, else as ``common``."""
    lowered = text.lower()
    if "no such image" in lowered:
        return ImageNotFound(f"{cut(text)}: pull it, or correct `image`")
    # Podman sends status 500.
    if (status == CONFLICT and "name" in lowered) or "already in use" in lowered:
        return NameTaken(cut(text))
    if status == NOT_FOUND or _is_permanent(status, text):
        return Refused(cut(text))
    return common(status, text)


def on_start_of(container_id: str) -> Translator:
    """Return the translator to PortTaken, Unstartable or Refused, else as ``common``."""

    def on_start(status: int, text: str) -> EngineError:
        if _PORT_TAKEN.search(text):
            matches = (pattern.search(text) for pattern in _PORTS)
            port = next((int(match[1]) for match in matches if match), None)
            which = "a host port" if port is None else f"host port {port}"
            return PortTaken(f"{which} is in use by another process: {cut(text)}", port)
        if _LEFTOVERS.search(text):
            return Unstartable(
                f"{cut(text)}: leftovers of an earlier run; the container will be recreated if "
                "this persists"
            )
        missing = _MISSING.search(text)
        what = missing[1] if missing else ""
        if _ID.fullmatch(what) and what != container_id:
            return Unstartable(
                f"{cut(text)}: the container will be recreated, to join the network or container "
                "that has this name now"
            )
        if status == NOT_FOUND and what != container_id:
            return Refused(cut(text))
        if _NOT_RUNNING.search(text):
            return Refused(f"{cut(text)}: start the container whose network this one joins")
        return Refused(cut(text)) if _is_permanent(status, text) else common(status, text)

    return on_start


def on_pause(status: int, text: str) -> EngineError:
    """Translate to AlreadyDone if the container is paused."""
    return AlreadyDone(cut(text)) if "already paused" in text else common(status, text)


def on_unpause(status: int, text: str) -> EngineError:
    """Translate to AlreadyDone if the container is not paused."""
    return AlreadyDone(cut(text)) if "is not paused" in text else common(status, text)


def on_update(status: int, text: str) -> EngineError:
    """Translate to Refused if a retry cannot help."""
    refused = status not in GATEWAY and "Cannot update container" in text
    return Refused(cut(text)) if refused else common(status, text)


def on_rename(status: int, text: str) -> EngineError:
    """Translate to NameTaken, or to AlreadyDone if the container itself has the name."""
    if any(words in text for words in _NAME_TAKEN):
        return NameTaken(f"{cut(text)}: remove or rename the other container")
    if "same name as its current name" in text:
        return AlreadyDone(cut(text))
    return common(status, text)


def on_exec(status: int, text: str) -> EngineError:
    """Translate to Refused if the container itself cannot run the command."""
    return Refused(cut(text)) if _is_permanent(status, text) else common(status, text)


def on_image_removal(status: int, text: str) -> EngineError:
    """Translate to Busy if the image is in use or has several names, with any status."""
    return Busy(cut(text)) if _IN_USE.search(text) else common(status, text)


def on_pull_of(image: str) -> Translator:
    """Return the translator to PullFailed, unless the engine is unavailable."""

    def on_pull(status: int, text: str) -> EngineError:
        error = common(status, text)
        failed = PullFailed(f"{image}: {cut(text)}")
        return error if isinstance(error, EngineUnavailable) else failed

    return on_pull


@contextmanager
def decode_errors(what: str) -> Iterator[None]:
    """Turn any exception of the block, which decodes the response about ``what``, to Unreadable."""
    try:
        yield
    except ReconcilerError:
        raise
    except Exception as error:
        raise unreadable(what, error) from error


def unreadable(what: str, error: Exception) -> Unreadable:
    """Return the error for a response about ``what`` that could not be decoded."""
    return Unreadable(
        f"the engine's response about {what} cannot be decoded ({type(error).__name__}: "
        f"{cut(str(error))}): check that it is a supported engine, and that it is not overloaded"
    )


def _is_permanent(status: int, text: str) -> bool:
    known = status not in {NO_CONNECTION, BAD_REQUEST, NOT_FOUND, CONFLICT} | GATEWAY
    return known and bool(_PERMANENT.search(text)) and not _SHORTAGE.search(text)
