"""Connections of ours over loopback TCP, served by a real `Poller`; the peer is a plain socket or the other OpenSSL.

Nothing sleeps: a turn waits until the poller or a peer has something to do, and
whoever waits for something takes a bounded number of turns.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct

from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import ClientFactory, Protocol, ServerFactory
from twisted.internet.task import Clock
from zope.interface import implementer

from mailgate.net.poller import Poller

_TURNS = 20_000
_IDLE_TURNS = 300
_PATIENCE_SECONDS = 0.01
_AT_ONCE = 64 * 1024


class Around(Clock):
    """The reactor it lives in."""

    def addReader(self, reader):
        pass

    def removeReader(self, reader):
        pass


class _Poller(Poller):
    """Notes who asked to be told of room to write."""

    def __init__(self, reactor):
        super().__init__(reactor)
        self.asked = []

    def addWriter(self, writer):
        self.asked.append(writer)
        super().addWriter(writer)


@implementer(IHandshakeListener)
class Noted(Protocol):
    """A protocol that notes what happens to it; `on` says what it does then: made, data, secured, lost."""

    def __init__(self, **on):
        self.on = on
        self.did = []
        self.reason = None

    @property
    def got(self):
        return b"".join(one for one in self.did if isinstance(one, bytes))

    @property
    def is_lost(self):
        return self.reason is not None

    @property
    def waiting(self):
        """Octets that wait to be sent."""
        transport = self.transport
        return len(transport.dataBuffer) - transport.offset + transport._tempDataLen

    def connectionMade(self):
        self._act("made")

    def handshakeCompleted(self):
        self.did.append("secured")
        self._act("secured")

    def dataReceived(self, octets):
        self.did.append(octets)
        self._act("data")

    def connectionLost(self, reason):
        assert self.reason is None
        self.reason = reason.value
        self.did.append(reason.type)
        self._act("lost")

    def _act(self, what):
        if what in self.on:
            self.on[what](self)


class Content:
    """A streaming producer: writes blocks until there is no room, goes on when there is, and then calls `end`."""

    def __init__(self, transport, octets, end=None, block_octets=64 * 1024):
        self.transport = transport
        self.octets = octets
        self.end = end
        self.block_octets = block_octets
        self.pauses = 0
        self.is_paused = False
        self.at = 0
        transport.registerProducer(self, True)
        self.resumeProducing()

    def pauseProducing(self):
        self.is_paused = True
        self.pauses += 1

    def resumeProducing(self):
        self.is_paused = False
        while not self.is_paused and self.at < len(self.octets):
            block = self.octets[self.at : self.at + self.block_octets]
            self.at += len(block)
            self.transport.write(block)
        if self.at == len(self.octets):
            self.transport.unregisterProducer()
            if self.end is not None:
                self.end()

    def stopProducing(self):
        self.is_paused = True


class Peer:
    """The other side: a plain socket."""

    def __init__(self, its_socket):
        self.socket = its_socket
        its_socket.setblocking(False)
        its_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.arrived = bytearray()
        """What came over the wire."""
        self.unsent = b""
        self.end = None
        """How it ended: "closed" or "reset"."""
        self.is_reading = True
        self.by_one = False
        """Each octet is sent by itself."""

    @property
    def got(self):
        return bytes(self.arrived)

    def send(self, octets):
        self.unsent += octets
        self.step()

    def step(self):
        """Send and take what there is room for."""
        if self.socket.fileno() < 0:
            return
        if self.unsent:
            try:
                sent = self.socket.send(self.unsent[:1] if self.by_one else self.unsent)
                self.unsent = self.unsent[sent:]
            except BlockingIOError:
                pass
            except OSError:
                self.unsent = b""
        if not self.is_reading or self.end is not None:
            return
        try:
            octets = self.socket.recv(_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            self.end = "reset"
            return
        if octets:
            self.arrived += octets
        else:
            self.end = "closed"
        self.take(octets)

    def take(self, octets):
        pass

    def close(self):
        self.socket.close()

    def shut(self):
        """Send no more, and go on reading."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class TlsPeer(Peer):
    """The other side in TLS, by the standard library. `first` goes out with the end of its handshake."""

    def __init__(self, its_socket, context, *, is_server=False, first=b"", by_one=False):
        super().__init__(its_socket)
        self.by_one = by_one
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=is_server)
        self.first = first
        self.clear = bytearray()
        self.is_secured = False
        self.is_leaving = False
        self.has_alert = False
        """The close alert has come."""
        self.error = None
        self.take(None)

    @property
    def got(self):
        return bytes(self.clear)

    @property
    def records(self):
        """How many records have come (RFC 8446 5.1)."""
        count = at = 0
        while at < len(self.arrived):
            at += 5 + int.from_bytes(self.arrived[at + 3 : at + 5], "big")
            count += 1
        return count

    def say(self, octets):
        self.tls.write(octets)
        self.send(self.outgoing.read())

    def leave(self):
        """Send a close alert, and wait for the one that answers."""
        self.is_leaving = True
        self.take(None)

    def take(self, octets):
        if octets:
            self.incoming.write(octets)
        elif octets is not None:
            self.incoming.write_eof()
        try:
            if not self.is_secured:
                self.tls.do_handshake()
                self.is_secured = True
                if self.first:
                    self.tls.write(self.first)
            if self.is_leaving and not self.has_alert:
                self.tls.unwrap()
                # It ends well where the connection is closed instead, too.
                self.has_alert = bool(octets)
            while not self.has_alert:
                clear = self.tls.read(_AT_ONCE)
                self.clear += clear
                self.has_alert = not clear
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.error = error
        self.unsent += self.outgoing.read()
        if octets is None:
            self.step()


class Line:
    """A poller with a port, and the peers of its connections."""

    def __init__(self):
        self.around = Around()
        self.poller = _Poller(self.around)
        self.peers = []
        self._next = None
        self._listening = self._listen()
        factory = ServerFactory.forProtocol(lambda: self._next)
        factory.noisy = False
        self._port = self.poller.adoptStreamPort(self._listening.fileno(), socket.AF_INET, factory)
        self._theirs = self._listen()

    def _listen(self):
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        return listening

    @property
    def asked(self):
        """Who has asked to be told of room to write."""
        return self.poller.asked

    def accepted(self, protocol, buffer_octets=None):
        """A peer that connects to `protocol`; `buffer_octets` is what either kernel may hold of what we send."""
        self._next = protocol
        client = socket.socket()
        if buffer_octets is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_octets)
        client.connect(self._listening.getsockname())
        self.until(lambda: protocol.transport is not None)
        if buffer_octets is not None:
            protocol.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_octets)
        return self._add(Peer(client))

    def connected(self, protocol):
        """A peer that `protocol` connects to."""
        factory = ClientFactory.forProtocol(lambda: protocol)
        factory.noisy = False
        self.poller.connectTCP("127.0.0.1", self._theirs.getsockname()[1], factory)
        self.until(lambda: protocol.transport is not None)
        return self._add(Peer(self._theirs.accept()[0]))

    def both(self, client, server):
        """Two protocols of ours, one connected to the other."""
        self._next = server
        factory = ClientFactory.forProtocol(lambda: client)
        factory.noisy = False
        self.poller.connectTCP("127.0.0.1", self._listening.getsockname()[1], factory)
        self.until(lambda: client.transport is not None and server.transport is not None)

    def secure(self, peer, context, **more):
        """The same peer, in TLS from now on."""
        self.peers.remove(peer)
        return self._add(TlsPeer(peer.socket, context, **more))

    def _add(self, peer):
        self.peers.append(peer)
        return peer

    def turn(self, patience_seconds=_PATIENCE_SECONDS):
        """Serve what is ready, then the peers; answers whether anything was."""
        self.around.advance(0)
        there = [peer for peer in self.peers if peer.socket.fileno() >= 0]
        takes = [peer.socket for peer in there if peer.is_reading and peer.end is None]
        sends = [peer.socket for peer in there if peer.unsent]
        ready = select.select([self.poller, *takes], sends, [], patience_seconds)
        self.poller.doRead()
        self.around.advance(0)
        for peer in there:
            peer.step()
        return any(ready)

    def serve(self):
        """Have the poller serve once, as soon as it has something to serve."""
        assert select.select([self.poller], [], [], _IDLE_TURNS * _PATIENCE_SECONDS)[0]
        self.poller.doRead()

    def until(self, condition):
        """Take turns until it is so."""
        idle = 0
        for _ in range(_TURNS):
            if condition():
                return
            idle = 0 if self.turn() else idle + 1
            if idle > _IDLE_TURNS:
                break
        raise AssertionError("it does not come to that")

    def settle(self):
        """Take turns until nobody has anything to do."""
        for _ in range(_TURNS):
            if not self.turn(0):
                return
        raise AssertionError("it does not come to rest")

    def close(self):
        self.poller.close()
        self._listening.close()
        self._theirs.close()
        for peer in self.peers:
            peer.close()
