"""Questions to recursive servers: dnspython's messages over Twisted's UDP and TCP.

Each question goes from a socket of its own, so that its source port and its id
are both random (RFC 5452), to the servers in turn, round after round, until one
of them gives an answer that decides. An answer counts when it comes from the
address asked and repeats id and question; anything else is not seen. A
truncated answer is asked for again over TCP (RFC 7766). What cannot be read,
SERVFAIL, REFUSED, a referral and silence are `Unknown`; NXDOMAIN and an empty
answer are `Absent`. A server that stays silent is asked last for a while.

Nothing is validated here: the AD bit of a trusted server is believed, and where
a trusted server answers SERVFAIL it is asked once more with CD, so that what it
found to be bogus can be told from what it could not find out (RFC 4035 3.2.2).

No answer is remembered: see `cache.py`.
"""

from __future__ import annotations

import re
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Protocol as Interface
from typing import TypeVar

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdatatype
from dns.rdtypes.ANY.MX import MX
from dns.rdtypes.ANY.PTR import PTR
from dns.rdtypes.ANY.TLSA import TLSA
from dns.rdtypes.ANY.TXT import TXT
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mailgate.dns.name import ascii_name, reverse_name
from mailgate.dns.resolver import Absent, Answer, Bogus, MxRecord, TlsaRecord
from mailgate.mail.unknown import Unknown

DEPENDENCY = "dns"
# DNS Flag Day 2020: fits into every path without fragments.
_UDP_PAYLOAD = 1232
# How long a server that did not answer is asked after all others.
_LAST_SECONDS = 15.0

R = TypeVar("R")


class Hangs(Interface):
    """The part of a connector that is used here."""

    def disconnect(self) -> object:
        """Close, or stop trying to connect."""
        ...


class Sockets(Interface):
    """What the backend needs of a reactor."""

    def addReader(self, reader: IReadDescriptor) -> None:
        """As `IReactorFDSet.addReader`."""
        ...

    def removeReader(self, reader: IReadDescriptor) -> None:
        """As `IReactorFDSet.removeReader`."""
        ...

    def connectTCP(self, host: str, port: int, factory: ClientFactory, timeout: float = ...) -> Hangs:
        """As `IReactorTCP.connectTCP`."""
        ...

    def seconds(self) -> float:
        """As `IReactorTime.seconds`."""
        ...

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> IDelayedCall:
        """As `IReactorTime.callLater`."""
        ...


@dataclass(frozen=True, slots=True)
class Server:
    """One recursive server; `tcp` asks it over TCP from the start."""

    ip: str
    port: int = 53
    tcp: bool = False


@dataclass(frozen=True, slots=True)
class DnsOptions:
    """How servers are asked; times in seconds, `attempts` counts rounds over all servers.

    `try_tcp_on_error`: rounds after the first ask over TCP.
    """

    servers: tuple[Server, ...]
    timeout_seconds: float = 5.0
    attempts: int = 2
    concurrency: int = 256
    edns: bool = True
    try_tcp_on_error: bool = False
    trust_ad: bool = True
    trusted: tuple[IPv4Network | IPv6Network, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))

    def believes(self, server: Server) -> bool:
        """Whether the AD bit of this server counts."""
        return self.trust_ad and any(ip_address(server.ip.partition("%")[0]) in network for network in self.trusted)


_RESOLV_CONF = re.compile(r"^\s*nameserver\s+(\S+)", re.MULTILINE)


def system_servers(resolv_conf: str) -> tuple[Server, ...]:
    """The servers a resolv.conf names, from its text; the local host when it names none (resolv.conf(5))."""
    found = []
    for text in _RESOLV_CONF.findall(resolv_conf):
        try:
            ip_address(text.partition("%")[0])
        except ValueError:
            continue
        found.append(Server(text))
    return tuple(found) or (Server("127.0.0.1"),)


class DatagramSocket(Interface):
    """A connected UDP socket that does not block."""

    def send(self, octets: bytes) -> int:
        """As `socket.send`."""
        ...

    def recv(self, size_octets: int) -> bytes:
        """As `socket.recv`."""
        ...

    def fileno(self) -> int:
        """As `socket.fileno`."""
        ...

    def close(self) -> None:
        """As `socket.close`."""
        ...


def open_datagrams(server: Server) -> DatagramSocket:
    """A UDP socket from a random port to this server: others' datagrams never reach it. Raises OSError.

    Not by way of `listenUDP`, which logs two lines for each socket.
    """
    found = socket.getaddrinfo(server.ip, server.port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    family, kind, protocol, _, address = found[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setblocking(False)
        opened.connect(address)
    except OSError:
        opened.close()
        raise
    return opened


class DnsResolver:
    """The resolver port over real servers."""

    def __init__(
        self,
        options: DnsOptions,
        sockets: Sockets,
        open_datagrams: Callable[[Server], DatagramSocket] = open_datagrams,
    ) -> None:
        """`sockets` is the reactor."""
        self._options = options
        self._sockets = sockets
        self._open_datagrams = open_datagrams
        self._slots = DeferredSemaphore(options.concurrency)
        self._believed = frozenset(server for server in options.servers if options.believes(server))
        # Where servers are trusted unequally, no silence of one may bring a less trusted one forward.
        self._is_order_free = len(self._believed) in (0, len(set(options.servers)))
        self._last_until: dict[Server, float] = {}

    async def mx(self, name: str) -> Answer[MxRecord] | Absent | Unknown:
        """The MX records of `name`."""
        return await self._records(name, dns.rdatatype.MX, _mx)

    async def ipv4(self, name: str) -> Answer[str] | Absent | Unknown:
        """The A records of `name`."""
        return await self._records(name, dns.rdatatype.A, _ipv4)

    async def ipv6(self, name: str) -> Answer[str] | Absent | Unknown:
        """The AAAA records of `name`."""
        return await self._records(name, dns.rdatatype.AAAA, _ipv6)

    async def txt(self, name: str) -> Answer[str] | Absent | Unknown:
        """The TXT records of `name`, octets outside UTF-8 replaced."""
        return await self._records(name, dns.rdatatype.TXT, _txt)

    async def ptr(self, ip: str) -> Answer[str] | Absent | Unknown:
        """The names `ip` points back to."""
        name = reverse_name(ip)
        if name is None:
            return Absent(name_exists=False)
        return await self._records(name, dns.rdatatype.PTR, _ptr)

    async def tlsa(self, name: str) -> Answer[TlsaRecord] | Absent | Unknown:
        """The TLSA records of `name`."""
        return await self._records(name, dns.rdatatype.TLSA, _tlsa)

    async def _records(
        self, name: str, rdtype: dns.rdatatype.RdataType, read: Callable[[dns.rdata.Rdata], R]
    ) -> Answer[R] | Absent | Unknown:
        ascii_form = ascii_name(name)
        if ascii_form is None:
            # A name that cannot be asked about cannot exist.
            return Absent(name_exists=False)
        await self._slots.acquire()
        try:
            reply = await self._ask(ascii_form, rdtype)
        finally:
            self._slots.release()
        if isinstance(reply, Unknown):
            return reply
        message, server = reply
        authentic, indeterminate = self._status(message, server)
        try:
            chain = message.resolve_chaining()
        except dns.message.ChainTooLong:
            # A CNAME loop, or more than 16 of them: there is certainly no record at its end.
            return Absent(True, authentic, indeterminate=indeterminate)
        except dns.exception.DNSException as fault:
            return Unknown(DEPENDENCY, f"{ascii_form}: malformed answer ({type(fault).__name__})")
        if chain.answer is None:
            # RFC 2308 5: what has no SOA record is not kept.
            ttl_seconds = chain.minimum_ttl if _holds(message, dns.rdatatype.SOA) else 0
            return Absent(message.rcode() != dns.rcode.NXDOMAIN, authentic, ttl_seconds, indeterminate)
        records = tuple([read(record) for record in chain.answer])
        return Answer(records, authentic, chain.minimum_ttl, indeterminate)

    def _status(self, message: dns.message.QueryMessage, server: Server) -> tuple[bool, bool]:
        """Whether the answer is authentic, and whether nothing is known about that."""
        believed = server in self._believed
        return believed and bool(message.flags & dns.flags.AD), not believed

    async def _ask(
        self, name: str, rdtype: dns.rdatatype.RdataType
    ) -> tuple[dns.message.QueryMessage, Server] | Unknown:
        """Ask the servers in order until one answer decides; the last fault when none does."""
        options = self._options
        fault = "no server is configured"
        edns = options.edns
        order = self._order()
        unchecked = set(self._believed)
        for attempt in range(options.attempts):
            for server in order:
                tcp = server.tcp or (attempt > 0 and options.try_tcp_on_error)
                reply = await self._exchange(server, _query(name, rdtype, edns), tcp)
                if isinstance(reply, dns.message.QueryMessage) and edns and reply.rcode() == dns.rcode.FORMERR:
                    # RFC 6891 7: a server without EDNS may answer FORMERR.
                    edns = False
                    reply = await self._exchange(server, _query(name, rdtype, edns), tcp)
                if isinstance(reply, str):
                    fault = f"{name}: {reply} from {server.ip}"
                elif not _decides(reply):
                    fault = f"{name}: {_fault(reply)} from {server.ip}"
                    if reply.rcode() == dns.rcode.SERVFAIL and server in unchecked:
                        unchecked.remove(server)
                        if not await self._answers_unchecked(server, _query(name, rdtype, edns), tcp):
                            continue
                        # Not left to the next server: one that validates nothing would take the forged records.
                        return Bogus(DEPENDENCY, f"{name}: bogus (DNSSEC validation failed) from {server.ip}")
                else:
                    return reply, server
        return Unknown(DEPENDENCY, fault)

    async def _answers_unchecked(self, server: Server, query: dns.message.QueryMessage, tcp: bool) -> bool:
        """Whether a server that failed has an answer when it is told not to validate it."""
        query.flags |= dns.flags.CD
        reply = await self._exchange(server, query, tcp)
        return isinstance(reply, dns.message.QueryMessage) and _decides(reply)

    def _order(self) -> Sequence[Server]:
        """The servers as configured, those that lately did not answer last."""
        servers = self._options.servers
        if not self._last_until or not self._is_order_free:
            return servers
        now = self._sockets.seconds()
        late = {server for server, until in self._last_until.items() if until > now}
        for server in self._last_until:
            if server not in late:
                # This question finds out whether it is back; others need not wait for that.
                self._last_until[server] = now + _LAST_SECONDS
        return sorted(servers, key=late.__contains__)

    def _heard(self, server: Server, reply: dns.message.QueryMessage | str) -> None:
        if reply == _SILENCE:
            self._last_until[server] = self._sockets.seconds() + _LAST_SECONDS
        elif self._last_until:
            self._last_until.pop(server, None)

    async def _exchange(
        self, server: Server, query: dns.message.QueryMessage, tcp: bool
    ) -> dns.message.QueryMessage | str:
        """One question to one server, a truncated answer over TCP; a text says what went wrong."""
        if not tcp:
            reply = await self._once(_Datagram(server, query, self._open_datagrams))
            self._heard(server, reply)
            if isinstance(reply, str) or not reply.flags & dns.flags.TC:
                return reply
        reply = await self._once(_Stream(server, query))
        self._heard(server, reply)
        return reply

    def _once(self, question: _Datagram | _Stream) -> Deferred[dns.message.QueryMessage | str]:
        question.begin(self._sockets, self._options.timeout_seconds)
        return question.answer


def _query(name: str, rdtype: dns.rdatatype.RdataType, edns: bool) -> dns.message.QueryMessage:
    query = dns.message.make_query(
        name + ".",
        rdtype,
        use_edns=0 if edns else None,
        want_dnssec=edns,
        payload=_UDP_PAYLOAD if edns else None,
    )
    # RFC 6840 5.7: AD in a question asks for AD in the answer.
    query.flags |= dns.flags.AD
    return query


def _holds(message: dns.message.QueryMessage, rdtype: dns.rdatatype.RdataType) -> bool:
    return any(records.rdtype == rdtype for records in message.authority)


def _decides(message: dns.message.QueryMessage) -> bool:
    """Whether this answers the question, by records or by saying that there are none."""
    rcode = message.rcode()
    return rcode == dns.rcode.NXDOMAIN or (rcode == dns.rcode.NOERROR and not _is_referral(message))


def _is_referral(message: dns.message.QueryMessage) -> bool:
    # RFC 2308 2.2: name servers and no SOA record. Who sends this does not resolve for us.
    return not message.answer and _holds(message, dns.rdatatype.NS) and not _holds(message, dns.rdatatype.SOA)


def _fault(message: dns.message.QueryMessage) -> str:
    rcode = message.rcode()
    return "referral" if rcode == dns.rcode.NOERROR else dns.rcode.to_text(rcode)


_SILENCE = "timeout"


class _Question(ABC):
    """One question on one socket: ends once, with an answer or the text of a fault."""

    def __init__(self, server: Server, query: dns.message.QueryMessage) -> None:
        self._server = server
        self._query = query
        self._limit: IDelayedCall | None = None
        self._done = False
        self.answer: Deferred[dns.message.QueryMessage | str] = Deferred(lambda _: self._close())

    def _begin_limit(self, clock: Sockets, seconds: float) -> None:
        self._limit = clock.callLater(seconds, self._finish, _SILENCE)

    def _read(self, octets: bytes) -> None:
        """Finish with a message that answers our question; a forged or stray one is not seen."""
        if octets[:2] != struct.pack("!H", self._query.id):
            return
        try:
            message = dns.message.from_wire(octets, ignore_trailing=True)
        except dns.exception.DNSException as fault:
            self._finish(f"malformed answer ({type(fault).__name__})")
            return
        if isinstance(message, dns.message.QueryMessage) and self._query.is_response(message):
            self._finish(message)

    def _finish(self, result: dns.message.QueryMessage | str) -> None:
        if not self._done:
            self._close()
            self.answer.callback(result)

    def _close(self) -> None:
        self._done = True
        if self._limit is not None and self._limit.active():
            self._limit.cancel()
        self._hang_up()

    @abstractmethod
    def _hang_up(self) -> None:
        """Close the socket, if there is one."""


@implementer(IReadDescriptor)
class _Datagram(_Question):
    """A question over UDP from a port of its own."""

    def __init__(
        self, server: Server, query: dns.message.QueryMessage, open_datagrams: Callable[[Server], DatagramSocket]
    ) -> None:
        super().__init__(server, query)
        self._open = open_datagrams
        self._socket: DatagramSocket | None = None
        self._sockets: Sockets | None = None

    def begin(self, sockets: Sockets, timeout_seconds: float) -> None:
        """Send; every fault ends in `answer`."""
        self._begin_limit(sockets, timeout_seconds)
        try:
            self._socket = self._open(self._server)
            self._socket.send(self._query.to_wire())
        except OSError as fault:
            self._finish(fault.strerror or str(fault))
            return
        self._sockets = sockets
        sockets.addReader(self)

    def fileno(self) -> int:
        """The socket's descriptor; -1 once it is closed."""
        return self._socket.fileno() if self._socket is not None else -1

    def doRead(self) -> None:
        """Take a datagram of the server."""
        if self._socket is None:
            return
        try:
            octets = self._socket.recv(65535)
        except BlockingIOError:
            return
        except OSError as fault:
            # ICMP: nobody listens there.
            self._finish(fault.strerror or str(fault))
            return
        self._read(octets)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor takes an ICMP error for the end of the socket."""
        self._finish("connection refused")

    def logPrefix(self) -> str:
        """Name this in the log of the reactor's own faults."""
        return "dns"

    def _hang_up(self) -> None:
        if self._sockets is not None:
            self._sockets.removeReader(self)
        if self._socket is not None:
            self._socket.close()
        self._sockets = self._socket = None


class _Stream(_Question, Protocol):
    """A question over TCP (RFC 1035 4.2.2: two octets of length before each message)."""

    def __init__(self, server: Server, query: dns.message.QueryMessage) -> None:
        super().__init__(server, query)
        self._received = b""
        self._connector: Hangs | None = None

    def begin(self, sockets: Sockets, timeout_seconds: float) -> None:
        """Connect and send; every fault ends in `answer`."""
        self._begin_limit(sockets, timeout_seconds)
        connector = sockets.connectTCP(
            self._server.ip, self._server.port, _StreamFactory(self), timeout=timeout_seconds
        )
        if not self._done:
            self._connector = connector

    def connectionMade(self) -> None:
        """Send the question."""
        wire = self._query.to_wire()
        if self.transport is not None:
            self.transport.write(struct.pack("!H", len(wire)) + wire)

    def dataReceived(self, data: bytes) -> None:
        """Collect one message."""
        self._received += data
        if len(self._received) < 2:
            return
        (length,) = struct.unpack("!H", self._received[:2])
        if len(self._received) >= 2 + length:
            self._read(self._received[2 : 2 + length])
            # RFC 7766 7: one question was sent here, so a wrong answer is a fault of this server.
            self._finish("malformed answer (not to our question)")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The server closed, or we did."""
        self.failed("connection closed")

    def failed(self, problem: str) -> None:
        """End with the text of a fault, unless an answer came first."""
        self._finish(problem)

    def _hang_up(self) -> None:
        connector, self._connector = self._connector, None
        if connector is not None:
            connector.disconnect()


class _StreamFactory(ClientFactory):
    noisy = False

    def __init__(self, question: _Stream) -> None:
        self._question = question

    def buildProtocol(self, addr: object) -> _Stream:
        """The one question this connection is for."""
        return self._question

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        """No connection: a fault of this server."""
        self._question.failed(reason.getErrorMessage())


def _text(name: dns.name.Name) -> str:
    text: str = name.to_text(omit_final_dot=True)
    return text.lower() if name != dns.name.root else ""


def _mx(record: dns.rdata.Rdata) -> MxRecord:
    assert isinstance(record, MX)
    return MxRecord(record.preference, _text(record.exchange))


def _ipv4(record: dns.rdata.Rdata) -> str:
    assert isinstance(record, A)
    text: str = record.address
    return text


def _ipv6(record: dns.rdata.Rdata) -> str:
    assert isinstance(record, AAAA)
    return str(ip_address(record.address))


def _txt(record: dns.rdata.Rdata) -> str:
    assert isinstance(record, TXT)
    return b"".join(record.strings).decode("utf-8", "replace")


def _ptr(record: dns.rdata.Rdata) -> str:
    assert isinstance(record, PTR)
    return _text(record.target)


def _tlsa(record: dns.rdata.Rdata) -> TlsaRecord:
    assert isinstance(record, TLSA)
    return TlsaRecord(record.usage, record.selector, record.mtype, record.cert)
