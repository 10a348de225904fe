"""Connections over TCP: octets leave at once, nothing overtakes or is lost, and TLS is part of the connection."""

import gc
import ssl
import weakref
from errno import EAGAIN, EMFILE

import pytest
from OpenSSL import SSL
from support.loopback import Content, Line, Noted
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost

from mailgate.net import poller
from mailgate.net.connect import Connector
from mailgate.net.tls import ClientTls, pem, self_signed, server_tls
from mailgate.net.transport import Accepted, Connected, NotStreaming, TlsBegun

CERTIFICATE = self_signed("mx.test")
# Every line is another one: what is lost, doubled or out of order shows.
CONTENT = b"".join(b"%07d\n" % number for number in range(256 * 1024))
NARROW = 32 * 1024
# What one side may hold of what the other does not take: Twisted's limit, and the block that passes it, in records.
HELD_OCTETS = 64 * 1024 + 64 * 1024 + 1024


@pytest.fixture
def line():
    made = Line()
    yield made
    made.close()


@pytest.fixture(params=["TLSv1.2", "TLSv1.3"])
def version(request):
    return request.param


@pytest.fixture
def server(version):
    """Our side of handshakes, with one version of TLS."""
    return server_tls([CERTIFICATE], disable_protocols=[{"TLSv1.2": "TLSv1.3", "TLSv1.3": "TLSv1.2"}[version]])


def strict(protocol):
    """A context that does not take the end of the connection for a close alert, as some builds of Python do."""
    context = ssl.SSLContext(protocol)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return context


def client_context():
    context = strict(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.fixture
def their_server(version, tmp_path):
    """The peer's side of handshakes, where we are the client."""
    file = tmp_path / "mx.pem"
    file.write_bytes(b"".join(pem(CERTIFICATE)))
    context = strict(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version.replace(".", "_"))
    return context


def handshake():
    return ClientTls().handshake("mx.test", verify=False)


def says(octets):
    return lambda it: it.transport.write(octets)


def leaves(it):
    it.transport.loseConnection()


def aborts(it):
    it.transport.abortConnection()


def begins(creator):
    return lambda it: it.transport.startTLS(creator)


def in_turn(*acts):
    """What happens one after the other."""

    def act(it):
        for each in acts:
            each(it)

    return act


class Sends:
    """A socket that notes how it was written to."""

    def __init__(self, its_socket):
        self.its_socket = its_socket
        self.sent = []

    def send(self, octets):
        self.sent.append(len(octets))
        return self.its_socket.send(octets)

    def __getattr__(self, name):
        return getattr(self.its_socket, name)


class Full:
    """A socket whose buffer has no room for the next octets, some times in a row, after `fill`."""

    def __init__(self, its_socket):
        self.its_socket = its_socket
        self.refuses = 0
        self.refused = 0

    def fill(self, times=1):
        self.refuses = times

    def send(self, octets):
        if self.refuses and octets:
            self.refuses -= 1
            self.refused += 1
            raise BlockingIOError(EAGAIN, "no room")
        return self.its_socket.send(octets)

    def __getattr__(self, name):
        return getattr(self.its_socket, name)


# --- in clear ---


def test_what_arrives_is_given_to_the_protocol_and_its_answer_leaves_at_once(line):
    ours = Noted(data=says(b"250 OK\r\n"))
    peer = line.accepted(ours)
    assert type(ours.transport) is Accepted
    peer.send(b"NOOP\r\n")
    line.serve()
    peer.step()
    assert ours.did == [b"NOOP\r\n"]
    assert peer.got == b"250 OK\r\n"
    assert line.asked == []


def test_a_connection_of_ours_is_the_same(line):
    ours = Noted(made=says(b"EHLO mx.test\r\n"))
    peer = line.connected(ours)
    assert type(ours.transport) is Connected
    line.poller.asked.clear()
    line.until(lambda: peer.got == b"EHLO mx.test\r\n")
    peer.send(b"250 OK\r\n")
    line.until(lambda: ours.did == [b"250 OK\r\n"])
    assert line.asked == []


@pytest.mark.parametrize(
    "source, text",
    [
        # RFC 5737: this host does not have it.
        ("192.0.2.77", "cannot use source address 192.0.2.77: Cannot assign requested address"),
        (None, "Too many open files"),
    ],
)
def test_a_connection_for_which_there_is_no_socket_fails_and_says_so(line, monkeypatch, source, text):
    def refuses(its_socket):
        raise OSError(EMFILE, "too many")

    if source is None:
        monkeypatch.setattr(Connected, "createInternetSocket", refuses)
    failed = []
    connecting = Connector(line.poller, line.around).connect("127.0.0.1", 25, source_ip=source, seconds=5.0)
    Deferred.fromCoroutine(connecting).addErrback(lambda failure: failed.append(str(failure.value)))
    line.around.advance(0)
    assert failed == [text]
    assert line.around.getDelayedCalls() == []


def test_what_is_written_outside_a_read_leaves_at_once(line):
    ours = Noted()
    peer = line.accepted(ours)
    ours.transport.write(b"220 mx.test\r\n")
    ours.transport.write(b"")
    peer.step()
    assert peer.got == b"220 mx.test\r\n"
    assert line.asked == []


def test_what_the_kernel_does_not_take_waits_and_nothing_overtakes_it(line):
    ours = Noted()
    peer = line.accepted(ours, NARROW)
    ours.transport.write(CONTENT)
    assert 0 < ours.waiting < len(CONTENT)
    peer.step()
    # There is room again; what waits has not been sent yet.
    ours.transport.write(b"250 OK\r\n")
    ours.transport.writeSequence([b"221 ", b"Bye\r\n"])
    line.until(lambda: len(peer.got) >= len(CONTENT) + 17)
    assert peer.got == CONTENT + b"250 OK\r\n221 Bye\r\n"
    assert ours.waiting == 0
    ours.transport.write(b"x")
    assert ours.waiting == 0


def test_a_full_kernel_takes_nothing_and_nothing_is_lost(line):
    ours = Noted()
    peer = line.accepted(ours, NARROW)
    while not ours.waiting:
        ours.transport.write(b"x" * 1000)
    before = ours.waiting
    ours.transport.write(b"250 OK\r\n")
    assert ours.waiting == before + 8
    line.until(lambda: peer.got.endswith(b"250 OK\r\n"))
    assert ours.waiting == 0


def test_a_producer_is_told_to_wait_and_to_go_on_and_all_arrives_in_order(line):
    ours = Noted()
    peer = line.accepted(ours, NARROW)
    content = Content(ours.transport, CONTENT)
    assert content.is_paused
    assert ours.waiting <= HELD_OCTETS
    line.until(lambda: len(peer.got) >= len(CONTENT))
    assert peer.got == CONTENT
    assert content.pauses > 1
    assert ours.transport.producer is None


def test_a_producer_that_has_to_be_asked_for_each_piece_is_refused(line):
    ours = Noted()
    line.accepted(ours)
    with pytest.raises(NotStreaming):
        ours.transport.registerProducer(object(), False)
    assert ours.transport.producer is None


def test_who_does_not_read_is_not_read_to(line):
    ours = Noted(data=lambda it: it.transport.pauseProducing())
    peer = line.accepted(ours)
    peer.send(b"one")
    line.until(lambda: ours.did)
    peer.send(b"two")
    line.settle()
    assert ours.did == [b"one"]
    ours.transport.resumeProducing()
    line.until(lambda: ours.did == [b"one", b"two"])


def test_leaving_while_it_is_read_to_closes_in_the_same_turn_after_the_answer(line):
    ours = Noted(data=in_turn(says(b"221 Bye\r\n"), leaves, leaves))
    peer = line.accepted(ours)
    peer.send(b"QUIT\r\n")
    line.serve()
    assert ours.did == [b"QUIT\r\n", ConnectionDone]
    assert line.asked == []
    line.until(lambda: peer.end)
    assert (peer.got, peer.end) == (b"221 Bye\r\n", "closed")


def test_leaving_at_another_time_closes_after_what_was_written(line):
    ours = Noted()
    peer = line.accepted(ours)
    ours.transport.write(b"421 ")
    ours.transport.loseConnection()
    ours.transport.write(b"Bye\r\n")
    assert not ours.is_lost
    line.until(lambda: peer.end)
    assert (peer.got, peer.end) == (b"421 Bye\r\n", "closed")
    assert ours.did == [ConnectionDone]


@pytest.mark.parametrize("at", ["while it is read to", "at another time"])
def test_leaving_with_octets_unsent_sends_them_and_takes_nothing_more(line, at):
    says_much = in_turn(says(CONTENT), leaves)
    ours = Noted(data=says_much) if at == "while it is read to" else Noted()
    peer = line.accepted(ours, NARROW)
    if at == "while it is read to":
        peer.send(b"QUIT\r\n")
        line.serve()
    else:
        says_much(ours)
    assert ours.waiting
    assert ours.transport not in line.poller.getReaders()
    line.until(lambda: peer.end)
    assert (peer.got, peer.end) == (CONTENT, "closed")
    assert ours.did[-1] is ConnectionDone


def test_leaving_with_octets_unsent_that_were_written_after_it_takes_nothing_more(line):
    ours = Noted(data=in_turn(leaves, says(CONTENT)))
    peer = line.accepted(ours, NARROW)
    peer.send(b"QUIT\r\n")
    line.serve()
    peer.is_reading = False
    peer.send(b"NOOP\r\n")
    line.settle()
    assert ours.did == [b"QUIT\r\n"]


def test_aborting_while_it_is_read_to_resets_and_sends_nothing_more(line):
    ours = Noted(data=in_turn(aborts, says(b"250 OK\r\n"), leaves))
    peer = line.accepted(ours)
    peer.send(b"NOOP\r\n")
    line.until(lambda: peer.end)
    assert (peer.got, peer.end) == (b"", "reset")
    assert ours.did == [b"NOOP\r\n", ConnectionAborted]


def test_aborting_drops_what_waits(line):
    ours = Noted()
    peer = line.accepted(ours, NARROW)
    ours.transport.write(CONTENT)
    ours.transport.abortConnection()
    line.until(lambda: peer.end)
    assert peer.end == "reset"
    assert len(peer.got) < len(CONTENT)
    assert ours.did == [ConnectionAborted]


@pytest.mark.parametrize("how", ["close", "shut"])
def test_a_peer_that_has_said_all_ends_the_connection_once(line, how):
    ours = Noted()
    peer = line.accepted(ours)
    peer.send(b"NOOP\r\n")
    getattr(peer, how)()
    line.until(lambda: ours.is_lost)
    line.settle()
    assert ours.did == [b"NOOP\r\n", ConnectionDone]
    assert ours.transport not in line.poller.getReaders()


def test_a_peer_that_resets_loses_the_connection(line):
    ours = Noted()
    line.accepted(ours).reset()
    line.until(lambda: ours.is_lost)
    assert ours.did == [ConnectionLost]


def test_writing_to_a_broken_connection_waits_until_its_end_is_found_out(line):
    ours = Noted()
    line.accepted(ours).reset()
    ours.transport.write(b"250 OK\r\n")
    ours.transport.write(b"250 OK\r\n")
    assert ours.did == []
    line.until(lambda: ours.is_lost)
    assert len(ours.did) == 1


def test_what_is_written_when_the_connection_has_gone_is_dropped(line):
    ours = Noted(lost=in_turn(says(b"x"), leaves, aborts))
    line.accepted(ours).close()
    line.until(lambda: ours.is_lost)
    ours.transport.write(b"250 OK\r\n")
    ours.transport.writeSequence([b"250 OK\r\n"])
    ours.transport.loseConnection()
    ours.transport.abortConnection()
    line.settle()
    assert ours.did == [ConnectionDone]


def test_a_mistake_of_the_protocol_ends_its_connection_alone(line):
    def fails(it):
        raise RuntimeError("a mistake of ours")

    bad, good = Noted(data=fails), Noted(data=says(b"250 OK\r\n"))
    one, other = line.accepted(bad), line.accepted(good)
    one.send(b"x")
    other.send(b"y")
    line.until(lambda: one.end and other.got)
    assert bad.did == [b"x", RuntimeError]
    assert good.did == [b"y"]


def test_a_mistake_after_aborting_does_not_make_a_farewell_of_it(line):
    def fails(it):
        raise RuntimeError("a mistake of ours")

    ours = Noted()
    peer = line.accepted(ours)
    # More comes while it is read to: who is only left would have it thrown away for some time.
    ours.on["data"] = in_turn(lambda it: peer.send(b"NOOP\r\n"), leaves, aborts, fails)
    peer.send(b"QUIT\r\n")
    line.until(lambda: peer.end)
    assert peer.end == "reset"
    assert ours.did == [b"QUIT\r\n", RuntimeError]
    assert line.around.getDelayedCalls() == []


def test_a_mistake_of_the_protocol_leaves_nothing_to_the_garbage_collector(line, monkeypatch):
    # Until a log begins, Twisted keeps what is to be in it.
    monkeypatch.setattr(poller._log, "observer", lambda event: None)

    def fails(it):
        raise RuntimeError("a mistake of ours")

    ours = Noted(data=fails)
    peer = line.accepted(ours)
    left = weakref.ref(ours.transport)
    gc.disable()
    try:
        peer.send(b"x")
        line.until(lambda: ours.is_lost)
        line.poller.asked.clear()
        ours.transport = None
        assert left() is None
    finally:
        gc.enable()


def test_the_end_of_all_connections_in_the_middle_of_a_read_is_the_end(line):
    ours = Noted(data=in_turn(lambda it: line.poller.close(), says(b"x"), leaves))
    peer = line.accepted(ours)
    peer.send(b"NOOP\r\n")
    line.serve()
    assert ours.did == [b"NOOP\r\n", ConnectionLost]


# --- TLS, as a server ---


def secured(line, server, *, buffer_octets=None, **on):
    """A connection in TLS, and its peer."""
    ours = Noted(made=begins(server), **on)
    peer = line.secure(line.accepted(ours, buffer_octets), client_context())
    line.until(lambda: peer.is_secured and "secured" in ours.did)
    line.settle()
    return ours, peer


def test_tls_from_the_first_octet(line, server, version):
    ours, peer = secured(line, server, data=says(b"250 OK\r\n"))
    assert peer.tls.version() == version
    peer.say(b"NOOP\r\n")
    line.until(lambda: peer.got)
    assert ours.did == ["secured", b"NOOP\r\n"]
    assert peer.got == b"250 OK\r\n"


def test_tls_after_words_in_clear(line, server):
    def answers(it):
        if it.did == [b"STARTTLS\r\n"]:
            it.transport.write(b"220 Go ahead\r\n")
            it.transport.startTLS(server)
        else:
            it.transport.write(b"250 OK\r\n")

    ours = Noted(data=answers)
    plain = line.accepted(ours)
    plain.send(b"STARTTLS\r\n")
    line.until(lambda: plain.got == b"220 Go ahead\r\n")
    peer = line.secure(plain, client_context())
    line.until(lambda: peer.is_secured)
    peer.say(b"EHLO client.test\r\n")
    line.until(lambda: peer.got == b"250 OK\r\n")
    assert ours.did == [b"STARTTLS\r\n", "secured", b"EHLO client.test\r\n"]
    assert b"250 OK" not in peer.arrived


def test_what_waits_in_clear_leaves_before_tls_begins(line, server):
    ours = Noted()
    plain = line.accepted(ours, NARROW)
    ours.transport.write(CONTENT)
    ours.transport.startTLS(server)
    ours.transport.write(b"250 in TLS\r\n")
    line.until(lambda: len(plain.got) == len(CONTENT))
    assert plain.got == CONTENT
    peer = line.secure(plain, client_context())
    line.until(lambda: peer.got)
    assert peer.got == b"250 in TLS\r\n"


def test_a_handshake_may_come_octet_by_octet(line, server):
    ours = Noted(made=begins(server))
    plain = line.accepted(ours)
    line.secure(plain, client_context(), by_one=True, first=b"EHLO client.test\r\n")
    line.until(lambda: ours.got)
    assert ours.did == ["secured", b"EHLO client.test\r\n"]


def test_the_end_of_the_handshake_may_bring_octets_with_it(line, server):
    ours = Noted(made=begins(server), data=says(b"250 OK\r\n"))
    peer = line.secure(line.accepted(ours), client_context(), first=b"EHLO client.test\r\n")
    line.until(lambda: peer.got)
    assert ours.did == ["secured", b"EHLO client.test\r\n"]


def test_the_end_of_the_handshake_and_the_greeting_and_the_answers_leave_together(line):
    def counts(it):
        it.transport.socket = Sends(it.transport.socket)
        it.transport.startTLS(server_tls([CERTIFICATE]))

    ours = Noted(made=counts, secured=says(b"220 mx.test\r\n"), data=in_turn(says(b"250-"), says(b"OK\r\n")))
    peer = line.secure(line.accepted(ours), client_context(), first=b"EHLO client.test\r\n")
    line.until(lambda: peer.got == b"220 mx.test\r\n250-OK\r\n")
    # Our hello and certificate; then everything else.
    assert len(ours.transport.socket.sent) == 2
    ours.transport.write(b"x")
    assert len(ours.transport.socket.sent) == 3
    assert line.asked == []


def test_many_records_in_one_read_are_one_piece(line, server):
    ours, peer = secured(line, server)
    for number in range(100):
        peer.tls.write(b"%02d\r\n" % number)
    peer.send(peer.outgoing.read())
    line.until(lambda: len(ours.did) > 1)
    assert ours.did == ["secured", b"".join(b"%02d\r\n" % number for number in range(100))]


def test_a_record_may_come_octet_by_octet(line, server):
    ours, peer = secured(line, server)
    peer.by_one = True
    peer.say(b"MAIL FROM:<>\r\n")
    line.until(lambda: ours.got)
    assert ours.did == ["secured", b"MAIL FROM:<>\r\n"]


def test_much_goes_both_ways_in_order_while_each_side_waits_for_the_other(line, server):
    ours, peer = secured(line, server, buffer_octets=NARROW)
    content = Content(ours.transport, CONTENT)
    assert content.is_paused
    assert ours.waiting <= HELD_OCTETS
    peer.say(CONTENT)
    line.until(lambda: len(peer.got) >= len(CONTENT) and len(ours.got) >= len(CONTENT))
    assert peer.got == CONTENT
    assert ours.got == CONTENT
    assert content.pauses > 1


@pytest.mark.parametrize("block_octets", [1000, 16 * 1024, 64 * 1024])
def test_a_producer_is_told_to_wait_while_it_is_read_to(line, server, block_octets):
    contents = []
    ours, peer = secured(
        line,
        server,
        buffer_octets=NARROW,
        data=lambda it: contents.append(Content(it.transport, CONTENT, it.transport.loseConnection, block_octets)),
    )
    peer.say(b"DATA\r\n")
    line.serve()
    assert contents[0].is_paused
    assert contents[0].at < len(CONTENT) / 4
    assert ours.waiting <= HELD_OCTETS
    line.until(lambda: peer.end)
    assert peer.got == CONTENT
    assert peer.has_alert


def test_leaving_sends_the_close_alert(line, server):
    ours, peer = secured(line, server)
    ours.transport.write(b"421 Bye\r\n")
    ours.transport.loseConnection()
    line.until(lambda: peer.end)
    assert (peer.got, peer.has_alert, peer.error, peer.end) == (b"421 Bye\r\n", True, None, "closed")
    assert ours.did == ["secured", ConnectionDone]


def test_leaving_while_it_is_read_to_sends_the_answer_and_the_alert_in_the_same_turn(line, server):
    ours, peer = secured(line, server, data=in_turn(says(b"221 Bye\r\n"), leaves))
    line.poller.asked.clear()
    peer.say(b"QUIT\r\n")
    line.serve()
    assert ours.did == ["secured", b"QUIT\r\n", ConnectionDone]
    assert line.asked == []
    line.until(lambda: peer.end)
    assert (peer.got, peer.has_alert, peer.error, peer.end) == (b"221 Bye\r\n", True, None, "closed")


@pytest.mark.parametrize("at", ["while it is read to", "at another time"])
def test_leaving_with_octets_unsent_sends_them_then_the_alert(line, server, at):
    says_much = in_turn(says(CONTENT), leaves)
    ours, peer = secured(
        line, server, buffer_octets=NARROW, data=says_much if at == "while it is read to" else lambda it: None
    )
    if at == "while it is read to":
        peer.say(b"QUIT\r\n")
        line.serve()
    else:
        says_much(ours)
    assert ours.waiting
    line.until(lambda: peer.end)
    assert peer.got == CONTENT
    assert (peer.has_alert, peer.error, peer.end) == (True, None, "closed")


@pytest.mark.parametrize("at", ["while it is read to", "at another time"])
def test_an_alert_for_which_there_is_no_room_waits(line, server, at):
    ours, peer = secured(line, server, data=in_turn(says(b"221 Bye\r\n"), lambda it: full.fill(), leaves))
    full = ours.transport.socket = Full(ours.transport.socket)
    if at == "while it is read to":
        peer.say(b"QUIT\r\n")
    else:
        in_turn(says(b"221 Bye\r\n"), lambda it: full.fill(), leaves)(ours)
    line.until(lambda: peer.end)
    assert full.refused == 1
    assert (peer.got, peer.has_alert, peer.error, peer.end) == (b"221 Bye\r\n", True, None, "closed")
    assert ours.did[-1] is ConnectionDone


def test_after_leaving_with_octets_unsent_nothing_more_is_taken(line, server):
    ours, peer = secured(line, server, buffer_octets=NARROW, data=in_turn(leaves, says(CONTENT)))
    peer.is_reading = False
    peer.say(b"QUIT\r\n")
    line.serve()
    assert ours.waiting
    peer.say(b"NOOP\r\n")
    line.settle()
    assert ours.did == ["secured", b"QUIT\r\n"]


def test_what_is_written_after_leaving_does_not_cost_what_waits(line, server):
    # So often that it waits when the poller gives the reactor its turn.
    ours, peer = secured(line, server, data=in_turn(says(b"221 Bye\r\n"), lambda it: full.fill(20), leaves))
    full = ours.transport.socket = Full(ours.transport.socket)
    peer.say(b"QUIT\r\n")
    line.serve()
    assert ours.waiting
    # The alert is among what waits: nothing can follow it.
    ours.transport.write(b"421 Too late\r\n")
    line.until(lambda: peer.end)
    assert (peer.got, peer.has_alert, peer.end) == (b"221 Bye\r\n", True, "closed")
    assert ours.did[-1] is ConnectionDone


def test_leaving_as_soon_as_tls_is_agreed_sends_the_alert(line, server):
    ours = Noted(made=begins(server), secured=in_turn(says(b"554 No\r\n"), leaves))
    peer = line.secure(line.accepted(ours), client_context())
    line.until(lambda: peer.end)
    assert (peer.got, peer.has_alert, peer.end) == (b"554 No\r\n", True, "closed")
    assert ours.did == ["secured", ConnectionDone]


def test_leaving_in_the_middle_of_a_handshake_closes(line, server):
    ours = Noted(made=in_turn(begins(server), leaves))
    peer = line.secure(line.accepted(ours), client_context())
    line.until(lambda: peer.end)
    assert ours.did == [ConnectionDone]


def test_a_close_alert_of_the_peer_ends_it_and_is_answered(line, server):
    ours, peer = secured(line, server)
    peer.leave()
    line.until(lambda: ours.is_lost and peer.end)
    assert ours.did == ["secured", ConnectionDone]
    assert (peer.has_alert, peer.error, peer.end) == (True, None, "closed")


def test_octets_that_come_with_a_close_alert_are_answered(line, server):
    ours, peer = secured(line, server, data=says(b"250 OK\r\n"))
    before = peer.records
    peer.tls.write(b"NOOP\r\n")
    peer.leave()
    line.until(lambda: peer.end)
    assert ours.did == ["secured", b"NOOP\r\n", ConnectionDone]
    # The other OpenSSL decrypts nothing once it has sent its alert: the answer and our alert.
    assert peer.records == before + 2


@pytest.mark.parametrize("how", ["close", "shut"])
def test_a_peer_that_closes_without_an_alert_ends_it_once(line, server, how):
    ours, peer = secured(line, server)
    getattr(peer, how)()
    line.until(lambda: ours.is_lost)
    line.settle()
    assert ours.did == ["secured", ConnectionDone]


def test_a_peer_that_resets_in_tls_loses_the_connection(line, server):
    ours, peer = secured(line, server)
    peer.reset()
    line.until(lambda: ours.is_lost)
    assert ours.did == ["secured", ConnectionLost]


def test_a_peer_that_closes_in_the_middle_of_a_handshake_ends_it(line, server):
    ours = Noted(made=begins(server))
    plain = line.accepted(ours)
    plain.send(b"\x16\x03\x01\x00\xff\x01")
    line.settle()
    plain.close()
    line.until(lambda: ours.is_lost)
    assert ours.did == [ConnectionDone]


def test_what_does_not_look_like_tls_ends_it(line, server):
    ours = Noted(made=begins(server))
    peer = line.accepted(ours)
    peer.send(b"EHLO client.test\r\n")
    line.until(lambda: ours.is_lost and peer.end)
    assert isinstance(ours.reason, SSL.Error)
    assert "secured" not in ours.did
    assert peer.got == b""


def test_what_is_no_handshake_ends_it_with_an_alert(line, server):
    ours = Noted(made=begins(server))
    peer = line.accepted(ours)
    peer.send(b"\x16\x03\x01\x00\x10" + b"x" * 16)
    line.until(lambda: ours.is_lost and peer.end)
    assert isinstance(ours.reason, SSL.Error)
    assert "secured" not in ours.did
    # RFC 8446 6: type 21 is an alert, level 2 is fatal.
    assert peer.got[0] == 21
    assert peer.got[5] == 2


def test_garbage_after_the_handshake_ends_it_with_an_alert(line, server):
    ours, peer = secured(line, server)
    peer.send(b"\x17\x03\x03\x00\x20" + b"x" * 32)
    line.until(lambda: ours.is_lost and peer.error)
    assert isinstance(ours.reason, SSL.Error)
    assert ours.did[0] == "secured"
    assert len(ours.did) == 2
    assert "ALERT" in str(peer.error)


def test_what_came_whole_before_garbage_is_taken_and_not_answered(line, server):
    ours, peer = secured(line, server, data=says(b"250 OK\r\n"))
    peer.tls.write(b"NOOP\r\n")
    peer.send(peer.outgoing.read() + b"\x17\x03\x03\x00\x20" + b"x" * 32)
    line.until(lambda: ours.is_lost and peer.end)
    assert ours.got == b"NOOP\r\n"
    assert peer.got == b""


def test_what_goes_wrong_in_one_handshake_does_no_harm_to_another(line, server):
    ours, peer = secured(line, server, data=says(b"250 OK\r\n"))
    for wrong in (b"EHLO client.test\r\n", b"\x16\x03\x01\x00\x10" + b"x" * 16, b""):
        other = Noted(made=begins(server))
        its_peer = line.accepted(other)
        if wrong:
            its_peer.send(wrong)
        else:
            other.transport.loseConnection()
        line.until(lambda other=other: other.is_lost)
    peer.say(b"NOOP\r\n")
    line.until(lambda: peer.got)
    assert ours.did == ["secured", b"NOOP\r\n"]
    assert peer.got == b"250 OK\r\n"


@pytest.mark.parametrize("at", ["in the handshake", "after it"])
def test_a_connection_that_tls_has_ended_leaves_nothing_to_the_garbage_collector(line, server, at):
    ours = Noted(made=begins(server))
    peer = line.accepted(ours)
    if at == "after it":
        peer = line.secure(peer, client_context())
        line.until(lambda: peer.is_secured and "secured" in ours.did)
    peer.send(b"\x17\x03\x03\x00\x20" + b"x" * 32)
    left = weakref.ref(ours.transport.getHandle())
    gc.disable()
    try:
        line.until(lambda: ours.is_lost)
        assert isinstance(ours.reason, SSL.Error)
        line.poller.asked.clear()
        ours.transport = None
        assert left() is None
    finally:
        gc.enable()


def test_what_is_written_before_tls_is_agreed_is_sent_after_it_in_order(line, server):
    ours = Noted(
        made=in_turn(begins(server), says(b"one "), lambda it: it.transport.writeSequence([b"two ", b"three "])),
        secured=says(b"four "),
        data=says(b"five"),
    )
    plain = line.accepted(ours)
    line.settle()
    assert plain.got == b""
    peer = line.secure(plain, client_context(), first=b"go on")
    line.until(lambda: peer.got.endswith(b"five"))
    assert peer.got == b"one two three four five"


def test_what_is_written_when_the_connection_in_tls_has_gone_is_dropped(line, server):
    ours, peer = secured(line, server, lost=in_turn(says(b"x"), leaves, aborts))
    peer.close()
    line.until(lambda: ours.is_lost)
    ours.transport.write(b"250 OK\r\n")
    ours.transport.writeSequence([b"250 OK\r\n"])
    ours.transport.loseConnection()
    ours.transport.abortConnection()
    line.settle()
    assert ours.did == ["secured", ConnectionDone]


def test_aborting_when_tls_is_agreed_sends_nothing_that_was_written(line, server):
    ours = Noted(made=in_turn(begins(server), says(b"secret")), secured=in_turn(aborts, says(b"too")))
    peer = line.secure(line.accepted(ours), client_context(), first=b"EHLO client.test\r\n")
    line.until(lambda: peer.end)
    assert ours.did == ["secured", ConnectionAborted]
    assert (peer.got, peer.end, peer.has_alert) == (b"", "reset", False)


def test_aborting_in_tls_while_it_is_read_to_resets_and_sends_nothing_more(line, server):
    ours, peer = secured(line, server, data=in_turn(aborts, says(b"250 OK\r\n"), leaves))
    peer.say(b"NOOP\r\n")
    line.until(lambda: peer.end)
    assert (peer.got, peer.end, peer.has_alert) == (b"", "reset", False)
    assert ours.did == ["secured", b"NOOP\r\n", ConnectionAborted]


def test_the_end_of_all_connections_while_it_is_read_to_in_tls_is_the_end(line, server):
    ours, peer = secured(line, server, data=in_turn(lambda it: line.poller.close(), says(b"x"), leaves))
    peer.say(b"NOOP\r\n")
    line.serve()
    assert ours.did == ["secured", b"NOOP\r\n", ConnectionLost]


def test_the_handle_is_the_socket_and_in_tls_what_knows_the_version(line, server, version):
    plain = Noted()
    line.accepted(plain)
    assert plain.transport.getHandle() is plain.transport.socket
    ours, _ = secured(line, server)
    handle = ours.transport.getHandle()
    assert isinstance(handle, SSL.Connection)
    assert handle.get_protocol_version_name() == version


def test_tls_that_cannot_begin_sends_nothing_in_clear(line):
    class Broken:
        def serverConnectionForTLS(self, protocol):
            raise RuntimeError("no certificate")

    def tries(it):
        with pytest.raises(RuntimeError):
            it.transport.startTLS(Broken())
        it.transport.write(b"secret")

    ours = Noted(data=tries)
    peer = line.accepted(ours)
    peer.send(b"STARTTLS\r\n")
    line.until(lambda: peer.end)
    assert peer.got == b""
    assert ours.is_lost


def test_tls_begins_once(line, server):
    ours, peer = secured(line, server)
    with pytest.raises(TlsBegun):
        ours.transport.startTLS(server)
    ours.transport.write(b"250 OK\r\n")
    line.until(lambda: peer.got)
    assert peer.got == b"250 OK\r\n"


# --- TLS, as a client ---


def calls(line, their_server, *, first=b"", by_one=False, **on):
    """A connection of ours that begins TLS as soon as it stands, and its peer."""
    ours = Noted(made=begins(handshake()), **on)
    peer = line.secure(line.connected(ours), their_server, is_server=True, first=first, by_one=by_one)
    return ours, peer


def test_a_handshake_with_a_server(line, their_server, version):
    ours, peer = calls(line, their_server, secured=says(b"EHLO mx.test\r\n"))
    line.until(lambda: peer.got)
    assert peer.tls.version() == version
    peer.say(b"250 OK\r\n")
    line.until(lambda: ours.got)
    assert ours.did == ["secured", b"250 OK\r\n"]
    ours.transport.loseConnection()
    line.until(lambda: peer.end)
    assert (peer.got, peer.has_alert, peer.error) == (b"EHLO mx.test\r\n", True, None)


def test_tls_begins_in_answer_to_what_the_server_says(line, their_server):
    ours = Noted(made=says(b"STARTTLS\r\n"), data=lambda it: it.did == [b"220 Go\r\n"] and begins(handshake())(it))
    plain = line.connected(ours)
    line.until(lambda: plain.got == b"STARTTLS\r\n")
    plain.is_reading = False
    plain.send(b"220 Go\r\n")
    line.until(lambda: ours.did)
    peer = line.secure(plain, their_server, is_server=True, first=b"250 OK\r\n")
    line.until(lambda: ours.got.endswith(b"250 OK\r\n"))
    assert ours.did == [b"220 Go\r\n", "secured", b"250 OK\r\n"]
    assert peer.error is None


def test_octets_come_together_with_what_ends_the_servers_handshake(line, their_server):
    # In TLS 1.3 that is its session tickets, in TLS 1.2 its last word.
    ours, _ = calls(line, their_server, first=b"220 mx.test\r\n", data=says(b"EHLO\r\n"))
    line.until(lambda: ours.got)
    assert ours.did == ["secured", b"220 mx.test\r\n"]


def test_a_handshake_with_a_server_may_come_octet_by_octet(line, their_server):
    ours, _ = calls(line, their_server, first=b"220 mx.test\r\n", by_one=True)
    line.until(lambda: ours.got)
    assert ours.did == ["secured", b"220 mx.test\r\n"]


def test_what_a_client_writes_before_tls_is_agreed_is_sent_after_it(line, their_server):
    ours = Noted(made=in_turn(begins(handshake()), says(b"EHLO ")), secured=says(b"mx.test\r\n"))
    peer = line.secure(line.connected(ours), their_server, is_server=True)
    line.until(lambda: peer.got.endswith(b"\r\n"))
    assert peer.got == b"EHLO mx.test\r\n"


def test_a_server_whose_name_does_not_fit_gets_nothing(line, their_server):
    ours = Noted(made=in_turn(begins(handshake()), says(b"secret")), secured=aborts)
    peer = line.secure(line.connected(ours), their_server, is_server=True)
    line.until(lambda: ours.is_lost and peer.end)
    assert ours.did == ["secured", ConnectionAborted]
    assert peer.got == b""


def test_a_certificate_that_is_not_trusted_ends_it_with_an_alert(line, their_server):
    ours = Noted(made=begins(ClientTls().handshake("mx.test", verify=True)))
    peer = line.secure(line.connected(ours), their_server, is_server=True)
    line.until(lambda: ours.is_lost and peer.error)
    assert isinstance(ours.reason, SSL.Error)
    assert "ALERT" in str(peer.error)


@pytest.mark.parametrize("octets", [b"", b"\x16\x03\x03\x00\x7a\x02"])
def test_a_server_that_hangs_up_in_mid_handshake_ends_it(line, octets):
    ours = Noted(made=begins(handshake()))
    peer = line.connected(ours)
    line.until(lambda: peer.got)
    peer.send(octets)
    line.settle()
    peer.close()
    line.until(lambda: ours.is_lost)
    assert ours.did == [ConnectionDone]


def test_a_server_that_answers_with_a_close_alert_has_closed(line):
    ours = Noted(made=begins(handshake()))
    peer = line.connected(ours)
    line.until(lambda: peer.got)
    # RFC 8446 6.1: close_notify.
    peer.send(b"\x15\x03\x03\x00\x02\x01\x00")
    line.until(lambda: ours.is_lost and peer.end)
    assert ours.did == [ConnectionDone]


def test_a_server_that_answers_with_an_alert_ends_it(line):
    ours = Noted(made=begins(handshake()))
    peer = line.connected(ours)
    line.until(lambda: peer.got)
    # RFC 8446 6: handshake_failure, fatal.
    peer.send(b"\x15\x03\x03\x00\x02\x02\x28")
    line.until(lambda: ours.is_lost)
    assert isinstance(ours.reason, SSL.Error)
    assert "ALERT" in str(ours.reason).upper()


# --- ours with ours ---


def test_our_client_and_our_server_understand_each_other(line, server, version):
    def serves(it):
        if it.did == [b"STARTTLS\r\n"]:
            it.transport.write(b"220 Go\r\n")
            it.transport.startTLS(server)
        elif it.got.endswith(b"QUIT\r\n"):
            it.transport.write(b"221 Bye\r\n")
            it.transport.loseConnection()

    def asks(it):
        if it.did == [b"220 Go\r\n"]:
            it.transport.startTLS(handshake())

    def sends(it):
        Content(it.transport, CONTENT, lambda: it.transport.write(b"QUIT\r\n"))

    them = Noted(data=serves)
    us = Noted(made=says(b"STARTTLS\r\n"), data=asks, secured=sends)
    line.both(us, them)
    line.until(lambda: us.is_lost and them.is_lost)
    assert them.got == b"STARTTLS\r\n" + CONTENT + b"QUIT\r\n"
    assert us.did == [b"220 Go\r\n", "secured", b"221 Bye\r\n", ConnectionDone]
    assert them.did[-1] is ConnectionDone
    assert us.transport.getHandle().get_protocol_version_name() == version
