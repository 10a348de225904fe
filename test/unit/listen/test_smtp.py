"""The inward shell: what it bounds, in which order it speaks, and how it closes, in memory."""

from functools import partial

import pytest
from support.baseline import baseline
from support.listener import ListenerInMemory
from support.pipe import Network
from support.slow import SlowStore, SlowZone
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Protocol
from zope.interface import implementer

from mailgate.decisions.entry import Kind
from mailgate.net.tls import ClientTls

SMTP = """
[server.listener.smtp]
bind = "127.0.0.1:2525"
protocol = "smtp"
tls.timeout = "30s"
[server.listener.submissions]
bind = "127.0.0.1:4465"
protocol = "smtp"
tls.implicit = true
tls.timeout = "30s"
"""
SLOW_MAIL = "[session.mail]\nis-allowed = \"dns_query('slow.test', 'txt') = 'yes'\"\n"
HELLO = b"EHLO client.test\r\n"
MAIL = b"MAIL FROM:<a@client.test>\r\n"
RCPT = b"RCPT TO:<jane@foobar.org>\r\n"


def listening(*changes, **more):
    return ListenerInMemory(baseline("B0", SMTP, *changes), **more)


def codes(connection):
    lines = connection.received().split(b"\r\n")
    return [line[:9] for line in lines if line[3:4] == b" "]


@implementer(IHandshakeListener)
class Client(Protocol):
    """What it receives it keeps; TLS when told."""

    def __init__(self):
        self.octets = b""
        self.is_gone = False
        self.in_tls = False

    def dataReceived(self, data):
        self.octets += data

    def handshakeCompleted(self):
        self.in_tls = True

    def connectionLost(self, reason):
        self.is_gone = True

    def start_tls(self):
        self.transport.startTLS(ClientTls().handshake("mx.test", verify=False))

    def codes(self):
        lines, self.octets = self.octets.split(b"\r\n"), b""
        return [line[:9] for line in lines if line[3:4] == b" "]


class Wire:
    """A client and a listener joined by transports that behave as over TCP."""

    def __init__(self, *changes, listener="smtp", segment=0, **more):
        self.listener = listening(*changes, **more)
        self.factory = self.listener.factories[listener]
        self.network = Network(self.listener.clock, segment)
        self.client = Client()
        shell = self.factory.buildProtocol(None)
        self.near, self.far = self.network.connect(self.client, shell)
        self.shell = shell
        self.network.pump()

    def say(self, octets):
        self.client.transport.write(octets)
        self.network.pump()

    def advance(self, seconds):
        self.listener.clock.advance(seconds)
        self.network.pump()

    def start_tls(self):
        self.say(b"STARTTLS\r\n")
        self.client.codes()
        self.client.start_tls()
        self.network.pump()
        assert self.client.in_tls


# --- order and bounds -------------------------------------------------------------------


def test_the_transfer_limit_waits_for_the_reply_that_is_due():
    zone = SlowZone()
    connection = listening(SLOW_MAIL, "[session]\ntransfer-limit = 100\n", zone=zone).connect()
    connection.send(HELLO + MAIL)
    connection.send(b"x" * 100)
    assert codes(connection)[-1] == b"250 8BITM"
    assert not connection.closed
    zone.answer()
    assert codes(connection) == [b"250 2.1.0", b"452 4.7.2"]
    assert connection.closed


def test_the_duration_waits_for_the_reply_that_is_due():
    zone = SlowZone()
    connection = listening(SLOW_MAIL, '[session]\nduration = "1m"\n', zone=zone).connect()
    connection.send(HELLO + MAIL)
    codes(connection)
    connection.advance(61)
    connection.send(b"NOOP\r\n")
    assert codes(connection) == []
    zone.answer()
    assert codes(connection) == [b"250 2.1.0", b"421 4.3.2"]
    assert connection.closed


def test_a_reply_that_ends_the_session_is_the_last_whatever_else_was_to_be_said():
    class Kept:
        def __init__(self):
            self.said = []

        def record(self, kind, trail, session, *, replies, reason="", queue_id=None, size_octets=None):
            self.said.append((kind, [reply.code for reply in replies], reason))

    ring = Kept()
    changes = '[session]\ntransfer-limit = 200\n[session.rcpt.errors]\ntotal = 1\nwait = "5s"\n'
    connection = ListenerInMemory(baseline("B1", SMTP, changes), ring=ring).connect()
    connection.send(HELLO + MAIL + b"RCPT TO:<nobody@foobar.org>\r\n")
    connection.send(b"x" * 200)
    connection.received()
    connection.advance(5)
    assert codes(connection) == [b"451 4.3.0"]
    assert connection.closed
    connection.leave()
    # The record tells what the client has heard, and not the farewell that was not said any more.
    assert ring.said == [(Kind.TRANSACTION, [], "connection lost")]


def test_a_decision_is_given_up_for_a_client_that_is_told_to_leave():
    zone = SlowZone()
    connection = listening(SLOW_MAIL, zone=zone).connect()
    connection.send(HELLO + MAIL)
    codes(connection)
    connection.protocol.shut_down()
    assert codes(connection) == [b"421 4.3.0"]
    assert zone.cancelled == 1
    connection.protocol.shut_down()
    assert codes(connection) == []


def test_one_read_and_no_more_while_a_decision_is_pending():
    zone = SlowZone()
    connection = listening(SLOW_MAIL, zone=zone).connect()
    connection.send(HELLO + MAIL)
    assert connection.transport.producerState == "producing"
    connection.send(b"NOOP\r\n")
    assert connection.transport.producerState == "paused"
    codes(connection)
    zone.answer()
    assert codes(connection) == [b"250 2.1.0", b"250 2.0.0"]
    assert connection.transport.producerState == "producing"


def test_many_commands_at_once_are_answered_in_turns():
    connection = listening().connect()
    connection.received()
    connection.send(b"NOOP\r\n" * 1000)
    first = len(codes(connection))
    assert 0 < first < 1000
    rest = 0
    for _ in range(10):
        connection.advance(0)
        rest += len(codes(connection))
    assert first + rest == 1000
    assert connection.transport.producerState == "producing"


def test_a_client_that_does_not_read_is_not_read_from():
    connection = listening().connect()
    shell = connection.protocol
    shell.pauseProducing()
    assert connection.transport.producerState == "paused"
    connection.received()
    connection.send(b"NOOP\r\n" * 3)
    assert codes(connection) == []
    shell.resumeProducing()
    assert connection.transport.producerState == "producing"
    assert codes(connection) == [b"250 2.0.0"] * 3


def test_a_client_that_never_reads_costs_bounded_memory_and_is_cut_off():
    wire = Wire('[session]\ntimeout = "1m"\n')
    wire.near.reading = False
    for _ in range(100):
        wire.say(b"HELP\r\n" * 200)
    assert wire.far.most_waiting < 1024 * 1024
    assert not wire.far.reading
    for _ in range(8):
        wire.advance(10)
    assert wire.factory.connections == set()
    assert wire.listener.clock.getDelayedCalls() == []


def test_the_disk_behind_stops_the_client_and_nothing_is_lost():
    store = SlowStore(slow_writes=True)
    connection = listening(store=store).connect()
    connection.send(HELLO + MAIL + RCPT + b"DATA\r\n")
    codes(connection)
    connection.send(b"Subject: x\r\n\r\n")
    connection.send(b"one\r\n")
    assert connection.transport.producerState == "paused"
    store.slow_writes = False
    store.writing.pop().callback(None)
    assert connection.transport.producerState == "producing"
    connection.send(b"two\r\n.\r\n")
    assert codes(connection) == [b"250 2.0.0"]
    assert connection.queued()[0].content == b"Subject: x\r\n\r\none\r\ntwo\r\n"


def test_the_server_ends_while_the_disk_is_behind():
    store = SlowStore(slow_writes=True)
    connection = listening(store=store).connect()
    connection.send(HELLO + MAIL + RCPT + b"DATA\r\nSubject: x\r\n\r\n")
    codes(connection)
    connection.protocol.shut_down()
    assert codes(connection) == [b"421 4.3.0"]
    connection.leave()
    assert store.spools[0].discarded
    store.writing.pop().callback(None)
    assert codes(connection) == []


def test_what_breaks_outside_a_stage_ends_the_connection(monkeypatch):
    zone = SlowZone()
    listener = listening(SLOW_MAIL, zone=zone)
    connection = listener.connect()
    connection.send(HELLO + MAIL)
    connection.send(b"NOOP\r\n")

    def broken(event):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(connection.protocol._driver, "take", broken)
    zone.answer()
    assert connection.closed


# --- time -------------------------------------------------------------------------------


def test_a_silent_client_is_told_and_then_cut_off():
    wire = Wire('[session]\ntimeout = "1m"\n')
    wire.near.reading = False
    wire.advance(61)
    assert wire.far.connected
    wire.advance(10)
    assert not wire.far.connected


def test_a_wait_is_no_silence_of_the_client():
    zone = SlowZone()
    timeouts = "[session]\ntimeout = \"1m\"\n[session.connect]\ngreeting = \"dns_query('slow.test', 'txt')\"\n"
    connection = listening(timeouts, zone=zone).connect()
    for _ in range(20):
        connection.advance(30)
    assert not connection.closed
    zone.answer("mx.test at your service")
    assert codes(connection) == [b"220 mx.te"]


def test_a_farewell_before_the_greeting_still_has_its_time_limit():
    zone = SlowZone()
    listener = listening("[session.connect]\ngreeting = \"dns_query('slow.test', 'txt')\"\n", zone=zone)
    connection = listener.connect()
    connection.protocol.shut_down()
    assert codes(connection) == [b"421 4.3.0"]
    listener.clock.advance(10)
    assert connection.transport.disconnected


@pytest.mark.parametrize("listener", ["smtp", "submissions"])
def test_a_handshake_that_stalls_is_ended_without_a_word(listener):
    wire = Wire(listener=listener)
    if listener == "smtp":
        wire.say(HELLO)
        wire.say(b"STARTTLS\r\n")
        assert wire.client.codes()[-1] == b"220 2.0.0"
    wire.advance(29)
    assert wire.far.connected
    wire.advance(2)
    assert not wire.far.connected
    assert wire.client.octets == b""
    assert wire.factory.connections == set()
    assert wire.listener.clock.getDelayedCalls() == []


@pytest.mark.parametrize("listener", ["smtp", "submissions"])
def test_the_server_ends_during_a_handshake(listener):
    wire = Wire(listener=listener)
    if listener == "smtp":
        wire.say(HELLO + b"STARTTLS\r\n")
    gone = []
    wire.factory.shut_down().addCallback(gone.append)
    wire.network.pump()
    assert gone == [None]


@pytest.mark.parametrize("octets", [b"", b"\x16\x03\x01\x00\x05nonsense", b"EHLO client.test\r\n"])
def test_a_client_that_leaves_or_errs_in_a_handshake_leaves_nothing_behind(octets):
    wire = Wire(listener="submissions")
    wire.say(octets)
    wire.client.transport.loseConnection()
    wire.network.pump()
    assert wire.factory.connections == set()
    assert wire.listener.clock.getDelayedCalls() == []


# --- TLS ----------------------------------------------------------------------------------


@pytest.mark.parametrize("segment", [0, 7])
def test_a_message_over_implicit_tls(segment):
    wire = Wire(
        "[session.auth]\nrequire = false\n[session.data.add-headers]\nreceived = false\n",
        listener="submissions",
        segment=segment,
    )
    wire.client.start_tls()
    wire.network.pump()
    assert wire.client.codes()[0] == b"220 mx.te"
    wire.say(HELLO + MAIL + RCPT + b"DATA\r\n")
    wire.say(b"Subject: x\r\n\r\nhi\r\n.\r\nQUIT\r\n")
    assert wire.client.codes()[-2:] == [b"250 2.0.0", b"221 2.0.0"]
    assert wire.client.is_gone
    assert wire.factory.connections == set()
    assert wire.listener.clock.getDelayedCalls() == []
    assert len(wire.listener.store.messages) == 1


def test_starttls_after_a_pending_decision_reads_on():
    zone = SlowZone()
    wire = Wire(SLOW_MAIL, zone=zone)
    wire.say(HELLO)
    wire.say(MAIL)
    wire.say(b"STARTTLS\r\n")
    assert not wire.far.reading
    zone.answer()
    wire.network.pump()
    assert wire.client.codes()[-1] == b"220 2.0.0"
    wire.client.start_tls()
    wire.network.pump()
    assert wire.client.in_tls
    wire.say(HELLO + b"RCPT TO:<jane@foobar.org>\r\n")
    assert wire.client.codes()[-1] == b"503 5.5.1"


def test_a_tls_connection_with_reading_paused_closes_as_soon_as_the_client_does():
    zone = SlowZone()
    wire = Wire(SLOW_MAIL, zone=zone)
    wire.say(HELLO)
    wire.start_tls()
    wire.say(HELLO)
    wire.say(MAIL)
    wire.say(b"NOOP\r\n")
    assert not wire.far.reading
    wire.shell.shut_down()
    wire.network.pump()
    assert wire.client.codes()[-1] == b"421 4.3.0"
    assert wire.factory.connections == set()


def test_a_client_that_never_reads_in_tls_is_cut_off():
    wire = Wire('[session]\ntimeout = "1m"\n')
    wire.say(HELLO)
    wire.start_tls()
    wire.near.reading = False
    for _ in range(100):
        wire.say(b"HELP\r\n" * 200)
    assert wire.far.most_waiting < 1024 * 1024
    for _ in range(8):
        wire.advance(10)
    assert wire.factory.connections == set()
    assert wire.listener.clock.getDelayedCalls() == []


# --- connections ----------------------------------------------------------------------------


def test_what_comes_after_the_end_is_not_read():
    connection = listening().connect()
    connection.send(b"QUIT\r\nNOOP\r\n")
    assert codes(connection) == [b"220 mx.te", b"221 2.0.0"]
    connection.protocol.dataReceived(HELLO)
    assert codes(connection) == []


def test_the_limit_of_connections_counts_those_that_are_there():
    listener = listening("[server.listener.smtp]\nmax-connections = 2\n")
    first, second = listener.connect(), listener.connect()
    assert listener.connect() is None
    first.leave()
    third = listener.connect()
    assert third is not None
    assert listener.connect() is None
    second.leave()
    third.leave()
    assert listener.factories["smtp"].connections == set()


def test_a_connection_is_counted_out_even_when_its_end_breaks(monkeypatch):
    listener = listening()
    connection = listener.connect()

    def broken():
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(connection.protocol._driver, "lost", broken)
    with pytest.raises(RuntimeError):
        connection.leave()
    assert listener.factories["smtp"].connections == set()


def test_a_connection_that_cannot_begin_is_closed(monkeypatch):
    def broken(self):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("mailgate.session.driver.Driver.open", broken)
    listener = listening()
    connection = listener.connect()
    assert connection.closed
    connection.leave()
    assert listener.factories["smtp"].connections == set()


def test_the_end_of_a_listener_is_when_its_last_connection_is_gone():
    listener = listening()
    first, second = listener.connect(), listener.connect()
    gone = []
    listener.factories["smtp"].shut_down().addCallback(gone.append)
    for connection in (first, second):
        assert codes(connection)[-1] == b"421 4.3.0"
        assert connection.closed
    first.leave()
    assert gone == []
    second.leave()
    assert gone == [None]


def test_a_producer_never_stays_registered_at_the_end():
    for end in (
        lambda wire: wire.say(b"QUIT\r\n"),
        lambda wire: wire.shell.shut_down(),
        lambda wire: wire.advance(400),
        partial(Wire.say, octets=b"a\nb"),
    ):
        wire = Wire()
        end(wire)
        assert wire.far.producer is None
        wire.network.pump()
        assert wire.factory.connections == set()
