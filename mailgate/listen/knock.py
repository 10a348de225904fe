"""The pipe in the maildrop by which `sendmail` says that something came, as the reactor reads it."""

from __future__ import annotations

import os
from collections.abc import Callable

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

_log = Logger(namespace="mailgate.listen")

_READ_OCTETS = 65536


@implementer(IReadDescriptor)
class Knocker:
    """Calls `knock` when something was written to a pipe; what it was does not matter."""

    def __init__(self, fd: int, knock: Callable[[], None]) -> None:
        """The descriptor stays the caller's."""
        self._fd = fd
        self._knock = knock

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._fd

    def doRead(self) -> None:
        """Empty the pipe as far as one read goes, and say so."""
        try:
            os.read(self._fd, _READ_OCTETS)
        except BlockingIOError:
            return
        self._knock()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives up on the descriptor: from now on only `queue.poll` is left."""
        _log.warn("{event}", event="maildrop.deaf", reason=reason.getErrorMessage())

    def logPrefix(self) -> str:
        """What the reactor calls it."""
        return "maildrop"
