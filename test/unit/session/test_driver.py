"""The driver behind a whole listener in memory: what waits, breaks, or is gone at each stage."""

import pytest
from support.baseline import baseline
from support.listener import SMTP_AND_LMTP, ListenerInMemory
from support.slow import SlowStore, SlowZone
from support.zone import Zone
from twisted.logger import globalLogPublisher

from mailgate.queue.store import StoreFailed, StoreFull

SLOW = "\"dns_query('slow.test', 'txt') = 'yes'\""
HELLO = b"EHLO client.test\r\n"
MAIL = b"MAIL FROM:<a@client.test>\r\n"
RCPT = b"RCPT TO:<jane@foobar.org>\r\n"
TEXT = b"Subject: x\r\n\r\nhi\r\n.\r\n"

# Where a rule waits, and what the client has said by then and last.
STAGES = {
    "mail": (f"[session.mail]\nis-allowed = {SLOW}\n", (HELLO,), MAIL, b"250 2.1.0"),
    "rcpt": (f"[session.rcpt]\nrelay = {SLOW}\n", (HELLO, MAIL), RCPT, b"250 2.1.5"),
    "data": (
        "[session.data]\nlimits.messages = "
        "[{ if = \"dns_query('slow.test', 'txt') = 'yes'\", then = 5 }, { else = 0 }]\n",
        (HELLO, MAIL, RCPT),
        b"DATA\r\n",
        b"354",
    ),
    "end of data": (
        "[session.data]\nlimits.received-headers = "
        "[{ if = \"dns_query('slow.test', 'txt') = 'yes'\", then = 5 }, { else = 0 }]\n",
        (HELLO, MAIL, RCPT, b"DATA\r\n"),
        TEXT,
        b"250 2.0.0",
    ),
    "header block": (
        f"[session.data.add-headers]\nreceived = {SLOW}\n",
        (HELLO, MAIL, RCPT, b"DATA\r\n"),
        TEXT,
        b"250 2.0.0",
    ),
    "ehlo": (f"[session.extensions]\ndsn = {SLOW}\n", (), HELLO, b"250"),
}


def listening(*changes, base="B0", zone=None, store=None, **more):
    return ListenerInMemory(baseline(base, SMTP_AND_LMTP, *changes), zone, store, **more)


def said(connection):
    return [line for line in connection.received().split(b"\r\n") if line]


def open_at(connection, *before):
    for octets in before:
        connection.send(octets)
    connection.received()


@pytest.mark.parametrize("stage", STAGES)
def test_a_slow_answer_is_waited_for_and_nothing_overtakes_it(stage):
    rules, before, last, wanted = STAGES[stage]
    zone = SlowZone()
    connection = listening(rules, zone=zone).connect()
    open_at(connection, *before)
    connection.send(last)
    connection.send(b"NOOP\r\n" if stage != "data" else b"")
    assert said(connection) == []
    zone.answer()
    lines = said(connection)
    assert lines[0].startswith(wanted)
    if stage != "data":
        assert lines[-1].startswith(b"250 2.0.0 OK")


@pytest.mark.parametrize("stage", STAGES)
def test_an_unknown_answer_is_a_temporary_refusal_and_counts_for_nothing(stage):
    rules, before, last, _ = STAGES[stage]
    zone = SlowZone()
    connection = listening(rules, zone=zone).connect()
    open_at(connection, *before)
    connection.send(last)
    zone.give_no_answer()
    (line,) = said(connection)
    assert line.startswith(b"451 4.4.3")
    assert not connection.closed
    assert connection.queued() == []


@pytest.mark.parametrize("stage", STAGES)
def test_what_breaks_is_a_temporary_refusal_with_a_trace_id(stage):
    rules, before, last, _ = STAGES[stage]
    zone = SlowZone()
    connection = listening(rules, zone=zone).connect()
    open_at(connection, *before)
    connection.send(last)
    zone.break_down()
    (line,) = said(connection)
    assert line.startswith(b"451 4.3.0")
    assert line.endswith(b"]")
    connection.send(b"NOOP\r\n")
    assert said(connection) == [b"250 2.0.0 OK"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_client_that_leaves_ends_the_decision(stage):
    rules, before, last, _ = STAGES[stage]
    zone = SlowZone()
    listener = listening(rules, zone=zone)
    connection = listener.connect()
    open_at(connection, *before)
    connection.send(last)
    connection.leave()
    assert zone.cancelled == 1
    assert connection.queued() == []
    assert all(spool.discarded for spool in listener.store.spools)
    assert said(connection) == []
    assert listener.factories["smtp"].connections == set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_the_time_of_the_session_and_no_more(stage):
    rules, before, last, _ = STAGES[stage]
    if stage in ("header block", "ehlo"):
        pytest.skip("no chain waits here")
    zone = SlowZone()
    connection = listening(rules, zone=zone).connect()
    open_at(connection, *before)
    connection.send(last)
    connection.advance(300)
    (line,) = said(connection)
    assert line.startswith(b"451 4.3.0")


def test_a_port_that_is_cancelled_by_others_is_no_lost_reply():
    zone = SlowZone()
    connection = listening(STAGES["mail"][0], zone=zone).connect()
    open_at(connection, HELLO)
    connection.send(MAIL)
    zone.held[0].cancel()
    (line,) = said(connection)
    assert line.startswith(b"451 4.3.0")
    connection.send(b"NOOP\r\n")
    assert said(connection) == [b"250 2.0.0 OK"]


# --- the commit ---------------------------------------------------------------------


def sending(store, *changes, listener="smtp"):
    listening_ = listening(*changes, store=store)
    connection = listening_.connect(listener)
    open_at(connection, HELLO if listener == "smtp" else b"LHLO client.test\r\n", MAIL, RCPT, b"DATA\r\n")
    connection.send(TEXT)
    return connection


def test_no_positive_reply_before_the_commit():
    store = SlowStore(slow_commit=True)
    connection = sending(store)
    assert said(connection) == []
    store.end_commit()
    (line,) = said(connection)
    assert line.startswith(b"250 2.0.0")
    assert len(connection.queued()) == 1


@pytest.mark.parametrize(
    ("failure", "wanted"), [(StoreFull("full"), b"452 4.3.1"), (StoreFailed("broken"), b"451 4.3.5")]
)
def test_a_commit_that_fails_is_a_temporary_refusal(failure, wanted):
    store = SlowStore(slow_commit=True)
    connection = sending(store)
    store.end_commit(failure)
    (line,) = said(connection)
    assert line.startswith(wanted)
    assert connection.queued() == []
    connection.send(MAIL)
    assert said(connection)[0].startswith(b"250 2.1.0")


def test_a_commit_is_not_cancelled_by_a_client_that_leaves():
    store = SlowStore(slow_commit=True)
    connection = sending(store)
    connection.leave()
    assert store.cancelled == 0
    assert not store.spools[0].discarded
    store.end_commit()
    assert len(connection.queued()) == 1
    assert said(connection) == []


def test_a_client_that_leaves_while_the_content_is_synced_has_sent_nothing():
    store = SlowStore(slow_finish=True)
    connection = sending(store)
    connection.leave()
    assert store.spools[0].discarded
    assert connection.queued() == []


def test_a_message_that_is_kept_is_never_refused():
    def nudged():
        raise RuntimeError("a mistake of ours")

    connection = listening(queued=nudged).connect()
    open_at(connection, HELLO, MAIL, RCPT, b"DATA\r\n")
    connection.send(TEXT)
    (line,) = said(connection)
    assert line.startswith(b"250 2.0.0")
    assert len(connection.queued()) == 1


def test_the_end_of_the_server_waits_for_a_commit_and_takes_no_further_message():
    store = SlowStore(slow_commit=True)
    connection = sending(store)
    connection.send(MAIL + RCPT + b"DATA\r\n")
    connection.protocol.shut_down()
    assert said(connection) == []
    store.end_commit()
    lines = said(connection)
    assert [line[:9] for line in lines] == [b"250 2.0.0", b"421 4.3.0"]
    assert connection.closed


@pytest.mark.parametrize("stage", STAGES)
def test_the_end_of_the_server_is_the_answer_to_what_is_being_decided(stage):
    rules, before, last, _ = STAGES[stage]
    zone = SlowZone()
    connection = listening(rules, zone=zone).connect()
    open_at(connection, *before)
    connection.send(last)
    connection.protocol.shut_down()
    (line,) = said(connection)
    assert line.startswith(b"421 4.3.0")
    assert zone.cancelled == 1
    assert connection.queued() == []
    connection.leave()


def test_lmtp_repeats_a_failed_commit_for_each_accepted_rcpt():
    store = SlowStore(slow_commit=True)
    connection = listening(store=store).connect("lmtp")
    open_at(connection, b"LHLO client.test\r\n", MAIL, RCPT, RCPT, b"RCPT TO:<john@foobar.org>\r\n", b"DATA\r\n")
    connection.send(TEXT)
    store.end_commit(StoreFailed("broken"))
    lines = said(connection)
    assert len(lines) == 3
    assert len(set(lines)) == 1
    assert lines[0].startswith(b"451 4.3.5")


# --- BDAT -----------------------------------------------------------------------------


def chunk(octets, last=False):
    return b"BDAT %d%s\r\n%b" % (len(octets), b" LAST" if last else b"", octets)


HEAD = b"Subject: x\r\n\r\nfirst\r\n"


def test_a_chunk_whose_check_broke_takes_its_message_with_it():
    zone = SlowZone()
    connection = listening(STAGES["data"][0], zone=zone).connect()
    open_at(connection, HELLO, MAIL, RCPT)
    connection.send(chunk(HEAD))
    zone.answer()
    connection.send(chunk(b"X: second\r\n\r\nchunk\r\n") + chunk(b"Y: third\r\n\r\nchunk\r\n", last=True))
    zone.break_down()
    zone.answer()
    codes = [line[:9] for line in said(connection)]
    assert codes == [b"250 2.6.0", b"451 4.3.0", b"451 4.3.0"]
    assert connection.queued() == []


def test_a_temporary_refusal_of_a_chunk_does_not_become_a_final_one():
    zone = SlowZone()
    connection = listening(STAGES["data"][0], zone=zone).connect()
    open_at(connection, HELLO, MAIL, RCPT)
    connection.send(chunk(HEAD) + chunk(b"rest\r\n", last=True))
    zone.give_no_answer()
    zone.answer()
    assert [line[:9] for line in said(connection)] == [b"451 4.4.3", b"451 4.4.3"]
    # The transaction is kept: the message may be sent anew.
    connection.send(chunk(HEAD, last=True))
    zone.answer()
    assert said(connection)[0].startswith(b"250 2.0.0")
    assert connection.queued()[0].content == HEAD


def test_vrfy_that_breaks_between_chunks_leaves_the_message_whole(monkeypatch):
    connection = listening().connect()
    open_at(connection, HELLO, MAIL, RCPT)
    connection.send(chunk(HEAD))

    async def broken(context):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("mailgate.session.stages.vrfy.answer", broken)
    connection.send(b"VRFY jane\r\n" + chunk(b"X: rest\r\n", last=True))
    assert [line[:9] for line in said(connection)] == [b"250 2.6.0", b"451 4.3.0", b"250 2.0.0"]
    assert connection.queued()[0].content == HEAD + b"X: rest\r\n"


def test_a_chunk_that_grows_over_the_limit_when_normalised_is_refused_as_a_whole():
    connection = listening("[session]\nbare-newline = \"'normalize'\"\n[session.data]\nlimits.size = 40\n").connect()
    open_at(connection, HELLO, MAIL, RCPT)
    connection.send(chunk(b"Subject: x\n\n" + b"\n" * 26))
    connection.send(chunk(b"X: y\r\n", last=True))
    assert [line[:9] for line in said(connection)] == [b"552 5.3.4", b"503 5.5.1"]
    assert connection.queued() == []


def test_a_spool_that_cannot_be_begun_refuses_the_chunk(monkeypatch):
    listener = listening()
    connection = listener.connect()
    open_at(connection, HELLO, MAIL, RCPT)

    def broken(queue_id):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(listener.store, "spool", broken)
    connection.send(chunk(HEAD, last=True) + b"NOOP\r\n")
    assert [line[:9] for line in said(connection)] == [b"451 4.3.0", b"250 2.0.0"]


def test_a_header_that_cannot_be_read_is_refused_for_now(monkeypatch):
    listener = listening()
    connection = listener.connect()
    open_at(connection, HELLO, MAIL, RCPT, b"DATA\r\n")

    def broken(octets):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("mailgate.session.driver.Header", broken)
    connection.send(TEXT)
    assert said(connection)[0].startswith(b"451 4.3.0")
    assert listener.store.spools[0].discarded
    connection.send(MAIL)
    assert said(connection)[0].startswith(b"250 2.1.0")


@pytest.mark.parametrize("first", [b" (by another host)\r\n", b"\tfor <x@y.test>\r\n"])
def test_the_first_line_of_a_message_does_not_continue_our_received(first):
    # It would stand in the field that says where the message came from.
    connection = listening("[session.data.add-headers]\nreceived = true\n").connect()
    open_at(connection, HELLO)
    connection.send(MAIL + RCPT + b"DATA\r\n" + first + TEXT)
    assert said(connection)[-1].startswith(b"550 5.7.7")
    connection.send(MAIL + RCPT + chunk(first + HEAD, last=True))
    assert said(connection)[-1].startswith(b"550 5.7.7")
    # Further down it is a folded field as any other.
    connection.send(MAIL + RCPT + b"DATA\r\nX: y\r\n" + first + TEXT)
    assert said(connection)[-1].startswith(b"250 2.0.0")
    assert len(connection.queued()) == 1


@pytest.mark.parametrize("offered", [False, True])
def test_a_binary_body_is_refused_at_once_where_bdat_is_not_offered(offered):
    connection = listening(f"[session.extensions]\nchunking = {str(offered).lower()}\n").connect()
    open_at(connection, HELLO)
    connection.send(MAIL[:-2] + b" BODY=BINARYMIME\r\n")
    # Neither DATA nor BDAT could send it: RFC 5321 4.1.1.11 has MAIL refuse what cannot be done.
    assert said(connection)[0].startswith(b"250 2.1.0" if offered else b"501 5.5.4")
    connection.send(MAIL[:-2] + b" BODY=8BITMIME\r\n")
    assert said(connection)[0].startswith(b"503 5.5.1" if offered else b"250 2.1.0")


# --- the rest -------------------------------------------------------------------------


def test_a_greeting_that_breaks_closes_with_421():
    zone = SlowZone()
    greeting = "[session.connect]\ngreeting = \"dns_query('slow.test', 'txt')\"\n"
    connection = listening(greeting, zone=zone).connect()
    assert said(connection) == []
    zone.break_down()
    assert said(connection)[0].startswith(b"421 4.3.0")
    assert connection.closed


def test_waits_of_penalties_end_with_the_connection():
    listener = listening('[session.rcpt]\nerrors.wait = "5s"\n', base="B1")
    connection = listener.connect()
    open_at(connection, HELLO, MAIL)
    connection.send(b"RCPT TO:<nobody@foobar.org>\r\n")
    connection.leave()
    assert listener.clock.getDelayedCalls() == []


def test_repeated_recipients_are_bounded():
    connection = listening().connect("lmtp")
    open_at(connection, b"LHLO client.test\r\n", MAIL)
    for _ in range(50):
        connection.send(RCPT * 20)
        connection.advance(0)
    assert all(line.startswith(b"250") for line in said(connection))
    connection.send(RCPT)
    assert said(connection)[0].startswith(b"455 4.5.3")


def test_login_changes_what_is_offered_and_none_of_the_limits():
    zone = SlowZone()
    timeout = (
        "[session]\ntimeout = [{ if = \"dns_query('slow.test', 'txt') = 'yes'\", then = '1m' }, { else = '2m' }]\n"
    )
    connection = listening(timeout, base="B2", zone=zone).connect()
    zone.answer()
    open_at(connection, HELLO)
    connection.send(b"AUTH PLAIN AGpvaG4Ac2VjcmV0\r\n")
    assert said(connection)[0].startswith(b"235 2.7.0")
    connection.send(b"VRFY john\r\n")
    assert not said(connection)[0].startswith(b"252")


def test_a_login_that_breaks_after_the_password_is_no_login():
    vrfy = (
        "[session.auth]\nrequire = true\n[session.extensions]\n"
        "vrfy = \"!is_empty(authenticated_as) && dns_query('slow.test', 'txt') = 'yes'\"\n"
    )
    zone = SlowZone()
    connection = listening(vrfy, base="B2", zone=zone).connect()
    open_at(connection, HELLO)
    connection.send(b"AUTH PLAIN AGpvaG4Ac2VjcmV0\r\n")
    zone.break_down()
    assert said(connection)[0].startswith(b"451 4.3.0")
    # RFC 4954 4: only 235 says that the client is known.
    connection.send(b"MAIL FROM:<john@foobar.org>\r\n")
    assert said(connection)[0].startswith(b"503 5.5.1 Authenticate first")
    connection.send(b"AUTH PLAIN AGpvaG4Ac2VjcmV0\r\n")
    zone.answer()
    connection.send(b"MAIL FROM:<john@foobar.org>\r\n")
    assert [line[:9] for line in said(connection)] == [b"235 2.7.0", b"250 2.1.0"]


QUOTAS = """
[queue.quota.one]
messages = 1
size = 50000
key = "sender"
enable = true
"""


@pytest.mark.spec("IN-256")
def test_a_quota_without_room_is_told_by_its_name():
    told, trails = [], []

    class Kept:
        def record(self, kind, trail, session, **facts):
            trails.append((trail, facts))

    observe = told.append
    globalLogPublisher.addObserver(observe)
    try:
        connection = listening(QUOTAS, ring=Kept()).connect()
        open_at(connection, HELLO)
        for _ in range(2):
            connection.send(MAIL + RCPT + b"DATA\r\n" + TEXT)
    finally:
        globalLogPublisher.removeObserver(observe)
    assert said(connection)[-1].startswith(b"452 4.3.1 Mail system full, try again later.")
    assert len(connection.queued()) == 1
    (event,) = [event for event in told if event.get("event") == "queue.quota-exceeded"]
    assert (event["id"], event["type"], event["messages"], event["from"]) == ("one", "Sender", 1, "a@client.test")
    trail, facts = trails[-1]
    assert facts["reason"] == "quota-exceeded"
    stage, rule, place, reads, said_, _ = trail.steps[-1]
    assert (stage, rule, said_) == ("data", "queue.quota.one", "452 4.3.1 (quota-exceeded)")
    assert place.rpartition(":")[2].isdigit()
    assert dict(reads)["queued messages"] == 1


@pytest.mark.spec("OUT-262")
def test_the_log_names_the_store_that_a_quota_asked_in_vain():
    quota = """
[queue.quota.q]
messages = 5
match = "dns_query(sender_domain, 'txt') = 'yes'"
enable = true
"""
    zone = Zone()
    zone.fail("client.test", reason="SERVFAIL")
    told = []
    globalLogPublisher.addObserver(told.append)
    try:
        connection = listening(quota, zone=zone).connect()
        open_at(connection, HELLO, MAIL, RCPT, b"DATA\r\n")
        connection.send(TEXT)
    finally:
        globalLogPublisher.removeObserver(told.append)
    assert said(connection)[-1].startswith(b"451 4.3.5 Unable to accept message at this time.")
    assert connection.queued() == []
    (detail,) = [event["detail"] for event in told if "queue.quota.q.match" in str(event.get("detail"))]
    assert detail.startswith("queue.quota.q.match: dns: ")
