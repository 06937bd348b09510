"""sd_notify: report readiness, status and the watchdog to the service manager.

Without a service manager (no ``NOTIFY_SOCKET``) every call does nothing. A failed send is no error:
the service manager's timeouts act on a daemon that reports nothing.
"""

import os
import socket
from collections.abc import Mapping
from typing import Self

_STATUS_LIMIT = 512


class Notifier:
    """Sends state changes to the service manager, one datagram each, without ever blocking.

    Every method returns whether the service manager's socket took the datagram; a caller that needs
    an effect (readiness) may send it again.

    Args:
        address: The service manager's socket, a path or an abstract name that begins with ``@``;
            None or any other text disables the notifier.
    """

    def __init__(self, address: str | None) -> None:
        is_abstract = address is not None and address.startswith("@") and len(address) > 1
        is_path = address is not None and address.startswith("/")
        self._address = address if is_path else None
        if address is not None and is_abstract:
            self._address = "\0" + address[1:]
        self._socket: socket.socket | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Return the notifier for the socket in ``NOTIFY_SOCKET``."""
        return cls(environ.get("NOTIFY_SOCKET"))

    @property
    def enabled(self) -> bool:
        """Whether a service manager listens."""
        return self._address is not None

    def ready(self, status: str = "") -> bool:
        """Report that start-up is finished."""
        return self._send("READY=1", *_status_lines(status))

    def status(self, text: str) -> bool:
        """Set the line that ``systemctl status`` shows; 512 characters at most."""
        return self._send(*_status_lines(text))

    def stopping(self, status: str = "") -> bool:
        """Report that shutdown began."""
        return self._send("STOPPING=1", *_status_lines(status))

    def watchdog(self) -> bool:
        """Feed the watchdog; call it only while work makes progress."""
        return self._send("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket; a later call opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> bool:
        if self._address is None:
            return False
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        try:
            self._socket = self._socket or socket.socket(socket.AF_UNIX, kind)
            self._socket.sendto("\n".join(lines).encode(errors="replace"), self._address)
        except OSError:
            # Full, gone or forbidden: the daemon cannot fix it and need not stop for it.
            return False
        return True


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return how often to feed the watchdog: at half of the service manager's limit.

    Args:
        environ: The environment with ``WATCHDOG_USEC`` and ``WATCHDOG_PID``.

    Returns:
        Seconds, or None if no watchdog is set for this process.
    """
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    limit = environ.get("WATCHDOG_USEC", "")
    if not (limit.isascii() and limit.isdecimal()) or int(limit) == 0:
        return None
    return int(limit) / 1_000_000 / 2


def _status_lines(text: str) -> list[str]:
    # A line break in an error message would begin another assignment, so it becomes a space.
    return [f"STATUS={' '.join(text.split())[:_STATUS_LIMIT]}"] if text else []
