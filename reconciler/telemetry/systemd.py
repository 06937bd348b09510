"""sd_notify: tells the service manager how the daemon is doing.

Without a service manager (no ``NOTIFY_SOCKET``) every call is a no-op. A failed send is never an
error of the daemon's: the manager's own timeouts judge a daemon that it does not hear.
"""

import os
import socket
from collections.abc import Mapping
from typing import Self

_STATUS_LIMIT = 512


class Notifier:
    """Sends state changes to the service manager, one datagram each, without ever blocking.

    Every method returns whether the manager's socket took the datagram; a caller that needs to be
    heard (readiness) may say it again.

    Args:
        address: The manager's socket, a path or an abstract name that begins with ``@``; None or
            anything else turns the notifier off.
    """

    def __init__(self, address: str | None) -> None:
        self._address = _unix_address(address)
        self._socket: socket.socket | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Makes the notifier that ``NOTIFY_SOCKET`` names."""
        return cls(environ.get("NOTIFY_SOCKET"))

    @property
    def enabled(self) -> bool:
        """Whether a service manager listens."""
        return self._address is not None

    def ready(self, status: str = "") -> bool:
        """Says that start-up is finished."""
        return self._send("READY=1", *_status_lines(status))

    def status(self, text: str) -> bool:
        """Sets the line that ``systemctl status`` shows; 512 characters at most."""
        return self._send(*_status_lines(text))

    def stopping(self, status: str = "") -> bool:
        """Says that shutdown began."""
        return self._send("STOPPING=1", *_status_lines(status))

    def watchdog(self) -> bool:
        """Feeds the watchdog; call it only while work makes progress."""
        return self._send("WATCHDOG=1")

    def close(self) -> None:
        """Gives the socket back; a later call opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> bool:
        if self._address is None:
            return False
        try:
            self._open().sendto("\n".join(lines).encode(errors="replace"), self._address)
        except OSError:
            # Full, gone or forbidden: nothing that the daemon could mend, and nothing to stop for.
            return False
        return True

    def _open(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        return self._socket


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Says how often to feed the watchdog: half of the manager's limit.

    Args:
        environ: The environment with ``WATCHDOG_USEC`` and ``WATCHDOG_PID``.

    Returns:
        Seconds, or None where no watchdog is set for this process.
    """
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    limit = environ.get("WATCHDOG_USEC", "")
    if not (limit.isascii() and limit.isdecimal()) or int(limit) == 0:
        return None
    return int(limit) / 1_000_000 / 2


def _unix_address(address: str | None) -> str | None:
    if address and address.startswith("@") and len(address) > 1:
        return "\0" + address[1:]
    return address if address and address.startswith("/") else None


def _status_lines(text: str) -> list[str]:
    # A line break would begin another assignment: one line only, whatever an error message holds.
    return [f"STATUS={' '.join(text.split())[:_STATUS_LIMIT]}"] if text else []
