"""What attempts write down before they hand a message over, and what is made of it when they are gone."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest
from support.queue_invariants import violations
from support.sqlite_store import DAY_MS, NOW_MS, message, recipient
from twisted.logger import globalLogPublisher

from mailgate.mail.status import ErrorKind, RecipientStatus, RemoteReply
from mailgate.queue.entry import entry
from mailgate.queue.inspect import counts
from mailgate.queue.item import (
    Content,
    ExpiresBy,
    Expiry,
    NewMessage,
    Phase,
    RecipientUpdate,
    Source,
    State,
    Transmission,
    Whereabouts,
)
from mailgate.queue.journal import IN_DOUBT_MS
from mailgate.queue.schedule import final
from mailgate.queue.tables import Recorded

DONE = RecipientStatus("mx.example.net", reply=RemoteReply(250, "2.0.0", "taken"))
BUSY = RecipientStatus("mx.example.net", ErrorKind.UNEXPECTED_REPLY, "", "RCPT TO", RemoteReply(450, "4.2.0", "no"))
GONE = RecipientStatus("mx.example.net", ErrorKind.UNEXPECTED_REPLY, "", "RCPT TO", RemoteReply(550, "5.1.1", "no"))


def sending(*indexes, number=0):
    return Transmission(number, "mx", "mx.example.net", "192.0.2.1", indexes or (0,))


def update(of, **facts):
    names = [name for name in RecipientUpdate.__slots__ if name != "index"]
    return RecipientUpdate(of.index, **{name: getattr(of, name) for name in names} | facts)


def delayed(of, due_ms=NOW_MS + 120_000):
    return update(of, state=State.TEMP_FAIL, status=BUSY, retry_due_ms=due_ms, retry_num=of.retry_num + 1)


def delivered(of, told=True):
    return replace(final(of, State.COMPLETED, DONE), dsn_sent=told)


def failed(of, told=True):
    return replace(final(of, State.PERM_FAIL, GONE), dsn_sent=told)


def notice(id=8):
    octets = b"Subject: Failed to deliver message\r\n\r\n"
    to = recipient(0, "sender@example.org", queue="dsn")
    return entry(NewMessage(id, NOW_MS, b"", Content(len(octets), octets=octets), "", Source.DSN, (to,)))


@pytest.fixture
def told():
    """The events that are told meanwhile."""
    events = []
    globalLogPublisher.addObserver(events.append)
    yield lambda name: [event for event in events if event.get("event") == name]
    globalLogPublisher.removeObserver(events.append)


# --- the mark ---------------------------------------------------------------------------------------


def test_the_mark_is_committed_before_it_is_answered(stores, store, run):
    run(store.commit(message(store, recipient(0), recipient(1))))
    (lease,) = run(store.claim({"remote": 1}, NOW_MS))
    assert run(store.transmitting(lease, sending(0, 1))) == {0, 1}
    db = sqlite3.connect(stores.path, timeout=0)
    (row,) = db.execute("SELECT phase, route, host, ip, rcpt_idx, since FROM attempt").fetchall()
    db.close()
    assert row == ("transmitting", "mx", "mx.example.net", "192.0.2.1", "[0,1]", stores.clocks.wall)


@pytest.mark.spec("OUT-204")
def test_nobody_gets_a_mark_whose_lease_another_has(tables):
    tables.add(recipient(0))
    lost = tables.lease()
    tables.pass_ms(60_001)
    tables.lapse()
    held = tables.lease()
    assert tables.mark(lost, sending()) is None
    assert tables.mark(held, sending()) == {0}
    assert [row[:3] for row in tables.journal()] == [(2, 0, "transmitting")]


@pytest.mark.spec("OUT-204")
def test_nobody_gets_a_mark_whose_lease_has_run_out_though_no_one_has_noticed_yet(tables):
    tables.add(recipient(0), recipient(1))
    lease = tables.lease()
    tables.pass_ms(60_001)
    assert tables.mark(lease, sending()) is None
    tables.set(0, cancel_mark="cancel")
    assert tables.mark(lease, sending()) is None
    assert tables.journal() == []


def test_who_is_delivered_given_up_or_cancelled_meanwhile_is_dropped(tables):
    tables.add(*map(recipient, range(5)))
    lease = tables.lease()
    tables.set(0, state="completed", retry_due=None, dsn_sent=1)
    tables.set(2, state="perm_fail", retry_due=None, dsn_sent=1)
    tables.set(3, cancel_mark="cancel")
    assert tables.mark(lease, sending(0, 1, 2, 3)) == {1}
    assert tables.journal() == [(1, 0, "transmitting", "mx.example.net", [1])]


def test_where_nobody_is_left_nothing_is_written(tables):
    tables.add(recipient(0), recipient(1))
    lease = tables.lease()
    tables.set(0, cancel_mark="notify")
    assert tables.mark(lease, sending(0)) == frozenset()
    assert tables.journal() == []


def test_a_transaction_that_begins_again_has_one_row(tables):
    tables.add(recipient(0))
    lease = tables.lease()
    tables.mark(lease, sending())
    tables.mark(lease, replace(sending(), host="mx2.example.net"))
    assert tables.journal() == [(1, 0, "transmitting", "mx2.example.net", [0])]


@pytest.mark.parametrize("end", [False, True])
def test_the_result_closes_the_mark(tables, end):
    tables.add(recipient(0), recipient(1))
    lease = tables.lease()
    tables.mark(lease, sending(0))
    assert tables.record(lease, [delayed(lease.item.recipients[0])], end=end) is Recorded.STORED
    assert tables.journal() == []


def test_results_of_a_part_leave_the_mark(tables):
    tables.add(recipient(0), recipient(1))
    lease = tables.lease()
    tables.mark(lease, sending(0, 1))
    tables.record(lease, [delivered(lease.item.recipients[0])], end=False, closes=False)
    assert tables.journal() == [(1, 0, "transmitting", "mx.example.net", [0, 1])]


def test_the_journal_goes_with_its_message(tables):
    tables.add(recipient(0))
    lease = tables.lease()
    tables.mark(lease, sending())
    assert tables.record(lease, [delivered(lease.item.recipients[0])]) is Recorded.REMOVED
    assert tables.journal() == []


@pytest.mark.parametrize("synced", [True, False])
def test_marks_are_synced_as_the_operator_says_and_results_always_are(stores, run, synced):
    said = []
    store = stores.open(journal_synced=synced)

    def listen(tables):
        tables.db.set_trace_callback(
            lambda text: said.append(text) if text.startswith(("PRAGMA synchronous", "COMMIT")) else None
        )

    run(store._writer.submit(listen))
    run(store.commit(message(store, recipient(0), recipient(1))))
    (lease,) = run(store.claim({"remote": 1}, NOW_MS))
    said.clear()
    assert run(store.transmitting(lease, sending())) == {0}
    assert run(store.record(lease, [delayed(lease.item.recipients[0])], None, True))
    pragmas = ["PRAGMA synchronous = NORMAL", "COMMIT", "PRAGMA synchronous = FULL", "COMMIT"]
    assert said == (["COMMIT", "COMMIT"] if synced else pragmas)


# --- deliverers that are gone -----------------------------------------------------------------------


def test_a_lease_that_ran_out_before_the_mark_can_be_claimed_at_once(tables):
    tables.add(recipient(0))
    tables.lease()
    tables.pass_ms(60_001)
    (lapsed,) = tables.lapse()
    assert (lapsed.queue_id, lapsed.queue, lapsed.owner, lapsed.doubts) == (7, "remote", "me", ())
    assert tables.lease().generation == 2
    row = tables.row()
    assert (row.state, row.retry_num, row.retry_due) == ("scheduled", 0, NOW_MS)


@pytest.mark.spec("OUT-206")
def test_what_may_have_been_delivered_waits_a_minute_and_is_told_once(tables):
    tables.add(recipient(0), recipient(1), recipient(2), recipient(3))
    lease = tables.lease()
    tables.mark(lease, sending(0, 1, 2))
    tables.record(lease, [delivered(lease.item.recipients[1])], end=False, closes=False)
    tables.record(lease, [delayed(lease.item.recipients[2], NOW_MS + DAY_MS)], end=False, closes=False)
    tables.pass_ms(60_001)
    (lapsed,) = tables.lapse()
    (doubt,) = lapsed.doubts
    assert doubt.addresses == ("user0@example.net", "user2@example.net")
    assert (doubt.host, doubt.since_ms) == ("mx.example.net", NOW_MS)
    assert tables.journal() == []
    assert tables.lapse() == []
    # The retry comes no earlier than it would have come anyway, and is not counted.
    dues = [tables.row(index).retry_due for index in range(4)]
    assert dues == [tables.now_ms + IN_DOUBT_MS, None, NOW_MS + DAY_MS, NOW_MS]
    assert [tables.row(index).retry_num for index in range(4)] == [0, 0, 1, 0]
    # Nobody was told of the one who was not in that transaction: it is due.
    again = tables.lease()
    tables.record(again, [delayed(again.item.recipients[3])])
    assert tables.claim() == []
    tables.pass_ms(IN_DOUBT_MS)
    assert tables.lease().item.recipients[0].retry_due_ms == tables.now_ms


@pytest.mark.spec("OUT-206")
def test_a_start_tells_of_the_doubts_a_crash_has_left(stores, run, told):
    store = stores.open()
    run(store.commit(message(store, recipient(0))))
    run(store.commit(message(store, recipient(0))))
    first, second = run(store.claim({"remote": 2}, NOW_MS))
    run(store.transmitting(first, sending()))
    stores.stop(store)
    # Stopping gives the leases back: the doubt is told by whoever meets it first.
    (event,) = told("delivery.in-doubt")
    assert (event["queueId"], event["host"]) == (first.item.id_text, "mx.example.net")
    assert (event["to"], event["since"]) == (["user0@example.net"], NOW_MS)
    store = stores.open()
    (again,) = run(store.claim({"remote": 9}, stores.clocks.wall))
    assert again.item.id == second.item.id
    stores.clocks.advance(IN_DOUBT_MS)
    (again,) = run(store.claim({"remote": 9}, stores.clocks.wall))
    assert again.item.id == first.item.id
    assert len(told("delivery.in-doubt")) == 1


def test_a_dead_process_leaves_doubts_as_a_lease_that_ran_out_does(stores, run, told):
    store = stores.open()
    run(store.commit(message(store, recipient(0))))
    (lease,) = run(store.claim({"remote": 1}, NOW_MS))
    run(store.transmitting(lease, sending()))
    db = sqlite3.connect(stores.path, isolation_level=None)
    rows = db.execute("SELECT lease_owner FROM unit").fetchall()
    marks = db.execute("SELECT * FROM attempt").fetchall()
    stores.stop(store)
    db.execute("UPDATE recipient SET retry_due = ?", (NOW_MS,))
    db.execute("UPDATE unit SET due = ?, lease_owner = 'another-boot/1/1', lease_until = ?", (NOW_MS, 10**15))
    db.executemany(f"INSERT INTO attempt VALUES ({','.join('?' * len(marks[0]))})", marks)
    db.close()
    assert rows[0][0] is not None
    store = stores.open()
    assert len(told("delivery.in-doubt")) == 2
    assert [event["count"] for event in told("queue.leases-released")] == [1]
    assert run(store.claim({"remote": 1}, stores.clocks.wall)) == []
    assert run(store.get(lease.item.id)).recipients[0].retry_due_ms == stores.clocks.wall + IN_DOUBT_MS


def test_every_lease_that_ran_out_is_told(stores, store, run, told):
    run(store.commit(message(store, recipient(0))))
    (lease,) = run(store.claim({"remote": 1}, NOW_MS))
    stores.clocks.advance(60_001)
    run(store.claim({"local": 1}, NOW_MS))
    assert [event["queueId"] for event in told("queue.lease-expired")] == [lease.item.id_text]


# --- what operators asked for meanwhile ---------------------------------------------------------------


@pytest.mark.parametrize(("mark", "told"), [("cancel", 1), ("notify", 0), ("drop", 1)])
def test_a_cancelled_recipient_ends_with_the_attempt_that_failed_for_now(tables, mark, told):
    tables.add(recipient(0), recipient(1))
    lease = tables.lease()
    tables.set(0, cancel_mark=mark)
    tables.record(lease, [delayed(one) for one in lease.item.recipients])
    row = tables.row(0)
    assert (row.state, row.retry_due, row.dsn_sent) == ("perm_fail", None, told)
    assert "Delivery canceled." in row.status_json
    assert tables.row(1).state == "temp_fail"


def test_a_cancelled_recipient_that_was_delivered_is_delivered(tables):
    tables.add(recipient(0), recipient(1))
    lease = tables.lease()
    tables.set(0, cancel_mark="cancel")
    tables.record(lease, [delivered(lease.item.recipients[0]), delayed(lease.item.recipients[1])])
    assert tables.row(0).state == "completed"


def test_a_cancelled_recipient_that_failed_keeps_its_error_and_nobody_is_told(tables):
    tables.add(recipient(0), recipient(1))
    lease = tables.lease()
    tables.set(0, cancel_mark="cancel")
    updates = [failed(lease.item.recipients[0]), delayed(lease.item.recipients[1])]
    # The notification tells of him: it must be made anew.
    assert tables.record(lease, updates, notice()) == {0}
    assert tables.row(0).state == "scheduled"
    assert tables.record(lease, updates, notice(), silenced=frozenset({0})) is Recorded.STORED
    assert (tables.row(0).state, tables.row(0).dsn_sent) == ("perm_fail", 1)
    assert "5.1.1" in tables.row(0).status_json


def test_with_notify_the_failure_is_told(tables):
    tables.add(recipient(0))
    lease = tables.lease()
    tables.set(0, cancel_mark="notify")
    assert tables.record(lease, [failed(lease.item.recipients[0])], notice()) is Recorded.REMOVED


def test_who_was_not_attempted_is_cancelled_all_the_same(tables):
    tables.add(recipient(0), recipient(1, retry_due_ms=NOW_MS + DAY_MS))
    lease = tables.lease()
    tables.set(1, cancel_mark="cancel")
    tables.record(lease, [delayed(lease.item.recipients[0])])
    assert (tables.row(1).state, tables.row(1).dsn_sent) == ("perm_fail", 1)


@pytest.mark.parametrize(("mark", "told"), [("cancel", 1), ("notify", 0)])
def test_a_cancelled_recipient_ends_with_the_attempt_that_moved_it_to_another_queue(tables, mark, told):
    tables.add(recipient(0), recipient(1))
    lease = tables.lease()
    tables.set(0, cancel_mark=mark)
    tables.record(lease, [replace(delayed(one), queue="slow") for one in lease.item.recipients])
    row = tables.row(0)
    assert (row.state, row.retry_due, row.dsn_sent) == ("perm_fail", None, told)
    assert tables.row(1).state == "temp_fail"


def test_a_cancelled_recipient_that_moved_to_a_queue_where_it_is_tried_ends_with_that_attempt(tables):
    tables.add(recipient(0), recipient(1))
    lease = tables.lease()
    tables.set(0, cancel_mark="cancel")
    moved = replace(delayed(lease.item.recipients[0]), queue="slow", retry_due_ms=tables.now_ms)
    tables.record(lease, [moved], end=False)
    other = tables.lease("slow")
    tables.record(lease, [delayed(lease.item.recipients[1])])
    assert tables.row(0).state == "temp_fail"
    tables.record(other, [delayed(other.item.recipients[0])])
    assert tables.row(0).state == "perm_fail"


def test_a_dropped_message_goes_with_the_attempt_whatever_queue_its_recipients_are_in(tables):
    tables.add(recipient(0), recipient(1, queue="local"), recipient(2))
    lease = tables.lease()
    for index in range(3):
        tables.set(index, cancel_mark="drop")
    # A failure before the drop has not been told yet.
    tables.record(lease, [failed(lease.item.recipients[2], told=False)], end=False)
    assert tables.record(lease, [delayed(lease.item.recipients[0])]) is Recorded.REMOVED
    assert not tables.is_there()


def test_a_cancel_outlives_its_deliverer(tables):
    tables.add(recipient(0))
    lease = tables.lease()
    tables.mark(lease, sending())
    tables.set(0, cancel_mark="cancel")
    tables.pass_ms(60_001)
    tables.lapse()
    assert tables.row().state == "perm_fail"
    # Nothing is left to do but to say so.
    again = tables.lease()
    assert tables.record(again, []) is Recorded.REMOVED


def test_an_attempt_an_operator_asked_for_comes_when_he_said(tables):
    tables.add(recipient(0), recipient(1, retry_due_ms=NOW_MS + DAY_MS), recipient(2))
    lease = tables.lease()
    more = {"expires_kind": "attempts", "expires_value": 10}
    for index in (0, 1):
        tables.set(index, asked_due=NOW_MS + 5, **more)
    tables.record(lease, [delayed(lease.item.recipients[0]), delayed(lease.item.recipients[2])])
    rows = [tables.row(index) for index in range(3)]
    assert [row.retry_due for row in rows] == [NOW_MS + 5, NOW_MS + 5, NOW_MS + 120_000]
    assert [row.asked_due for row in rows] == [None, None, None]
    assert [row.retry_num for row in rows] == [1, 0, 1]
    # Expiry stays as the command left it.
    assert [(row.expires_kind, row.expires_value) for row in rows[:2]] == [("attempts", 10)] * 2


def test_who_was_delivered_is_not_tried_again_though_somebody_asked(tables):
    tables.add(recipient(0), recipient(1))
    lease = tables.lease()
    tables.set(0, asked_due=NOW_MS + 5)
    tables.record(lease, [delivered(lease.item.recipients[0]), delayed(lease.item.recipients[1])])
    assert (tables.row(0).state, tables.row(0).retry_due) == ("completed", None)


# --- progress ---------------------------------------------------------------------------------------


@pytest.mark.spec("OUT-290")
def test_progress_moves_with_what_happens_and_not_with_a_renewal(tables):
    tables.add(recipient(0), recipient(1))
    # Acceptance: the message's own time.
    assert (tables.unit().progress, tables.row().progress) == (None, None)
    tables.pass_ms(1000)
    lease = tables.lease()
    claimed = tables.now_ms
    assert tables.unit().progress == claimed
    tables.pass_ms(20_000)
    tables.tables.renew([lease], {}, tables.boot_ms)
    assert tables.unit().progress == claimed
    where = Whereabouts(Phase.ENVELOPE, replace(sending(), indexes=()), tables.now_ms - 500)
    tables.tables.renew([lease], {(7, "remote"): where}, tables.boot_ms)
    assert tables.unit().progress == tables.now_ms - 500
    assert tables.journal() == [(1, 0, "envelope", "mx.example.net", [])]
    tables.pass_ms(1000)
    tables.record(lease, [delayed(lease.item.recipients[0])], end=False)
    assert (tables.row(0).progress, tables.row(1).progress) == (tables.now_ms, None)
    tables.pass_ms(1000)
    tables.record(lease, [])
    assert tables.unit().progress == tables.now_ms


@pytest.mark.spec("OUT-291")
def test_how_old_and_how_stuck_a_queue_is_can_be_asked_while_delivery_hangs(tables):
    def told():
        now_ms = tables.now_ms
        return [
            (each.name, now_ms - each.oldest_ms, None if each.stalled_ms is None else now_ms - each.stalled_ms)
            for each in counts(tables.db, now_ms)
        ]

    assert told() == []
    tables.add(recipient(0))
    tables.pass_ms(1000)
    lease = tables.lease()
    assert told() == [("remote", 1000, 0)]
    # It hangs: renewals come and nothing else does.
    tables.pass_ms(20_000)
    tables.tables.renew([lease], {}, tables.boot_ms)
    assert told() == [("remote", 21_000, 20_000)]
    # A failure for now is progress, and what is not due is not stuck.
    tables.record(lease, [delayed(lease.item.recipients[0])])
    assert told() == [("remote", 21_000, None)]
    tables.pass_ms(DAY_MS)
    lease = tables.lease()
    tables.record(lease, [delivered(lease.item.recipients[0])])
    assert told() == []


def test_a_renewal_that_comes_late_does_not_take_the_mark_back(tables):
    tables.add(recipient(0))
    lease = tables.lease()
    tables.mark(lease, sending())
    where = Whereabouts(Phase.CONNECTED, replace(sending(), indexes=()), NOW_MS)
    tables.tables.renew([lease], {(7, "remote"): where}, tables.boot_ms)
    assert tables.journal() == [(1, 0, "transmitting", "mx.example.net", [0])]


def test_nothing_is_noted_under_a_lease_that_is_lost(tables):
    tables.add(recipient(0))
    lease = tables.lease()
    tables.pass_ms(60_001)
    tables.lapse()
    where = Whereabouts(Phase.CONNECTED, replace(sending(), indexes=()), NOW_MS)
    assert tables.tables.renew([lease], {(7, "remote"): where}, tables.boot_ms) == {(7, "remote")}
    assert tables.journal() == []


@pytest.mark.spec("OUT-288")
def test_an_attempt_without_progress_loses_its_lease(tables):
    tables.add(recipient(0))
    lease = tables.lease()
    where = Whereabouts(Phase.CONNECTED, replace(sending(), indexes=()), NOW_MS + 1000)
    tables.pass_ms(20_000)
    tables.tables.renew([lease], {(7, "remote"): where}, tables.boot_ms)
    assert tables.tables.revoke(NOW_MS + 1000, tables.now_ms, 10) == []
    (stuck,) = tables.sound(tables.tables.revoke(NOW_MS + 1001, tables.now_ms, 10))
    assert (stuck.lapsed.owner, stuck.phase, stuck.host) == ("me", Phase.CONNECTED, "mx.example.net")
    assert stuck.age_ms == 19_000
    # Fenced: neither renewed, nor marked, nor heard.
    assert tables.tables.renew([lease], {}, tables.boot_ms) == {(7, "remote")}
    assert tables.mark(lease, sending()) is None
    assert tables.record(lease, [delayed(lease.item.recipients[0])]) is Recorded.LEASE_LOST
    assert tables.lease().generation == 3


def test_an_attempt_that_is_stuck_after_the_mark_is_in_doubt(tables):
    tables.add(recipient(0))
    lease = tables.lease()
    tables.mark(lease, sending())
    tables.pass_ms(30_000)
    (stuck,) = tables.sound(tables.tables.revoke(NOW_MS + 1, tables.now_ms, 10))
    assert stuck.phase is Phase.TRANSMITTING
    assert [doubt.addresses for doubt in stuck.lapsed.doubts] == [("user0@example.net",)]
    assert tables.claim() == []
    assert tables.row().retry_due == tables.now_ms + IN_DOUBT_MS


def test_what_is_not_leased_is_never_stuck(tables):
    tables.add(recipient(0, retry_due_ms=NOW_MS + DAY_MS))
    tables.pass_ms(DAY_MS // 2)
    assert tables.tables.revoke(tables.now_ms, tables.now_ms, 10) == []


def test_leases_are_found_by_their_index(tables):
    for question in (
        "SELECT message_id, queue FROM unit WHERE lease_owner IS NOT NULL AND lease_until < 1",
        "SELECT message_id, queue, progress FROM unit INDEXED BY unit_lease"
        " WHERE lease_owner IS NOT NULL AND progress IS NOT NULL AND progress < 1 LIMIT 1",
    ):
        (*_, plan) = tables.db.execute(f"EXPLAIN QUERY PLAN {question}").fetchone()
        assert "unit_lease" in plan


def test_expiry_of_the_held_waits(tables):
    short = Expiry(ExpiresBy.TTL, 1000)
    tables.add(recipient(0, expiry=short, held=True), recipient(1, expiry=short))
    tables.pass_ms(1000)
    (lease,) = tables.tables.expired(tables.now_ms, 10, tables.boot_ms)
    assert [one.held for one in lease.item.recipients] == [True, False]
    assert violations(tables.path, tables.spool) == []
