"""Streams over transports in memory: reading, room, deadlines, leaving, and the one timer."""

import pytest
from support.pipe import Network
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol

from mailgate.net.stream import FAREWELL_SECONDS, INPUT_OCTETS, HandshakeFailed, Stream, StreamLost, StreamTimeout
from mailgate.net.tls import ClientTls, pem, self_signed, server_tls


class Peer(Protocol):
    def __init__(self):
        self.got = b""
        self.lost = False

    def dataReceived(self, octets):
        self.got += octets

    def connectionLost(self, reason):
        self.lost = True


class Line:
    """A stream and its peer."""

    def __init__(self):
        self.network = Network()
        self.clock = self.network.clock
        self.stream = Stream(self.clock, "192.0.2.1", 25)
        self.peer = Peer()
        self.end, self.far_end = self.network.connect(self.stream, self.peer)

    def start(self, coroutine):
        """Begin a coroutine; its results and failures."""
        results = []
        Deferred.fromCoroutine(coroutine).addCallbacks(results.append, lambda failure: results.append(failure.value))
        return results


@pytest.fixture
def line():
    return Line()


def test_small_writes_are_not_held_back(line):
    assert line.end.no_delay


def test_reading_waits_for_what_comes_and_takes_all_of_it(line):
    results = line.start(line.stream.read(10.0))
    assert results == []
    line.far_end.write(b"ab")
    line.far_end.write(b"c")
    line.network.pump()
    assert results == [b"abc"]
    line.far_end.write(b"d")
    line.network.pump()
    assert line.stream.has_input
    assert line.start(line.stream.read(10.0)) == [b"d"]


def test_what_arrived_before_the_end_is_read_before_the_end(line):
    line.far_end.write(b"last words")
    line.far_end.loseConnection()
    line.network.pump()
    assert line.start(line.stream.read(10.0)) == [b"last words"]
    assert line.start(line.stream.read(10.0)) == [b""]
    assert not line.stream.is_open
    assert line.stream.lost_text == "the peer closed the connection"


def test_a_deadline_passes(line):
    results = line.start(line.stream.read(line.stream.now() + 5))
    line.clock.advance(4.9)
    assert results == []
    line.clock.advance(0.2)
    assert isinstance(results[0], StreamTimeout)


def test_one_timer_serves_many_waits_and_each_has_its_deadline(line):
    for at in range(100):
        results = line.start(line.stream.read(line.stream.now() + 300))
        line.far_end.write(b"x")
        line.network.pump()
        assert results == [b"x"]
        assert len(line.clock.getDelayedCalls()) == 1, at
        line.clock.advance(1)
    results = line.start(line.stream.read(line.stream.now() + 300))
    line.clock.pump([50.0] * 5 + [49.9])
    assert results == []
    line.clock.advance(0.2)
    assert isinstance(results[0], StreamTimeout)


def test_a_shorter_deadline_after_a_longer_one_is_kept(line):
    results = line.start(line.stream.read(line.stream.now() + 600))
    line.far_end.write(b"x")
    line.network.pump()
    assert results == [b"x"]
    results = line.start(line.stream.read(line.stream.now() + 5))
    line.clock.advance(5)
    assert isinstance(results[0], StreamTimeout)


def test_the_timer_goes_with_the_connection(line):
    line.start(line.stream.read(line.stream.now() + 300))
    line.far_end.abortConnection()
    line.network.pump()
    assert line.clock.getDelayedCalls() == []


def test_input_nobody_reads_pauses_the_transport(line):
    line.far_end.write(b"x" * (INPUT_OCTETS + 1))
    line.network.pump()
    assert not line.end.reading
    line.far_end.write(b"more")
    line.network.pump()
    assert len(line.start(line.stream.read(1.0))[0]) == INPUT_OCTETS + 1
    assert line.end.reading
    line.network.pump()
    assert line.start(line.stream.read(1.0)) == [b"more"]


def test_drain_waits_for_room(line):
    line.far_end.pauseProducing()
    line.stream.write(b"x" * 100_000)
    results = line.start(line.stream.drain(line.stream.now() + 10))
    line.network.pump()
    assert results == []
    line.far_end.resumeProducing()
    line.network.pump()
    assert results == [None]
    assert len(line.peer.got) == 100_000


def test_drain_returns_early_when_something_arrives(line):
    line.far_end.pauseProducing()
    line.stream.write(b"x" * 100_000)
    results = line.start(line.stream.drain(line.stream.now() + 10))
    line.far_end.write(b"552 enough\r\n")
    line.network.pump()
    assert results == [None]
    assert line.stream.has_input


def test_drain_times_out_and_tells_a_lost_connection(line):
    line.far_end.pauseProducing()
    line.stream.write(b"x" * 100_000)
    results = line.start(line.stream.drain(line.stream.now() + 10))
    line.clock.advance(10)
    assert isinstance(results[0], StreamTimeout)
    results = line.start(line.stream.drain(line.stream.now() + 10))
    line.far_end.abortConnection()
    line.network.pump()
    assert isinstance(results[0], StreamLost)


def test_writing_to_a_lost_connection_is_silent(line):
    line.far_end.abortConnection()
    line.network.pump()
    line.stream.write(b"x")
    line.stream.leave(b"QUIT\r\n")
    line.stream.abort()


def test_a_farewell_waits_for_its_answer_and_then_closes(line):
    line.stream.leave(b"QUIT\r\n")
    assert not line.stream.is_open
    line.network.pump()
    assert line.peer.got == b"QUIT\r\n"
    assert not line.peer.lost
    line.far_end.write(b"221 bye\r\n")
    line.network.pump()
    assert line.peer.lost
    assert line.clock.getDelayedCalls() == []


def test_a_farewell_without_an_answer_ends_in_time(line):
    line.stream.leave(b"QUIT\r\n")
    line.network.pump()
    line.clock.advance(FAREWELL_SECONDS)
    line.network.pump()
    assert line.peer.lost


def test_leaving_without_words_closes_at_once(line):
    line.stream.leave(b"")
    line.network.pump()
    assert line.peer.lost


def test_a_watcher_is_told_once(line):
    told = []
    line.stream.watch(lambda: told.append("now"))
    line.far_end.write(b"421\r\n")
    line.network.pump()
    line.far_end.abortConnection()
    line.network.pump()
    assert told == ["now"]


def test_cancelling_a_wait_leaves_the_stream_usable(line):
    results = []
    waiting = Deferred.fromCoroutine(line.stream.read(line.stream.now() + 10))
    waiting.addErrback(lambda failure: results.append(failure.check(CancelledError)))
    waiting.cancel()
    assert results == [CancelledError]
    line.far_end.write(b"x")
    line.network.pump()
    assert line.start(line.stream.read(line.stream.now() + 10)) == [b"x"]


# --- TLS ---


def tls_line():
    line = Line()
    line.peer.transport.startTLS(server_tls([self_signed("mx.test")]))
    return line


def test_octets_travel_over_tls_and_back_pressure_goes_on():
    line = tls_line()
    results = line.start(line.stream.start_tls(ClientTls().handshake("mx.test", verify=False), 10.0))
    line.network.pump()
    assert results[0].version == "TLSv1.3"
    line.stream.write(b"EHLO\r\n")
    line.far_end.write(b"250 ok\r\n")
    line.network.pump()
    assert line.peer.got == b"EHLO\r\n"
    assert line.start(line.stream.read(10.0)) == [b"250 ok\r\n"]
    line.far_end.pauseProducing()
    line.stream.write(b"x" * 200_000)
    results = line.start(line.stream.drain(line.stream.now() + 10))
    line.network.pump()
    assert results == []
    line.far_end.resumeProducing()
    line.network.pump()
    assert results == [None]


def test_leaving_tls_without_a_close_alert_from_the_peer_ends_in_time():
    line = tls_line()
    line.start(line.stream.start_tls(ClientTls().handshake("mx.test", verify=False), 10.0))
    line.network.pump()
    line.far_end.pauseProducing()
    line.stream.leave(b"QUIT\r\n")
    line.network.pump()
    line.clock.advance(FAREWELL_SECONDS)
    line.network.pump()
    assert not line.end.connected
    assert line.clock.getDelayedCalls() == []


def test_a_handshake_nobody_answers_times_out():
    line = Line()
    results = line.start(line.stream.start_tls(ClientTls().handshake("mx.test", verify=False), 3.0))
    line.network.pump()
    line.clock.advance(3)
    assert isinstance(results[0], StreamTimeout)
    line.network.pump()
    assert line.peer.lost


def test_nothing_is_sent_to_a_peer_with_the_wrong_certificate(tmp_path):
    certificate = self_signed("mx.test")
    roots = tmp_path / "roots.pem"
    roots.write_bytes(pem(certificate)[0])
    line = Line()
    line.peer.transport.startTLS(server_tls([certificate]))
    handshake = ClientTls().handshake("other.test", verify=True, trust_file=str(roots))
    results = line.start(line.stream.start_tls(handshake, 3.0))
    line.network.pump()
    assert isinstance(results[0], HandshakeFailed)
    assert not results[0].is_io
    assert line.peer.got == b""
    assert line.peer.lost
