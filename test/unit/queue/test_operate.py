"""Orders on the tables themselves: what they change, what they leave alone, and what a running attempt sees."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.queue_invariants import violations
from support.sqlite_store import DAY_MS, NOW_MS, recipient

from mailgate.mail.envelope import DeliverBy
from mailgate.mail.status import ErrorKind, RecipientStatus
from mailgate.queue.entry import entry
from mailgate.queue.item import Content, ExpiresBy, Expiry, NewMessage, Source, State
from mailgate.queue.migrate import migrate
from mailgate.queue.operate import MORE_ATTEMPTS, Action, Order, carry_out
from mailgate.queue.sqlite import connect
from mailgate.queue.tables import Tables

HOUR = 3_600_000
DNS = RecipientStatus("example.net", ErrorKind.DNS, "SERVFAIL")
DONE = RecipientStatus("mx.example.net")
LATER = NOW_MS + HOUR


class Queue:
    def __init__(self, directory):
        self.path = str(directory / "queue.sqlite")
        self.spool = str(directory / "spool")
        self.db = connect(self.path, write=True)
        migrate(self.db)
        self.tables = Tables(self.db, "owner", 60_000)

    def add(self, id, *recipients, **facts):
        octets = b"Subject: x\r\n\r\nx\r\n"
        facts = {"source": Source.UNAUTHENTICATED, "return_path": "sender@example.org"} | facts
        content = Content(len(octets), octets=octets)
        self.tables.insert([entry(NewMessage(id, NOW_MS, b"", content, recipients=recipients, **facts))])

    def lease(self, queue="remote"):
        return self.tables.claim({queue: 10}, NOW_MS + DAY_MS, 0)

    def order(self, action, picked, now_ms=NOW_MS + 1000, dry_run=False, **facts):
        before = self.rows()
        self.db.execute("BEGIN IMMEDIATE")
        order = Order(action=action, actor="olga", **facts)
        thought = carry_out(self.db, order, picked, now_ms, dry_run=True)
        assert self.rows() == before
        done = thought if dry_run else carry_out(self.db, order, picked, now_ms)
        self.db.execute("COMMIT")
        assert violations(self.path, self.spool) == []
        # What a dry run promises is what happens.
        assert [(each.id, each.recipients) for each in thought] == [(each.id, each.recipients) for each in done]
        return done

    def rows(self):
        cursor = self.db.execute("SELECT * FROM recipient ORDER BY message_id, idx")
        names = [column[0] for column in cursor.description]
        return [SimpleNamespace(**dict(zip(names, row, strict=True))) for row in cursor]

    def row(self, id, idx=0):
        return next(row for row in self.rows() if (row.message_id, row.idx) == (id, idx))

    def unit(self, id, queue="remote"):
        return self.db.execute(
            "SELECT due, expires FROM unit WHERE message_id = ? AND queue = ?", (id, queue)
        ).fetchone()


@pytest.fixture
def queue(tmp_path):
    queue = Queue(tmp_path)
    yield queue
    queue.db.close()


def waiting(index=0, **facts):
    facts = {"retry_due_ms": LATER, "state": State.TEMP_FAIL, "status": DNS, "retry_num": 3} | facts
    return recipient(index, **facts)


def completed(index):
    return recipient(index, state=State.COMPLETED, status=DONE, retry_due_ms=None, dsn_sent=True)


@pytest.mark.spec("OUT-188", "OUT-192", "OUT-270")
def test_a_retry_moves_the_picked_recipients_of_every_queue_and_nobody_else(queue):
    queue.add(1, waiting(0), waiting(1, queue="slow"), waiting(2), completed(3))
    queue.add(2, waiting(0))
    (change,) = queue.order(Action.RETRY, {1: frozenset({0, 1, 3})}, at_ms=NOW_MS + 5)
    assert (change.id, change.recipients, change.removed) == (1, 2, False)
    assert [queue.row(1, idx).retry_due for idx in range(4)] == [NOW_MS + 5, NOW_MS + 5, LATER, None]
    assert [queue.row(1, idx).retry_num for idx in range(3)] == [3, 3, 3]
    assert queue.row(1, 0).progress == NOW_MS + 1000
    assert queue.row(1, 2).progress is None
    assert queue.unit(1) == (NOW_MS + 5, NOW_MS + 3 * DAY_MS)
    assert queue.unit(1, "slow")[0] == NOW_MS + 5
    assert queue.row(2).retry_due == LATER


@pytest.mark.spec("OUT-189")
@pytest.mark.parametrize(
    ("at_ms", "expires"),
    [
        (NOW_MS + 3 * DAY_MS - 1, ("ttl", 3 * DAY_MS)),
        (NOW_MS + 3 * DAY_MS, ("attempts", 3 + MORE_ATTEMPTS)),
        (NOW_MS + 9 * DAY_MS, ("attempts", 3 + MORE_ATTEMPTS)),
    ],
)
def test_a_retry_at_or_past_the_expiry_leaves_ten_more_attempts(queue, at_ms, expires):
    queue.add(1, waiting())
    queue.order(Action.RETRY, {1: None}, at_ms=at_ms)
    row = queue.row(1)
    assert (row.expires_kind, row.expires_value) == expires
    assert queue.unit(1)[1] == (NOW_MS + 3 * DAY_MS if expires[0] == "ttl" else None)


def test_attempts_that_are_counted_stay_counted(queue):
    queue.add(1, waiting(expiry=Expiry(ExpiresBy.ATTEMPTS, 5)))
    queue.order(Action.RETRY, {1: None}, at_ms=NOW_MS + 9 * DAY_MS)
    assert (queue.row(1).expires_kind, queue.row(1).expires_value) == ("attempts", 5)


def test_a_retry_of_everything_lets_nobody_go_who_is_held(queue):
    queue.add(1, waiting(0, held=True), waiting(1))
    (change,) = queue.order(Action.RETRY, {1: None}, at_ms=NOW_MS)
    assert (change.recipients, change.held) == (1, 1)
    assert queue.row(1, 0).held_since is not None
    assert queue.row(1, 0).retry_due == LATER


@pytest.mark.spec("OUT-032")
def test_a_future_release_can_be_let_go_early_and_cancelled(queue):
    queue.add(1, recipient(0, retry_due_ms=NOW_MS + HOUR), hold_ms=HOUR)
    queue.add(2, recipient(0, retry_due_ms=NOW_MS + HOUR), hold_ms=HOUR)
    queue.order(Action.RETRY, {1: None}, at_ms=NOW_MS)
    assert queue.unit(1)[0] == NOW_MS
    (change,) = queue.order(Action.CANCEL, {2: None})
    assert change.removed


def test_during_an_attempt_a_retry_is_a_wish_for_its_end(queue):
    queue.add(1, waiting(0), waiting(1, queue="slow"))
    queue.lease()
    queue.order(Action.RETRY, {1: None}, at_ms=NOW_MS + 7)
    assert [queue.row(1, idx).asked_due for idx in (0, 1)] == [NOW_MS + 7, None]
    assert [queue.row(1, idx).retry_due for idx in (0, 1)] == [NOW_MS + 7, NOW_MS + 7]


@pytest.mark.spec("OUT-272")
def test_a_held_recipient_is_never_due_and_released_it_lives_as_long_as_before(queue):
    queue.add(1, waiting(0, notify_due_ms=NOW_MS + 2 * HOUR), waiting(1))
    queue.order(Action.HOLD, {1: frozenset({0})}, now_ms=NOW_MS + 1000, reason="looks odd")
    row = queue.row(1)
    assert (row.held_since, row.held_reason) == (NOW_MS + 1000, "olga: looks odd")
    assert queue.unit(1) == (LATER, NOW_MS + 3 * DAY_MS)
    queue.order(Action.HOLD, {1: frozenset({1})}, now_ms=NOW_MS + 2000)
    assert queue.row(1, 1).held_reason == "olga"
    assert queue.unit(1) == (None, None)
    assert queue.tables.claim({"remote": 10}, NOW_MS + 90 * DAY_MS, 0) == []
    assert queue.tables.expired(NOW_MS + 90 * DAY_MS, 10, 0) == []
    now = NOW_MS + 5 * DAY_MS
    queue.order(Action.RELEASE, {1: frozenset({0})}, now_ms=now)
    row = queue.row(1)
    held = 5 * DAY_MS - 1000
    assert (row.held_since, row.held_reason, row.retry_due) == (None, None, now)
    assert row.expires_value == 3 * DAY_MS + held
    assert row.notify_due == NOW_MS + 2 * HOUR + held
    assert queue.unit(1) == (now, NOW_MS + 3 * DAY_MS + held)
    # Others of the message were held, too: when it is all released, later schedules count from that.
    assert queue.db.execute("SELECT hold FROM message").fetchone() == (0,)


def test_a_message_held_as_a_whole_starts_its_schedules_from_the_release(queue):
    queue.add(1, waiting(0), waiting(1), completed(2), hold_ms=500)
    queue.order(Action.HOLD, {1: None}, now_ms=NOW_MS + 1000)
    queue.order(Action.RELEASE, {1: None}, now_ms=NOW_MS + 9000)
    assert queue.db.execute("SELECT hold FROM message").fetchone() == (8500,)


def test_a_deadline_of_the_sender_is_not_moved_by_a_hold(queue):
    end = Expiry(ExpiresBy.TTL, HOUR)
    queue.add(1, waiting(expiry=end), deliver_by=DeliverBy(3600, "R", False))
    queue.order(Action.HOLD, {1: None})
    queue.order(Action.RELEASE, {1: None}, now_ms=NOW_MS + DAY_MS)
    assert queue.row(1).expires_value == HOUR


def test_holding_twice_and_releasing_who_is_not_held_changes_nothing(queue):
    queue.add(1, waiting())
    assert queue.order(Action.RELEASE, {1: None})[0].recipients == 0
    queue.order(Action.HOLD, {1: None}, reason="first")
    assert queue.order(Action.HOLD, {1: None}, reason="second")[0].recipients == 0
    assert queue.row(1).held_reason == "olga: first"


@pytest.mark.spec("OUT-190", "OUT-274")
def test_a_cancel_ends_the_picked_without_a_word_and_the_message_with_its_last_one(queue):
    queue.add(1, waiting(0), waiting(1, held=True, queue="slow"), completed(2))
    (change,) = queue.order(Action.CANCEL, {1: frozenset({0, 2})})
    assert (change.recipients, change.removed) == (1, False)
    row = queue.row(1)
    assert (row.state, row.retry_due, row.notify_due, row.dsn_sent) == ("perm_fail", None, None, 1)
    assert json.loads(row.status_json) == {"entity": "localhost", "kind": "io", "detail": "Delivery canceled."}
    assert queue.row(1, 2).state == "completed"
    assert queue.unit(1) is None
    assert queue.unit(1, "slow") is not None
    (change,) = queue.order(Action.CANCEL, {1: None})
    assert (change.recipients, change.removed, change.spooled) == (1, True, False)
    assert queue.rows() == []
    assert queue.db.execute("SELECT count(*) FROM content").fetchone() == (0,)


@pytest.mark.spec("OUT-274")
def test_a_cancel_that_tells_leaves_the_word_to_the_next_claim(queue):
    queue.add(1, waiting(0), waiting(1))
    (change,) = queue.order(Action.CANCEL, {1: None}, notify=True)
    assert not change.removed
    assert [(row.state, row.dsn_sent) for row in queue.rows()] == [("perm_fail", 0)] * 2
    # Due at once: it was accepted before now.
    assert queue.unit(1) == (NOW_MS, None)


@pytest.mark.parametrize(("notify", "mark"), [(False, "cancel"), (True, "notify")])
def test_during_an_attempt_a_cancel_is_a_mark(queue, notify, mark):
    queue.add(1, waiting(0), waiting(1, queue="slow"))
    queue.lease()
    (change,) = queue.order(Action.CANCEL, {1: None}, notify=notify)
    assert (change.recipients, change.removed) == (2, False)
    assert (queue.row(1).state, queue.row(1).cancel_mark) == ("temp_fail", mark)
    # Whether the sender is told is known of an ended one, too: of results that come late.
    assert (queue.row(1, 1).state, queue.row(1, 1).cancel_mark) == ("perm_fail", "notify" if notify else None)


def test_the_message_of_a_running_attempt_stays_when_nobody_else_is_left(queue):
    queue.add(1, recipient(0, state=State.COMPLETED, status=DONE, retry_due_ms=None), waiting(1, queue="slow"))
    assert queue.lease()
    (change,) = queue.order(Action.CANCEL, {1: None})
    assert not change.removed
    assert queue.unit(1) is not None


@pytest.mark.spec("OUT-274")
def test_a_drop_takes_the_whole_message_at_once(queue):
    queue.add(1, waiting(0), waiting(1, queue="slow"), completed(2))
    (change,) = queue.order(Action.DROP, {1: frozenset({0})})
    assert (change.recipients, change.removed) == (3, True)
    assert queue.rows() == []


def test_during_an_attempt_a_drop_marks_every_open_recipient(queue):
    queue.add(1, waiting(0), waiting(1, queue="slow"), completed(2))
    queue.lease()
    (change,) = queue.order(Action.DROP, {1: frozenset({0})})
    assert not change.removed
    assert [row.cancel_mark for row in queue.rows()] == ["drop", "drop", None]


def test_a_route_is_set_and_given_back_and_waits_unless_it_shall_not(queue):
    queue.add(1, waiting(0), waiting(1))
    queue.order(Action.REROUTE, {1: frozenset({0})}, route="backup")
    assert [row.route_override for row in queue.rows()] == ["backup", None]
    assert queue.row(1).retry_due == LATER
    assert queue.order(Action.REROUTE, {1: frozenset({0})}, route="backup")[0].recipients == 0
    queue.order(Action.REROUTE, {1: None}, route="backup", at_ms=NOW_MS + 1)
    assert [row.retry_due for row in queue.rows()] == [NOW_MS + 1] * 2
    queue.order(Action.REROUTE, {1: None})
    assert [row.route_override for row in queue.rows()] == [None, None]


def test_what_left_the_queue_or_is_over_is_left_alone(queue):
    queue.add(1, completed(0), waiting(1))
    for action in (Action.RETRY, Action.HOLD, Action.REROUTE, Action.CANCEL):
        assert queue.order(action, {1: frozenset({0}), 99: None}, at_ms=NOW_MS, dry_run=True)[0].recipients == 0
    assert carry_out(queue.db, Order(action=Action.DROP), {99: None}, NOW_MS) == []


def test_the_charges_of_a_quota_go_with_the_message(queue):
    queue.add(1, waiting())
    queue.db.execute("INSERT INTO quota_charge VALUES (1, 'message', 'all', 10, 1)")
    queue.db.execute("INSERT INTO quota_usage VALUES ('all', 10, 1)")
    queue.order(Action.DROP, {1: None})
    assert queue.db.execute("SELECT count(*) FROM quota_usage").fetchone() == (0,)


def test_a_failed_recipient_that_waits_for_its_word_keeps_its_unit(queue):
    queue.add(1, replace(completed(0), state=State.PERM_FAIL, dsn_sent=False), waiting(1, queue="slow"))
    queue.order(Action.CANCEL, {1: None})
    assert queue.unit(1) == (NOW_MS, None)
    assert queue.unit(1, "slow") is None
