"""Octets to a peer, sent at once while nothing waits to be sent.

Twisted's `write` puts octets aside and asks the poller to say when the socket
takes them: three system calls and a turn of the loop for each reply. A reply
fits into an idle socket's buffer practically always, so it is handed to the
kernel directly; what does not fit, and everything inside TLS, takes Twisted's
way with its back-pressure.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.tcp import Connection


class Writes(Protocol):
    """The ordinary way out."""

    def write(self, data: bytes) -> None:
        """As `ITransport.write`."""
        ...


class Outlet:
    """The way out of one connection. Order is kept: nothing overtakes what waits."""

    __slots__ = ("_socket", "_transport")

    def __init__(self, transport: Writes) -> None:
        self._transport = transport
        self._socket = transport if isinstance(transport, Connection) else None

    def into_tls(self) -> None:
        """TLS begins: from now on octets go through it."""
        self._socket = None

    def send(self, octets: bytes) -> None:
        """Send octets, or have them sent as soon as the peer takes them."""
        socket = self._socket
        if socket is not None and not socket._tempDataBuffer and not socket.dataBuffer and not socket.disconnected:
            try:
                sent = socket.socket.send(octets)
            except OSError:
                # Full, or broken: the ordinary way waits, or finds that out properly.
                sent = 0
            if sent == len(octets):
                return
            octets = octets[sent:]
        self._transport.write(octets)
