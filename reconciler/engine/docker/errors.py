"""What Docker's refusals mean, by status and text: engines of any age word them alike.

A translator takes an HTTP status and the engine's text. Text is shortened before it is passed on.
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


class AlreadySo(EngineError):
    """What was asked for is so already: a success, and never raised beyond this package."""


NO_CONNECTION: Final = 900
BAD_REQUEST: Final = 400
_FORBIDDEN: Final = 403
NOT_FOUND: Final = 404
CONFLICT: Final = 409
GATEWAY: Final = frozenset({502, 503, 504})
_LONGEST: Final = 256
# Characters at either end of a text that are looked at.
_END: Final = 1 << 14
_GAP: Final = " … "

_PORT_TAKEN: Final = re.compile(r"port is already allocated|address already in use")
_PORTS: Final = (
    re.compile(r"host port (?:for )?\S*?:(\d+)(?::\S+)?(?:/\w+)?: "),
    re.compile(r":(\d+)(?:/\w+)?(?: failed)?: "),
)
# The latter two are Podman's, which passes on its database's words.
_NAME_TAKEN: Final = ("already in use", "UNIQUE constraint failed", "name is in use")
# Of the runtime, of containerd, and of its shim; all name what they cannot make twice.
_REMAINS: Final = re.compile(
    r"container with (?:given )?id (?:already )?exists|id already in use"
    r"|(?:container|task) [0-9a-f]{64}:? already exists|mkdir \S*containerd\S*: file exists",
    re.IGNORECASE,
)
# The network or container that it joins: by its id, after the first start.
_MISSING: Final = re.compile(
    r"(?:no such container: |network (?=\S+ not found))(\S+)", re.IGNORECASE
)
_ASLEEP: Final = re.compile(r"cannot join network of a non running container")
_SHORTAGE: Final = re.compile(
    r"resource temporarily unavailable|deadline exceeded|no space left|too many open files"
    r"|cannot allocate memory|context canceled|could not find bridge"
)
_WILL_NOT: Final = re.compile(
    r"OCI runtime|shim task|executable file not found|no such file or directory"
    r"|could not select device driver|gathering device information|unable to find user"
    r"|permission denied|not a directory|does not exist|unknown runtime|invalid"
    r"|network \S+ not found|network not found|rlimit|unknown capability",
    re.IGNORECASE,
)

_ID: Final = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_IN_USE: Final = re.compile(r"image is in use|is being used|more than one tag|must be forced")


def cut(text: str) -> str:
    """The engine's text on one line of at most 256 characters that can be encoded, ids shortened.

    A longer text loses its middle: its beginning says what was tried, its end names the cause.
    """
    ends = text if len(text) <= 2 * _END else text[:_END] + _GAP + text[-_END:]
    line = " ".join(ends.split()).encode(errors="replace").decode()
    line = _ID.sub(r"\1", line)
    if len(line) <= _LONGEST:
        return line
    kept = _LONGEST - len(_GAP)
    return line[: kept // 2] + _GAP + line[-(kept - kept // 2) :]


def common(status: int, text: str) -> EngineError:
    """What a refusal means, whatever was asked."""
    if status == NO_CONNECTION:
        return EngineUnavailable(
            f"{cut(text)}: see that the engine runs, and that this user may use its socket"
        )
    if status in GATEWAY:
        return EngineUnavailable(f"the engine is not ready ({status}): {cut(text)}")
    if is_other_version(status, text):
        return EngineUnavailable(f"the engine's version changed: {cut(text)}")
    if "container state improper" in text:
        # Podman's conflicts come with status 409 or 500, by the verb.
        return Busy(cut(text))
    if "unknown user error" in text:
        # Podman looks the container's user up for every look into it.
        return Refused(f"{cut(text)}: correct `user`")
    return _BY_STATUS.get(status, EngineError)(cut(text))


_BY_STATUS: Final[dict[int, type[EngineError]]] = {
    BAD_REQUEST: Refused,
    _FORBIDDEN: Forbidden,
    NOT_FOUND: NotFound,
    CONFLICT: Busy,
}


def is_other_version(status: int, text: str) -> bool:
    """The engine does not speak the version of the API that was agreed on."""
    return status == BAD_REQUEST and "client version" in text


def on_create(status: int, text: str) -> EngineError:
    """ImageNotFound, NameTaken or Refused, where it is one of them."""
    lowered = text.lower()
    if "no such image" in lowered:
        return ImageNotFound(f"{cut(text)}: pull it, or correct `image`")
    # Podman says it with status 500.
    if (status == CONFLICT and "name" in lowered) or "already in use" in lowered:
        return NameTaken(cut(text))
    if status == NOT_FOUND or _will_not(status, text):
        return Refused(cut(text))
    return common(status, text)


def on_start_of(container_id: str) -> Translator:
    """PortTaken, Wrecked or Refused, where it is one of them."""

    def on_start(status: int, text: str) -> EngineError:
        if _PORT_TAKEN.search(text):
            port = _port(text)
            return PortTaken(f"host port {port or ''} is held by somebody else: {cut(text)}", port)
        if _REMAINS.search(text):
            return Unstartable(f"{cut(text)}: leftover runtime state; if it stays, it is recreated")
        missing = _MISSING.search(text)
        what = missing[1] if missing else ""
        if _ID.fullmatch(what) and what != container_id:
            return Unstartable(f"{cut(text)}: it is recreated, to join what has that name now")
        if status == NOT_FOUND and what != container_id:
            return Refused(cut(text))
        if _ASLEEP.search(text):
            return Refused(f"{cut(text)}: start that container")
        return Refused(cut(text)) if _will_not(status, text) else common(status, text)

    return on_start


def on_pause(status: int, text: str) -> EngineError:
    """AlreadySo, where it is paused."""
    return AlreadySo(cut(text)) if "already paused" in text else common(status, text)


def on_unpause(status: int, text: str) -> EngineError:
    """AlreadySo, where it is not paused."""
    return AlreadySo(cut(text)) if "is not paused" in text else common(status, text)


def on_update(status: int, text: str) -> EngineError:
    """Refused, where it is no question of time."""
    refused = status not in GATEWAY and "Cannot update container" in text
    return Refused(cut(text)) if refused else common(status, text)


def on_rename(status: int, text: str) -> EngineError:
    """NameTaken, where another container has the name; AlreadySo, where it is its own."""
    if any(words in text for words in _NAME_TAKEN):
        return NameTaken(f"{cut(text)}: remove or rename that container")
    if "same name as its current name" in text:
        return AlreadySo(cut(text))
    return common(status, text)


def on_exec(status: int, text: str) -> EngineError:
    """Refused, where the container is the reason that a command cannot run in it."""
    return Refused(cut(text)) if _will_not(status, text) else common(status, text)


def on_image_removal(status: int, text: str) -> EngineError:
    """Busy, where something uses it or names it twice, which one engine calls its own failure."""
    return Busy(cut(text)) if _IN_USE.search(text) else common(status, text)


def on_pull_of(image: str) -> Translator:
    """PullFailed, unless the engine could not be asked."""

    def on_pull(status: int, text: str) -> EngineError:
        error = common(status, text)
        failed = PullFailed(f"{image}: {cut(text)}")
        return error if isinstance(error, EngineUnavailable) else failed

    return on_pull


@contextmanager
def understood(what: str) -> Iterator[None]:
    """Turn whatever is wrong with an answer into an error about ``what``."""
    try:
        yield
    except ReconcilerError:
        raise
    except Exception as error:
        raise not_understood(what, error) from error


def not_understood(what: str, error: Exception) -> Unreadable:
    """The error about an answer that could not be decoded."""
    return Unreadable(
        f"the engine's answer about {what} cannot be understood ({type(error).__name__}: "
        f"{cut(str(error))}): see that it is a Docker engine and not overloaded"
    )


def _port(text: str) -> int | None:
    found = (pattern.search(text) for pattern in _PORTS)
    return next((int(match[1]) for match in found if match), None)


def _will_not(status: int, text: str) -> bool:
    known = status not in {NO_CONNECTION, BAD_REQUEST, NOT_FOUND, CONFLICT} | GATEWAY
    return known and bool(_WILL_NOT.search(text)) and not _SHORTAGE.search(text)
