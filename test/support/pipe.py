"""Two transports joined in memory, TLS included: what one side writes the other receives when `Network.pump` runs.

Nothing moves by itself. The clock is Twisted's `Clock`; closing, aborting,
back-pressure and TLS behave as over TCP, one segment at a time.
"""

from __future__ import annotations

from collections import deque

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IPushProducer, ITCPTransport, ITLSTransport
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

WINDOW = 64 * 1024


class _Raw:
    """What a TLS layer sees of its transport: everything below TLS."""

    def __init__(self, end):
        self.end = end

    def write(self, octets):
        self.end.raw_write(octets)

    def loseConnection(self):
        self.end.closing = self.end.closing or "close"

    def abortConnection(self):
        self.end.closing = "abort"

    def registerProducer(self, producer, streaming):
        self.end.producer = producer

    def unregisterProducer(self):
        self.end.producer = None

    def __getattr__(self, name):
        return getattr(self.end, name)


@implementer(ITLSTransport, ITCPTransport, IConsumer, IPushProducer)
class End:
    """One side of a connection."""

    def __init__(self, network, is_client):
        self.network = network
        self.is_client = is_client
        self.peer = None
        self.protocol = None
        self.tls = None
        self.producer = None
        self.producer_paused = False
        self.reading = True
        self.outbox = []
        self.closing = None
        self.connected = True
        self.no_delay = False
        self.written = 0
        """Octets written above TLS."""
        self.writes = deque(maxlen=20)
        """The last of them."""
        self.most_waiting = 0
        """The most octets that ever waited for the network."""

    # --- as a transport ---

    def write(self, octets):
        if not self.connected or (self.closing and self.tls is None):
            return
        self.written += len(octets)
        self.writes.append(bytes(octets))
        if self.tls is not None:
            self.tls.write(octets)
        else:
            self.raw_write(octets)

    def writeSequence(self, parts):
        self.write(b"".join(parts))

    def raw_write(self, octets):
        if octets:
            self.outbox.append(bytes(octets))
        waiting = sum(map(len, self.outbox))
        self.most_waiting = max(self.most_waiting, waiting)
        if self.producer is not None and not self.producer_paused and waiting > WINDOW:
            self.producer_paused = True
            self.producer.pauseProducing()

    def loseConnection(self):
        if self.tls is not None:
            self.tls.loseConnection()
        else:
            self.closing = self.closing or "close"

    def abortConnection(self):
        self.outbox = []
        self.closing = "abort"

    def registerProducer(self, producer, streaming):
        if self.tls is not None:
            self.tls.registerProducer(producer, streaming)
        else:
            self.producer = producer

    def unregisterProducer(self):
        if self.tls is not None:
            self.tls.unregisterProducer()
        else:
            self.producer = None

    def pauseProducing(self):
        self.reading = False

    def resumeProducing(self):
        self.reading = True

    def stopProducing(self):
        self.loseConnection()

    def setTcpNoDelay(self, enabled):
        self.no_delay = enabled

    def getPeer(self):
        return IPv4Address("TCP", "127.0.0.1", 40000)

    def getHost(self):
        return IPv4Address("TCP", "127.0.0.1", 2525)

    def getHandle(self):
        return None if self.tls is None else self.tls.getHandle()

    def startTLS(self, creator, normal=True):
        producer, self.producer = self.producer, None
        factory = TLSMemoryBIOFactory(creator, self.is_client, None, self.network.clock)
        self.tls = self.protocol = factory.protocol(factory, self.protocol, False)
        self.tls.makeConnection(_Raw(self))
        if producer is not None:
            self.tls.registerProducer(producer, True)

    # --- as a network ---

    def step(self):
        """Move what was written; True when something happened."""
        if not self.connected:
            return False
        if self.outbox and (self.peer.reading or not self.peer.connected):
            octets, self.outbox = b"".join(self.outbox), []
            if self.producer_paused:
                self.producer_paused = False
                if self.producer is not None:
                    self.producer.resumeProducing()
            if self.peer.connected:
                size = self.network.segment or len(octets)
                for at in range(0, len(octets), size):
                    if self.peer.connected and self.peer.closing != "abort":
                        self.peer.protocol.dataReceived(octets[at : at + size])
            return True
        if self.closing and not self.outbox:
            aborted = self.closing == "abort"
            self._lose(ConnectionAborted() if aborted else ConnectionDone())
            self.peer._lose(ConnectionLost() if aborted else ConnectionDone())
            return True
        return False

    def _lose(self, error):
        if self.connected:
            self.connected = False
            self.protocol.connectionLost(Failure(error))


class Network:
    """All connections of a test. `segment`: how many octets arrive at once, 0 for as many as were written."""

    def __init__(self, clock=None, segment=0):
        self.clock = clock or Clock()
        self.segment = segment
        self.ends = []

    def connect(self, client, server):
        """Join two protocols; the client's is told first."""
        one, two = End(self, True), End(self, False)
        one.peer, two.peer = two, one
        one.protocol, two.protocol = client, server
        self.ends += (one, two)
        client.makeConnection(one)
        server.makeConnection(two)
        return one, two

    def pump(self):
        """Move octets until nothing moves any more."""
        moved = True
        while moved:
            self.clock.advance(0)
            moved = False
            for end in self.ends:
                moved = end.step() or moved
