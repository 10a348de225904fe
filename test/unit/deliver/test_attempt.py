"""One attempt at a group of recipients, against next hops played from text."""

import base64
import hashlib
import hmac
import random
from dataclasses import replace
from datetime import timedelta

import pytest
from support.pipe import Network
from support.script import Dial, play
from support.work_store import Reader, message, recipient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol

from mailgate.deliver.attempt import Attempt
from mailgate.deliver.nexthop import Credentials, HopFailure, Need, NextHop, ReuseLimits, SourceAddress, TlsPolicy
from mailgate.deliver.opening import Opener
from mailgate.deliver.reuse import IdleConnections
from mailgate.deliver.watch import Unwatched
from mailgate.mail.envelope import Body, DeliverBy, Notify, Ret
from mailgate.mail.status import Delayed, Delivered, ErrorKind, Failed, RecipientStatus, RemoteReply
from mailgate.net.connect import ConnectFailed
from mailgate.net.stream import Stream
from mailgate.net.tls import ClientTls, self_signed, server_tls
from mailgate.queue.store import StoreFailed

ONE = "192.0.2.1"
TWO = "192.0.2.2"
SIX = "2001:db8::1"
BODY = b"Subject: x\r\n\r\nbody\r\n"


class Store:
    """Contents by item; `fail` is raised in place of reading."""

    def __init__(self):
        self.octets = BODY
        self.block = 256 * 1024
        self.fail = None
        self.fail_after = None
        self.opened = 0
        self.most_octets = 0

    async def read(self, item):
        if self.fail:
            raise self.fail
        self.opened += 1
        reader = Reader(self.octets, self.block)
        if self.fail_after is not None:
            whole = reader.read

            async def read():
                if reader.at >= self.fail_after:
                    raise StoreFailed("gone")
                return await whole()

            reader.read = read
        return reader


class Field:
    """Everything an attempt stands on, in memory."""

    def __init__(self):
        self.dial = Dial(Network())
        self.store = Store()
        self.events = []
        self.fields = []
        self.now_ms = 0
        self.client_tls = ClientTls()
        self.idle = IdleConnections(self.dial.network.clock, lambda queue: 5)
        self.attempt = Attempt(
            self.store,
            Opener(self.dial, self.client_tls, self.emit),
            self.idle,
            lambda: self.now_ms,
            random.Random(1),
            self.emit,
        )

    def emit(self, event, /, **fields):
        assert fields["queueId"] == "0000000000001234"
        self.events.append(event)
        self.fields.append((event, fields))

    def at(self, address, *scripts, **more):
        self.dial.at(address, *scripts, **more)
        return self

    def item(self, *addresses, octets=BODY, **facts):
        self.store.octets = octets
        made = [one if not isinstance(one, str) else recipient(one) for one in addresses or ("a@x.test",)]
        return message(*made, octets=octets, **facts)[0]

    def run(self, *hops, item=None, check=True):
        item = item or self.item()
        outcomes = play(self.attempt.run(item, item.recipients, hops or (hop(),)), self.dial.network)
        if check:
            self.dial.check()
        return outcomes

    def one(self, *hops, item=None, check=True):
        return self.run(*hops, item=item, check=check)[0]


def hop(*addresses, host="mx.test", **facts):
    facts.setdefault("route", "r")
    facts.setdefault("port", 25)
    facts.setdefault("protocol", "smtp")
    facts.setdefault("ehlo_name", "gw.test")
    facts.setdefault("is_mx", True)
    return NextHop(host=host, addresses=addresses or (ONE,), **facts)


@pytest.fixture
def field():
    return Field()


HELLO = "S: 220 hi\nC: EHLO gw.test\nS: 250 mx\n"
MAIL = "C: MAIL FROM:<joe@sender.example>\n"
MAIL_OK = MAIL + "S: 250 2.1.0 ok\n"
RCPT_OK = "C: RCPT TO:<a@x.test>\nS: 250 2.1.5 fine\n"
DATA = "C: DATA\nS: 354 go\nC* x\n"
QUIT = "C: QUIT\nS: 221 bye\n"
DELIVER = MAIL_OK + RCPT_OK + DATA + "S: 250 2.0.0 queued\n"


def unexpected(code, enhanced, text, command, host="mx.test"):
    return RecipientStatus(host, ErrorKind.UNEXPECTED_REPLY, command=command, reply=RemoteReply(code, enhanced, text))


def connection(detail, host="mx.test"):
    return Delayed(RecipientStatus(host, ErrorKind.CONNECTION, detail))


def test_a_message_goes_out_and_the_status_tells_the_reply_to_rcpt(field):
    field.at(ONE, HELLO + DELIVER)
    outcome = field.one()
    assert outcome == Delivered(RecipientStatus("mx.test", reply=RemoteReply(250, "2.1.5", "fine")))
    assert field.dial.servers[0].contents == [BODY]
    assert "delivery.delivered" in field.events


# --- where each failure leads ---

REFUSED = ConnectFailed("Connection refused")

BEFORE_MAIL = {
    "connect refused": (REFUSED, connection("Connection refused")),
    "connect timeout": (None, connection("Connection timeout")),
    "no greeting": ("S! wait", connection("Timeout while reading greeting")),
    "greeting 4xx": ("S: 450 4.3.2 busy", Delayed(unexpected(450, "4.3.2", "busy", ""))),
    "greeting 5xx": ("S: 554 5.7.1 go away", Failed(unexpected(554, "5.7.1", "go away", ""))),
    "greeting 250": ("S: 250 what", Delayed(unexpected(250, "0.0.0", "what", ""))),
    "greeting closed": ("S! close", connection("Unparseable SMTP Reply")),
    "greeting aborted": ("S! abort", connection("Unparseable SMTP Reply")),
    "greeting no reply": ("S: hello there", connection("Unparseable SMTP Reply")),
    "EHLO timeout": ("S: 220 hi\nC: EHLO gw.test\nS! wait", connection("Timeout while reading EHLO response")),
    "EHLO 4xx": ("S: 220 hi\nC: EHLO gw.test\nS: 421 no", Delayed(unexpected(421, "0.0.0", "no", "EHLO gw.test"))),
    "EHLO 5xx": (
        "S: 220 hi\nC: EHLO gw.test\nS: 554 5.0.0 no\n" + QUIT,
        Failed(unexpected(554, "5.0.0", "no", "EHLO gw.test")),
    ),
    "EHLO closed": ("S: 220 hi\nC: EHLO gw.test\nS! close", connection("Unparseable SMTP Reply")),
    "HELO refused": (
        "S: 220 hi\nC: EHLO gw.test\nS: 502 5.5.1 what\nC: HELO gw.test\nS: 504 5.5.2 no\n" + QUIT,
        Failed(unexpected(504, "5.5.2", "no", "HELO gw.test")),
    ),
}


@pytest.mark.parametrize("name", BEFORE_MAIL)
def test_a_failure_before_mail_is_the_status_when_there_is_no_other_host(field, name):
    script, status = BEFORE_MAIL[name]
    field.at(ONE, script)
    assert field.one(check=False) == status
    assert not field.dial.servers or field.dial.servers[0].problem is None


@pytest.mark.parametrize("name", BEFORE_MAIL)
def test_a_failure_before_mail_leads_to_the_next_host(field, name):
    script, _ = BEFORE_MAIL[name]
    field.at(ONE, script).at(TWO, HELLO + DELIVER)
    outcome = field.one(hop(ONE), hop(TWO, host="mx2.test"), check=False)
    assert outcome == Delivered(RecipientStatus("mx2.test", reply=RemoteReply(250, "2.1.5", "fine")))


OURS = "S: 220 hi\nC: EHLO gw.test\nS: 250-GW.test. greets you | 250 8BITMIME\n"
LOOP = Failed(RecipientStatus("mx.test", ErrorKind.CONNECTION, "mail loops back to this host"))


def test_a_host_that_is_ourselves_ends_the_list(field):
    field.at(ONE, OURS + QUIT)
    names = frozenset({"gw.test"})
    assert field.one(hop(ONE, own_names=names), hop(TWO, host="worse.test"), check=False) == LOOP
    assert len(field.dial.calls) == 1
    assert "delivery.ehlo-rejected" in field.events


def test_a_loop_does_not_end_what_a_better_host_may_still_take(field):
    field.at(ONE, "S: 450 later").at(TWO, OURS + QUIT)
    outcome = field.one(hop(ONE, host="better.test"), hop(TWO, own_names=frozenset({"gw.test"})), hop(SIX), check=False)
    assert outcome == Delayed(unexpected(450, "0.0.0", "later", "", host="better.test"))
    assert len(field.dial.calls) == 2


def test_a_relay_may_have_our_name(field):
    field.at(ONE, OURS + DELIVER)
    assert isinstance(field.one(hop(ONE, is_mx=False)), Delivered)


@pytest.mark.spec("OUT-067")
def test_the_second_host_is_tried_when_the_first_refuses_the_connection(field):
    field.at(ONE, REFUSED).at(TWO, HELLO + DELIVER)
    assert isinstance(field.one(hop(ONE), hop(TWO, host="mx2.test")), Delivered)
    assert [address for address, _, _ in field.dial.calls] == [ONE, TWO]


@pytest.mark.spec("OUT-085")
def test_a_greeting_of_5xx_leads_on_and_bounces_only_when_it_is_the_only_host(field):
    field.at(ONE, "S: 554 5.3.2 no mail here").at(TWO, HELLO + DELIVER)
    assert isinstance(field.one(hop(ONE), hop(TWO, host="mx2.test")), Delivered)
    alone = Field().at(ONE, "S: 554 5.3.2 no mail here").one()
    assert alone == Failed(unexpected(554, "5.3.2", "no mail here", ""))


def test_only_connecting_leads_to_the_next_address_of_the_same_host(field):
    field.at(ONE, REFUSED).at(TWO, HELLO + DELIVER)
    assert isinstance(field.one(hop(ONE, TWO)), Delivered)
    other = Field().at(ONE, "S: 450 busy")
    assert other.one(hop(ONE, TWO)) == Delayed(unexpected(450, "0.0.0", "busy", ""))
    assert [address for address, _, _ in other.dial.calls] == [ONE]


@pytest.mark.spec("OUT-086")
@pytest.mark.parametrize("order", [(ONE, TWO), (TWO, ONE)])
def test_temporary_wins_over_permanent_among_hosts(field, order):
    field.at(ONE, "S: 554 never").at(TWO, "S: 450 later")
    outcome = field.one(*(hop(address, host=address) for address in order))
    assert outcome == Delayed(unexpected(450, "0.0.0", "later", "", host=TWO))


def test_only_permanent_failures_are_permanent_and_the_last_one_tells(field):
    field.at(ONE, "S: 554 never").at(TWO, "S: 521 not here")
    assert field.one(hop(ONE), hop(TWO)) == Failed(unexpected(521, "0.0.0", "not here", ""))


def test_a_host_that_could_not_be_looked_up_takes_part_in_the_aggregation(field):
    unknown = HopFailure("mx0.test", Delayed(RecipientStatus("mx0.test", ErrorKind.CONNECTION, "lookup error: x")))
    field.at(ONE, "S: 554 never")
    assert field.one(unknown, hop(ONE)) == unknown.outcome


def test_without_any_host_the_group_is_delayed(field):
    outcome = play(field.attempt.run(field.item(), field.item().recipients, ()), field.dial.network)
    assert isinstance(outcome[0], Delayed)


def test_hosts_are_asked_for_one_by_one(field):
    asked = []

    async def hosts():
        for address in (ONE, TWO):
            asked.append(address)
            yield hop(address)

    field.at(ONE, HELLO + DELIVER)
    item = field.item()
    assert isinstance(play(field.attempt.run(item, item.recipients, hosts()), field.dial.network)[0], Delivered)
    assert asked == [ONE]


# --- MAIL and after: the first host that is reached decides ---

FROM_MAIL_ON = {
    "MAIL 4xx": (MAIL + "S: 451 4.0.0 later\n", Delayed(unexpected(451, "4.0.0", "later", MAIL[3:-1]))),
    "MAIL 5xx": (MAIL + "S: 550 5.7.1 no\n", Failed(unexpected(550, "5.7.1", "no", MAIL[3:-1]))),
    "MAIL 3xx": (MAIL + "S: 354 what\n", Delayed(unexpected(354, "0.0.0", "what", MAIL[3:-1]))),
    "MAIL 421": (MAIL + "S: 421 bye\n", Delayed(unexpected(421, "0.0.0", "bye", MAIL[3:-1]))),
    "MAIL closed": (MAIL + "S! close", connection("Unparseable SMTP Reply")),
    "MAIL aborted": (MAIL + "S! abort", connection("Unparseable SMTP Reply")),
    "MAIL no reply": (MAIL + "S: 2\n", connection("Unparseable SMTP Reply")),
    "MAIL timeout": (MAIL + "S! wait", connection("Timeout while reading MAIL response")),
    "RCPT 4xx": (
        MAIL_OK + "C: RCPT TO:<a@x.test>\nS: 450 4.2.1 later\n",
        Delayed(unexpected(450, "4.2.1", "later", "RCPT TO:<a@x.test>")),
    ),
    "RCPT 452": (
        MAIL_OK + "C: RCPT TO:<a@x.test>\nS: 452 4.5.3 too many\n",
        Delayed(unexpected(452, "4.5.3", "too many", "RCPT TO:<a@x.test>")),
    ),
    "RCPT 5xx": (
        MAIL_OK + "C: RCPT TO:<a@x.test>\nS: 550 5.1.1 no such user\n",
        Failed(unexpected(550, "5.1.1", "no such user", "RCPT TO:<a@x.test>")),
    ),
    "RCPT 421": (
        MAIL_OK + "C: RCPT TO:<a@x.test>\nS: 421 4.3.2 bye\n",
        Delayed(unexpected(421, "4.3.2", "bye", "RCPT TO:<a@x.test>")),
    ),
    "RCPT closed": (MAIL_OK + "C: RCPT TO:<a@x.test>\nS! close", connection("Unparseable SMTP Reply")),
    "RCPT timeout": (MAIL_OK + "C: RCPT TO:<a@x.test>\nS! wait", connection("Timeout while reading RCPT response")),
    "DATA 4xx": (MAIL_OK + RCPT_OK + "C: DATA\nS: 451 4.3.0 x\n", Delayed(unexpected(451, "4.3.0", "x", "DATA"))),
    "DATA 5xx": (MAIL_OK + RCPT_OK + "C: DATA\nS: 554 5.5.1 x\n", Failed(unexpected(554, "5.5.1", "x", "DATA"))),
    "DATA 250": (MAIL_OK + RCPT_OK + "C: DATA\nS: 250 x\n", Delayed(unexpected(250, "0.0.0", "x", "DATA"))),
    "DATA 421": (MAIL_OK + RCPT_OK + "C: DATA\nS: 421 x\n", Delayed(unexpected(421, "0.0.0", "x", "DATA"))),
    "DATA closed": (MAIL_OK + RCPT_OK + "C: DATA\nS! close", connection("Unparseable SMTP Reply")),
    "DATA timeout": (
        MAIL_OK + RCPT_OK + "C: DATA\nS! wait",
        connection("Timeout while reading DATA response"),
    ),
    "DATA refused with 354": (
        MAIL_OK + RCPT_OK + "C: DATA\nS: 354 go | 552 5.3.4 too big",
        Failed(unexpected(552, "5.3.4", "too big", "DATA")),
    ),
    "final 4xx": (
        MAIL_OK + RCPT_OK + DATA + "S: 451 4.7.1 greylisted\n",
        Delayed(unexpected(451, "4.7.1", "greylisted", "DATA")),
    ),
    "final 5xx": (
        MAIL_OK + RCPT_OK + DATA + "S: 554 5.6.0 spam\n",
        Failed(unexpected(554, "5.6.0", "spam", "DATA")),
    ),
    "final 421": (MAIL_OK + RCPT_OK + DATA + "S: 421 4.3.2 bye\n", Delayed(unexpected(421, "4.3.2", "bye", "DATA"))),
    "final 354": (MAIL_OK + RCPT_OK + DATA + "S: 354 more\n", Delayed(unexpected(354, "0.0.0", "more", "DATA"))),
    "final closed": (MAIL_OK + RCPT_OK + DATA + "S! close", connection("Unparseable SMTP Reply")),
    "final aborted": (MAIL_OK + RCPT_OK + DATA + "S! abort", connection("Unparseable SMTP Reply")),
    "final timeout": (
        MAIL_OK + RCPT_OK + DATA + "S! wait",
        connection("Timeout while reading SMTP DATA response"),
    ),
}


@pytest.mark.parametrize("name", FROM_MAIL_ON)
def test_from_mail_on_the_first_host_decides(field, name):
    script, status = FROM_MAIL_ON[name]
    field.at(ONE, HELLO + script)
    assert field.one(hop(ONE, TWO), hop(TWO, host="mx2.test"), check=False) == status
    assert field.dial.servers[0].problem is None
    assert len(field.dial.calls) == 1


PIPE = "S: 220 hi\nC: EHLO gw.test\nS: 250-mx | 250 PIPELINING\n"


def pipelined(script):
    """The same answers, all of an envelope's after all of its commands."""
    lines = script.strip().splitlines()
    end = next((at for at, line in enumerate(lines) if line == "C: DATA"), len(lines))
    envelope, rest = lines[:end], lines[end:]
    said = [line for line in envelope if line[0] == "C"]
    if "C: RCPT TO:<a@x.test>" not in said:
        said.append("C: RCPT TO:<a@x.test>")
    answers = [line for line in envelope if line[0] == "S"]
    refused = answers and answers[0].startswith(("S: 4", "S: 5", "S: 3")) and not answers[0].startswith("S: 421")
    return "\n".join([*said, *answers, *(["S: 503 5.5.1 MAIL first"] if refused else []), *rest])


@pytest.mark.parametrize("name", FROM_MAIL_ON)
def test_pipelining_never_changes_what_becomes_of_a_recipient(field, name):
    script, status = FROM_MAIL_ON[name]
    field.at(ONE, PIPE + pipelined(script))
    assert field.one(check=False) == status
    assert field.dial.servers[0].problem is None


@pytest.mark.parametrize("segment", [1, 3, 7])
@pytest.mark.parametrize("name", FROM_MAIL_ON)
def test_how_replies_are_cut_never_matters(field, name, segment):
    field.dial.network.segment = segment
    script, status = FROM_MAIL_ON[name]
    field.at(ONE, PIPE + pipelined(script))
    # Where the server speaks out of turn the moment it is heard may differ, the verdict may not.
    assert type(field.one(check=False)) is type(status)


@pytest.mark.spec("OUT-084")
@pytest.mark.parametrize(
    "step, script, seconds",
    [
        ("greeting", "S! wait", 11),
        ("ehlo", "S: 220 hi\nC: EHLO gw.test\nS! wait", 12),
        ("mail_from", HELLO + MAIL + "S! wait", 13),
        ("rcpt_to", HELLO + MAIL_OK + "C: RCPT TO:<a@x.test>\nS! wait", 14),
        ("data", HELLO + MAIL_OK + RCPT_OK + "C: DATA\nS! wait", 15),
        ("data", HELLO + MAIL_OK + RCPT_OK + DATA + "S! wait", 15),
        ("connect", None, 16),
    ],
)
def test_each_time_limit_fires_at_its_value_and_delays(field, step, script, seconds):
    field.at(ONE, script)
    one = hop()
    one = replace(one, timeouts=replace(one.timeouts, **{step: timedelta(seconds=seconds)}))
    before = field.dial.network.clock.seconds()
    assert isinstance(field.one(one, check=False), Delayed)
    assert field.dial.network.clock.seconds() - before == seconds


@pytest.mark.spec("OUT-087")
def test_lines_ended_by_lf_and_replies_of_many_lines_are_understood(field):
    script = (
        "S! inject 220-hi\\n220 there\\n\nC: EHLO gw.test\nS! inject 250-mx\\n250-SIZE\\n250 8BITMIME\\n\n"
        "C: MAIL FROM:<joe@sender.example> SIZE=20\nS! inject 250\\n\nC: RCPT TO:<a@x.test>\n"
        "S: 250-2.1.5 one | 250 2.1.5 two\nC: DATA\nS: 354\nC* x\nS: 250 ok"
    )
    field.at(ONE, script)
    assert field.one() == Delivered(RecipientStatus("mx.test", reply=RemoteReply(250, "2.1.5", "one\ntwo")))


def test_a_server_that_does_not_know_ehlo_hears_helo_and_no_parameters(field):
    script = "S: 220 hi\nC: EHLO gw.test\nS: 500 what\nC: HELO gw.test\nS: 250 mx\n" + DELIVER
    field.at(ONE, script)
    assert isinstance(field.one(), Delivered)


def test_no_helo_where_tls_is_required(field):
    field.at(ONE, "S: 220 hi\nC: EHLO gw.test\nS: 500 what\n" + QUIT)
    outcome = field.one(hop(tls=TlsPolicy(starttls=Need.REQUIRE)), check=False)
    assert outcome == Failed(unexpected(500, "0.0.0", "what", "EHLO gw.test"))
    assert field.dial.servers[0].problem is None


# --- several recipients ---


@pytest.mark.spec("OUT-089")
def test_all_recipients_of_a_group_share_one_transaction(field):
    script = HELLO + MAIL_OK
    script += "".join(f"C: RCPT TO:<{name}@x.test>\nS: 250 {name}\n" for name in "abc") + DATA + "S: 250 ok"
    field.at(ONE, script)
    outcomes = field.run(item=field.item("a@x.test", "b@x.test", "c@x.test"))
    assert [outcomes[index].status.reply.text for index in range(3)] == ["a", "b", "c"]


@pytest.mark.spec("OUT-089")
def test_more_recipients_than_a_transaction_carries_follow_in_further_ones(field):
    two = "C: RCPT TO:<{}@x.test>\nS: 250 ok\n"
    script = HELLO + MAIL_OK + two.format("a") + two.format("b") + DATA + "S: 250 ok\n"
    script += MAIL_OK + two.format("c") + DATA + "S: 250 ok\n"
    field.at(ONE, script)
    outcomes = field.run(hop(max_recipients=2), item=field.item("a@x.test", "b@x.test", "c@x.test"))
    assert all(isinstance(outcome, Delivered) for outcome in outcomes.values())
    assert field.dial.servers[0].contents == [BODY] * 2


@pytest.mark.spec("OUT-090", "OUT-096")
@pytest.mark.parametrize("hello", [HELLO, PIPE])
@pytest.mark.parametrize("final, kind", [("250 ok", Delivered), ("451 4.0.0 later", Delayed), ("554 5.0.0 no", Failed)])
def test_refused_recipients_keep_their_answer_whatever_the_message_gets(field, hello, final, kind):
    answers = ["250 a", "550 5.1.1 b", "450 4.2.2 c", "250 d"]
    said = [f"C: RCPT TO:<{name}@x.test>" for name in "abcd"]
    if hello is PIPE:
        script = "\n".join([PIPE.strip(), MAIL.strip(), *said, "S: 250 ok | " + " | ".join(answers), DATA.strip()])
    else:
        pairs = [line for pair in zip(said, (f"S: {answer}" for answer in answers), strict=True) for line in pair]
        script = "\n".join([HELLO.strip(), MAIL_OK.strip(), *pairs, DATA.strip()])
    field.at(ONE, f"{script}\nS: {final}")
    outcomes = field.run(item=field.item(*(f"{name}@x.test" for name in "abcd")))
    assert [type(outcomes[index]) for index in range(4)] == [kind, Failed, Delayed, kind]
    assert outcomes[1] == Failed(unexpected(550, "5.1.1", "b", "RCPT TO:<b@x.test>"))
    assert outcomes[2] == Delayed(unexpected(450, "4.2.2", "c", "RCPT TO:<c@x.test>"))


@pytest.mark.spec("OUT-091")
@pytest.mark.parametrize("hello", [HELLO, PIPE])
def test_no_data_when_every_recipient_is_refused(field, hello):
    if hello is PIPE:
        script = PIPE + MAIL + "C: RCPT TO:<a@x.test>\nC: RCPT TO:<b@x.test>\nS: 250 ok | 550 no | 450 later\n"
    else:
        script = HELLO + MAIL_OK + "C: RCPT TO:<a@x.test>\nS: 550 no\nC: RCPT TO:<b@x.test>\nS: 450 later\n"
    field.at(ONE, script + QUIT)
    outcomes = field.run(hop(reuse=ReuseLimits(messages=1)), item=field.item("a@x.test", "b@x.test"), check=False)
    assert [type(outcomes[index]) for index in range(2)] == [Failed, Delayed]
    field.dial.network.pump()
    field.dial.check()
    assert "DATA" not in field.dial.servers[0].heard


@pytest.mark.spec("OUT-088")
def test_421_at_rcpt_delays_everybody_who_has_no_answer_yet(field):
    said = "".join(f"C: RCPT TO:<{name}@x.test>\n" for name in "abcd")
    field.at(ONE, PIPE + MAIL + said + "S: 250 ok | 550 5.1.1 no | 250 ok | 421 4.3.2 bye")
    outcomes = field.run(item=field.item(*(f"{name}@x.test" for name in "abcd")))
    assert [type(outcomes[index]) for index in range(4)] == [Failed, Delayed, Delayed, Delayed]
    assert outcomes[1].status.reply.code == 421


# --- LMTP ---

LHLO = "S: 220 hi\nC: LHLO gw.test\nS: 250-mx | 250 PIPELINING\n"


def lmtp_script(finals, names="abcd", refused="b"):
    said = "".join(f"C: RCPT TO:<{name}@x.test>\n" for name in names)
    replies = " | ".join("550 5.1.1 no" if name in refused else f"250 2.1.5 {name}" for name in names)
    return LHLO + MAIL + said + f"S: 250 ok | {replies}\n" + DATA + finals


@pytest.mark.spec("OUT-097", "OUT-099")
def test_lmtp_gives_each_accepted_recipient_its_own_final_reply(field):
    field.at(ONE, lmtp_script("S: 250 2.0.0 for a | 452 4.2.2 c is full | 550 5.2.1 d is closed"))
    outcomes = field.run(hop(protocol="lmtp"), item=field.item(*(f"{name}@x.test" for name in "abcd")))
    assert outcomes[0] == Delivered(RecipientStatus("mx.test", reply=RemoteReply(250, "2.0.0", "for a")))
    assert outcomes[1] == Failed(unexpected(550, "5.1.1", "no", "RCPT TO:<b@x.test>"))
    assert outcomes[2] == Delayed(unexpected(452, "4.2.2", "c is full", "DATA"))
    assert outcomes[3] == Failed(unexpected(550, "5.2.1", "d is closed", "DATA"))


@pytest.mark.spec("OUT-098")
@pytest.mark.parametrize("known", [0, 1, 2, 3])
@pytest.mark.parametrize("end", ["S! close", "S! abort", "S! wait", "S: 421 4.3.2 bye"])
def test_lmtp_decides_as_many_recipients_as_there_were_replies(field, known, end):
    finals = "".join(f"S: 250 2.0.0 done {at}\n" for at in range(known))
    field.at(ONE, lmtp_script(finals + (end if known < 3 else "")))
    outcomes = field.run(hop(protocol="lmtp"), item=field.item(*(f"{name}@x.test" for name in "abcd")), check=False)
    accepted = [outcomes[0], outcomes[2], outcomes[3]]
    assert [isinstance(outcome, Delivered) for outcome in accepted] == [at < known for at in range(3)]
    assert all(isinstance(outcome, Delayed) for outcome in accepted[known:])
    assert isinstance(outcomes[1], Failed)


def test_lmtp_with_chunks_has_its_replies_too(field):
    hello = "S: 220 hi\nC: LHLO gw.test\nS: 250-mx | 250-PIPELINING | 250 CHUNKING\n"
    said = "C: RCPT TO:<a@x.test>\nC: RCPT TO:<b@x.test>\n"
    script = hello + MAIL + said + "S: 250 ok | 250 ok | 250 ok\nC: BDAT 20 LAST\nC# 20\nS: 250 one | 550 two"
    field.at(ONE, script)
    outcomes = field.run(hop(protocol="lmtp"), item=field.item("a@x.test", "b@x.test"))
    assert isinstance(outcomes[0], Delivered)
    assert outcomes[1].status.command == "BDAT 20 LAST"


# --- content ---

CHUNKS = "S: 220 hi\nC: EHLO gw.test\nS: 250-mx | 250-CHUNKING | 250 8BITMIME\n"

CONTENTS = [
    BODY,
    b"Subject: x\r\n\r\n.\r\n..\r\n.dot\r\nx.\r\n",
    b"X: y\r\n\r\n\n.\r\n",
    b"X: y\r\n\r\nevil\n.\r\nMAIL FROM:<>\r\n",
    b"X: y\r\n\r\nevil\r.\r\nMAIL FROM:<>\r\n",
    b"X: y\r\n\r\nevil\n.\nMAIL\r\n",
    b".\r\n",
    b"X: y\r\n\r\nno end",
    b"X: y\r\n\r\nhalf an end\r",
    b"X: y\r\n\r\nbare end\n",
]


def unstuffed(octets):
    """What a server that knows CRLF only makes of the content of DATA."""
    return b"\r\n".join(line[1:] if line.startswith(b".") else line for line in octets.split(b"\r\n"))


@pytest.mark.spec("OUT-093", "OUT-095")
@pytest.mark.parametrize("octets", CONTENTS)
def test_data_arrives_as_it_was_with_exactly_one_final_line_end(field, octets):
    field.at(ONE, HELLO + DELIVER)
    eight_bit_free = field.item(octets=octets)
    assert isinstance(field.one(item=eight_bit_free), Delivered)
    got = unstuffed(field.dial.servers[0].contents[0])
    ended = octets if octets.endswith(b"\r\n") else octets + b"\r\n"
    # A dot after a bare CR or LF is doubled on purpose: a server that ends lines by CRLF only keeps both.
    assert got == ended.replace(b"\n.", b"\n..").replace(b"\r.", b"\r..").replace(b"\r\n..", b"\r\n.")


@pytest.mark.spec("OUT-094")
@pytest.mark.parametrize("octets", [one for one in CONTENTS if b"evil" in one])
def test_no_server_finds_the_end_of_the_message_inside_it(field, octets):
    field.at(ONE, HELLO + DELIVER)
    field.one(item=field.item(octets=octets))
    wire = field.dial.servers[0].contents[0]
    for line_end in (b"\r\n", b"\n", b"\r"):
        lines = wire.replace(b"\r\n", line_end).replace(b"\n", line_end).replace(b"\r", line_end).split(line_end)
        assert b"." not in lines


@pytest.mark.spec("OUT-092")
@pytest.mark.parametrize("octets", CONTENTS)
def test_a_chunk_carries_exactly_the_octets(field, octets):
    script = CHUNKS + MAIL_OK + RCPT_OK + f"C: BDAT {len(octets)} LAST\nC# {len(octets)}\nS: 250 ok"
    field.at(ONE, script)
    assert isinstance(field.one(item=field.item(octets=octets)), Delivered)
    assert field.dial.servers[0].contents == [octets]
    assert field.dial.servers[0].buffer == b""


LARGE = b"Subject: large\r\n\r\n" + b"".join(b".%d\r\n" % number + b"x" * 70 + b"\r\n" for number in range(20_000))


@pytest.mark.spec("OUT-101")
@pytest.mark.parametrize("hello", [HELLO, CHUNKS])
def test_a_large_message_is_streamed_and_goes_out_the_same_at_every_attempt(field, hello):
    content = f"C: BDAT {len(LARGE)} LAST\nC# {len(LARGE)}\n" if hello is CHUNKS else DATA
    body = " BODY=8BITMIME" if hello is CHUNKS else ""
    script = hello + MAIL.strip() + body + "\nS: 250 ok\n" + RCPT_OK + content + "S: 451 4.0.0 again\n" + QUIT
    field.at(ONE, script, script)
    item = field.item(octets=LARGE)
    field.store.block = 10_000
    for _ in range(2):
        field.one(hop(reuse=ReuseLimits(messages=1)), item=item, check=False)
    first, second = (server.contents[0] for server in field.dial.servers)
    assert first == second
    assert (first if hello is CHUNKS else unstuffed(first)) == LARGE


class Swallower(Protocol):
    """A server that keeps nothing of what it takes but its size."""

    def __init__(self, chunking):
        self.chunking = chunking
        self.lines = b""
        self.content_octets = None
        self.tail = b""

    def connectionMade(self):
        self.transport.write(b"220 hi\r\n")

    def dataReceived(self, octets):
        if self.content_octets is not None:
            self.take(octets)
            return
        *lines, self.lines = (self.lines + octets).split(b"\r\n")
        for at, line in enumerate(lines):
            if line.startswith((b"DATA", b"BDAT")):
                self.content_octets = 0
                self.transport.write(b"" if self.chunking else b"354 go\r\n")
                self.take(b"\r\n".join([*lines[at + 1 :], self.lines]))
                return
            chunking = self.chunking and line.startswith(b"EHLO")
            self.transport.write(b"250-mx\r\n250 CHUNKING\r\n" if chunking else b"250 ok\r\n")

    def take(self, octets):
        self.content_octets += len(octets)
        self.tail = (self.tail + octets)[-5:]
        if self.content_octets == 50_000_000 if self.chunking else self.tail == b"\r\n.\r\n":
            self.transport.write(b"250 taken\r\n")


@pytest.mark.spec("OUT-100")
@pytest.mark.parametrize("chunking, sent", [(True, 50_000_000), (False, 50_000_005)])
def test_a_large_message_never_waits_in_memory_as_a_whole(field, monkeypatch, chunking, sent):
    item = replace(field.item(), size_octets=50_000_000)
    server = Swallower(chunking)
    ahead = []

    class Endless:
        """50 MB in blocks of 250,000 octets, none of which is kept."""

        left = item.size_octets

        async def read(self):
            if field.dial.network.ends:
                ahead.append(item.size_octets - self.left - field.dial.network.ends[0].written)
            block = b"x" * min(250_000, self.left)
            self.left -= len(block)
            return block

        def close(self):
            pass

    async def read(_):
        return Endless()

    async def connect(address, port, *, source_ip, seconds):
        stream = Stream(field.dial.network.clock, address, port)
        field.dial.network.connect(stream, server)
        return stream

    monkeypatch.setattr(field.store, "read", read)
    monkeypatch.setattr(field.dial, "connect", connect)
    assert isinstance(field.one(item=item), Delivered)
    assert server.content_octets == sent
    assert field.dial.network.ends[0].most_waiting < 600_000
    assert max(ahead) <= 250_000


def test_a_peer_that_stops_reading_is_given_up_after_the_time_for_data(field):
    field.at(ONE, HELLO + MAIL_OK + RCPT_OK + "C: DATA\nS: 354 go\nS! deaf\nS! wait")
    outcome = field.one(item=field.item(octets=LARGE), check=False)
    assert outcome == connection("Timeout while sending message")
    assert field.dial.network.clock.seconds() == 600


def test_a_reply_in_the_middle_of_the_content_ends_it(field):
    field.at(ONE, HELLO + MAIL_OK + RCPT_OK + "C: DATA\nS: 354 go\nC# 70000\nS: 552 5.3.4 too big for us\nS! wait")
    field.store.block = 30_000
    item = field.item(octets=LARGE)
    outcome = field.one(item=item, check=False)
    assert outcome == Failed(unexpected(552, "5.3.4", "too big for us", "DATA"))
    assert field.dial.network.ends[0].written < len(LARGE)


def test_a_connection_lost_in_the_middle_of_the_content_delays(field):
    field.at(ONE, HELLO + MAIL_OK + RCPT_OK + "C: DATA\nS: 354 go\nC# 70000\nS! abort")
    outcome = field.one(item=field.item(octets=LARGE), check=False)
    assert isinstance(outcome, Delayed)
    assert outcome.status.kind is ErrorKind.CONNECTION


def test_content_that_cannot_be_read_delays_and_nothing_is_said(field):
    item = field.item()
    field.store.fail = StoreFailed("missing")
    outcome = field.one(item=item)
    assert outcome == Delayed(RecipientStatus("localhost", ErrorKind.IO, "Queue system error."))
    assert "queue.content-not-found" in field.events
    assert field.dial.calls == []


def test_content_that_breaks_off_never_ends_as_a_message(field):
    field.at(ONE, HELLO + MAIL_OK + RCPT_OK + "C: DATA\nS: 354 go\nC* x")
    item = field.item(octets=LARGE)
    field.store.fail_after = 300_000
    outcome = field.one(item=item, check=False)
    assert outcome == Delayed(RecipientStatus("localhost", ErrorKind.IO, "Queue system error."))
    assert field.dial.servers[0].contents == []
    assert field.dial.servers[0].lost


@pytest.mark.parametrize("hello, content", [(HELLO, "C: DATA\nS: 354 go\n"), (CHUNKS, f"C: BDAT {len(LARGE)} LAST\n")])
def test_content_shorter_than_recorded_never_ends_as_a_message(field, hello, content):
    body = " BODY=8BITMIME" if hello is CHUNKS else ""
    field.at(ONE, hello + MAIL.strip() + body + "\nS: 250 ok\n" + RCPT_OK + content + "C* x")
    item = field.item(octets=LARGE)
    field.store.octets = LARGE[:-5]
    outcome = field.one(item=item, check=False)
    assert outcome.status.kind is ErrorKind.IO
    assert field.dial.servers[0].problem is None
    assert field.dial.servers[0].contents == []


# --- parameters ---

ALL = "250-mx | 250-SIZE | 250-8BITMIME | 250-SMTPUTF8 | 250-DSN | 250-MT-PRIORITY | 250 DELIVERBY"


def test_parameters_go_out_where_they_are_offered(field):
    mail = "MAIL FROM:<joe@sender.example> SIZE=20 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=a+2Bb MT-PRIORITY=-3 BY=97;RT"
    script = (
        f"S: 220 hi\nC: EHLO gw.test\nS: {ALL}\nC: {mail}\nS: 250 ok\n"
        "C: RCPT TO:<a@x.test> NOTIFY=SUCCESS,DELAY,FAILURE ORCPT=rfc822;A+2BB@x.test\nS: 250 ok\n"
        "C: RCPT TO:<b@x.test> NOTIFY=NEVER\nS: 250 ok\nC: RCPT TO:<c@x.test>\nS: 250 ok\n" + DATA + "S: 250 ok"
    )
    field.at(ONE, script)
    field.now_ms = 2_001
    item = field.item(
        recipient("a@x.test", notify=Notify.SUCCESS | Notify.DELAY | Notify.FAILURE, orcpt="A+B@x.test"),
        recipient("b@x.test", notify=Notify.NEVER),
        recipient("c@x.test", notify=Notify.NONE),
        body=Body.EIGHT_BIT,
        smtputf8=True,
        ret=Ret.HDRS,
        env_id="a+b",
        priority=-3,
        deliver_by=DeliverBy(100, "R", True),
    )
    assert all(isinstance(outcome, Delivered) for outcome in field.run(item=item).values())


def test_parameters_stay_at_home_where_they_are_not_offered(field):
    field.at(ONE, HELLO + DELIVER)
    item = field.item(
        recipient("a@x.test", notify=Notify.SUCCESS, orcpt="b@x.test"),
        body=Body.EIGHT_BIT,
        smtputf8=True,
        ret=Ret.FULL,
        env_id="x",
        priority=4,
        deliver_by=DeliverBy(100, "N"),
    )
    assert isinstance(field.one(item=item), Delivered)


@pytest.mark.parametrize(
    "by, hello, relayed",
    [
        (DeliverBy(100, "R"), HELLO, True),
        (DeliverBy(100, "N"), HELLO, False),
        (None, HELLO, False),
        (DeliverBy(100, "R"), "S: 220 hi\nC: EHLO gw.test\nS: 250-mx | 250 DELIVERBY\n", False),
    ],
)
def test_a_deadline_that_the_next_hop_cannot_keep_makes_it_a_relay(field, by, hello, relayed):
    said = DELIVER if "DELIVERBY" not in hello else DELIVER.replace(MAIL, MAIL.rstrip() + " BY=100;R\n")
    field.at(ONE, hello + said)
    outcome = field.one(item=field.item(deliver_by=by))
    assert isinstance(outcome, Delivered)
    assert outcome.status.relayed is relayed


def test_eight_bit_content_is_declared_without_anybody_asking(field):
    octets = "Subject: x\r\n\r\nä\r\n".encode()
    field.at(ONE, f"S: 220 hi\nC: EHLO gw.test\nS: {ALL}\nC~ MAIL FROM:.* BODY=8BITMIME\nS: 550 enough")
    field.one(item=field.item(octets=octets))


def test_a_message_whose_time_is_up_is_returned_unsent(field):
    field.now_ms = 60_000
    outcome = field.one(item=field.item(deliver_by=DeliverBy(60, "R")))
    assert isinstance(outcome, Failed)
    assert outcome.status.reply == RemoteReply(550, "5.4.7", "Delivery time expired")
    assert field.dial.calls == []


def test_a_notice_deadline_that_has_passed_goes_on_as_a_negative_time(field):
    field.now_ms = 70_000
    field.at(ONE, "S: 220 hi\nC: EHLO gw.test\nS: 250-mx | 250 DELIVERBY\nC~ MAIL FROM:.* BY=-10;N\nS: 550 enough")
    field.one(item=field.item(deliver_by=DeliverBy(60, "N")))


def test_a_message_above_the_servers_limit_fails_here_with_the_reply_it_would_get(field):
    field.at(ONE, "S: 220 hi\nC: EHLO gw.test\nS: 250-mx | 250 SIZE 10\n")
    outcome = field.one(hop(ONE), hop(TWO))
    assert isinstance(outcome, Failed)
    assert outcome.status.command == "MAIL FROM:<joe@sender.example> SIZE=20"
    assert (outcome.status.reply.code, outcome.status.reply.enhanced) == (552, "5.3.4")


@pytest.mark.parametrize(
    "facts, octets, code",
    [
        ({"smtputf8": True, "return_path": "jö@sender.example"}, BODY, "5.6.7"),
        ({"smtputf8": True}, "Subject: ä\r\n\r\nx\r\n".encode(), "5.6.7"),
        ({"body": Body.BINARY}, BODY, "5.6.3"),
    ],
)
def test_what_a_host_cannot_carry_leads_to_the_next_and_then_fails(field, facts, octets, code):
    field.at(ONE, "S: 220 hi\nC: EHLO gw.test\nS: 250-mx | 250 CHUNKING\n")
    outcome = field.one(item=field.item(octets=octets, **facts))
    assert isinstance(outcome, Failed)
    assert outcome.status.reply.enhanced == code
    other = Field().at(ONE, HELLO)
    full = "250-mx | 250-SMTPUTF8 | 250-CHUNKING | 250 BINARYMIME"
    other.at(TWO, f"S: 220 hi\nC: EHLO gw.test\nS: {full}\nC~ MAIL.*\nS: 250 ok\nC~ RCPT.*\nS: 250 ok\nC~ BDAT.*\n")
    item = other.item(octets=octets, **facts)
    other.dial.scripts[TWO][0] = (other.dial.scripts[TWO][0][0] + f"C# {len(octets)}\nS: 250 ok", None)
    assert isinstance(other.one(hop(ONE), hop(TWO), item=item), Delivered)


def test_smtputf8_with_nothing_but_ascii_is_relayed_without_it(field):
    field.at(ONE, HELLO + DELIVER)
    assert isinstance(field.one(item=field.item(smtputf8=True)), Delivered)


# --- source addresses and names ---


@pytest.mark.spec("OUT-082")
def test_the_family_of_the_destination_chooses_the_source_address(field):
    sources = tuple(SourceAddress(ip, "gw.test") for ip in ("192.0.2.77", "192.0.2.78", "2001:db8::77"))
    for _ in range(20):
        field.at(ONE, REFUSED).at(SIX, REFUSED)
        field.one(hop(ONE, SIX, sources=sources))
    used = {(address, source) for address, _, source in field.dial.calls}
    assert used == {(ONE, "192.0.2.77"), (ONE, "192.0.2.78"), (SIX, "2001:db8::77")}


def test_a_family_without_a_source_address_leaves_the_choice_to_the_system(field):
    field.at(SIX, REFUSED)
    field.one(hop(SIX, sources=(SourceAddress("192.0.2.77", "gw.test"),)))
    assert field.dial.calls == [(SIX, 25, None)]


def test_the_source_address_brings_its_ehlo_name(field):
    field.at(ONE, HELLO.replace("gw.test", "out7.test") + DELIVER)
    assert isinstance(field.one(hop(sources=(SourceAddress("192.0.2.77", "out7.test"),))), Delivered)


# --- login ---

LOGIN = Credentials("gw1", "s3cret")
PLAIN = base64.b64encode(b"\0gw1\0s3cret").decode()


def relay(**facts):
    facts.setdefault("tls", TlsPolicy(starttls=Need.DISABLE))
    return hop(host="relay.test", is_mx=False, credentials=LOGIN, **facts)


def offering(auth):
    return f"S: 220 hi\nC: EHLO gw.test\nS: 250-relay | 250 AUTH {auth}\n"


@pytest.mark.spec("OUT-078")
def test_the_strongest_mechanism_offered_is_used(field):
    challenge = b"<1896.697170952@relay.test>"
    digest = hmac.digest(b"s3cret", challenge, "md5").hex()
    assert digest == hmac.new(b"s3cret", challenge, hashlib.md5).hexdigest()
    answer = base64.b64encode(f"gw1 {digest}".encode()).decode()
    script = offering("LOGIN PLAIN CRAM-MD5") + (
        f"C: AUTH CRAM-MD5\nS: 334 {base64.b64encode(challenge).decode()}\nC: {answer}\nS: 235 ok\n"
    )
    field.at(ONE, script + DELIVER)
    assert isinstance(field.one(relay()), Delivered)


@pytest.mark.spec("OUT-078")
def test_a_wrong_password_delays(field):
    field.at(ONE, offering("PLAIN LOGIN") + f"C: AUTH PLAIN {PLAIN}\nS: 535 5.7.8 bad\n" + QUIT)
    outcome = field.one(relay(), check=False)
    assert isinstance(outcome, Delayed)
    assert outcome.status.kind is ErrorKind.CONNECTION
    assert "535" in outcome.status.detail
    assert "s3cret" not in repr(field.fields) + repr(outcome) + repr(relay())
    field.dial.network.pump()
    field.dial.check()


@pytest.mark.spec("OUT-078")
@pytest.mark.parametrize("auth", [None, "GSSAPI DIGEST-MD5"])
def test_no_common_mechanism_fails(field, auth):
    field.at(ONE, (offering(auth) if auth else HELLO) + QUIT)
    outcome = field.one(relay(), hop(TWO), check=False)
    assert isinstance(outcome, Failed)
    assert "no common" in outcome.status.detail


def test_another_failure_leads_to_the_next_mechanism(field):
    script = offering("PLAIN LOGIN") + (
        f"C: AUTH PLAIN {PLAIN}\nS: 504 5.5.4 not really\nC: AUTH LOGIN\n"
        f"S: 334 {base64.b64encode(b'User Name').decode()}\nC: {base64.b64encode(b'gw1').decode()}\n"
        f"S: 334 {base64.b64encode(b'PASSWORD:').decode()}\nC: {base64.b64encode(b's3cret').decode()}\nS: 235 ok\n"
    )
    field.at(ONE, script + DELIVER)
    assert isinstance(field.one(relay()), Delivered)


@pytest.mark.parametrize("challenge", [base64.b64encode(b"Favourite colour?").decode(), "%%%", ""])
def test_a_challenge_that_makes_no_sense_is_cancelled_and_fails(field, challenge):
    field.at(ONE, offering("LOGIN") + f"C: AUTH LOGIN\nS: 334 {challenge}\nC: *\nS: 501 ok\n" + QUIT)
    assert isinstance(field.one(relay(), check=False), Failed)
    assert field.dial.servers[0].problem is None


def test_a_server_that_goes_on_asking_after_the_end_of_a_login_is_not_asked_for_another(field):
    # To it the next AUTH would be the answer to its question.
    field.at(ONE, offering("CRAM-MD5 LOGIN") + "C: AUTH CRAM-MD5\nS: 334 %%%\nC: *\nS: 334 %%%\n" + QUIT)
    outcome = field.one(relay(), check=False)
    assert isinstance(outcome, Failed)
    assert outcome.status.detail.startswith("authentication by CRAM-MD5")
    assert "delivery.internal-error" not in field.events
    field.dial.network.pump()
    field.dial.check()


def test_endless_challenges_are_cancelled(field):
    user, name = base64.b64encode(b"Username:").decode(), base64.b64encode(b"gw1").decode()
    script = (
        offering("LOGIN") + "C: AUTH LOGIN\n" + f"S: 334 {user}\nC: {name}\n" * 3 + f"S: 334 {user}\nC: *\nS: 501 x"
    )
    field.at(ONE, script)
    assert isinstance(field.one(relay(), check=False), Failed)
    assert field.dial.servers[0].problem is None


def test_passwords_are_not_shown_in_clear_to_strangers(field):
    field.at("8.8.8.8", offering("PLAIN LOGIN") + QUIT)
    outcome = field.one(hop("8.8.8.8", host="relay.test", is_mx=False, credentials=LOGIN), check=False)
    assert isinstance(outcome, Delayed)
    assert "AUTH" not in " ".join(field.dial.servers[0].heard)


def test_passwords_in_clear_are_told_in_the_log(field):
    field.at("127.0.0.1", offering("PLAIN") + f"C: AUTH PLAIN {PLAIN}\nS: 235 ok\n" + DELIVER)
    outcome = field.one(hop("127.0.0.1", host="relay.test", is_mx=False, credentials=LOGIN))
    assert isinstance(outcome, Delivered)
    assert "delivery.auth-in-clear" in field.events


# --- TLS ---

OFFER = "S: 220 hi\nC: EHLO gw.test\nS: 250-mx | 250-PIPELINING | 250 STARTTLS\n"
UPGRADE = OFFER + "C: STARTTLS\nS: 220 go\nS! tls\nC: EHLO gw.test\nS: 250 mx\n"


@pytest.fixture(scope="module")
def certificate():
    return self_signed("mx.test")


@pytest.fixture(scope="module")
def their_tls(certificate):
    return server_tls([certificate])


@pytest.fixture
def trusting(field, certificate, tmp_path):
    """A policy that trusts the certificate by a trust file."""
    from cryptography.hazmat.primitives.serialization import Encoding

    path = tmp_path / "roots.pem"
    path.write_bytes(certificate.chain[0].public_bytes(Encoding.PEM))
    return TlsPolicy(trust_file=str(path))


@pytest.mark.spec("OUT-103", "OUT-109", "OUT-113")
def test_tls_is_used_where_it_is_offered_and_ehlo_said_again(field, their_tls, trusting):
    # The second EHLO offers no PIPELINING: only its capabilities count.
    field.at(ONE, UPGRADE + DELIVER, server_tls=their_tls)
    assert isinstance(field.one(hop(tls=trusting)), Delivered)
    told = dict(field.fields)["delivery.start-tls"]
    assert told["version"] == "TLSv1.3"
    assert field.dial.streams[0].tls is not None


@pytest.mark.spec("OUT-103")
def test_without_the_offer_mail_goes_in_clear_text(field):
    field.at(ONE, HELLO + DELIVER)
    assert isinstance(field.one(), Delivered)
    assert "delivery.start-tls-unavailable" in field.events


@pytest.mark.spec("OUT-104")
def test_required_tls_that_is_not_offered_fails_the_host(field):
    policy = TlsPolicy(starttls=Need.REQUIRE)
    field.at(ONE, HELLO + QUIT)
    outcome = field.one(hop(tls=policy), check=False)
    assert outcome == Failed(RecipientStatus("mx.test", ErrorKind.TLS, "STARTTLS not advertised by host."))


def test_required_tls_leads_to_the_next_host(field, their_tls, trusting):
    policy = replace(trusting, starttls=Need.REQUIRE)
    field.at(ONE, HELLO + QUIT).at(TWO, UPGRADE + DELIVER, server_tls=their_tls)
    assert isinstance(field.one(hop(tls=policy), hop(TWO, tls=policy), check=False), Delivered)


@pytest.mark.spec("OUT-105")
def test_disabled_tls_is_never_asked_for(field):
    field.at(ONE, OFFER.replace("250-PIPELINING | ", "") + DELIVER)
    assert isinstance(field.one(hop(tls=TlsPolicy(starttls=Need.DISABLE))), Delivered)
    assert "delivery.start-tls-disabled" in field.events


@pytest.mark.parametrize("answer, kind", [("454 4.7.0 later", Delayed), ("502 5.5.1 no", Failed)])
def test_a_refused_starttls_goes_on_in_clear_text_unless_tls_is_required(field, answer, kind):
    offer = OFFER.replace("250-PIPELINING | ", "")
    field.at(ONE, offer + f"C: STARTTLS\nS: {answer}\n" + DELIVER)
    assert isinstance(field.one(), Delivered)
    strict = Field().at(ONE, offer + f"C: STARTTLS\nS: {answer}\n" + QUIT)
    outcome = strict.one(hop(tls=TlsPolicy(starttls=Need.REQUIRE)), check=False)
    assert isinstance(outcome, kind)
    assert outcome.status.command == "STARTTLS"


def test_a_certificate_nobody_vouches_for_fails_the_host_for_now(field, their_tls):
    field.at(ONE, OFFER + "C: STARTTLS\nS: 220 go\nS! tls\nS! wait", server_tls=their_tls)
    outcome = field.one(check=False)
    assert outcome == Delayed(
        RecipientStatus("mx.test", ErrorKind.TLS, "Handshake failed: the certificate is self-signed")
    )


def test_invalid_certificates_pass_where_they_are_allowed(field, their_tls):
    field.at(ONE, UPGRADE + DELIVER, server_tls=their_tls)
    assert isinstance(field.one(hop(tls=TlsPolicy(allow_invalid_certs=True))), Delivered)


@pytest.mark.spec("OUT-112")
def test_a_certificate_for_another_host_fails_the_host_for_now(field, their_tls, trusting):
    field.at(ONE, OFFER + "C: STARTTLS\nS: 220 go\nS! tls\nS! wait", server_tls=their_tls)
    outcome = field.one(hop(host="other.test", tls=trusting), check=False)
    assert isinstance(outcome, Delayed)
    assert outcome.status.detail == "Handshake failed: the certificate is not for other.test"
    assert "EHLO gw.test" not in field.dial.servers[0].heard[1:]


@pytest.mark.spec("OUT-107")
@pytest.mark.parametrize("end", ["S! close", "S! abort"])
def test_a_server_that_drops_the_handshake_is_a_tls_failure(field, end):
    field.at(ONE, OFFER + "C: STARTTLS\nS: 220 go\nC# 1\n" + end)
    outcome = field.one(check=False)
    assert isinstance(outcome, Delayed)
    assert outcome.status.kind is ErrorKind.TLS
    assert outcome.status.detail.startswith("I/O error: ")


def test_a_server_that_does_not_speak_tls_is_a_failed_handshake(field):
    field.at(ONE, OFFER + "C: STARTTLS\nS: 220 go\nC# 1\nS: 500 what is this supposed to be\nS! wait")
    outcome = field.one(check=False)
    assert isinstance(outcome, Delayed)
    assert outcome.status.detail.startswith("Handshake failed: ")


@pytest.mark.spec("OUT-108")
@pytest.mark.parametrize("injected", ["250 injected\\r\\n", "x"])
def test_octets_between_the_reply_and_the_handshake_end_the_session(field, injected):
    field.at(ONE, OFFER + f"C: STARTTLS\nS! inject 220 go\\r\\n{injected}\nS! wait")
    outcome = field.one(check=False)
    assert isinstance(outcome, Delayed)
    assert outcome.status.kind is ErrorKind.TLS
    assert field.dial.network.ends[0].tls is None


@pytest.mark.spec("OUT-111")
def test_the_handshake_has_its_own_time_limit(field):
    field.at(ONE, OFFER + "C: STARTTLS\nS: 220 go\nS! wait")
    outcome = field.one(hop(tls=TlsPolicy(timeout=timedelta(seconds=9))), check=False)
    assert outcome == Delayed(RecipientStatus("mx.test", ErrorKind.TLS, "TLS handshake timed out"))
    assert field.dial.network.clock.seconds() == 9


@pytest.mark.spec("OUT-110")
def test_implicit_tls_comes_before_the_greeting(field, their_tls, trusting):
    field.at(ONE, "S! tls\n" + HELLO + DELIVER, server_tls=their_tls)
    assert isinstance(field.one(hop(port=465, tls=replace(trusting, implicit=True))), Delivered)


def test_implicit_tls_that_fails_leads_to_the_next_host(field, their_tls, trusting):
    policy = replace(trusting, implicit=True)
    field.at(ONE, "S: 220 this is plain text\nS! wait").at(TWO, "S! tls\n" + HELLO + DELIVER, server_tls=their_tls)
    assert isinstance(field.one(hop(tls=policy), hop(TWO, tls=policy), check=False), Delivered)


@pytest.mark.parametrize("tail, kind", [("S: 550 no", Failed), ("S! wait", Delayed), ("S! close", Delayed)])
def test_ehlo_after_tls_decides_the_group(field, their_tls, trusting, tail, kind):
    field.at(ONE, OFFER + "C: STARTTLS\nS: 220 go\nS! tls\nC: EHLO gw.test\n" + tail, server_tls=their_tls)
    outcome = field.one(hop(tls=trusting), hop(TWO, tls=trusting), check=False)
    assert isinstance(outcome, kind)
    assert len(field.dial.calls) == 1


@pytest.mark.parametrize("strict, kind", [(False, Delayed), (True, Failed)])
def test_a_name_no_certificate_can_carry(field, strict, kind):
    field.at(ONE, OFFER + "C: STARTTLS\nS: 220 go\nS! wait")
    policy = TlsPolicy(starttls=Need.REQUIRE if strict else Need.OPTIONAL)
    outcome = field.one(hop(host="mx_ä!.test", tls=policy), check=False)
    assert outcome == kind(RecipientStatus("mx_ä!.test", ErrorKind.TLS, "Invalid hostname"))


def test_a_trust_file_that_cannot_be_read_is_our_own_outage(field):
    field.at(ONE, OFFER + "C: STARTTLS\nS: 220 go\nS! wait")
    outcome = field.one(hop(tls=TlsPolicy(trust_file="/nonexistent/roots.pem")), check=False)
    assert isinstance(outcome, Delayed)
    assert outcome.status.kind is ErrorKind.DEPENDENCY


@pytest.mark.spec("OUT-137")
def test_a_message_that_demands_tls_goes_only_where_it_is_promised_on(field, their_tls, trusting):
    secure = UPGRADE.replace("S: 250 mx\n", "S: 250-mx | 250 REQUIRETLS\n")
    mail = "C: MAIL FROM:<joe@sender.example> REQUIRETLS\nS: 250 ok\n"
    field.at(ONE, secure + mail + RCPT_OK + DATA + "S: 250 ok", server_tls=their_tls)
    item = field.item(requiretls=True)
    # allow-invalid-certs does not count for such a message.
    assert isinstance(field.one(hop(tls=replace(trusting, allow_invalid_certs=True)), item=item), Delivered)
    untrusted = Field().at(ONE, OFFER + "C: STARTTLS\nS: 220 go\nS! tls\nS! wait", server_tls=their_tls)
    policy = TlsPolicy(allow_invalid_certs=True)
    outcome = untrusted.one(hop(tls=policy), item=untrusted.item(requiretls=True), check=False)
    assert isinstance(outcome, Delayed)


@pytest.mark.spec("OUT-138")
def test_a_host_without_requiretls_is_skipped_and_the_bounce_says_why(field, their_tls, trusting):
    field.at(ONE, UPGRADE, server_tls=their_tls)
    outcome = field.one(hop(tls=trusting), item=field.item(requiretls=True), check=False)
    assert outcome == Failed(unexpected(550, "5.7.30", "REQUIRETLS support required", ""))
    plain = Field().at(ONE, HELLO + QUIT)
    assert isinstance(plain.one(item=plain.item(requiretls=True), check=False), Failed)
    both = Field().at(ONE, UPGRADE, server_tls=their_tls)
    secure = UPGRADE.replace("S: 250 mx\n", "S: 250-mx | 250 REQUIRETLS\n")
    mail = "C: MAIL FROM:<joe@sender.example> REQUIRETLS\nS: 250 ok\n"
    both.at(TWO, secure + mail + RCPT_OK + DATA + "S: 250 ok", server_tls=their_tls)
    item = both.item(requiretls=True)
    assert isinstance(both.one(hop(tls=trusting), hop(TWO, tls=trusting), item=item, check=False), Delivered)


def test_disabled_tls_never_sends_a_message_that_demands_it(field):
    field.at(ONE, OFFER + QUIT)
    policy = TlsPolicy(starttls=Need.DISABLE)
    outcome = field.one(hop(tls=policy), item=field.item(requiretls=True), check=False)
    assert isinstance(outcome, Failed)
    assert outcome.status.kind is ErrorKind.TLS


# --- replies nobody asked for ---

CHUNKING = "S: 220 hi\nC: EHLO gw.test\nS: 250-mx | 250 CHUNKING"
CHUNKING_TOGETHER = "S: 220 hi\nC: EHLO gw.test\nS: 250-mx | 250-PIPELINING | 250 CHUNKING"
RCPT = "C: RCPT TO:<a@x.test>\n"
TWO_TOGETHER = MAIL + "C: RCPT TO:<a@x.test>\nC: RCPT TO:<b@x.test>\n"
CHUNK_OF_TWO = TWO_TOGETHER + "C: BDAT 20 LAST\nC# 20\n"
TOO_BIG = "C: BDAT 20 LAST\nC# 20\nS: 552 5.3.4 too big\n"
# Were the second reply taken for the answer to what comes next, the last one to be read would be that to RCPT.
ONE_TOO_MANY = {
    "EHLO": CHUNKING + " | 250 again\n" + MAIL + "S: 250 ok\n" + RCPT + "S: 250 ok\n" + TOO_BIG,
    "MAIL": CHUNKING + "\n" + MAIL + "S: 250 ok | 250 again\n" + RCPT + "S: 250 ok\n" + TOO_BIG,
    "RCPT": CHUNKING + "\n" + MAIL + "S: 250 ok\n" + RCPT + "S: 250 ok | 250 again\n" + TOO_BIG,
    "EHLO, PIPELINING": CHUNKING_TOGETHER + " | 250 again\n" + MAIL + RCPT + "S: 250 ok | 250 ok\n" + TOO_BIG,
    "RCPT, PIPELINING": CHUNKING_TOGETHER + "\n" + MAIL + RCPT + "S: 250 ok | 250 ok | 250 again\n" + TOO_BIG,
    "half of one": CHUNKING + "\n" + MAIL + "S: 250 ok\n" + RCPT + "S! inject 250 ok\\r\\n25\n" + TOO_BIG,
}


@pytest.mark.parametrize("name", ONE_TOO_MANY)
def test_a_reply_nobody_asked_for_is_not_the_answer_to_what_comes_next(field, name):
    field.at(ONE, ONE_TOO_MANY[name])
    assert field.one(check=False) == connection("Unparseable SMTP Reply")
    field.dial.network.pump()
    # It has not got the message, and the next one gets another connection.
    assert field.dial.servers[0].contents == []
    assert field.dial.servers[0].lost
    assert len(field.idle) == 0


def test_nothing_of_a_large_message_goes_out_after_a_reply_nobody_asked_for(field):
    chunk = f"C: BDAT {len(LARGE)} LAST\nC# {len(LARGE)}\nS: 552 5.3.4 too big\n"
    field.at(ONE, CHUNKING_TOGETHER + "\n" + MAIL + RCPT + "S: 250 ok | 250 ok | 250 again\n" + chunk)
    assert field.one(item=field.item(octets=LARGE), check=False) == connection("Unparseable SMTP Reply")
    assert field.dial.network.ends[0].written < 200


def test_a_greeting_that_is_followed_by_more_leads_to_the_next_host(field):
    field.at(ONE, "S: 220 hi | 220 hi again\nS! wait").at(TWO, HELLO + DELIVER)
    assert isinstance(field.one(hop(ONE), hop(TWO), check=False), Delivered)
    assert field.dial.servers[0].heard in ([], ["QUIT"])


def test_a_kept_connection_with_a_reply_nobody_asked_for_is_replaced(field):
    refused = CHUNKING_TOGETHER + "\n" + MAIL + RCPT + "S: 250 ok | 550 5.1.1 no\nC: RSET\nS: 250 ok | 250 again\n"
    field.at(ONE, refused + MAIL + RCPT + "S: 250 ok | 250 ok\n" + TOO_BIG, HELLO + DELIVER)
    assert isinstance(field.one(check=False), Failed)
    assert isinstance(field.one(check=False), Delivered)
    assert len(field.dial.calls) == 2


# Two are sent to, and of the replies to what went out together there is one too many.
TWO_OF_THREE = {
    "RCPT": (TWO_TOGETHER, "S: 250 ok | 250 a | 550 5.1.1 no b | 250 again\n", False),
    "RCPT, nobody taken": (TWO_TOGETHER, "S: 250 ok | 550 a | 550 b | 250 again\n", False),
    "DATA": (TWO_TOGETHER + "C: DATA\n", "S: 250 ok | 250 a | 550 5.1.1 no b | 250 again | 354 go\n", True),
    "DATA, nobody taken": (TWO_TOGETHER + "C: DATA\n", "S: 250 ok | 550 a | 550 b | 250 again | 354 go\n", True),
    "chunk": (CHUNK_OF_TWO, "S: 250 ok | 250 a | 550 5.1.1 no b | 250 again | 552 5.3.4 too big\n", True),
    "chunk, nobody taken": (CHUNK_OF_TWO, "S: 250 ok | 550 a | 550 b | 250 again | 250 taken\n", True),
    "chunk, half a reply": (CHUNK_OF_TWO, "S! inject 250 ok\\r\\n250 a\\r\\n550 no b\\r\\n250 ok\\r\\n552\n", True),
}


@pytest.mark.parametrize("name", TWO_OF_THREE)
def test_one_reply_too_many_among_several_is_nobodys_answer(field, name):
    said, replies, is_kept = TWO_OF_THREE[name]
    chunks = "BDAT" in said
    hello = (CHUNKING_TOGETHER if chunks else PIPE.strip()) + "\n"
    first = MAIL + RCPT + "S: 250 ok | 250 ok\n" + ("C: BDAT 20 LAST\nC# 20\n" if chunks else DATA) + "S: 250 ok\n"
    field.at(ONE, hello + (first if is_kept else "") + said + replies)
    if is_kept:
        assert isinstance(field.one(check=False), Delivered)
    outcomes = field.run(item=field.item("a@x.test", "b@x.test"), check=False)
    assert outcomes == dict.fromkeys((0, 1), connection("Unparseable SMTP Reply"))
    assert field.dial.servers[0].problem is None
    assert len(field.dial.calls) == 1
    assert len(field.idle) == 0
    # The first message aside, nothing has come of it that may count.
    assert ("delivery.in-doubt" in field.events) == (name in ("chunk", "chunk, half a reply"))


def test_a_good_bye_behind_the_final_reply_is_no_reply_too_many(field):
    first = MAIL + RCPT + "S: 250 ok | 250 ok\nC: BDAT 20 LAST\nC# 20\nS: 250 ok\n"
    again = MAIL + RCPT + "C: BDAT 20 LAST\nC# 20\nS: 250 ok | 250 ok | 250 ok | 421 4.3.2 enough\nS! close\n"
    assert all(isinstance(outcome, Delivered) for outcome in twice(field, CHUNKING_TOGETHER + "\n" + first + again))
    assert len(field.idle) == 0


UNCLEAR = MAIL + "S: 250 ok\n" + RCPT + "S: 250 ok\nC: BDAT 20 LAST\nC# 20\nS: {} and now?\n"


@pytest.mark.parametrize("code", ["000", "150", "354", "600", "999"])
@pytest.mark.parametrize("protocol, verb", [("smtp", "EHLO"), ("lmtp", "LHLO")])
def test_a_final_reply_that_ends_nothing_delays_and_ends_the_connection(field, protocol, verb, code):
    # After 354 the server would take the next message's MAIL for text.
    field.at(ONE, CHUNKING.replace("EHLO", verb) + "\n" + UNCLEAR.format(code))
    outcome = field.one(hop(protocol=protocol), check=False)
    assert isinstance(outcome, Delayed)
    assert outcome.status.reply == RemoteReply(int(code), "0.0.0", "and now?")
    assert len(field.idle) == 0


# --- kept connections ---


def twice(field, script, one=None, second=None, check=True):
    field.at(ONE, script)
    one = one or hop()
    first = field.one(one, check=False)
    again = field.one(second or one, check=False)
    if check:
        field.dial.check()
    return first, again


def test_the_next_message_takes_the_kept_connection(field):
    first, again = twice(field, HELLO + DELIVER + DELIVER)
    assert isinstance(first, Delivered)
    assert isinstance(again, Delivered)
    assert len(field.dial.calls) == 1
    assert "delivery.connection-reused" in field.events


def test_envelope_and_data_are_one_write_once_the_server_has_taken_a_message(field):
    ok = MAIL + "C: RCPT TO:<a@x.test>\nC: DATA\nS: 250 ok | 250 ok | 354 go\nC* x\nS: 250 ok\n"
    first = MAIL + "C: RCPT TO:<a@x.test>\nS: 250 ok | 250 ok\n" + DATA + "S: 250 ok\n"
    assert all(isinstance(outcome, Delivered) for outcome in twice(field, PIPE + first + ok))
    said = field.dial.network.ends[0].writes
    assert said[-2] == b"MAIL FROM:<joe@sender.example>\r\nRCPT TO:<a@x.test>\r\nDATA\r\n"
    assert said[-1] == BODY + b".\r\n"


def test_a_small_message_is_one_write_in_a_chunk_once_the_server_has_taken_one(field):
    hello = "S: 220 hi\nC: EHLO gw.test\nS: 250-mx | 250-PIPELINING | 250 CHUNKING\n"
    first = MAIL + "C: RCPT TO:<a@x.test>\nS: 250 ok | 250 ok\nC: BDAT 20 LAST\nC# 20\nS: 250 ok\n"
    again = MAIL + "C: RCPT TO:<a@x.test>\nC: BDAT 20 LAST\nC# 20\nS: 250 ok | 250 ok | 250 ok\n"
    assert all(isinstance(outcome, Delivered) for outcome in twice(field, hello + first + again))
    assert field.dial.network.ends[0].writes[-1].endswith(b"BDAT 20 LAST\r\n" + BODY)


AGAIN = {
    "refused, DATA refused": "S: 250 ok | 550 5.1.1 no | 503 5.5.1 RCPT first\n",
    "refused, DATA accepted": "S: 250 ok | 550 5.1.1 no | 354 go\nC: .\n",
    "refused, DATA taken": "S: 250 ok | 550 5.1.1 no | 250 what\n",
}


@pytest.mark.parametrize("name", AGAIN)
def test_no_message_comes_of_a_data_that_was_on_its_way_when_the_last_recipient_was_refused(field, name):
    first = MAIL + "C: RCPT TO:<a@x.test>\nS: 250 ok | 250 ok\n" + DATA + "S: 250 ok\n"
    script = PIPE + first + MAIL + "C: RCPT TO:<a@x.test>\nC: DATA\n" + AGAIN[name]
    _, again = twice(field, script, check=False)
    assert again == Failed(unexpected(550, "5.1.1", "no", "RCPT TO:<a@x.test>"))
    field.dial.network.pump()
    field.dial.check()
    assert field.dial.servers[0].contents == [BODY]


def test_a_refused_mail_with_data_on_its_way_keeps_its_own_answer(field):
    first = MAIL + "C: RCPT TO:<a@x.test>\nS: 250 ok | 250 ok\n" + DATA + "S: 250 ok\n"
    script = PIPE + first + MAIL + "C: RCPT TO:<a@x.test>\nC: DATA\nS: 550 5.7.1 you again | 503 x | 503 x\n"
    _, again = twice(field, script)
    assert again == Failed(unexpected(550, "5.7.1", "you again", MAIL[3:-1]))


def test_a_transaction_without_data_is_reset_before_the_next(field):
    script = HELLO + MAIL_OK + "C: RCPT TO:<a@x.test>\nS: 550 no\nC: RSET\nS: 250 ok\n" + DELIVER
    first, again = twice(field, script)
    assert isinstance(first, Failed)
    assert isinstance(again, Delivered)


@pytest.mark.parametrize("answer", ["S: 502 no", "S! close", "S! wait"])
def test_a_connection_that_cannot_be_reset_is_replaced(field, answer):
    field.at(ONE, HELLO + MAIL_OK + "C: RCPT TO:<a@x.test>\nS: 550 no\nC: RSET\n" + answer, HELLO + DELIVER)
    assert isinstance(field.one(check=False), Failed)
    assert isinstance(field.one(check=False), Delivered)
    assert len(field.dial.calls) == 2


@pytest.mark.parametrize("answer", ["S! close", "S! abort", "S: 421 4.4.2 too long idle"])
def test_a_kept_connection_that_dies_at_mail_is_replaced_without_a_failure(field, answer):
    field.at(ONE, HELLO + DELIVER + MAIL + answer, HELLO + DELIVER)
    assert isinstance(field.one(check=False), Delivered)
    assert isinstance(field.one(check=False), Delivered)
    field.dial.check()
    assert [address for address, _, _ in field.dial.calls] == [ONE, ONE]


def test_a_kept_connection_that_dies_where_no_new_one_comes_up_leads_to_the_next_address(field):
    field.at(ONE, HELLO + DELIVER + MAIL + "S! close", REFUSED).at(TWO, HELLO + DELIVER)
    assert isinstance(field.one(hop(ONE, TWO), check=False), Delivered)
    assert isinstance(field.one(hop(ONE, TWO), check=False), Delivered)
    assert [address for address, _, _ in field.dial.calls] == [ONE, ONE, TWO]


def test_a_new_connection_that_dies_at_mail_is_a_failure(field):
    field.at(ONE, HELLO + MAIL + "S! close", HELLO + DELIVER)
    assert field.one(check=False) == connection("Unparseable SMTP Reply")


@pytest.mark.parametrize("end", ["S! close", "S: 421 4.4.2 idle", "S: 250 what"])
def test_a_server_that_speaks_or_leaves_while_idle_is_forgotten(field, end):
    field.at(ONE, HELLO + DELIVER + end, HELLO + DELIVER)
    field.one(check=False)
    field.dial.network.pump()
    assert len(field.idle) == 0
    assert isinstance(field.one(check=False), Delivered)


def test_idle_connections_say_quit_after_a_while(field):
    field.at(ONE, HELLO + DELIVER + QUIT)
    field.one(hop(reuse=ReuseLimits(idle=timedelta(seconds=2))), check=False)
    field.dial.network.clock.advance(1.9)
    assert len(field.idle) == 1
    field.dial.network.clock.advance(0.2)
    field.dial.network.pump()
    assert len(field.idle) == 0
    field.dial.check()
    assert not field.dial.network.ends[0].connected
    assert field.dial.network.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    "change",
    [
        {"route": "other"},
        {"port": 26},
        {"ehlo_name": "other.test"},
        {"host": "mx9.test"},
        {"credentials": Credentials("x", "y")},
        {"tls": TlsPolicy(starttls=Need.DISABLE)},
        {"tls": TlsPolicy(allow_invalid_certs=True)},
        {"tls": TlsPolicy(trust_file="/x")},
        {"sources": (SourceAddress("192.0.2.7", "gw.test"),)},
    ],
)
def test_a_connection_serves_only_what_agrees_in_everything(field, change):
    field.at(ONE, HELLO + DELIVER, "S: 450 another")
    field.one(check=False)
    field.one(replace(hop(), **change), check=False)
    assert len(field.dial.calls) == 2


def test_a_message_that_demands_tls_never_takes_a_connection_opened_without(field):
    field.at(ONE, HELLO + DELIVER, "S: 450 another")
    field.one(check=False)
    field.one(item=field.item(requiretls=True), check=False)
    assert len(field.dial.calls) == 2


def test_a_connection_serves_only_so_many_transactions(field):
    field.at(ONE, HELLO + DELIVER * 2 + QUIT, HELLO + DELIVER)
    limits = ReuseLimits(messages=2)
    for _ in range(3):
        assert isinstance(field.one(hop(reuse=limits), check=False), Delivered)
    field.dial.network.pump()
    field.dial.check()


def test_a_connection_takes_nothing_more_after_its_time(field):
    field.at(ONE, HELLO + DELIVER + QUIT, HELLO + DELIVER)
    limits = ReuseLimits(duration=timedelta(seconds=30), idle=timedelta(seconds=60))
    field.one(hop(reuse=limits), check=False)
    field.dial.network.clock.advance(31)
    assert isinstance(field.one(hop(reuse=limits), check=False), Delivered)
    field.dial.network.pump()
    field.dial.check()


def test_the_oldest_idle_connection_goes_when_there_are_too_many(field):
    for last in range(7):
        field.at(f"192.0.2.{last}", HELLO + DELIVER + (QUIT if last < 2 else ""))
        field.one(hop(f"192.0.2.{last}"), check=False)
    field.dial.network.pump()
    assert len(field.idle) == 5
    field.dial.check()


def test_stopping_closes_what_is_idle_and_keeps_nothing_more(field):
    field.at(ONE, HELLO + DELIVER + QUIT).at(TWO, HELLO + DELIVER + QUIT)
    field.one(check=False)
    field.idle.stop()
    field.one(hop(TWO), check=False)
    field.dial.network.pump()
    field.dial.check()
    assert len(field.idle) == 0


@pytest.mark.spec("OUT-102")
def test_nothing_of_a_failed_transaction_is_left_in_the_next(field):
    script = (
        HELLO
        + MAIL_OK
        + "C: RCPT TO:<a@x.test>\nS: 550 no\nC: RSET\nS: 250 ok\n"
        + "C: MAIL FROM:<other@sender.example>\nS: 250 ok\nC: RCPT TO:<z@x.test>\nS: 250 z\n"
        + DATA
        + "S: 250 ok"
    )
    field.at(ONE, script)
    field.one(check=False)
    other = field.item("z@x.test", octets=b"Subject: other\r\n\r\n", return_path="other@sender.example")
    assert isinstance(field.one(item=other), Delivered)
    assert field.dial.servers[0].contents == [b"Subject: other\r\n\r\n"]


# --- faults of our own ---


def test_cancelling_aborts_the_connection_and_tells_what_was_decided(field):
    two = "C: RCPT TO:<{}@x.test>\nS: 250 ok\n"
    field.at(ONE, HELLO + MAIL_OK + two.format("a") + DATA + "S: 250 ok\n" + MAIL + "S! wait")
    item = field.item("a@x.test", "b@x.test")
    failures = []
    end = Deferred.fromCoroutine(field.attempt.run(item, item.recipients, [hop(max_recipients=1)]))
    end.addErrback(failures.append)
    field.dial.network.pump()
    end.cancel()
    field.dial.network.pump()
    assert failures[0].check(CancelledError)
    assert isinstance(failures[0].value.outcomes[0], Delivered)
    assert 1 not in failures[0].value.outcomes
    assert not field.dial.network.ends[0].connected


LMTP_OF_THREE = (
    LHLO
    + MAIL
    + "".join(f"C: RCPT TO:<{name}@x.test>\n" for name in "abc")
    + "S: 250 ok | 550 5.1.1 no | 250 ok | 250 ok\n"
    + "C: DATA\nS: 354 go\nC* x\n"
)


def test_cancelling_between_the_replies_of_a_message_tells_those_that_came(field):
    # The second one has begun, so the first is not settled yet.
    field.at(ONE, LMTP_OF_THREE + "S! inject 250 2.0.0 for b\\r\\n250 2.0\nS! wait")
    item = field.item("a@x.test", "b@x.test", "c@x.test")
    failures = []
    end = Deferred.fromCoroutine(field.attempt.run(item, item.recipients, [hop(protocol="lmtp")]))
    end.addErrback(failures.append)
    field.dial.network.pump()
    end.cancel()
    outcomes = failures[0].value.outcomes
    assert {index: type(outcome) for index, outcome in outcomes.items()} == {0: Failed, 1: Delivered}


BIG = b"Subject: big\r\n\r\n" + b"x" * 200_000 + b"\r\n"
TWO_RCPT = "C: RCPT TO:<a@x.test>\nC: RCPT TO:<b@x.test>\n"
STEP_BY_STEP = {
    "TLS and AUTH": (
        OFFER
        + "C: STARTTLS\nS: 220 go\nS! tls\nC: EHLO gw.test\n"
        + f"S: 250-mx | 250 AUTH LOGIN PLAIN\nC: AUTH PLAIN {PLAIN}\nS: 235 ok\n"
        + MAIL_OK
        + "C: RCPT TO:<a@x.test>\nS: 250 a\nC: RCPT TO:<b@x.test>\nS: 250 b\n"
        + DATA
        + "S: 250 ok\n",
        {"credentials": LOGIN, "tls": TlsPolicy(allow_invalid_certs=True)},
        BODY,
    ),
    "a large chunk": (
        CHUNKING_TOGETHER
        + "\n"
        + MAIL
        + TWO_RCPT
        + f"S: 250 ok\nS: 250 ok\nS: 250 ok\nC: BDAT {len(BIG)} LAST\nC# 90000\nC# {len(BIG) - 90_000}\nS: 250 ok\n",
        {},
        BIG,
    ),
    "large data": (
        PIPE + MAIL + TWO_RCPT + "S: 250 ok\nS: 250 ok\nS: 250 ok\nC: DATA\nS: 354 go\nC# 90000\nC* x\nS: 250 ok\n",
        {},
        BIG,
    ),
    "LMTP": (
        LHLO + MAIL + TWO_RCPT + "S: 250 ok\nS: 250 ok\nS: 250 ok\n" + DATA + "S: 250 a\nS: 250 b\n",
        {"protocol": "lmtp"},
        BODY,
    ),
}
ENDS = {
    "cancelled": "S! wait",
    "timeout": "S! wait",
    "close": "S! close",
    "abort": "S! abort",
    "half": "S! inject 25\nS! close",
    "garbage": "S: \0\xff*** what",
    "421": "S: 421 4.3.2 bye\nS! close",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", STEP_BY_STEP)
def test_wherever_it_ends_nothing_is_left_and_nobody_is_done_who_was_not_told_so(their_tls, name, end):
    script, facts, octets = STEP_BY_STEP[name]
    steps = script.strip().splitlines()
    for at in range(len(steps)):
        field = Field()
        field.store.block = 50_000
        field.at(ONE, "\n".join([*steps[:at], ENDS[end]]), server_tls=their_tls)
        item = field.item("a@x.test", "b@x.test", octets=octets)
        if end == "cancelled":
            attempt = Deferred.fromCoroutine(field.attempt.run(item, item.recipients, [hop(**facts)]))
            told = []
            attempt.addErrback(lambda failure, told=told: told.append(failure.value.outcomes))
            field.dial.network.pump()
            attempt.cancel()
            outcomes = told[0]
        else:
            outcomes = field.run(hop(**facts), item=item, check=False)
            assert sorted(outcomes) == [0, 1]
        assert field.dial.servers[0].problem is None, field.dial.servers[0].problem
        done = [index for index, outcome in sorted(outcomes.items()) if not isinstance(outcome, Delayed)]
        # With LMTP the first has its own reply before the last step.
        assert done == ([0] if name == "LMTP" and at == len(steps) - 1 else []), (at, outcomes)
        assert all(isinstance(outcomes[index], Delivered) for index in done)
        field.idle.stop()
        field.dial.network.pump()
        # The farewell of a connection whose peer does not answer has its time.
        field.dial.network.clock.advance(10)
        field.dial.network.pump()
        assert not any(one.connected for one in field.dial.network.ends), at
        assert field.dial.network.clock.getDelayedCalls() == [], at


def test_a_fault_of_ours_between_the_replies_of_a_message_leaves_those_that_came(field):
    class Forgetful(Unwatched):
        async def settle(self, outcomes, closes):
            raise RuntimeError("a mistake of ours")

    field.at(ONE, LMTP_OF_THREE + "S: 250 2.0.0 for b\nS! wait")
    item = field.item("a@x.test", "b@x.test", "c@x.test")
    attempt = field.attempt.run(item, item.recipients, [hop(protocol="lmtp")], Forgetful())
    outcomes = play(attempt, field.dial.network)
    assert {index: type(outcome) for index, outcome in outcomes.items()} == {0: Failed, 1: Delivered, 2: Delayed}


def test_a_fault_of_ours_delays(field, monkeypatch):
    field.at(ONE, HELLO)
    monkeypatch.setattr("mailgate.deliver.transfer.mail_for", lambda *_: 1 / 0)
    outcome = field.one(check=False)
    assert outcome == Delayed(RecipientStatus("localhost", ErrorKind.IO, "Internal error."))
    assert "delivery.internal-error" in field.events
    field.dial.network.pump()
    assert not field.dial.network.ends[0].connected
