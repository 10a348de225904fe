"""A connection that is closed on our side while the peer is still sending: what was said to it arrives, and it ends."""

import ssl

import pytest
from support.loopback import Line, Noted
from twisted.internet.error import ConnectionDone, ConnectionLost

from mailgate.net.lingering import SECONDS
from mailgate.net.tls import self_signed, server_tls

CERTIFICATE = self_signed("mx.test")
CONTENT = b"".join(b"%07d\n" % number for number in range(64 * 1024))
NARROW = 32 * 1024
FLOOD = b"NOOP\r\n" * 1000


@pytest.fixture
def line():
    made = Line()
    yield made
    made.close()


def says_much_and_leaves(it):
    it.transport.write(CONTENT)
    it.transport.loseConnection()


def leaves(it):
    it.transport.write(b"421 Bye\r\n")
    it.transport.loseConnection()


def left(line, answers=leaves):
    """A peer that is left while octets of it are unread, and our side of it."""
    ours = Noted(data=answers)
    peer = line.accepted(ours)
    peer.send(b"QUIT\r\n")
    # These come after the read that is answered.
    ours.on["data"] = lambda it: (peer.send(FLOOD), answers(it))
    line.until(lambda: ours.is_lost)
    return ours, peer


def lingering(line):
    return len(line.poller._lingering)


def test_what_was_said_arrives_whole_though_the_peer_goes_on_sending(line):
    ours = Noted(data=says_much_and_leaves)
    peer = line.accepted(ours, NARROW)
    peer.is_reading = False
    peer.send(b"QUIT\r\n")
    line.serve()
    peer.send(FLOOD)
    assert ours.waiting
    peer.is_reading = True
    line.until(lambda: peer.end)
    assert (peer.got, peer.end) == (CONTENT, "closed")
    assert ours.did == [b"QUIT\r\n", ConnectionDone]


def test_what_was_said_in_tls_arrives_whole_with_the_alert_though_the_peer_goes_on_sending(line):
    server = server_tls([CERTIFICATE])
    ours = Noted(made=lambda it: it.transport.startTLS(server), data=says_much_and_leaves)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    peer = line.secure(line.accepted(ours, NARROW), context)
    line.until(lambda: peer.is_secured and ours.did == ["secured"])
    peer.is_reading = False
    peer.say(b"QUIT\r\n")
    line.serve()
    peer.say(FLOOD)
    assert ours.waiting
    peer.is_reading = True
    line.until(lambda: peer.end)
    assert (peer.got, peer.has_alert, peer.error, peer.end) == (CONTENT, True, None, "closed")


def test_the_protocol_is_told_at_once_and_hears_nothing_more(line):
    ours, peer = left(line)
    assert ours.did == [b"QUIT\r\n", ConnectionDone]
    peer.send(FLOOD)
    line.settle()
    assert ours.did == [b"QUIT\r\n", ConnectionDone]
    assert (peer.got, peer.end) == (b"421 Bye\r\n", "closed")


@pytest.mark.parametrize("how", ["close", "shut", "reset"])
def test_it_ends_with_the_peer(line, how):
    _, peer = left(line)
    assert lingering(line) == 1
    getattr(peer, how)()
    line.until(lambda: not lingering(line))
    assert line.poller.getReaders() == [line._port]
    assert line.around.getDelayedCalls() == []


def test_a_peer_that_does_not_close_has_its_time(line):
    left(line)
    line.settle()
    line.around.advance(SECONDS - 0.01)
    assert lingering(line) == 1
    line.around.advance(0.01)
    assert lingering(line) == 0
    assert line.poller.getReaders() == [line._port]


def test_a_peer_that_sends_without_end_is_cut_off(line):
    _, peer = left(line)
    (ours,) = line.poller._lingering
    peer.unsent = b"x" * (32 * 1024 * 1024)
    line.until(lambda: not lingering(line))
    assert 2 * 1024 * 1024 < ours._octets <= 2 * 1024 * 1024 + 64 * 1024
    # The reset: it can send no more.
    line.until(lambda: not peer.unsent)
    assert line.around.getDelayedCalls() == []


def test_where_nothing_is_unread_the_socket_is_closed_at_once(line):
    ours = Noted(data=leaves)
    peer = line.accepted(ours)
    peer.send(b"QUIT\r\n")
    line.serve()
    assert ours.is_lost
    assert lingering(line) == 0
    assert line.around.getDelayedCalls() == []


def test_who_has_too_many_already_closes_at_once(line, monkeypatch):
    monkeypatch.setattr("mailgate.net.poller._LINGERING", 2)
    peers = [left(line)[1] for _ in range(3)]
    assert lingering(line) == 2
    line.until(lambda: all(peer.end for peer in peers))
    # What was said is not lost on this host; the end of the third is a reset.
    assert [peer.got for peer in peers] == [b"421 Bye\r\n"] * 3
    peers[0].close()
    line.until(lambda: lingering(line) == 1)
    left(line)
    assert lingering(line) == 2


def test_who_aborts_does_not_linger(line):
    ours = Noted()
    peer = line.accepted(ours)
    peer.send(FLOOD)
    ours.on["data"] = lambda it: (peer.send(FLOOD), it.transport.abortConnection())
    line.until(lambda: ours.is_lost)
    assert lingering(line) == 0
    line.until(lambda: peer.end == "reset")


def test_the_end_of_all_connections_is_the_end_of_these(line):
    left(line)
    line.poller.close()
    assert lingering(line) == 0
    assert line.around.getDelayedCalls() == []


def test_who_is_being_left_when_all_connections_end_does_not_linger(line):
    ours = Noted(data=says_much_and_leaves)
    peer = line.accepted(ours, NARROW)
    peer.is_reading = False
    peer.send(b"QUIT\r\n")
    line.serve()
    peer.send(FLOOD)
    line.until(lambda: not peer.unsent)
    # It is being left, and has sent what nobody has read.
    assert ours.waiting
    line.poller.close()
    assert ours.did == [b"QUIT\r\n", ConnectionLost]
    assert lingering(line) == 0
    assert line.around.getDelayedCalls() == []


def test_a_connection_that_we_made_lingers_as_well(line):
    ours = Noted()
    peer = line.connected(ours)
    ours.on["data"] = lambda it: (peer.send(FLOOD), leaves(it))
    peer.send(b"220 mx.test\r\n")
    line.until(lambda: ours.is_lost)
    assert lingering(line) == 1
    line.until(lambda: peer.end)
    assert (peer.got, peer.end) == (b"421 Bye\r\n", "closed")
