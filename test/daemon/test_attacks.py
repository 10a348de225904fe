"""Attacks on the whole daemon over TCP: what is smuggled, injected, slow, endless, too much, or never said.

One gateway suffers them all. After each it must live, serve a normal client,
have nothing queued that should not be, and be as small as before.
"""

import contextlib
import os
import random
import smtplib
import socket
import ssl
import threading
import time
import uuid

import pytest
from support.client import Client, still_serves
from support.daemon import IMPLICIT_TLS, LMTP, SMTP, Gateway, settle
from support.ports import wait_until
from support.sink import NextHop

MIB = 1024 * 1024
# What one attack may leave resident: arenas of the allocator, no queues.
GROWTH_OCTETS = 24 * MIB

LISTENERS = {
    "smtp": SMTP,
    "normalize": SMTP,
    "submissions": IMPLICIT_TLS + 'tls.timeout = "1s"\n',
    "lmtp": LMTP,
    "short": SMTP + 'tls.timeout = "1s"\n',
}

CHANGES = """
[session]
bare-newline = [ { if = "listener = 'normalize'", then = "'normalize'" }, { else = "'reject'" } ]
timeout = [ { if = "listener = 'short'", then = "700ms" }, { else = "1m" } ]
duration = [ { if = "listener = 'short'", then = "3s" }, { else = "10m" } ]
transfer-limit = [ { if = "listener = 'short'", then = 4000000 }, { else = 262144000 } ]

[session.data.limits]
messages = 100000
size = 1000000

[session.rcpt]
relay = [ { if = "rcpt_domain = 'relay.test'", then = true }, { else = false } ]
errors.total = 1000
"""

DOT = b"\r\n.\r\n"
# What looks like the end of data to somebody, and is none.
NOT_THE_END = {
    "lf.lf": b"\n.\n",
    "lf.crlf": b"\n.\r\n",
    "crlf.lf": b"\r\n.\n",
    "cr.crlf": b"\r.\r\n",
    "crlf.cr": b"\r\n.\r",
    "cr.cr": b"\r.\r",
    "cr.lf": b"\r.\n",
    "lf.cr": b"\n.\r",
    "crlf.crcrlf": b"\r\n.\r\r\n",
    "crlf.lfcrlf": b"\r\n.\n\r\n",
    "lfcr.lfcr": b"\n\r.\n\r",
    "crlf.nulcrlf": b"\r\n.\0\r\n",
    "crlfnul.crlf": b"\r\n\0.\r\n",
    "crlf.crnullf": b"\r\n.\r\0\n",
    "crnullf.crlf": b"\r\0\n.\r\n",
    "nullf.nullf": b"\0\n.\0\n",
    "crlf.space": b"\r\n. \r\n",
    "crlf..crlf": b"\r\n..\r\n",
    "nel.nel": b"\xc2\x85.\xc2\x85",
    "ls.ls": b"\xe2\x80\xa8.\xe2\x80\xa8",
    "vt.ff": b"\x0b.\x0c",
}
VARIANTS = pytest.mark.parametrize("odd", NOT_THE_END.values(), ids=NOT_THE_END.keys())
# Nobody else writes to john: whatever is in his mailbox came by an attack.
INNER = b"MAIL FROM:<evil@client.test>\r\nRCPT TO:<john@foobar.org>\r\nDATA\r\nSubject: smuggled\r\n\r\nhi"


@pytest.fixture(scope="module")
def hop(authority):
    """A next hop that believes every line end."""
    with NextHop(naive=True) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, authority, hop):
    """The daemon under attack."""
    route = (
        f"[queue.strategy]\nroute = [ {{ if = \"rcpt_domain = 'relay.test'\", then = \"'hop'\" }}, "
        f"{{ else = \"'local'\" }} ]\n"
        f'[queue.route.hop]\ntype = "relay"\naddress = "127.0.0.1"\nport = {hop.port}\ntls.implicit = false\n'
    )
    folder = tmp_path_factory.mktemp("attacks")
    with Gateway(folder, authority, listeners=LISTENERS, changes=(CHANGES, route)) as daemon:
        for _ in range(3):
            still_serves(daemon)
        yield daemon
        assert daemon.stop() == 0
        log = daemon.log_text()
        for word in ("Traceback", "smtp.unexpected", "internal-error", "Unhandled"):
            assert word not in log, log[max(0, log.index(word) - 3000) :][:6000]


def descriptors(gateway):
    """How many files and sockets the daemon holds."""
    return len(os.listdir(f"/proc/{gateway.pid}/fd"))


@pytest.fixture(autouse=True)
def unharmed(gateway):
    """What must hold after every attack."""
    before, held = gateway.resident_octets(), descriptors(gateway)
    yield
    assert gateway.is_running
    still_serves(gateway, uuid.uuid4().hex.encode())
    gateway.wait_queue_empty()
    assert gateway.maildir("john", "foobar.org") == []
    assert gateway.resident_octets() - before < GROWTH_OCTETS
    # Connections of the attack are gone, those of its deliveries may be kept a while.
    wait_until(lambda: descriptors(gateway) < held + 20, 20, "closed sockets")
    spool = gateway.directory / "spool"
    assert [path for path in spool.rglob("*") if path.is_file()] == []


def mail_for_jane(gateway, token):
    """Messages in jane's mailbox that hold `token`."""
    return [octets for octets in gateway.maildir("jane", "foobar.org") if token in octets]


def envelope(client, rcpt=b"jane@foobar.org", parameters=b""):
    """MAIL and RCPT on a client that has said EHLO."""
    assert client.say(b"MAIL FROM:<a@client.test>" + parameters + b"\r\n").startswith(b"250")
    assert client.say(b"RCPT TO:<" + rcpt + b">\r\n").startswith(b"250")


def greeted(gateway, listener="smtp"):
    """A client after EHLO."""
    client = Client(gateway, listener)
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    assert client.say((b"LHLO" if listener == "lmtp" else b"EHLO") + b" client.test\r\n").startswith(b"250")
    return client


# --- smuggling, inbound -------------------------------------------------------------------
def is_bare(octets):
    rest = octets.replace(b"\r\n", b"")
    return b"\r" in rest or b"\n" in rest


@VARIANTS
@pytest.mark.parametrize("listener", ["smtp", "normalize", "lmtp"])
def test_nothing_but_crlf_dot_crlf_ends_data(gateway, odd, listener):
    """Whole, and cut in two at each place in and around the octets that look like an end."""
    token = uuid.uuid4().hex.encode()
    octets = b"Subject: " + token + b"\r\n\r\nx" + odd + INNER + DOT
    start = octets.index(odd)
    refused = listener != "normalize" and is_bare(octets)
    cuts = range(start - 1, start + len(odd) + 2)
    with greeted(gateway, listener) as client:
        for cut in (0, *cuts):
            envelope(client)
            assert client.say(b"DATA\r\n").startswith(b"354")
            if cut:
                client.socket.sendall(octets[:cut])
                time.sleep(0.001)
            client.socket.sendall(octets[cut:] + b"NOOP\r\n")
            assert client.reply().startswith(b"550 5.6.0" if refused else b"250 2.0.0")
            assert client.reply() == b"250 2.0.0 OK\r\n"
    count = 0 if refused else 1 + len(cuts)
    wait_until(lambda: len(mail_for_jane(gateway, token)) == count, 20, f"{count} messages")
    for kept in mail_for_jane(gateway, token):
        assert b"Subject: smuggled" in kept


@VARIANTS
@pytest.mark.parametrize("listener", ["smtp", "normalize"])
def test_nothing_inside_a_chunk_is_a_command(gateway, odd, listener):
    """Also where the octets that look like an end lie across two chunks, at each place."""
    token = uuid.uuid4().hex.encode()
    octets = b"Subject: " + token + b"\r\n\r\nx" + odd + INNER + DOT
    start = octets.index(odd)
    refused = listener != "normalize" and is_bare(octets)
    cuts = (0, *range(start, start + len(odd) + 1))
    with greeted(gateway, listener) as client:
        for cut in cuts:
            first = b"BDAT %d\r\n" % cut + octets[:cut] if cut else b""
            envelope(client)
            client.socket.sendall(first + b"BDAT %d LAST\r\n" % (len(octets) - cut) + octets[cut:] + b"NOOP\r\n")
            if first:
                assert client.reply().startswith(b"250 2.6.0")
            assert client.reply().startswith(b"550 5.6.0" if refused else b"250 2.0.0")
            assert client.reply() == b"250 2.0.0 OK\r\n"
    count = 0 if refused else len(cuts)
    wait_until(lambda: len(mail_for_jane(gateway, token)) == count, 20, f"{count} messages")


@VARIANTS
def test_no_command_line_ends_otherwise(gateway, odd):
    """A line end that is none cannot hide a second command in the first."""
    with greeted(gateway) as client:
        client.socket.sendall(b"NOOP " + odd.replace(b".", b"") + INNER.replace(b"\r\n", b"\n") + b"\r\n")
        said = client.reply()
        assert said.startswith((b"500", b"501", b"250 2.0.0 OK")), said
        with contextlib.suppress(OSError):
            client.socket.sendall(b"QUIT\r\n")
        while said := client.reply():
            assert said.startswith((b"500", b"221", b"503")), said


# --- smuggling, outbound -------------------------------------------------------------------
@pytest.mark.parametrize("name", ["lf.lf", "lf.crlf", "crlf.lf", "cr.crlf", "cr.lf"])
def test_the_naive_next_hop_is_naive(name):
    """Without the care of the gateway it sees two messages: what follows would prove nothing otherwise."""
    with NextHop(naive=True) as server, socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        opening = b"EHLO c.test\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<b@relay.test>\r\nDATA\r\n"
        client.sendall(opening + b"Subject: x\r\n\r\nx" + NOT_THE_END[name] + INNER + DOT)
        senders = [message.sender for message in server.wait_messages(2)]
        assert senders == ["a@client.test", "evil@client.test"]


def relayed(hop, token, count=1):
    """Messages the next hop believes to have got, which hold `token`; none came beside them."""
    found = wait_until(lambda: [m for m in hop.messages if token in m.octets][count - 1 :] and list(hop.messages), 20)
    settle(0.05)
    assert len(hop.messages) == len(found)
    assert not any(message.sender == "evil@client.test" for message in hop.messages)
    return [message for message in found if token in message.octets]


@VARIANTS
def test_a_naive_next_hop_sees_one_message(gateway, hop, odd):
    """What `normalize` makes of it leaves as one message, whatever line ends the next hop believes in."""
    token = uuid.uuid4().hex.encode()
    before = len(hop.messages)
    with greeted(gateway, "normalize") as client:
        envelope(client, b"b@relay.test")
        assert client.say(b"DATA\r\n").startswith(b"354")
        sent = b"Subject: " + token + b"\r\n\r\nx" + odd + INNER + DOT
        assert client.say(sent).startswith(b"250 2.0.0")
    (message,) = relayed(hop, token)
    assert len(hop.messages) == before + 1
    assert message.recipients == ["b@relay.test"]
    assert b"Subject: smuggled" in message.octets
    assert not is_bare(message.octets)


@pytest.mark.parametrize("extensions", [("CHUNKING", "BINARYMIME"), ("CHUNKING",), ()], ids=" ".join)
def test_a_binary_body_leaves_whole_or_not_at_all(tmp_path, authority, extensions):
    """Octets that are no lines go to a next hop that takes them, else back to the sender; both see one message."""
    body = b"".join(odd + INNER for odd in NOT_THE_END.values())
    octets = b"Subject: binary\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: binary\r\n\r\n" + body
    with NextHop(naive=True, extensions=("PIPELINING", "8BITMIME", *extensions)) as hop:
        changes = (
            "[session.rcpt]\nrelay = true\n[session.extensions]\ndsn = true\n[queue.strategy]\nroute = \"'hop'\"\n"
            f'[queue.route.hop]\ntype = "relay"\naddress = "127.0.0.1"\nport = {hop.port}\ntls.implicit = false\n',
        )
        with Gateway(tmp_path, authority, changes=changes) as gateway:
            with greeted(gateway) as client:
                envelope(client, b"b@relay.test", b" BODY=BINARYMIME RET=FULL")
                said = client.say(b"BDAT %d LAST\r\n" % len(octets) + octets)
                assert said.startswith(b"250 2.0.0"), said
            gateway.wait_queue_empty()
            settle()
            (message,) = hop.messages
            if "BINARYMIME" in extensions:
                assert message.octets == octets
                assert message.recipients == ["b@relay.test"]
            else:
                # The report: about the message, for its sender, made of lines.
                assert message.sender == ""
                assert message.recipients == ["a@client.test"]
                assert b"5.6.3" in message.octets
                assert not is_bare(message.octets)
            (dialogue,) = [one for one in hop.dialogues if any(line.startswith("MAIL") for line in one.commands)]
            assert [line for line in dialogue.commands if line.startswith("MAIL")] == [message.mail]


# --- STARTTLS injection ------------------------------------------------------------------------
def unchecked():
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize(
    "injected",
    [b"NOOP\r\n", b"EHLO evil.test\r\nMAIL FROM:<evil@client.test>\r\nRCPT TO:<john@foobar.org>\r\n", b"RCPT TO:<jo"],
    ids=["command", "envelope", "half-a-line"],
)
def test_plaintext_after_starttls_is_never_interpreted(gateway, injected):
    with greeted(gateway) as client:
        client.socket.sendall(b"STARTTLS\r\n" + injected)
        assert client.reply().startswith(b"220 2.0.0")
        with unchecked().wrap_socket(client.socket) as secure, secure.makefile("rb") as lines:
            secure.sendall(b"DATA\r\n")
            # Neither an answer to what was injected nor anything of its state.
            assert lines.readline().startswith(b"503 5.5.1")
            secure.sendall(b"MAIL FROM:<a@client.test>\r\n")
            assert lines.readline().startswith(b"503 5.5.1")
            secure.sendall(b"EHLO client.test\r\nQUIT\r\n")
            said = lines.read().split(b"\r\n")
            assert said[0].startswith(b"250-mx.test")
            assert b"250-STARTTLS" not in said
            assert said[-2].startswith(b"221")


def test_a_transaction_does_not_outlive_starttls(gateway):
    with greeted(gateway) as client:
        envelope(client, b"john@foobar.org")
        assert client.say(b"STARTTLS\r\n").startswith(b"220")
        with unchecked().wrap_socket(client.socket) as secure, secure.makefile("rb") as lines:
            secure.sendall(b"DATA\r\n")
            assert lines.readline().startswith(b"503 5.5.1")


@pytest.mark.parametrize("late", [False, True], ids=["same-segment", "later"])
def test_a_next_hop_that_injects_before_tls_gets_nothing(tmp_path, authority, late):
    """Replies between 220 and the handshake: no message, neither in clear nor by what was injected."""
    injected = b"250-evil\r\n250 SIZE\r\n250 OK\r\n250 OK\r\n354 go\r\n250 taken\r\n"
    heard = bytearray()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.sendall(b"220 hop.test\r\n")
                connection.recv(1000)
                connection.sendall(b"250-hop.test\r\n250-PIPELINING\r\n250 STARTTLS\r\n")
                connection.recv(1000)
                if late:
                    connection.sendall(b"220 go\r\n")
                    time.sleep(0.05)
                    connection.sendall(injected)
                else:
                    connection.sendall(b"220 go\r\n" + injected)
                connection.settimeout(5)
                while octets := connection.recv(10000):
                    heard.extend(octets)

    threading.Thread(target=serve, daemon=True).start()
    changes = (
        "[session.rcpt]\nrelay = true\n[queue.strategy]\nroute = \"'hop'\"\n"
        f'[queue.route.hop]\ntype = "relay"\naddress = "127.0.0.1"\nport = {listener.getsockname()[1]}\n'
        "tls.implicit = false\n",
    )
    with Gateway(tmp_path, authority, changes=changes) as gateway:
        with greeted(gateway) as client:
            envelope(client, b"b@relay.test")
            assert client.say(b"DATA\r\n").startswith(b"354")
            assert client.say(b"Subject: secret\r\n\r\nhi" + DOT).startswith(b"250 2.0.0")
        gateway.wait_log("delivery.start-tls-error")
        settle()
        assert [row.address for row in gateway.queue()] == ["b@relay.test"]
    listener.close()
    assert b"MAIL" not in heard
    assert b"secret" not in heard


# --- slow --------------------------------------------------------------------------------------
SLOW = {
    "command": b"",
    "data": b"EHLO c.test\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<jane@foobar.org>\r\nDATA\r\n",
    "chunk": b"EHLO c.test\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<jane@foobar.org>\r\nBDAT 100000 LAST\r\n",
    "login": b"EHLO c.test\r\nAUTH PLAIN\r\n",
}


@pytest.mark.parametrize("opening", SLOW.values(), ids=SLOW.keys())
def test_a_client_of_an_octet_at_a_time_ends_with_the_session(gateway, opening):
    """It is never inactive; what ends it is `session.duration`."""
    began = time.monotonic()
    with Client(gateway, "short") as client:
        client.socket.sendall(opening)
        with contextlib.suppress(OSError):
            while time.monotonic() < began + 10:
                client.socket.sendall(b"x")
                client.socket.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    if b"421 4.3.2" in client.socket.recv(10000):
                        break
    assert 2 < time.monotonic() - began < 8


def test_silent_connections_are_let_go(gateway):
    clients = [Client(gateway, "short") for _ in range(200)]
    for client in clients:
        assert client.line().startswith(b"221 2.0.0")
        assert client.line() == b""
        client.close()


# --- endless and too big ------------------------------------------------------------------------
ENDLESS = {
    "line": b"EHLO ",
    "line-of-nul": b"\0",
    "sasl": b"EHLO c.test\r\nAUTH PLAIN\r\n",
    "header": b"EHLO c.test\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<jane@foobar.org>\r\nDATA\r\nX-Pad: ",
    "chunk": b"EHLO c.test\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<jane@foobar.org>\r\nBDAT 99999999999999999999\r\n",
    "chunk-for-nobody": b"BDAT 99999999999999999999 LAST\r\n",
}


@pytest.mark.parametrize("opening", ENDLESS.values(), ids=ENDLESS.keys())
def test_what_has_no_end_stops_at_the_transfer_limit(gateway, opening):
    before = gateway.peak_octets()
    with Client(gateway, "short") as client:
        sent = 0
        with contextlib.suppress(OSError):
            client.socket.sendall(opening)
            while sent < 64 * MIB:
                sent += client.socket.send(b"x" * 65536)
        assert sent < 16 * MIB
    assert gateway.peak_octets() - before < GROWTH_OCTETS


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
def test_who_sends_on_past_the_transfer_limit_is_told_so(gateway, secured):
    """Octets that nobody reads any more have no reset for an answer, which could cost the client the reply."""
    with Client(gateway, "short") as client:
        if secured:
            assert client.say(b"STARTTLS\r\n").startswith(b"220")
            client.secure(unchecked())
        client.socket.sendall(SLOW["data"] + b"X-Pad: " + b"x" * 5_000_000)
        said = []
        while line := client.line():
            said.append(line)
        # After a reset nothing could be sent.
        client.socket.sendall(b"x" * 10)
        settle(0.1)
        client.socket.sendall(b"x" * 10)
    assert said[-2].startswith(b"354")
    assert said[-1].startswith(b"452 4.7.28")


def test_a_message_too_big_is_read_to_its_end(gateway):
    before = gateway.peak_octets()
    with greeted(gateway) as client:
        for end, lines in ((b"\r\n.\r\n", b"x" * 70 + b"\r\n"), (b"\r\n.\r\n", b"y" * 72), (b"\r\n.\r\n", b"\n" * 72)):
            envelope(client)
            assert client.say(b"DATA\r\n").startswith(b"354")
            client.socket.sendall(b"Subject: big\r\n\r\n")
            for _ in range(20):
                client.socket.sendall(lines * 7000)
            assert client.say(end).startswith(b"552 5.3.4")
        envelope(client)
        assert client.say(b"BDAT 2000000 LAST\r\n" + b"z" * 2000000).startswith(b"552 5.3.4")
        assert client.say(b"MAIL FROM:<a@client.test> SIZE=1000001\r\n").startswith(b"552 5.3.4")
    assert gateway.peak_octets() - before < GROWTH_OCTETS


# --- interleaved ----------------------------------------------------------------------------------
def test_content_before_354_belongs_to_the_message(gateway):
    token = uuid.uuid4().hex.encode()
    with greeted(gateway) as client:
        client.socket.sendall(
            b"MAIL FROM:<a@client.test>\r\nRCPT TO:<jane@foobar.org>\r\nDATA\r\nSubject: " + token + b"\r\n\r\n"
            b"MAIL FROM:<evil@client.test>" + DOT + b"NOOP\r\n"
        )
        said = [client.reply() for _ in range(5)]
        assert [line[:3] for line in said] == [b"250", b"250", b"354", b"250", b"250"]
        assert said[4] == b"250 2.0.0 OK\r\n"
    wait_until(lambda: len(mail_for_jane(gateway, token)) == 1, 20)


def test_content_after_a_refused_data_is_answered_line_by_line(gateway):
    with greeted(gateway) as client:
        client.socket.sendall(b"MAIL FROM:<a@client.test>\r\nDATA\r\nSubject: x\r\n\r\nhi\r\n.\r\nNOOP\r\n")
        said = [client.reply()[:9] for _ in range(7)]
        assert said == [b"250 2.1.0", b"503 5.5.1", *[b"500 5.5.1"] * 4, b"250 2.0.0"]


def test_two_clients_octet_by_octet_do_not_mix(gateway):
    tokens = [uuid.uuid4().hex.encode() for _ in range(2)]
    talks = [
        b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<jane@foobar.org>\r\n"
        b"DATA\r\nSubject: " + token + b"\r\n\r\n" + token + DOT + b"QUIT\r\n"
        for token in tokens
    ]
    with Client(gateway) as one, Client(gateway) as two:
        for client in (one, two):
            client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for first, second in zip(*talks, strict=True):
            one.socket.sendall(bytes([first]))
            two.socket.sendall(bytes([second]))
        for client in (one, two):
            codes = [client.reply()[:3] for _ in range(6)]
            assert codes == [b"250", b"250", b"250", b"354", b"250", b"221"]
    for token, other in (tokens, reversed(tokens)):
        (octets,) = wait_until(lambda token=token: mail_for_jane(gateway, token), 20)
        assert other not in octets


# --- half closed ---------------------------------------------------------------------------------------
TO_DATA = b"EHLO c.test\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<jane@foobar.org>\r\nDATA\r\nSubject: half\r\n\r\nhi"
HALVES = {
    "nothing": b"",
    "half-a-line": b"EHLO cli",
    "a-line": b"EHLO client.test\r\n",
    "sasl": b"EHLO client.test\r\nAUTH PLAIN\r\n",
    "starttls": b"EHLO client.test\r\nSTARTTLS\r\n",
    "data": TO_DATA,
    "half-a-dot": TO_DATA + b"\r\n.\r",
    "chunk": TO_DATA.replace(b"DATA\r\n", b"BDAT 100 LAST\r\n"),
    "quit": b"EHLO client.test\r\nQUIT\r\n",
    "bad-recipient": b"EHLO c.test\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<nobody@foobar.org>\r\n",
}


@pytest.mark.parametrize("octets", HALVES.values(), ids=HALVES.keys())
def test_input_that_is_closed_in_the_middle(gateway, octets):
    with Client(gateway) as client:
        client.socket.sendall(octets)
        client.socket.shutdown(socket.SHUT_WR)
        while client.line():
            pass
    settle(0.05)
    assert not any(b"Subject: half" in message for message in gateway.maildir("jane", "foobar.org"))
    assert gateway.queue() == []


def test_input_that_is_closed_right_after_the_dot(gateway):
    """The message may be kept, once and whole; a client that got no reply will send it again."""
    for quits in (b"", b"QUIT\r\n"):
        token = uuid.uuid4().hex.encode()
        with Client(gateway) as client:
            client.socket.sendall(TO_DATA.replace(b"half", token) + DOT + quits)
            client.socket.shutdown(socket.SHUT_WR)
            said = client.socket.makefile("rb").read()
        gateway.wait_queue_empty()
        settle(0.1)
        kept = mail_for_jane(gateway, token)
        assert len(kept) <= 1
        assert not (b"queued with id" in said and not kept), "promised and not kept"
        assert all(octets.endswith(b"hi\n") for octets in kept)


# --- floods --------------------------------------------------------------------------------------------
FLOODS = {
    "NOOP": b"NOOP\r\n",
    "RSET": b"RSET\r\n",
    "EHLO": b"EHLO client.test\r\n",
    "VRFY": b"VRFY jane\r\n",
    "empty": b"\r\n",
    "MAIL": b"MAIL FROM:<a@client.test>\r\n",
    "no-chunk": b"BDAT 0\r\n",
    "bad-MAIL": b"MAIL FROM:<" + b"a" * 300 + b"@client.test>\r\n",
}


@pytest.mark.parametrize("line", FLOODS.values(), ids=FLOODS.keys())
def test_a_flood_of_commands_has_as_many_replies(gateway, line):
    before = gateway.peak_octets()
    count = 5000
    with greeted(gateway) as client:
        noise = threading.Thread(target=lambda: client.socket.sendall(line * count + b"NOOP\r\n"), daemon=True)
        noise.start()
        said = [client.reply() for _ in range(count + 1)]
        noise.join(20)
    assert all(said)
    assert said[-1] == b"250 2.0.0 OK\r\n"
    assert gateway.peak_octets() - before < GROWTH_OCTETS


def test_a_flood_of_recipients_stops_at_the_limit(gateway):
    before = gateway.peak_octets()
    count = 5000
    lines = b"".join(b"RCPT TO:<r%d@relay.test>\r\n" % number for number in range(count))
    with greeted(gateway) as client:
        assert client.say(b"MAIL FROM:<a@client.test>\r\n").startswith(b"250")
        noise = threading.Thread(target=lambda: client.socket.sendall(lines + b"RSET\r\n"), daemon=True)
        noise.start()
        said = [client.reply()[:9] for _ in range(count + 1)]
        noise.join(20)
    assert said == [b"250 2.1.5"] * 100 + [b"455 4.5.3"] * (count - 100) + [b"250 2.0.0"]
    assert gateway.peak_octets() - before < GROWTH_OCTETS


def test_thousands_of_short_connections(gateway):
    held = descriptors(gateway)
    address = ("127.0.0.1", gateway.port("smtp"))
    chance = random.Random(1)
    for number in range(3000):
        with socket.create_connection(address, timeout=20) as connection:
            match number % 4:
                case 0:
                    connection.recv(200)
                case 1:
                    connection.sendall(chance.randbytes(20))
                case 2:
                    connection.sendall(b"QUIT\r\n")
                    connection.recv(200)
                case 3:
                    # Closed by RST.
                    linger = b"\1\0\0\0\0\0\0\0"
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    wait_until(lambda: descriptors(gateway) <= held + 5, 20, "closed sockets")


# --- TLS ----------------------------------------------------------------------------------------------
def client_hello():
    """The first flight of a real handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    secure = unchecked().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        secure.do_handshake()
    return outgoing.read()


HANDSHAKES = {
    "nothing": b"",
    "plaintext": b"EHLO client.test\r\n",
    "half-a-hello": client_hello()[:100],
    "hello-and-no-more": client_hello(),
    "garbage": random.Random(2).randbytes(5000),
    "record-without-end": b"\x16\x03\x01\x40\x00" + b"x" * 1000,
    "alert": b"\x15\x03\x01\x00\x02\x02\x28",
}


@pytest.mark.parametrize("listener", ["submissions", "short"])
@pytest.mark.parametrize("octets", HANDSHAKES.values(), ids=HANDSHAKES.keys())
def test_a_handshake_that_is_none_ends_in_time(gateway, octets, listener):
    """On a port with TLS from the first octet, and after STARTTLS: nothing is said in clear."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", gateway.port(listener)), timeout=20) as connection:
        if listener == "short":
            lines = connection.makefile("rb")
            assert lines.readline().startswith(b"220")
            connection.sendall(b"STARTTLS\r\n")
            assert lines.readline().startswith(b"220")
        connection.sendall(octets)
        said = b""
        with contextlib.suppress(ConnectionError):
            while more := connection.recv(10000):
                said += more
        assert not said.startswith((b"2", b"4", b"5"))
    assert time.monotonic() - began < 4


def test_many_stalled_handshakes_end_in_time(gateway):
    held = descriptors(gateway)
    address = ("127.0.0.1", gateway.port("submissions"))
    stalled = [socket.create_connection(address, timeout=20) for _ in range(200)]
    for number, connection in enumerate(stalled):
        # The first may have been cut off by now.
        with contextlib.suppress(ConnectionError):
            connection.sendall(HANDSHAKES["hello-and-no-more"] if number % 2 else b"\x16\x03")
    still_serves(gateway, uuid.uuid4().hex.encode())
    wait_until(lambda: descriptors(gateway) <= held + 5, 20, "closed sockets")
    for connection in stalled:
        connection.close()


# --- replies never read ----------------------------------------------------------------------------------
@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
def test_replies_that_nobody_reads_are_bounded(gateway, secured):
    before = gateway.peak_octets()
    with contextlib.ExitStack() as stack:
        listener = "submissions" if secured else "smtp"
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port(listener)), timeout=20))
        connection = stack.enter_context(unchecked().wrap_socket(plain)) if secured else plain
        connection.settimeout(1)
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 64 * MIB:
                sent += connection.send(b"EHLO client.test\r\n" * 500)
        assert sent < 32 * MIB
    assert gateway.peak_octets() - before < GROWTH_OCTETS


def test_a_login_by_smtplib_still_works_afterwards(gateway):
    """A client of this world, on each listener that speaks SMTP."""
    for listener in ("smtp", "normalize"):
        with smtplib.SMTP("127.0.0.1", gateway.port(listener), timeout=20) as client:
            client.starttls(context=unchecked())
            client.sendmail("a@client.test", ["jane@foobar.org"], "Subject: last\r\n\r\nhi\r\n")
    with smtplib.SMTP_SSL("127.0.0.1", gateway.port("submissions"), timeout=20, context=unchecked()) as client:
        client.sendmail("a@client.test", ["jane@foobar.org"], "Subject: last\r\n\r\nhi\r\n")
