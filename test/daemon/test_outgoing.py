"""What leaves a running daemon: commands, parameters, octets, and what is kept when it does not."""

import contextlib
import re
import smtplib
import time
import uuid
from collections import Counter

import pytest
from support.daemon import Gateway
from support.dns_server import DnsServer
from support.ports import free_port, wait_until
from support.sink import DROP, HELD, NextHop
from support.zone import Zone

EVERYTHING = (
    "PIPELINING",
    "8BITMIME",
    "SMTPUTF8",
    "ENHANCEDSTATUSCODES",
    "SIZE 100000000",
    "DSN",
    "DELIVERBY 86400",
    "MT-PRIORITY MIXER",
    "REQUIRETLS",
)

CHANGES = """
[session.extensions]
dsn = true
deliver-by = "1d"
mt-priority = "mixer"
requiretls = true

[session.rcpt]
relay = true
max-recipients = 300

[session.data.limits]
messages = 1000

[session.data.add-headers]
received = true

[queue]
poll = "500ms"
sweep = "500ms"

[queue.strategy]
route = [
    { if = "is_local_domain('*', rcpt_domain)", then = "'local'" },
    { if = "rcpt_domain = 'exchanged.test'", then = "'exchangers'" },
    { else = "strip_suffix(rcpt_domain, '.test')" },
]
schedule = "'quick'"
connection = [
    { if = "rcpt_domain = 'flaky.test'", then = "'kept'" },
    { if = "matches('^(one|two|brief|idle)[.]test$', rcpt_domain)", then = "$1" },
    { else = "'default'" },
]

[queue.schedule.quick]
queue-name = "remote"
retry = "1s"
expire = "1h"

[queue.route.exchangers]
type = "mx"
allow-loopback = true

[queue.connection]
default.reuse = { idle = "100ms" }
kept.reuse = { idle = "30s" }
one.reuse = { idle = "30s", messages = 1 }
two.reuse = { idle = "30s", messages = 2 }
brief.reuse = { idle = "30s", duration = "200ms" }
idle.reuse = { idle = "200ms" }
"""


class Hops:
    """The next hops, each under the name of its route and the first label of its domain."""

    def __init__(self, authority):
        self.full = NextHop(extensions=EVERYTHING)
        self.bare = NextHop(extensions=())
        self.lmtp = NextHop(lmtp=True)
        self.flaky = NextHop()
        self.refusing = NextHop()
        self.many = NextHop(replies={"DOT": ["250 2.0.0 taken", HELD]})
        self.odd = NextHop(certificate=authority.issue("elsewhere.test"))
        self.one, self.two, self.brief, self.idle = NextHop(), NextHop(), NextHop(), NextHop()

    def config(self):
        """A relay for each, and one more to `odd` that takes its certificate."""
        routes = {name: {"port": hop.port} for name, hop in vars(self).items()}
        routes["lax"] = {"port": self.odd.port, "tls.allow-invalid-certs": "true"}
        routes["lmtp"]["protocol"] = '"lmtp"'
        text = f"[queue.route.exchangers]\nport = {self.full.port}\n"
        for name, keys in routes.items():
            text += f'[queue.route.{name}]\ntype = "relay"\naddress = "127.0.0.1"\ntls.implicit = false\n'
            text += "".join(f"{key} = {value}\n" for key, value in keys.items())
        return text


@pytest.fixture(scope="module")
def hops(authority):
    """Next hops of all kinds."""
    made = Hops(authority)
    with contextlib.ExitStack() as stack:
        for hop in vars(made).values():
            stack.enter_context(hop)
        yield made


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, authority, hops):
    """The daemon."""
    zone = Zone().mx_set("exchanged.test", (10, "mx.exchanged.test")).a("mx.exchanged.test", "127.0.0.1")
    with DnsServer(zone) as server:
        resolver = f'[resolver]\ntype = "custom"\ncustom = ["udp://127.0.0.1:{server.port}"]\n'
        folder = tmp_path_factory.mktemp("outgoing")
        with Gateway(folder, authority, base="B1", changes=(CHANGES, hops.config(), resolver)) as daemon:
            yield daemon


@pytest.fixture
def token():
    """A word that only one message has."""
    return uuid.uuid4().hex


def submit(gateway, token, *recipients, mail=(), rcpt=(), sender="a@client.test", body="hi", subject=""):
    """Hand in a message with parameters; its text."""
    octets = f"Subject: {token}{subject}\r\n\r\n{body}\r\n".encode()
    with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=20) as client:
        client.ehlo("client.test")
        if any(not one.isascii() for one in (sender, *recipients)):
            client.command_encoding = "utf-8"
        assert client.mail(sender, mail)[0] == 250
        for one in recipients:
            assert client.rcpt(one, rcpt)[0] == 250
        code, text = client.data(octets)
        assert code == 250
    return text.decode()


def at(hop, token, count=1, seconds=10):
    """The messages with a word at a next hop, once so many are there."""

    def found():
        messages = [one for one in list(hop.messages) if token.encode() in one.octets]
        return messages if len(messages) >= count else None

    messages = wait_until(found, seconds, f"{count} messages with {token}")
    assert len(messages) == count
    return messages


def parameters(message):
    """The parameters of MAIL."""
    return message.mail.partition("> ")[2].split()


def rcpt_commands(hop, address):
    """The RCPT commands a next hop was sent for an address."""
    found = [
        line for dialogue in hop.dialogues for line in dialogue.commands if line.startswith(f"RCPT TO:<{address}>")
    ]
    return [line.partition("> ")[2].split() for line in found]


def reports(gateway, token, user="john", count=1, seconds=10):
    """The delivery reports about a message in the Maildir of its sender."""

    def found():
        mail = [octets for octets in gateway.maildir(user, "foobar.org") if token.encode() in octets]
        return mail if len(mail) >= count else None

    return wait_until(found, seconds, f"a report about {token}")


def rows_of(gateway, address):
    """The queue's rows of an address."""
    return [row for row in gateway.queue() if row.address == address]


# --- parameters of MAIL and RCPT -----------------------------------------------------------
@pytest.mark.spec("OUT-037")
def test_deliver_by_goes_on_with_what_is_left(gateway, hops, token):
    submit(gateway, token, "x@full.test", "x@bare.test", mail=("BY=3600;R",))
    (by,) = [word for word in parameters(at(hops.full, token)[0]) if word.startswith("BY=")]
    seconds, mode = re.fullmatch("BY=([0-9]+);([RN])", by).groups()
    assert 3590 <= int(seconds) < 3600
    assert mode == "R"


def test_deliver_by_is_left_out_where_it_is_not_offered(gateway, hops, token):
    submit(gateway, token, "x@bare.test", mail=("BY=3600;N",))
    assert "BY=" not in at(hops.bare, token)[0].mail


@pytest.mark.spec("OUT-038")
def test_priority_goes_on_where_it_is_offered_and_not_0(gateway, hops, token):
    submit(gateway, token, "x@full.test", "x@bare.test", mail=("MT-PRIORITY=3",))
    assert "MT-PRIORITY=3" in parameters(at(hops.full, token)[0])
    assert "MT-PRIORITY" not in at(hops.bare, token)[0].mail
    submit(gateway, token + "none", "x@full.test")
    submit(gateway, token + "zero", "x@full.test", mail=("MT-PRIORITY=0",))
    for word in ("none", "zero"):
        assert "MT-PRIORITY" not in at(hops.full, token + word)[0].mail


@pytest.mark.spec("OUT-039")
def test_size_is_told_where_it_is_offered(gateway, hops, token):
    submit(gateway, token, "x@full.test", "x@bare.test", mail=("SIZE=20000",), body="x" * 300)
    (message,) = at(hops.full, token)
    assert f"SIZE={len(message.octets)}" in parameters(message)
    assert "SIZE" not in at(hops.bare, token)[0].mail


@pytest.mark.spec("OUT-040")
def test_dsn_parameters_go_on_where_they_are_offered(gateway, hops, token):
    mail, rcpt = ("RET=HDRS", "ENVID=hi+20there"), ("NOTIFY=FAILURE", "ORCPT=rfc822;Jane+2BDoe@Foobar.org")
    address = f"{token}@full.test"
    submit(gateway, token, address, f"{token}@bare.test", mail=mail, rcpt=rcpt)
    assert {*mail} <= {*parameters(at(hops.full, token)[0])}
    assert rcpt_commands(hops.full, address) == [list(rcpt)]
    (bare,) = at(hops.bare, token)
    assert "ENVID" not in bare.mail
    assert "RET" not in bare.mail
    assert rcpt_commands(hops.bare, f"{token}@bare.test") == [[]]


@pytest.mark.spec("OUT-041")
@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("FAILURE,DELAY,SUCCESS", "SUCCESS,DELAY,FAILURE"),
        ("DELAY,SUCCESS", "SUCCESS,DELAY"),
        ("FAILURE,DELAY", "DELAY,FAILURE"),
        ("NEVER", "NEVER"),
    ],
)
def test_notify_has_one_order(gateway, hops, token, asked, sent):
    submit(gateway, token, f"{token}@full.test", rcpt=(f"NOTIFY={asked}",))
    at(hops.full, token)
    ((notify, *_),) = rcpt_commands(hops.full, f"{token}@full.test")
    assert notify == f"NOTIFY={sent}"


@pytest.mark.spec("OUT-042")
def test_smtputf8_goes_on_only_where_it_was_asked_and_is_offered(gateway, hops, token):
    submit(gateway, token, "x@full.test", "x@bare.test", mail=("SMTPUTF8",))
    assert "SMTPUTF8" in parameters(at(hops.full, token)[0])
    assert "SMTPUTF8" not in at(hops.bare, token)[0].mail
    submit(gateway, token + "plain", "x@full.test")
    assert "SMTPUTF8" not in at(hops.full, token + "plain")[0].mail
    # A header that needs it, and a host that does not have it.
    submit(
        gateway,
        token + "needs",
        f"{token}@bare.test",
        mail=("SMTPUTF8", "BODY=8BITMIME"),
        sender="john@foobar.org",
        subject=" grün",
    )
    (report,) = reports(gateway, token + "needs")
    assert b"Status: 5.6.7" in report
    assert not [one for one in hops.bare.messages if f"{token}needs".encode() in one.octets]


@pytest.mark.spec("OUT-043")
def test_8bitmime_goes_on_where_it_is_offered(gateway, hops, token):
    submit(gateway, token, "x@full.test", "x@bare.test", mail=("BODY=8BITMIME",))
    assert "BODY=8BITMIME" in parameters(at(hops.full, token)[0])
    assert "BODY" not in at(hops.bare, token)[0].mail


@pytest.mark.spec("OUT-036")
def test_a_deadline_that_has_passed_is_a_report_and_no_late_delivery(gateway, hops, token):
    hops.flaky.script("CONNECT", DROP)
    submit(gateway, token, f"{token}@flaky.test", mail=("BY=2;R",), sender="john@foobar.org")
    (report,) = reports(gateway, token)
    assert b"Action: failed" in report
    assert b"Status: 5.4.7" in report
    hops.flaky.script("CONNECT", "220 hop.test ready")
    submit(gateway, token + "later", "later@flaky.test")
    at(hops.flaky, token + "later")
    assert len([one for one in hops.flaky.messages if token.encode() in one.octets]) == 1
    assert rows_of(gateway, f"{token}@flaky.test") == []


# --- where it goes -----------------------------------------------------------------------------
@pytest.mark.spec("OUT-243")
def test_delivered_to_is_for_maildirs_only(gateway, hops, token):
    submit(gateway, token, "jane@foobar.org", "x@full.test", "x@lmtp.test", "x@exchanged.test")
    (kept,) = reports(gateway, token, "jane")
    assert kept.split(b"\n", 1)[0] == b"Delivered-To: jane@foobar.org"
    sent = [*at(hops.full, token, 2), *at(hops.lmtp, token)]
    assert sorted(one.recipients for one in sent) == [["x@exchanged.test"], ["x@full.test"], ["x@lmtp.test"]]
    assert not any(b"delivered-to" in one.octets.lower() for one in sent)


@pytest.mark.spec("OUT-243")
def test_delivered_to_can_be_switched_off(tmp_path, authority, token):
    off = "[session.data.add-headers]\ndelivered-to = false\n"
    with Gateway(tmp_path, authority, base="B1", changes=(off,)) as gateway:
        submit(gateway, token, "jane@foobar.org")
        (kept,) = reports(gateway, token, "jane")
    assert b"delivered-to" not in kept.lower()


@pytest.mark.spec("OUT-106")
def test_a_bad_certificate_costs_an_attempt_and_then_is_taken(gateway, hops, token):
    before = len(hops.odd.dialogues)
    submit(gateway, token, f"{token}@odd.test")
    (message,) = at(hops.odd, token)
    assert message.tls is not None
    first, second = hops.odd.dialogues[before:]
    assert not any(line.startswith("MAIL") for line in first.commands)
    assert any(line.startswith("MAIL") for line in second.commands)
    # Allowed from the start, it costs nothing.
    submit(gateway, token + "lax", f"{token}@lax.test")
    assert at(hops.odd, token + "lax")[0].tls is not None
    assert len(hops.odd.dialogues) == before + 3


# --- connections --------------------------------------------------------------------------------
@pytest.mark.spec("OUT-296")
@pytest.mark.parametrize(
    ("hop", "pause", "connections"),
    [("one", 0, 3), ("two", 0, 2), ("brief", 0, 1), ("brief", 0.3, 3), ("idle", 0, 1), ("idle", 0.4, 3)],
)
def test_a_connection_is_used_again_as_long_as_it_may(gateway, hops, token, hop, pause, connections):
    server = getattr(hops, hop)
    if pause:
        # What an earlier message left open.
        time.sleep(pause)
    before = len(server.dialogues)
    for number in range(3):
        if number:
            time.sleep(pause)
        submit(gateway, f"{token}-{number}-", f"x@{hop}.test")
        at(server, f"{token}-{number}-")
    assert len(server.dialogues) == before + connections


@pytest.mark.spec("OUT-298")
def test_a_kept_connection_that_was_closed_costs_no_attempt(gateway, hops, token):
    submit(gateway, token, "x@flaky.test")
    at(hops.flaky, token)
    before = len(hops.flaky.dialogues)
    # The host closes at the first command of the next message.
    hops.flaky.script("MAIL", DROP, "250 2.1.0 OK")
    began = time.monotonic()
    submit(gateway, token + "next", f"{token}@flaky.test")
    at(hops.flaky, token + "next")
    assert time.monotonic() - began < 0.9
    assert len(hops.flaky.dialogues) == before + 1


@pytest.mark.spec("OUT-299")
def test_250_recipients_go_in_transactions_of_100(gateway, hops, token):
    addresses = [f"{number:03}@many.test" for number in range(250)]
    submit(gateway, token, *addresses)
    assert hops.many.held.acquire(timeout=10)
    # The second transaction has begun: what the first one came to is kept.
    states = Counter(row.state for row in gateway.queue() if row.address in addresses)
    assert states == {"completed": 100, "scheduled": 150}
    hops.many.release()
    messages = at(hops.many, token, 3)
    assert [len(one.recipients) for one in messages] == [100, 100, 50]
    assert sorted(address for one in messages for address in one.recipients) == addresses
    assert len(hops.many.dialogues) == 1


# --- what can be followed -------------------------------------------------------------------------
@pytest.mark.spec("OUT-197", "OUT-265")
def test_one_id_is_everywhere(gateway, hops, token):
    hops.refusing.script("RCPT", "550 5.1.1 nobody here")
    text = submit(gateway, token, "x@refusing.test", "jane@foobar.org", sender="john@foobar.org")
    queue_id = re.search(r"\b[0-9a-f]{16}\b", text)[0]
    (report,) = reports(gateway, token)
    assert f"X-Mailgate-Queue-ID: {queue_id}".encode() in report
    (kept,) = reports(gateway, token, "jane")
    # RFC 5321 4.4: Received names it too.
    assert f"id {queue_id.upper()};".encode() in kept
    wait_until(lambda: f"delivery.completed queueId={queue_id}" in gateway.log_text(), 5)
    steps = [line.split(" ")[2] for line in gateway.log_text().splitlines() if f"queueId={queue_id}" in line]
    assert steps[0] == "queue.queue-message"
    assert steps[-1] == "delivery.completed"
    assert {"delivery.attempt-start", "delivery.domain-delivery-start", "delivery.failed"} <= {*steps}
    delivery = [line for line in gateway.log_text().splitlines() if re.match(r"\S+ \S+ delivery\.", line)]
    assert all("queueId=" in line for line in delivery)
    # While it waits, it is listed.
    hops.refusing.script("RCPT", "450 4.2.0 later")
    queue_id = re.search(r"\b[0-9a-f]{16}\b", submit(gateway, token + "later", "y@refusing.test"))[0]
    listed = gateway.command("--config", str(gateway.config), "queue", "list")
    assert queue_id in listed.stdout


# --- without a word about the queue ----------------------------------------------------------------
@pytest.mark.spec("OUT-001")
def test_without_a_word_about_the_queue_mail_waits_in_remote(tmp_path, authority):
    closed = free_port()
    resolver = f'[resolver]\ntype = "custom"\ncustom = ["udp://127.0.0.1:{closed}"]\ntimeout = "1s"\nattempts = 1\n'
    with Gateway(tmp_path, authority, base="B0", changes=(resolver,), drop=("queue",)) as gateway:
        assert "[queue" not in gateway.config.read_text()
        submit(gateway, "x", "x@elsewhere.test")
        row = wait_until(lambda: [row for row in gateway.queue() if row.state == "temp_fail"], 10)[0]
        assert (row.address, row.queue, row.schedule) == ("x@elsewhere.test", "remote", "remote")
