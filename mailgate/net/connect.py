"""TCP connections outward: one address, an optional source address, a time limit.

Answers a `Stream` or raises `ConnectFailed` with the operating system's words.
Names are never looked up here; trying several addresses is the caller's.
"""

from __future__ import annotations

import os
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectBindError, ConnectError, TimeoutError
from twisted.internet.interfaces import IAddress, IConnector, IReactorTime
from twisted.internet.protocol import ClientFactory
from twisted.python.failure import Failure

from mailgate.net.stream import Stream


class Connects(Protocol):
    """What makes TCP connections: a reactor, or the `Poller` in one."""

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: ClientFactory,
        timeout: float = 30,
        bindAddress: tuple[str, int] | None = None,
    ) -> IConnector:
        """As `IReactorTCP.connectTCP`."""
        ...


class ConnectFailed(Exception):
    """No connection; the text is for the status of a recipient."""


class _Factory(ClientFactory):
    """Makes one stream; `outcome` tells how the connection went."""

    noisy = False

    def __init__(self, clock: IReactorTime, address: str, port: int) -> None:
        self.outcome: Deferred[Stream] = Deferred(self._give_up)
        self._stream = Stream(clock, address, port, self._stands)
        self._connector: IConnector | None = None

    def startedConnecting(self, connector: IConnector) -> None:
        self._connector = connector

    def buildProtocol(self, addr: IAddress | None) -> Stream:
        return self._stream

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        if self._connector is not None:
            self._connector = None
            self.outcome.errback(reason)

    def _stands(self) -> None:
        if self._connector is not None:
            self._connector = None
            self.outcome.callback(self._stream)

    def _give_up(self, outcome: Deferred[Stream]) -> None:
        """Stop connecting; whoever cancelled hears CancelledError, not the failure that follows from it."""
        connector, self._connector = self._connector, None
        if connector is not None:
            connector.stopConnecting()


class Connector:
    """Connects; holds nothing but the reactor it was given."""

    def __init__(self, reactor: Connects, clock: IReactorTime) -> None:
        self._reactor = reactor
        self._clock = clock

    async def connect(self, address: str, port: int, *, source_ip: str | None, seconds: float) -> Stream:
        """Connect to an IP address, from `source_ip` or whatever the system chooses. Raises `ConnectFailed`."""
        factory = _Factory(self._clock, address, port)
        bind = (source_ip, 0) if source_ip is not None else None
        self._reactor.connectTCP(address, port, factory, timeout=seconds, bindAddress=bind)
        try:
            return await factory.outcome
        except TimeoutError as error:
            raise ConnectFailed("Connection timeout") from error
        except ConnectError as error:
            # Twisted says the same where there is no socket at all.
            is_source = isinstance(error, ConnectBindError) and source_ip is not None
            text = f"cannot use source address {source_ip}: " if is_source else ""
            raise ConnectFailed(text + _system_text(error)) from error


def _system_text(error: ConnectError) -> str:
    """The operating system's words for the error, where it has a number."""
    if isinstance(error.osError, int):
        return os.strerror(error.osError)
    return str(error.args[0] if error.args and error.args[0] else error).rstrip(".")
