"""Many connections behind one descriptor of the reactor.

Twisted wraps each read of each connection in a logging context of its own: two
copied dictionaries and seven calls, more than the read itself costs. Here the
connections of all listeners wait in an epoll set of their own, which the
reactor sees as one readable descriptor; when it is, every connection with
something to do is served until none is left or a bounded number has been, and
the context is paid once. Everything else is Twisted's: ports, transports and
TLS work unchanged, they are only given this object as the reactor they
register with.
"""

from __future__ import annotations

import select
import socket
from typing import Protocol

from twisted.internet import tcp
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IConnector,
    IHalfCloseableDescriptor,
    IListeningPort,
    IReadDescriptor,
)
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.protocol import ClientFactory, ServerFactory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

_log = Logger(namespace="mailgate.net")

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR
# Served before the reactor has its turn again, and how often it is asked who is next: a port that cannot
# accept stays ready.
_AT_ONCE = 256
_ROUNDS = 16


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

    def readConnectionLost(self, reason: Failure) -> None:
        """As `IHalfCloseableDescriptor.readConnectionLost`."""
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
        self._is_watched = False
        self.callLater = reactor.callLater

    # --- for those who listen and connect ----------------------------------------------

    def adoptStreamPort(
        self, fileDescriptor: int, addressFamily: socket.AddressFamily, factory: ServerFactory
    ) -> IListeningPort:
        """As `IReactorSocket.adoptStreamPort`, for TCP."""
        # What the reactor's own method does; it would register the port with itself.
        port = tcp.Port._fromListeningDescriptor(self, fileDescriptor, addressFamily, factory)
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
        connector = tcp.Connector(host, port, factory, timeout, bindAddress, self)
        connector.connect()
        made: IConnector = connector
        return made

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
        if self._epoll.closed:
            return
        self._reactor.removeReader(self)
        for descriptor in tuple(self._descriptors.values()):
            self._disconnect(descriptor, CONNECTION_LOST, reading=False)
        self._epoll.close()

    def doRead(self) -> None:
        """Serve every descriptor that has an event, and those that get one meanwhile.

        What was asked of the reactor for its next turn, such as handing messages
        to the queue's writer, comes when there is nothing else to do.
        """
        left = _AT_ONCE
        for _ in range(_ROUNDS):
            ready = self._epoll.poll(0, left)
            for number, event in ready:
                descriptor = self._descriptors.get(number)
                if descriptor is not None:
                    self._serve(descriptor, number, event)
            left -= len(ready)
            if not ready or left <= 0 or self._epoll.closed:
                return

    def _serve(self, descriptor: Descriptor, number: int, event: int) -> None:
        """Serve one descriptor by itself: what it does wrong ends it alone."""
        reading = False
        why: Exception | None = None
        try:
            if event & _IN:
                reading = True
                why = descriptor.doRead()
                # The read may have closed it, or asked for another kind of event.
                if why is None and event & _OUT and self._wanted.get(number, 0) & _OUT:
                    reading = False
                    why = descriptor.doWrite()
            elif event & _GONE:
                reading = bool(self._wanted.get(number, 0) & _IN)
                why = CONNECTION_DONE if reading else CONNECTION_LOST
            else:
                why = descriptor.doWrite()
        except Exception as error:
            _log.failure("{event}", event="connection.failed")
            why = error
        if why is not None:
            self._disconnect(descriptor, why, reading)

    def _disconnect(self, descriptor: Descriptor, why: Exception, reading: bool) -> None:
        """As the reactor does it."""
        self.removeReader(descriptor)
        if reading and isinstance(why, ConnectionDone) and IHalfCloseableDescriptor.providedBy(descriptor):
            descriptor.readConnectionLost(Failure(why))
            return
        self.removeWriter(descriptor)
        descriptor.connectionLost(Failure(why))

    # --- towards ports and connections -------------------------------------------------

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
