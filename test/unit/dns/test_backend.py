"""Questions to servers, with a reactor in memory: ports, ids, faults, TCP, the AD bit."""

from __future__ import annotations

import errno
import random
import struct
from dataclasses import replace
from ipaddress import ip_network

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from support.dns_server import answer
from support.zone import Zone
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from mailgate.dns.backend import DnsOptions, DnsResolver, Server, system_servers
from mailgate.dns.resolver import Absent, Answer, Bogus, MxRecord, TlsaRecord
from mailgate.mail.unknown import Unknown

ONE = Server("127.0.0.1")
TWO = Server("192.0.2.53", 5353)


class Datagrams:
    """A UDP socket that keeps what was sent; `deliver` hands over a datagram."""

    def __init__(self, network, server):
        self.network = network
        self.peer = server
        self.closed = False
        self.incoming = []

    def send(self, octets):
        if self.network.send_fault is not None:
            raise self.network.send_fault
        self.network.sent.append((self, octets))
        return len(octets)

    def recv(self, size):
        if not self.incoming:
            raise BlockingIOError
        octets = self.incoming.pop(0)
        if isinstance(octets, OSError):
            raise octets
        return octets

    def fileno(self):
        return 99

    def close(self):
        self.closed = True

    @property
    def reader(self):
        return next((reader for reader in self.network.readers if reader._socket is self), None)

    def deliver(self, octets):
        self.incoming.append(octets)
        self.reader.doRead()


class Connector:
    def __init__(self):
        self.closed = False

    def disconnect(self):
        self.closed = True


class Network(Clock):
    """A reactor without sockets."""

    def __init__(self):
        super().__init__()
        self.sent = []
        self.sockets = []
        self.connections = []
        self.readers = []
        self.send_fault = None

    def open(self, server):
        self.sockets.append(Datagrams(self, server))
        return self.sockets[-1]

    def addReader(self, reader):
        self.readers.append(reader)

    def removeReader(self, reader):
        self.readers.remove(reader)

    def connectTCP(self, host, port, factory, timeout=30):
        connector = Connector()
        self.connections.append((host, port, factory, connector))
        return connector

    def last(self):
        socket, octets = self.sent[-1]
        return socket, dns.message.from_wire(octets)

    def answer(self, zone):
        socket, octets = self.sent[-1]
        socket.deliver(answer(zone, octets))

    def accept(self):
        _, _, factory, _ = self.connections[-1]
        protocol = factory.buildProtocol(None)
        protocol.makeConnection(StringTransport())
        return protocol


def ask(network, question, **options):
    """Start a look-up; the answers arrive in the list."""
    options.setdefault("servers", (ONE,))
    resolver = DnsResolver(DnsOptions(**options), network, network.open)
    found = []
    Deferred.fromCoroutine(question(resolver)).addCallback(found.append)
    return found


ZONE = (
    Zone()
    .mx_set("example.org", (20, "b.example.org"), (10, "A.example.org"))
    .a("a.example.org", "192.0.2.1", "192.0.2.2")
    .aaaa("a.example.org", "2001:db8:0:0::1")
    .text("example.org", "v=spf1 -all", "x" * 300)
    .pointer("192.0.2.1", "a.example.org")
    .mx_set("null.example", (0, ""))
    .tlsa_set("_25._tcp.a.example.org", (3, 1, 1, b"\x01" * 32), (2, 0, 0, b"\xff"))
    .sign("a.example.org")
)


@pytest.mark.parametrize(
    "question, expected",
    [
        (lambda r: r.mx("example.org"), {MxRecord(10, "a.example.org"), MxRecord(20, "b.example.org")}),
        (lambda r: r.mx("EXAMPLE.org."), {MxRecord(10, "a.example.org"), MxRecord(20, "b.example.org")}),
        (lambda r: r.mx("null.example"), {MxRecord(0, "")}),
        (lambda r: r.ipv4("a.example.org"), {"192.0.2.1", "192.0.2.2"}),
        (lambda r: r.ipv6("a.example.org"), {"2001:db8::1"}),
        (lambda r: r.txt("example.org"), {"v=spf1 -all", "x" * 300}),
        (lambda r: r.ptr("192.0.2.1"), {"a.example.org"}),
        (
            lambda r: r.tlsa("_25._tcp.a.example.org"),
            {TlsaRecord(3, 1, 1, b"\x01" * 32), TlsaRecord(2, 0, 0, b"\xff")},
        ),
    ],
)
def test_records_are_read(question, expected):
    network = Network()
    found = ask(network, question)
    network.answer(ZONE)
    assert set(found[0].records) == expected
    assert found[0].ttl_seconds == 300
    assert network.sockets[0].closed
    assert not network.getDelayedCalls()


def test_question_carries_ad_do_and_a_payload_that_fits():
    network = Network()
    ask(network, lambda r: r.mx("example.org"))
    _, query = network.last()
    assert query.flags & dns.flags.AD
    assert query.ednsflags & dns.flags.DO
    assert query.payload == 1232


def test_edns_can_be_off():
    network = Network()
    ask(network, lambda r: r.mx("example.org"), edns=False)
    assert network.last()[1].edns == -1


def test_a_server_without_edns_is_asked_without():
    network = Network()
    found = ask(network, lambda r: r.mx("example.org"))
    socket, query = network.last()
    refusal = dns.message.make_response(query)
    refusal.use_edns(-1)
    refusal.set_rcode(dns.rcode.FORMERR)
    socket.deliver(refusal.to_wire())
    assert network.last()[1].edns == -1
    network.answer(ZONE)
    assert isinstance(found[0], Answer)


def test_absent_tells_a_missing_name_from_a_missing_type():
    for name, exists in (("nowhere.example", False), ("example.org", True)):
        network = Network()
        found = ask(network, lambda r, name=name: r.ipv6(name))
        network.answer(ZONE)
        assert isinstance(found[0], Absent)
        assert found[0].name_exists is exists


@pytest.mark.parametrize("name", ["", "a..b", "-a.example", "a b.example", "x" * 64 + ".example", "ex\x00.org", "☃.☃ "])
def test_a_name_that_cannot_be_is_absent_without_a_question(name):
    network = Network()
    found = ask(network, lambda r: r.mx(name))
    assert found == [Absent(name_exists=False)]
    assert not network.sent


def test_a_u_label_is_asked_for_as_an_a_label():
    network = Network()
    ask(network, lambda r: r.mx("Bücher.example"))
    assert str(network.last()[1].question[0].name) == "xn--bcher-kva.example."


def test_each_question_has_a_socket_and_an_id_of_its_own():
    network = Network()
    resolver = DnsResolver(DnsOptions((ONE,)), network, network.open)
    for number in range(64):
        Deferred.fromCoroutine(resolver.mx(f"d{number}.example"))
    assert len(network.sockets) == 64
    assert len({octets[:2] for _, octets in network.sent}) > 50


def test_answers_that_are_not_ours_are_not_seen():
    network = Network()
    found = ask(network, lambda r: r.ipv4("a.example.org"))
    socket, octets = network.sent[-1]
    good = answer(ZONE, octets)
    socket.deliver(struct.pack("!H", dns.message.from_wire(octets).id ^ 1) + good[2:])
    other = dns.message.make_query("b.example.org", "A", id=dns.message.from_wire(octets).id)
    socket.deliver(dns.message.make_response(other).to_wire())
    socket.deliver(octets)
    assert found == []
    network.answer(ZONE)
    assert isinstance(found[0], Answer)


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "NOTIMP"])
def test_an_error_of_every_server_is_unknown(rcode):
    network = Network()
    zone = Zone().fail("example.org", reason=rcode)
    found = ask(network, lambda r: r.mx("example.org"), servers=(ONE, TWO), attempts=2)
    # The trusted one of them is asked once more without validation.
    asked = (ONE, ONE, TWO, ONE, TWO) if rcode == "SERVFAIL" else (ONE, TWO, ONE, TWO)
    for server in asked:
        assert network.last()[0].peer == server
        network.answer(zone)
    assert type(found[0]) is Unknown
    assert found[0].dependency == "dns"
    assert rcode in found[0].reason
    assert len(network.sent) == len(asked)


def test_silence_ends_at_the_time_limit_and_the_next_server_is_asked():
    network = Network()
    found = ask(network, lambda r: r.mx("example.org"), servers=(ONE, TWO), timeout_seconds=3, attempts=1)
    network.advance(2.9)
    assert len(network.sent) == 1
    network.advance(0.1)
    assert network.sockets[0].closed
    assert network.last()[0].peer == TWO
    network.advance(3)
    assert found == [Unknown("dns", "example.org: timeout from 192.0.2.53")]


@pytest.mark.parametrize("how", ["send", "recv", "reactor"])
def test_a_refused_port_leads_to_the_next_server_at_once(how):
    network = Network()
    refusal = OSError(errno.ECONNREFUSED, "Connection refused")
    if how == "send":
        network.send_fault = refusal
        found = ask(network, lambda r: r.mx("example.org"), servers=(ONE,), attempts=1)
        assert found == [Unknown("dns", "example.org: Connection refused from 127.0.0.1")]
        assert network.sockets[0].closed
        return
    found = ask(network, lambda r: r.mx("example.org"), servers=(ONE, TWO))
    if how == "recv":
        network.sent[-1][0].deliver(refusal)
    else:
        network.sent[-1][0].reader.connectionLost(Failure(ConnectionRefusedError()))
    assert network.last()[0].peer == TWO
    network.answer(ZONE)
    assert isinstance(found[0], Answer)
    assert network.readers == []


def test_a_wake_up_without_a_datagram_is_nothing():
    network = Network()
    found = ask(network, lambda r: r.mx("example.org"))
    network.readers[0].doRead()
    assert found == []
    assert network.readers[0].fileno() == 99


def test_a_truncated_answer_is_asked_for_again_over_tcp():
    zone = Zone().text("long.example", *("x" * 250 + str(n) for n in range(10)))
    network = Network()
    found = ask(network, lambda r: r.txt("long.example"))
    network.answer(zone)
    assert found == []
    stream = network.accept()
    sent = stream.transport.value()
    assert struct.unpack("!H", sent[:2])[0] == len(sent) - 2
    reply = answer(zone, sent[2:], udp=False)
    for octet in struct.pack("!H", len(reply)) + reply:
        stream.dataReceived(bytes([octet]))
    assert len(found[0].records) == 10
    assert network.connections[-1][3].closed


@pytest.mark.parametrize("end", ["refused", "lost", "wrong"])
def test_a_fault_over_tcp_is_unknown(end):
    network = Network()
    found = ask(network, lambda r: r.mx("example.org"), servers=(Server("127.0.0.1", 53, tcp=True),), attempts=1)
    if end == "refused":
        network.connections[-1][2].clientConnectionFailed(None, Failure(ConnectionRefusedError()))
    elif end == "lost":
        network.accept().connectionLost(Failure(ConnectionRefusedError()))
    else:
        network.accept().dataReceived(b"\x00\x03abc")
    assert isinstance(found[0], Unknown)
    assert not network.getDelayedCalls()


def test_rounds_after_the_first_use_tcp_when_told():
    network = Network()
    ask(network, lambda r: r.mx("example.org"), try_tcp_on_error=True)
    network.answer(Zone().fail("example.org", reason="REFUSED"))
    assert len(network.connections) == 1


@pytest.mark.spec("OUT-252")
@pytest.mark.parametrize("trusts, server, secure", [(True, ONE, True), (True, TWO, False), (False, ONE, False)])
@pytest.mark.parametrize("question", [lambda r: r.ipv4("a.example.org"), lambda r: r.txt("a.example.org")])
def test_the_ad_bit_counts_from_trusted_servers_only(trusts, server, secure, question):
    network = Network()
    found = ask(network, question, servers=(server,), trust_ad=trusts)
    network.answer(ZONE)
    assert found[0].authentic is secure
    assert found[0].indeterminate is not secure


def test_without_the_ad_bit_a_trusted_server_says_insecure():
    network = Network()
    found = ask(network, lambda r: r.mx("example.org"))
    network.answer(ZONE)
    assert (found[0].authentic, found[0].indeterminate) == (False, False)


@pytest.mark.spec("OUT-254")
@pytest.mark.parametrize(
    "trusted, secure", [("192.0.2.53/32", True), ("192.0.2.0/24", True), ("192.0.2.54/32", False), ("::/0", False)]
)
def test_an_address_or_mask_makes_a_server_trusted(trusted, secure):
    network = Network()
    found = ask(network, lambda r: r.ipv4("a.example.org"), servers=(TWO,), trusted=(ip_network(trusted),))
    network.answer(ZONE)
    assert found[0].authentic is secure


@pytest.mark.spec("OUT-255")
def test_servfail_that_is_an_answer_without_validation_is_bogus():
    network = Network()
    zone = Zone().a("a.example.org", "192.0.2.66").fail("a.example.org", reason="bogus")
    found = ask(network, lambda r: r.ipv4("a.example.org"), servers=(ONE, TWO))
    network.answer(zone)
    assert found == []
    network.answer(zone)
    assert isinstance(found[0], Bogus)
    assert isinstance(found[0], Unknown)
    assert found[0].reason == "a.example.org: bogus (DNSSEC validation failed) from 127.0.0.1"
    queries = [dns.message.from_wire(octets) for _, octets in network.sent]
    assert [bool(query.flags & dns.flags.CD) for query in queries] == [False, True]
    # Nothing is validated here: no keys, no DS records.
    assert {dns.rdatatype.to_text(query.question[0].rdtype) for query in queries} == {"A"}


@pytest.mark.parametrize("options", [{"servers": (TWO,)}, {"trust_ad": False}])
def test_servers_that_are_not_trusted_are_never_asked_without_validation(options):
    network = Network()
    zone = Zone().a("a.example.org", "192.0.2.66").fail("a.example.org", reason="bogus")
    found = ask(network, lambda r: r.ipv4("a.example.org"), attempts=1, **options)
    network.answer(zone)
    assert type(found[0]) is Unknown
    assert len(network.sent) == 1


def test_servfail_is_not_bogus_where_validation_is_not_the_reason():
    network = Network()
    found = ask(network, lambda r: r.ipv4("a.example.org"), attempts=1)
    network.answer(Zone().fail("a.example.org"))
    network.advance(5)
    assert found == [Unknown("dns", "a.example.org: SERVFAIL from 127.0.0.1")]
    assert type(found[0]) is Unknown


def silent(network, question, **options):
    """A resolver one of whose questions to the first server timed out."""
    resolver = DnsResolver(DnsOptions(timeout_seconds=5, **options), network, network.open)
    Deferred.fromCoroutine(question(resolver))
    network.advance(5)
    network.answer(ZONE)
    return resolver


def peers(network, resolver, count=1):
    """The servers that new questions go to, each answered at once."""
    found = []
    for _ in range(count):
        Deferred.fromCoroutine(resolver.mx("example.org"))
        found.append(network.last()[0].peer)
        network.answer(ZONE)
    return found


def test_a_silent_server_is_asked_last_for_a_while():
    network = Network()
    near, far = Server("127.0.0.1"), Server("127.0.0.2")
    resolver = silent(network, lambda r: r.mx("example.org"), servers=(near, far))
    assert peers(network, resolver, 3) == [far] * 3
    network.advance(15)
    # One question finds out whether it is back; the others do not wait for that.
    Deferred.fromCoroutine(resolver.mx("example.org"))
    probe = network.sent[-1]
    assert probe[0].peer == near
    assert peers(network, resolver) == [far]
    probe[0].deliver(answer(ZONE, probe[1]))
    assert peers(network, resolver, 2) == [near] * 2


def test_silence_brings_no_untrusted_server_forward():
    network = Network()
    resolver = silent(network, lambda r: r.mx("example.org"), servers=(ONE, TWO))
    assert peers(network, resolver) == [ONE]


def test_absence_lives_as_long_as_the_soa_record_says_and_is_not_kept_without():
    for soa, ttl_seconds in ((True, 300), (False, 0)):
        network = Network()
        found = ask(network, lambda r: r.mx("nowhere.example"))
        socket, octets = network.sent[-1]
        reply = dns.message.from_wire(answer(ZONE, octets))
        if not soa:
            reply.authority.clear()
        socket.deliver(reply.to_wire())
        assert found == [Absent(name_exists=False, ttl_seconds=ttl_seconds)]


def test_a_referral_is_no_answer():
    network = Network()
    found = ask(network, lambda r: r.mx("example.org"), attempts=1)
    socket, query = network.last()
    response = dns.message.make_response(query)
    response.authority.append(dns.rrset.from_text("org.", 60, "IN", "NS", "ns.example."))
    socket.deliver(response.to_wire())
    assert found == [Unknown("dns", "example.org: referral from 127.0.0.1")]


def test_a_cname_loop_is_absent():
    network = Network()
    found = ask(network, lambda r: r.ipv4("a.example"))
    socket, query = network.last()
    response = dns.message.make_response(query)
    for owner, target in (("a.example.", "b.example."), ("b.example.", "a.example.")):
        response.answer.append(dns.rrset.from_text(owner, 60, "IN", "CNAME", target))
    socket.deliver(response.to_wire())
    assert found == [Absent(name_exists=True)]


def test_a_cname_is_followed_and_the_least_ttl_counts():
    network = Network()
    found = ask(network, lambda r: r.ipv4("a.example"))
    socket, query = network.last()
    response = dns.message.make_response(query)
    response.answer.append(dns.rrset.from_text("a.example.", 60, "IN", "CNAME", "b.example."))
    response.answer.append(dns.rrset.from_text("b.example.", 600, "IN", "A", "192.0.2.9"))
    socket.deliver(response.to_wire())
    assert found == [Answer(("192.0.2.9",), ttl_seconds=60)]


def test_garbage_never_raises_and_leaves_nothing_behind():
    random.seed(7)
    for _ in range(300):
        network = Network()
        found = ask(network, lambda r: r.mx("example.org"), attempts=1)
        socket, octets = network.sent[-1]
        reply = bytearray(answer(ZONE, octets))
        for _ in range(random.randrange(1, 8)):
            reply[random.randrange(2, len(reply))] = random.randrange(256)
        cut = random.randrange(2, len(reply) + 1)
        socket.deliver(bytes(reply[:cut]))
        network.advance(30)
        while network.connections and not found:
            network.accept().connectionLost(Failure(ConnectionRefusedError()))
        assert len(found) == 1
        assert all(socket.closed for socket in network.sockets)
        assert not network.getDelayedCalls()


def test_no_more_questions_at_once_than_allowed():
    network = Network()
    resolver = DnsResolver(replace(DnsOptions((ONE,)), concurrency=2), network, network.open)
    for number in range(3):
        Deferred.fromCoroutine(resolver.mx(f"d{number}.example"))
    assert len(network.sent) == 2
    network.answer(ZONE)
    assert len(network.sent) == 3


def test_giving_up_closes_the_socket():
    network = Network()
    waiting = Deferred.fromCoroutine(DnsResolver(DnsOptions((ONE,)), network, network.open).mx("example.org"))
    waiting.addErrback(lambda _: None)
    waiting.cancel()
    assert network.sockets[0].closed
    assert not network.getDelayedCalls()


def test_the_system_servers_are_those_of_resolv_conf():
    text = "# comment\nsearch example.org\nnameserver 192.0.2.1\n nameserver\tfe80::1%eth0\nnameserver bad\n"
    assert system_servers(text) == (Server("192.0.2.1"), Server("fe80::1%eth0"))
    assert system_servers("") == (Server("127.0.0.1"),)
