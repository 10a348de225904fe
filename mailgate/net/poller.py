"""Many connections behind one descriptor of the reactor.

Twisted wraps each read of each connection in a logging context of its own: two
copied dictionaries and seven calls, more than the read itself costs. Here the
connections of all listeners wait in an epoll set of their own, which the
reactor sees as one readable descriptor; when it is, every connection with
something to do is served until none is left or a bounded number has been, and
the context is paid once. Ports and connections are Twisted's but for what
`net/transport.py` says; they are given this object as the reactor they register
with.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import (
    IConnector,
    IListeningPort,
    IReadDescriptor,
)
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.protocol import ClientFactory, ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailgate.net.lingering import Lingering
from mailgate.net.transport import Connector, Port

_log = Logger(namespace="mailgate.net")

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR
# Served before the reactor has its turn again, and how often it is asked who is next: a port that cannot
# accept stays ready.
_AT_ONCE = 256
_ROUNDS = 16
# Connections that are closed on our side while their peers are still sending.
_LINGERING = 256
# How long what waits for a moment without anything to do may be put off.
_BUSY_SECONDS = 0.002


class Descriptor(Protocol):
    """What is registered: a port, or a connection."""

    def fileno(self) -> int:
        """The number of the socket; -1 once it is closed."""
        ...

    def doRead(self) -> Exception | None:
        """As `IReadDescriptor.doRead`."""
        ...

    def doWrite(self) -> Exception | None:
        """As `IWriteDescriptor.doWrite`."""
        ...

    def connectionLost(self, reason: Failure) -> None:
        """As `IReadDescriptor.connectionLost`."""
        ...


@implementer(IReadDescriptor)
class Poller:
    """The reactor that ports and connections register with."""

    def __init__(self, reactor: PosixReactorBase) -> None:
        self._reactor = reactor
        self._epoll = select.epoll()
        self._descriptors: dict[int, Descriptor] = {}
        self._wanted: dict[int, int] = {}
        """The events each descriptor waits for."""
        self._fresh: set[int] = set()
        """Numbers registered since the last events were asked for: these are not about who has them now."""
        self._is_watched = False
        self._is_closing = False
        self._served = 0
        """Events since `_look` was there last."""
        self._lingering: set[Lingering] = set()
        self._when_idle: list[Callable[[], None]] = []
        self._busy_until = 0.0
        self.callLater = reactor.callLater

    # --- for those who listen and connect ----------------------------------------------

    def adoptStreamPort(
        self, fileDescriptor: int, addressFamily: socket.AddressFamily, factory: ServerFactory
    ) -> IListeningPort:
        """As `IReactorSocket.adoptStreamPort`, for TCP."""
        # What the reactor's own method does; it would register the port with itself.
        port = Port._fromListeningDescriptor(self, fileDescriptor, addressFamily, factory)
        port.startListening()
        adopted: IListeningPort = port
        return adopted

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: ClientFactory,
        timeout: float = 30,
        bindAddress: tuple[str, int] | None = None,
    ) -> IConnector:
        """As `IReactorTCP.connectTCP`, to an IP address."""
        connector = Connector(host, port, factory, timeout, bindAddress, self)
        connector.connect()
        made: IConnector = connector
        return made

    def when_idle(self, call: Callable[[], None]) -> None:
        """Have something called, once, after a turn in which there was nothing to serve, or soon in any case.

        For what another thread goes on with: two threads that both have work
        take the interpreter from each other, which on two processors costs
        more than the second one gains.
        """
        if not self._when_idle:
            self._busy_until = self._reactor.seconds() + _BUSY_SECONDS
            self._reactor.callLater(0, self._look)
        self._when_idle.append(call)

    def _look(self) -> None:
        served, self._served = self._served, 0
        if served and self._reactor.seconds() < self._busy_until:
            self._reactor.callLater(0, self._look)
            return
        calls, self._when_idle = self._when_idle, []
        for call in calls:
            try:
                call()
            except Exception:
                # The others wait for this moment as well, and nobody calls them in another.
                _log.failure("{event}", event="server.call-failed")

    # --- towards the reactor ---------------------------------------------------------

    def fileno(self) -> int:
        """The number of the set: readable while something in it has an event."""
        return self._epoll.fileno() if not self._epoll.closed else -1

    def logPrefix(self) -> str:
        """What Twisted calls this in a log."""
        return "connections"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor lets go of everything: so do we."""
        self.close()

    def close(self) -> None:
        """End every connection that is left."""
        if self._is_closing:
            return
        self._is_closing = True
        self._reactor.removeReader(self)
        for descriptor in tuple(self._descriptors.values()):
            self._disconnect(descriptor, CONNECTION_LOST)
        self._epoll.close()

    def doRead(self) -> None:
        """Serve every descriptor that has an event, and those that get one meanwhile.

        What was asked of the reactor for its next turn comes when there is nothing else to do.
        """
        left = _AT_ONCE
        for _ in range(_ROUNDS):
            ready = self._epoll.poll(0, left)
            self._fresh.clear()
            for number, event in ready:
                descriptor = self._descriptors.get(number)
                if descriptor is not None and number not in self._fresh:
                    self._serve(descriptor, number, event)
            left -= len(ready)
            self._served += len(ready)
            if not ready or left <= 0 or self._epoll.closed:
                return

    def _serve(self, descriptor: Descriptor, number: int, event: int) -> None:
        """Serve one descriptor by itself: what it does wrong ends it alone."""
        why: Exception | None = None
        try:
            if event & _IN:
                why = descriptor.doRead()
                # The read may have closed it, and its number have gone to another, or asked for another kind of event.
                if why is None and event & _OUT and self._wanted.get(number, 0) & _OUT and number not in self._fresh:
                    why = descriptor.doWrite()
            elif event & _GONE:
                why = CONNECTION_DONE if self._wanted.get(number, 0) & _IN else CONNECTION_LOST
            else:
                why = descriptor.doWrite()
        except Exception as error:
            _log.failure("{event}", event="connection.failed")
            # Its traceback would hold this very call, and the connection with it, until the next collection.
            why = error.with_traceback(None)
        if why is not None:
            self._disconnect(descriptor, why)

    def _disconnect(self, descriptor: Descriptor, why: Exception) -> None:
        """As the reactor does it; none of ours goes on where only one direction has ended."""
        self.removeReader(descriptor)
        self.removeWriter(descriptor)
        try:
            descriptor.connectionLost(connectionDone if why is CONNECTION_DONE else Failure(why))
        except Exception:
            # The reactor would take it for a mistake of this poller, and end every other connection as well.
            _log.failure("{event}", event="connection.failed")

    # --- towards ports and connections -------------------------------------------------

    def linger(self, its_socket: socket.socket) -> bool:
        """Take over a socket on which nothing more is sent, and close it when its peer has.

        Answers False where that cannot be: the socket is broken, too many are there already, or all are ending.
        """
        if len(self._lingering) >= _LINGERING or self._is_closing:
            return False
        try:
            lingering = Lingering(its_socket, self._reactor, self._left)
        except OSError:
            return False
        self._lingering.add(lingering)
        self.addReader(lingering)
        return True

    def _left(self, lingering: Lingering) -> None:
        self._lingering.discard(lingering)
        self.removeReader(lingering)

    def addReader(self, reader: Descriptor) -> None:
        """As `IReactorFDSet.addReader`."""
        self._want(reader, _IN)

    def addWriter(self, writer: Descriptor) -> None:
        """As `IReactorFDSet.addWriter`."""
        self._want(writer, _OUT)

    def removeReader(self, reader: Descriptor) -> None:
        """As `IReactorFDSet.removeReader`."""
        self._want_no(reader, _IN)

    def removeWriter(self, writer: Descriptor) -> None:
        """As `IReactorFDSet.removeWriter`."""
        self._want_no(writer, _OUT)

    def removeAll(self) -> list[Descriptor]:
        """As `IReactorFDSet.removeAll`."""
        removed = list(self._descriptors.values())
        for number in self._descriptors:
            self._epoll.unregister(number)
        self._descriptors.clear()
        self._wanted.clear()
        return removed

    def getReaders(self) -> list[Descriptor]:
        """As `IReactorFDSet.getReaders`."""
        return [self._descriptors[number] for number, wanted in self._wanted.items() if wanted & _IN]

    def getWriters(self) -> list[Descriptor]:
        """As `IReactorFDSet.getWriters`."""
        return [self._descriptors[number] for number, wanted in self._wanted.items() if wanted & _OUT]

    def _want(self, descriptor: Descriptor, event: int) -> None:
        number = descriptor.fileno()
        before = self._wanted.get(number, 0)
        if before & event:
            return
        if before:
            self._epoll.modify(number, before | event)
        else:
            self._epoll.register(number, event)
            self._descriptors[number] = descriptor
            self._fresh.add(number)
        self._wanted[number] = before | event
        if not self._is_watched:
            self._is_watched = True
            self._reactor.addReader(self)

    def _want_no(self, descriptor: Descriptor, event: int) -> None:
        number = descriptor.fileno()
        if number < 0:
            # Closed under us: the kernel has forgotten it already.
            number = next((each for each, found in self._descriptors.items() if found is descriptor), -1)
        before = self._wanted.get(number, 0)
        if not before & event or self._descriptors[number] is not descriptor:
            return
        left = before & ~event
        if left:
            self._epoll.modify(number, left)
            self._wanted[number] = left
            return
        del self._wanted[number], self._descriptors[number]
        if descriptor.fileno() >= 0:
            self._epoll.unregister(number)
