"""The last word before a message is handed over: when it is asked for, and what is done about the answer."""

from __future__ import annotations

import random

import pytest
from support.pipe import Network
from support.script import Dial, play
from support.work_store import Reader, message, recipient
from twisted.internet.defer import CancelledError

from mailgate.deliver.attempt import Attempt, Interrupted
from mailgate.deliver.nexthop import NextHop
from mailgate.deliver.opening import Opener
from mailgate.deliver.reuse import IdleConnections
from mailgate.mail.status import Delayed, Delivered, ErrorKind, Failed
from mailgate.net.tls import ClientTls
from mailgate.queue.item import Phase
from mailgate.queue.store import StoreFailed

ONE = "192.0.2.1"
BODY = b"Subject: x\r\n\r\nbody\r\n"
LARGE = b"Subject: large\r\n\r\n" + b"y" * 70_000 + b"\r\n" + b"z" * 60_000 + b"\r\n"


class Watcher:
    """Has the last word: `drop` goes, one set for each question, `lost` and `fails` are said instead."""

    def __init__(self, field):
        self.field = field
        self.drop = []
        self.lost = self.fails = False
        self.asked = []
        self.heard = []
        """What the server had heard when it was asked."""
        self.written = []
        self.phases = []
        self.settled = []

    def reached(self, phase, route="", host="", ip=""):
        self.phases.append((phase, route, host, ip))

    async def transmitting(self, route, host, ip, indexes):
        self.field.dial.network.pump()
        self.asked.append((route, host, ip, tuple(indexes)))
        server = self.field.dial.servers[-1]
        self.heard.append(server.heard[-1].split(" ")[0])
        self.written.append(self.field.dial.network.ends[-2].written)
        if self.lost:
            raise CancelledError
        if self.fails:
            raise StoreFailed("disk")
        return frozenset(indexes) - (self.drop.pop(0) if self.drop else set())

    async def settle(self, outcomes, closes):
        self.settled.append((sorted(outcomes), closes))


class Field:
    """An attempt at scripted servers."""

    def __init__(self):
        self.dial = Dial(Network())
        self.octets = BODY
        self.events = []
        self.watch = Watcher(self)
        self.idle = IdleConnections(self.dial.network.clock, lambda queue: 5)
        opener = Opener(self.dial, ClientTls(), self.emit)
        self.attempt = Attempt(self, opener, self.idle, lambda: 0, random.Random(1), self.emit)

    async def read(self, item):
        return Reader(self.octets, 50_000)

    def emit(self, event, /, **fields):
        self.events.append((event, fields))

    def run(self, script, *names, protocol="smtp", max_recipients=100, scripts=()):
        """Send to as many recipients as there are names."""
        self.dial.at(ONE, *([script] if script else []), *scripts)
        item, _ = message(*(recipient(f"{name}@x.test") for name in names or "a"), octets=self.octets)
        hop = NextHop(
            route="r",
            host="mx.test",
            addresses=(ONE,),
            port=25,
            protocol=protocol,
            ehlo_name="gw.test",
            is_mx=True,
            max_recipients=max_recipients,
        )
        return play(self.attempt.run(item, item.recipients, (hop,), self.watch), self.dial.network)


@pytest.fixture
def field():
    return Field()


HELLO = "S: 220 hi\nC: EHLO gw.test\nS: 250 mx\n"
CHUNKS = "S: 220 hi\nC: EHLO gw.test\nS: 250-mx | 250-PIPELINING | 250 CHUNKING\n"
MAIL = "C: MAIL FROM:<joe@sender.example>\nS: 250 ok\n"
DATA = "C: DATA\nS: 354 go\nC* x\nS: 250 2.0.0 taken\n"


def rcpt(name, reply="250 ok"):
    return f"C: RCPT TO:<{name}@x.test>\nS: {reply}\n"


def test_it_is_asked_for_before_data_so_that_all_can_be_taken_back(field):
    outcomes = field.run(HELLO + MAIL + rcpt("a") + rcpt("b", "550 5.1.1 no") + rcpt("c") + DATA, *"abc")
    assert field.watch.asked == [("r", "mx.test", ONE, (0, 2))]
    assert field.watch.heard == ["RCPT"]
    assert [type(outcomes[index]) for index in range(3)] == [Delivered, Failed, Delivered]


def test_it_is_asked_for_before_the_chunk_of_a_small_message(field):
    said = "C: MAIL FROM:<joe@sender.example>\nC: RCPT TO:<a@x.test>\nS: 250 ok | 250 ok\n"
    field.run(CHUNKS + said + f"C: BDAT {len(BODY)} LAST\nC# {len(BODY)}\nS: 250 taken\n")
    assert field.watch.heard == ["RCPT"]


def test_it_is_asked_for_before_anything_where_all_is_one_write(field):
    said = "C: MAIL FROM:<joe@sender.example>\nC: RCPT TO:<a@x.test>\n"
    chunk = f"C: BDAT {len(BODY)} LAST\nC# {len(BODY)}\n"
    first = said + "S: 250 ok | 250 ok\n" + chunk + "S: 250 taken\n"
    field.run(CHUNKS + first + said + chunk + "S: 250 ok | 250 ok | 250 taken\n")
    before = field.dial.network.ends[0].written
    field.run("")
    assert field.watch.written[-1] == before
    assert len(field.dial.calls) == 1


@pytest.mark.parametrize("chunks", [False, True])
def test_a_large_message_is_sent_up_to_its_last_octets_before_it_is_asked_for(field, chunks):
    field.octets = LARGE
    mail = "C~ MAIL FROM:.*\nC: RCPT TO:<a@x.test>\nS: 250 ok | 250 ok\n"
    content = f"C: BDAT {len(LARGE)} LAST\nC# {len(LARGE)}\nS: 250 taken\n"
    script = CHUNKS + mail + content if chunks else HELLO + MAIL + rcpt("a") + DATA
    assert isinstance(field.run(script)[0], Delivered)
    # More than the first blocks, less than the message.
    assert 100_000 < field.watch.written[0] < len(LARGE)


def test_who_dropped_out_is_not_sent_to_and_the_rest_get_a_new_transaction(field):
    field.watch.drop = [{1}]
    again = "C: RSET\nS: 250 ok\n" + MAIL + rcpt("a") + DATA
    script = HELLO + MAIL + rcpt("a") + rcpt("b") + rcpt("c", "550 5.1.1 no") + again
    outcomes = field.run(script, *"abc")
    assert {index: type(outcome) for index, outcome in outcomes.items()} == {0: Delivered, 2: Failed}
    assert [asked[3] for asked in field.watch.asked] == [(0, 1), (0,)]
    assert field.watch.settled == [([2], True)]
    field.dial.check()


def test_when_all_have_dropped_out_nothing_is_sent(field):
    field.watch.drop = [{0, 1}]
    assert field.run(HELLO + MAIL + rcpt("a") + rcpt("b"), *"ab") == {}
    field.idle.close()
    field.dial.network.pump()
    assert field.dial.servers[0].heard[-1] == "QUIT"


def test_where_all_is_one_write_who_dropped_out_is_not_even_named(field):
    said = "C: MAIL FROM:<joe@sender.example>\nC: RCPT TO:<a@x.test>\n"
    chunk = f"C: BDAT {len(BODY)} LAST\nC# {len(BODY)}\n"
    first = said + "S: 250 ok | 250 ok\n" + chunk + "S: 250 taken\n"
    field.run(CHUNKS + first + said + chunk + "S: 250 ok | 250 ok | 250 taken\n")
    field.watch.drop = [{1}]
    assert sorted(field.run("", *"ab")) == [0]
    field.watch.drop = [{0}]
    assert field.run("") == {}
    field.dial.check()


@pytest.mark.parametrize("chunks", [False, True])
def test_a_large_message_somebody_dropped_out_of_is_broken_off_and_begun_again(field, chunks):
    field.octets = LARGE
    field.watch.drop = [{0}]
    if chunks:
        hello, replies = CHUNKS, "S: 250 ok | 250 ok | 250 ok\n"
        mail = "C~ MAIL FROM:.*\n"
        content = f"C: BDAT {len(LARGE)} LAST\nC# {len(LARGE)}\nS: 250 taken\n"
        first = hello + mail + "C: RCPT TO:<a@x.test>\nC: RCPT TO:<b@x.test>\n" + replies + content
        again = hello + mail + "C: RCPT TO:<b@x.test>\nS: 250 ok | 250 ok\n" + content
    else:
        first = HELLO + MAIL + rcpt("a") + rcpt("b") + DATA
        again = HELLO + MAIL + rcpt("b") + DATA
    outcomes = field.run(first, *"ab", scripts=(again,))
    assert {index: type(outcome) for index, outcome in outcomes.items()} == {1: Delivered}
    broken, whole = field.dial.servers
    assert (broken.contents, len(whole.contents)) == ([], 1)


@pytest.mark.spec("OUT-204")
@pytest.mark.parametrize("octets", [BODY, LARGE])
@pytest.mark.parametrize("chunks", [False, True])
def test_without_a_lease_the_final_octets_are_not_sent(field, octets, chunks):
    field.octets = octets
    field.watch.lost = True
    said = "C~ MAIL FROM:.*\nC: RCPT TO:<a@x.test>\nS: 250 ok | 250 ok\n"
    chunk = f"C: BDAT {len(octets)} LAST\nC# {len(octets)}\nS: 250 taken\n"
    with pytest.raises(Interrupted) as interrupted:
        field.run(CHUNKS + said + chunk if chunks else HELLO + MAIL + rcpt("a") + DATA)
    field.dial.network.pump()
    assert interrupted.value.outcomes == {}
    (server,) = field.dial.servers
    assert (server.contents, server.lost) == ([], True)


def test_without_a_mark_the_message_waits_and_the_attempt_is_not_counted(field):
    field.watch.fails = True
    outcomes = field.run(HELLO + MAIL + rcpt("a"))
    assert isinstance(outcomes[0], Delayed)
    status = outcomes[0].status
    assert (status.entity, status.kind, status.detail) == ("queue", ErrorKind.DEPENDENCY, "disk")


# --- LMTP ----------------------------------------------------------------------------------------------

LMTP = "S: 220 hi\nC: LHLO gw.test\nS: 250 mx\n" + MAIL + rcpt("a") + rcpt("b") + rcpt("c")
CONTENT = "C: DATA\nS: 354 go\nC* x\n"


def test_replies_that_come_one_by_one_are_settled_as_they_come(field):
    script = LMTP + CONTENT + "S: 250 2.0.0 for a\n" + "S: 452 4.2.2 full\n" + "S! wait"
    outcomes = field.run(script, *"abc", protocol="lmtp")
    settled = [index for indexes, closes in field.watch.settled for index in indexes]
    assert settled == [0, 1]
    assert all(not closes for _, closes in field.watch.settled)
    assert [type(outcomes[index]) for index in range(3)] == [Delivered, Delayed, Delayed]


def test_replies_that_come_together_are_settled_together(field):
    field.run(LMTP + CONTENT + "S: 250 2.0.0 for a | 250 2.0.0 for b | 250 2.0.0 for c", *"abc", protocol="lmtp")
    # With the end of the group, that is.
    assert field.watch.settled == []


def test_one_recipient_needs_no_more_than_the_end(field):
    hello = "S: 220 hi\nC: LHLO gw.test\nS: 250 mx\n" + MAIL + rcpt("a")
    field.run(hello + CONTENT + "S: 250 2.0.0 for a", protocol="lmtp")
    assert field.watch.settled == []


# --- progress ------------------------------------------------------------------------------------------


def test_each_step_is_told(field):
    field.run(HELLO + MAIL + rcpt("a") + DATA)
    told = [(phase, host) for phase, _, host, _ in field.watch.phases]
    assert told == [(Phase.ROUTED, "mx.test"), (Phase.CONNECTED, "mx.test"), (Phase.ENVELOPE, "mx.test")]


def test_a_reply_that_never_comes_after_the_end_is_a_doubt(field):
    field.run(HELLO + MAIL + rcpt("a") + CONTENT + "S! close")
    (fields,) = [fields for event, fields in field.events if event == "delivery.in-doubt"]
    assert (fields["to"], fields["host"]) == (["a@x.test"], "mx.test")
