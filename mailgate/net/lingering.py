"""Connections that are closed on our side while the peer is still sending.

A socket that is closed with octets unread makes the kernel send a reset (RFC 1122
4.2.2.13), and what was sent on it may be lost with it: the rest of a long answer,
or the 421 itself with peers whose systems discard what they have not read yet.
So such a socket only says that nothing more will be sent; what comes is thrown
away until the peer has closed too, or has had its time.
"""

from __future__ import annotations

import array
import fcntl
import socket
import termios
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.main import CONNECTION_DONE
from twisted.python.failure import Failure

SECONDS = 10.0
"""How long a peer may go on sending."""
_OCTETS = 2 * 1024 * 1024
"""How much of it is taken: what may be under way while the last reply travels."""
_READ_OCTETS = 64 * 1024


def is_sending(its_socket: socket.socket) -> bool:
    """True where octets have arrived that nobody has read."""
    unread = array.array("i", [0])
    try:
        fcntl.ioctl(its_socket, termios.FIONREAD, unread)
    except OSError:
        return False
    return unread[0] > 0


class Lingering:
    """Throws away what still comes in on a socket, and closes it in the end. `ended` is called then, once."""

    def __init__(self, its_socket: socket.socket, clock: IReactorTime, ended: Callable[[Lingering], None]) -> None:
        its_socket.shutdown(socket.SHUT_WR)
        self._socket = its_socket
        self._ended = ended
        self._octets = 0
        self._timer: IDelayedCall | None = clock.callLater(SECONDS, self.close)

    def fileno(self) -> int:
        """The number of the socket; -1 once it is closed."""
        return self._socket.fileno()

    def doRead(self) -> Exception | None:
        """Take what has come. Answers that it is over where that was the end, or too much."""
        try:
            octets = len(self._socket.recv(_READ_OCTETS))
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_DONE
        self._octets += octets
        return CONNECTION_DONE if not octets or self._octets > _OCTETS else None

    def doWrite(self) -> Exception | None:
        """Nothing is written any more."""
        return None

    def connectionLost(self, reason: Failure) -> None:
        """It is over."""
        self.close()

    def close(self) -> None:
        """Close the socket."""
        timer, self._timer = self._timer, None
        if timer is None:
            return
        if timer.active():
            timer.cancel()
        self._ended(self)
        self._socket.close()
