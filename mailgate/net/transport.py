"""TCP connections as Twisted's, with two differences: octets leave at once, and TLS is part of the connection.

Twisted's `write` puts octets aside and asks the poller to say when the socket
takes them: three system calls and a turn of the loop for each reply. A reply
fits into an idle socket's buffer practically always, so here it is handed to
the kernel directly; what does not fit takes Twisted's way with its
back-pressure, and nothing overtakes what waits.

When TLS begins, Twisted puts a protocol of its own between connection and
protocol, with a wrapper around each. Here the connection becomes one that
encrypts. What arrived is decrypted in one go, and all that is to be sent in
answer leaves together: the end of the handshake with the replies to the
commands that came with it, the last reply with the close alert.

What a protocol sees is as with Twisted, but for producers that have to be asked
for each piece: there are none. `startTLS` takes the same creators,
`handshakeCompleted` comes before any `dataReceived`. `loseConnection` sends
what was written and the close alert (RFC 8446 6.1); it does not wait for the
peer's, as nothing is taken from the peer any more. A peer that is still sending
then is not answered with a reset (`net/lingering.py`).
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Protocol

from OpenSSL import SSL
from twisted.internet import tcp
from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import IHandshakeListener, IProducer
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from mailgate.net.lingering import is_sending

_READ_OCTETS = 64 * 1024
"""Octets asked of the kernel, or of OpenSSL for the kernel, at once."""
_RECORD_OCTETS = 16 * 1024
"""What a TLS record holds at most (RFC 8446 5.1)."""


class TlsBegun(Exception):
    """TLS can begin only once."""


class NotStreaming(Exception):
    """A producer that writes only when it is asked would never be asked again: nothing waits after it has written."""


def _untraced(error: SSL.Error) -> SSL.Error:
    """An error that does not hold the connection it is answered for, which would be a cycle."""
    return error.with_traceback(None)


class ServerCreator(Protocol):
    """Makes the server side of handshakes, as Twisted's `IOpenSSLServerConnectionCreator`."""

    def serverConnectionForTLS(self, protocol: object) -> SSL.Connection:
        """Make the connection of one handshake."""
        ...


class ClientCreator(Protocol):
    """Makes the client side of handshakes, as Twisted's `IOpenSSLClientConnectionCreator`."""

    def clientConnectionForTLS(self, protocol: object) -> SSL.Connection:
        """Make the connection of one handshake."""
        ...


class LingeringPlace(Protocol):
    """Where a socket goes that is closed on our side only."""

    def linger(self, its_socket: socket.socket) -> bool:
        """Take it over; False where it is to be closed at once."""
        ...


class _Direct(tcp.Connection):
    """A connection whose octets leave at once while nothing waits to be sent."""

    _is_answering = False
    """What has arrived is being taken: the connection is looked after when that is done."""

    @property
    def _is_up(self) -> bool:
        """True until the connection has ended, or is being aborted."""
        return bool(self.connected) and not self._aborting

    @property
    def _is_idle(self) -> bool:
        """True while nothing waits to be sent."""
        return not self._tempDataBuffer and not self.dataBuffer

    def doRead(self) -> None:
        """Take what has arrived, and end the connection where that says so."""
        try:
            arrived = self.socket.recv(_READ_OCTETS)
        except BlockingIOError:
            return
        except OSError:
            self.connectionLost(Failure(CONNECTION_LOST))
            return
        if not arrived:
            self.connectionLost(connectionDone)
            return
        self._is_answering = True
        try:
            why = self._take(arrived)
        finally:
            self._is_answering = False
        if not self._is_up:
            # It has ended; or it is being aborted, which has an end of its own, with a reset.
            return
        if why is not None:
            self.connectionLost(connectionDone if why is CONNECTION_DONE else Failure(why))
        elif self.disconnecting:
            if self._is_idle:
                self.connectionLost(connectionDone)
            else:
                # Not everything could be sent: it closes when that is done, and takes nothing until then.
                self.stopReading()

    def _take(self, arrived: bytes) -> Exception | None:
        """Hand over what has arrived. Answers why the connection ends, if it does."""
        self.protocol.dataReceived(arrived)
        return None

    def write(self, data: bytes) -> None:
        """Send octets, or have them sent as soon as the peer takes them."""
        if not self._tempDataBuffer and not self.dataBuffer and self.connected and not self._aborting:
            try:
                sent = self.socket.send(data)
            except OSError:
                # Full, or broken: the ordinary way waits, or finds that out properly.
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        FileDescriptor.write(self, data)

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """As `IConsumer.registerProducer`. Raises `NotStreaming`."""
        if not streaming:
            raise NotStreaming("a producer has to go on by itself until it is paused")
        tcp.Connection.registerProducer(self, producer, streaming)

    def loseConnection(self) -> None:
        """Close once everything written has been sent."""
        if self._is_answering and self._is_up and self._is_idle:
            # `doRead` closes: no turn of the loop for it.
            self.disconnecting = 1
            return
        FileDescriptor.loseConnection(self)

    def _closeSocket(self, orderly: bool) -> None:
        # Aborted is aborted, though something else has ended it first: a mistake of the protocol after it.
        orderly = orderly and not self._aborting
        if orderly and self.disconnecting and is_sending(self.socket):
            # Twisted declares the reactor's common part only. There is none where not even a socket could be
            # had, or its source address: Twisted asks for the end of that as well.
            place: LingeringPlace = vars(self)["reactor"]
            if place.linger(self.socket):
                return
        tcp.Connection._closeSocket(self, orderly)


class _Encrypting(_Direct):
    """A connection in TLS. None is made as one: a connection becomes one when TLS begins."""

    _tls: SSL.Connection
    _early: list[bytes] | None
    """What was written while the handshake went on; None once it has ended."""
    _held_octets = 0
    """How much was written since OpenSSL was asked for what it made of it."""

    def _begin(self, tls: SSL.Connection) -> None:
        self._tls = tls
        self._early = []

    def _take(self, arrived: bytes) -> Exception | None:
        self._tls.bio_write(arrived)
        why = self._shake_hands() if self._early is not None else None
        if why is None and self._early is None and self._is_up:
            why = self._decrypt()
        if self._is_up:
            # RFC 8446 6.1: the peer's close alert is answered.
            if why is CONNECTION_DONE or (self.disconnecting and self._is_idle):
                self._alert()
            self._send()
        return why

    def _shake_hands(self) -> Exception | None:
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            return None
        except SSL.ZeroReturnError:
            return CONNECTION_DONE
        except SSL.Error as error:
            return _untraced(error)
        early = self._early
        if not early:
            self._early = None
        IHandshakeListener(self.protocol).handshakeCompleted()
        if early:
            # It is sent if the protocol goes on, and before what that has written now.
            self._early = None
            for octets in early:
                self.write(octets)
        return None

    def _decrypt(self) -> Exception | None:
        """Hand over all that is there, as one piece."""
        why: Exception | None = None
        pieces: list[bytes] = []
        receive = self._tls.recv
        try:
            while True:
                pieces.append(receive(_RECORD_OCTETS))
        except SSL.WantReadError:
            # That was all for now.
            why = None
        except SSL.ZeroReturnError:
            why = CONNECTION_DONE
        except SSL.Error as error:
            why = _untraced(error)
        if pieces:
            self.protocol.dataReceived(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        return why

    def write(self, data: bytes) -> None:
        """Encrypt octets and send them, or have them sent as soon as the peer takes them."""
        if not self._is_up or not data:
            return
        if self._early is not None:
            self._early.append(data)
            return
        try:
            self._tls.sendall(data)
        except SSL.Error:
            # The peer has broken TLS, or ended it: there is nobody to send to. After our close alert
            # nothing can follow, and what waits is still sent.
            if not self.disconnecting:
                self.abortConnection()
            return
        # What is large is not held back until the answer is complete: nobody would tell a producer to wait.
        self._held_octets += len(data)
        if not self._is_answering or self._held_octets > _RECORD_OCTETS:
            self._send()

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """As `ITransport.writeSequence`."""
        self.write(b"".join(iovec))

    def _send(self) -> None:
        """Give the kernel what OpenSSL has for it."""
        self._held_octets = 0
        try:
            while True:
                octets = self._tls.bio_read(_READ_OCTETS)
                _Direct.write(self, octets)
                if len(octets) < _READ_OCTETS:
                    return
        except SSL.WantReadError:
            return

    def _alert(self) -> None:
        try:
            self._tls.shutdown()
        except SSL.Error:
            # It did not get as far as that, or is broken: closing says enough.
            return

    def _postLoseConnection(self) -> Exception | None:
        # Everything has been sent but the alert. Where that does not fit it waits as the rest has, and
        # this is asked again.
        self._alert()
        self._send()
        return CONNECTION_DONE if self._is_idle else None


def _demand_clear(connection: _Direct) -> None:
    if isinstance(connection, _Encrypting):
        raise TlsBegun("the connection is in TLS already")


def _tls_of(connection: _Encrypting) -> SSL.Connection:
    """The TLS connection, which knows version, cipher and certificates."""
    return connection._tls


# As with Twisted's TLS; before TLS it is the socket.
setattr(_Encrypting, "getHandle", _tls_of)  # noqa: B010 - the type checker knows of the socket only


class Accepted(_Direct, tcp.Server):
    """A connection somebody made to us."""

    def startTLS(self, ctx: ServerCreator, normal: bool = True) -> None:
        """Be the server of a handshake; what was written before leaves in clear. Raises `TlsBegun`."""
        _demand_clear(self)
        self.__class__ = _AcceptedInTls
        assert isinstance(self, _AcceptedInTls)
        tls = ctx.serverConnectionForTLS(self)
        tls.set_accept_state()
        self._begin(tls)


class _AcceptedInTls(_Encrypting, Accepted):
    """The same, in TLS."""


class Connected(_Direct, tcp.Client):
    """A connection we made to somebody."""

    def startTLS(self, ctx: ClientCreator, normal: bool = True) -> None:
        """Be the client of a handshake, and begin it. Raises `TlsBegun`."""
        _demand_clear(self)
        self.__class__ = _ConnectedInTls
        assert isinstance(self, _ConnectedInTls)
        tls = ctx.clientConnectionForTLS(self)
        tls.set_connect_state()
        self._begin(tls)
        self._shake_hands()
        self._send()


class _ConnectedInTls(_Encrypting, Connected):
    """The same, in TLS."""


class Port(tcp.Port):
    """A port whose connections are `Accepted`."""

    transport = Accepted


class Connector(tcp.Connector):
    """Makes a connection that is `Connected`."""

    def _makeTransport(self) -> Connected:
        return Connected(self.host, self.port, self.bindAddress, self, self.reactor)
