"""What the daemon tells whoever started it: that it serves, reloads, stops.

The protocol of sd_notify(3), spoken by hand: datagrams to the socket that
NOTIFY_SOCKET names. systemd asks for it (Type=notify), and so does
`start-stop-daemon --notify-await`, which goes away after the start. Nobody may
listen at all: what cannot be told is not told, and nothing waits for it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Protocol

VARIABLE = "NOTIFY_SOCKET"


class Sender(Protocol):
    """Takes one datagram; must not block."""

    def __call__(self, datagram: bytes, /) -> None:
        """Send it, or drop it."""
        ...


class Supervisor:
    """Whoever started the daemon, and wants to know how it is."""

    def __init__(self, send: Sender | None = None, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """Without `send` nobody listens."""
        self._send = send
        self._monotonic_ns = monotonic_ns

    def ready(self, status: str) -> None:
        """It serves: after the start, and after each reload, whatever came of it."""
        self._tell("READY=1", _status(status))

    def reloading(self) -> None:
        """It reads its configuration again, and serves meanwhile."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={self._monotonic_ns() // 1000}", "STATUS=reading the configuration")

    def stopping(self, seconds: float) -> None:
        """It stops, and may take so long until everything is finished."""
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}", "STATUS=stopping")

    def failed(self, reason: str) -> None:
        """It does not start."""
        self._tell(_status(reason))

    def _tell(self, *lines: str) -> None:
        if self._send is not None:
            self._send("\n".join(lines).encode("utf-8", "replace"))


def supervisor(environ: MutableMapping[str, str]) -> Supervisor:
    """The supervisor the environment names; its variable is taken away, so that no child speaks for the daemon."""
    address = environ.pop(VARIABLE, "")
    if address[:1] not in ("/", "@") or len(address) < 2:
        return Supervisor()
    # "@" stands for the zero octet of an abstract name.
    return Supervisor(_datagrams("\0" + address[1:] if address[0] == "@" else address))


def _datagrams(address: str) -> Sender:
    def send(datagram: bytes, /) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as speaking:
                speaking.sendto(datagram, address)
        except (OSError, ValueError):
            # Nobody listens any more, or not quickly enough.
            return

    return send


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())
