"""Results that come after their lease was lost: the table of outbound delivery, row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.sqlite_store import NOW_MS, recipient

from mailgate.mail.status import ErrorKind, RecipientStatus, RemoteReply
from mailgate.queue.item import Late, RecipientUpdate, State, Transmission
from mailgate.queue.operate import CANCELED, Action, Order, carry_out
from mailgate.queue.rows import status_cell
from mailgate.queue.schedule import final
from mailgate.queue.tables import Recorded

DONE = RecipientStatus("mx.example.net", reply=RemoteReply(250, "2.0.0", "taken"))
GONE = RecipientStatus("mx.example.net", ErrorKind.UNEXPECTED_REPLY, "", "RCPT TO", RemoteReply(550, "5.1.1", "no"))
OVER = RecipientStatus("example.net", ErrorKind.IO, "Message expired without any delivery attempts made.")


def update(of, **facts):
    names = [name for name in RecipientUpdate.__slots__ if name != "index"]
    return RecipientUpdate(of.index, **{name: getattr(of, name) for name in names} | facts)


@pytest.fixture
def lost(tables):
    """A lease that ran out; nobody has claimed the unit since."""
    tables.add(recipient(0), recipient(1))
    lease = tables.lease()
    tables.pass_ms(60_001)
    tables.lapse()
    return lease


def learnt(lease, state, status, index=0):
    return [final(lease.item.recipients[index], state, status)]


@pytest.mark.spec("OUT-205")
def test_delivered_ends_an_open_recipient(tables, lost):
    assert tables.late(lost, learnt(lost, State.COMPLETED, DONE)) == {0: Late.STORED}
    row = tables.row(0)
    assert (row.state, row.retry_due, row.dsn_sent) == ("completed", None, 0)
    assert "taken" in row.status_json
    assert tables.row(1).state == "scheduled"


@pytest.mark.spec("OUT-205")
def test_delivered_ends_a_recipient_another_is_about_to_send_to(tables, lost):
    other = tables.lease()
    assert tables.late(lost, learnt(lost, State.COMPLETED, DONE)) == {0: Late.STORED}
    sending = Transmission(0, "mx", "mx.example.net", "192.0.2.1", (0, 1))
    assert tables.mark(other, sending) == {1}
    # That one's failure is no news.
    assert tables.record(other, [update(other.item.recipients[0], state=State.TEMP_FAIL, retry_num=1)])
    assert tables.row(0).state == "completed"


def test_delivered_is_told_by_whoever_claims_the_unit_next(tables, lost):
    tables.late(lost, learnt(lost, State.COMPLETED, DONE))
    again = tables.lease()
    assert again.item.recipients[0].state is State.COMPLETED
    settled = [replace(final(one, State.COMPLETED, DONE), dsn_sent=True) for one in again.item.recipients]
    assert tables.record(again, settled) is Recorded.REMOVED


@pytest.mark.parametrize("status", [CANCELED, OVER])
def test_delivered_corrects_a_cancel_and_an_expiry_nobody_was_told_of(tables, lost, status):
    told = status is CANCELED
    tables.set(0, state="perm_fail", status_json=status_cell(status), retry_due=None, dsn_sent=int(told))
    tables.db.execute("UPDATE unit SET due = ? WHERE NOT ?", (NOW_MS, told))
    assert tables.late(lost, learnt(lost, State.COMPLETED, DONE)) == {0: Late.STORED}
    assert tables.row(0).state == "completed"


@pytest.mark.parametrize(("status", "mark"), [(GONE, None), (OVER, None), (CANCELED, "notify")])
def test_delivered_after_the_sender_was_told_of_a_failure_changes_nothing(tables, lost, status, mark):
    cells = {"status_json": status_cell(status), "retry_due": None, "dsn_sent": 1, "cancel_mark": mark}
    tables.set(0, state="perm_fail", **cells)
    assert tables.late(lost, learnt(lost, State.COMPLETED, DONE)) == {0: Late.TOLD}
    assert tables.row(0).state == "perm_fail"


@pytest.mark.parametrize(("notify", "worth"), [(False, Late.STORED), (True, Late.TOLD)])
def test_delivered_takes_back_a_cancel_unless_the_sender_was_told_of_it(tables, lost, notify, worth):
    # Nobody had the unit when the operator gave the recipient up.
    order = Order(action=Action.CANCEL, notify=notify, actor="olga")
    carry_out(tables.db, order, {7: frozenset({0})}, tables.now_ms)
    if notify:
        telling = tables.lease()
        tables.record(telling, [update(telling.item.recipients[0], dsn_sent=True)])
    assert tables.late(lost, learnt(lost, State.COMPLETED, DONE)) == {0: worth}
    assert tables.row(0).state == ("perm_fail" if notify else "completed")


def test_delivered_twice_is_a_duplicate(tables, lost):
    tables.set(0, state="completed", retry_due=None, dsn_sent=1)
    assert tables.late(lost, learnt(lost, State.COMPLETED, DONE)) == {0: Late.DUPLICATE}


def test_delivered_of_a_message_that_is_gone_changes_nothing(tables, lost):
    tables.db.execute("DELETE FROM message")
    assert tables.late(lost, learnt(lost, State.COMPLETED, DONE)) == {0: Late.TOLD}


def test_a_refusal_counts_while_nobody_else_tries(tables, lost):
    assert tables.late(lost, learnt(lost, State.PERM_FAIL, GONE)) == {0: Late.STORED}
    assert (tables.row(0).state, tables.row(0).dsn_sent) == ("perm_fail", 0)
    assert tables.unit().due == NOW_MS


def test_a_refusal_does_not_count_while_another_tries(tables, lost):
    tables.lease()
    assert tables.late(lost, learnt(lost, State.PERM_FAIL, GONE)) == {0: Late.TOLD}
    assert tables.row(0).state == "scheduled"


def test_a_refusal_counts_when_the_other_is_gone_too(tables, lost):
    tables.lease()
    tables.pass_ms(60_001)
    assert tables.late(lost, learnt(lost, State.PERM_FAIL, GONE)) == {0: Late.STORED}


@pytest.mark.parametrize("state", ["completed", "perm_fail"])
def test_a_refusal_of_one_who_has_an_end_changes_nothing(tables, lost, state):
    tables.set(0, state=state, retry_due=None, dsn_sent=1)
    assert tables.late(lost, learnt(lost, State.PERM_FAIL, GONE)) == {0: Late.TOLD}
    assert tables.row(0).state == state


def test_a_failure_for_now_is_no_news(tables, lost):
    later = update(lost.item.recipients[0], state=State.TEMP_FAIL, retry_due_ms=NOW_MS + 1, retry_num=1)
    assert tables.late(lost, [later]) == {0: Late.TOLD}
    assert (tables.row(0).state, tables.row(0).retry_num) == ("scheduled", 0)


def test_no_later_attempt_has_the_generation_of_one_that_lost_its_lease_whatever_queues_lie_between(tables, lost):
    # The next attempts put everybody into another virtual queue, and back.
    there = tables.lease()
    tables.record(there, [update(one, queue="slow") for one in there.item.recipients])
    back = tables.lease("slow")
    tables.record(back, [update(one, queue="remote") for one in back.item.recipients])
    again = tables.lease()
    assert lost.generation < there.generation < back.generation < again.generation
    # What the first one says now is not taken for the word of the one that runs.
    later = update(lost.item.recipients[0], state=State.TEMP_FAIL, retry_due_ms=NOW_MS + 1, retry_num=1)
    assert tables.record(lost, [later]) is Recorded.LEASE_LOST
    assert tables.unit().lease_gen == again.generation
    assert tables.unit().lease_owner is not None
