"""Each thing that can stand in the way is named when it does, and nothing when the next scan starts it."""

import pytest
from support.sqlite_store import NOW_MS, recipient

from mailgate.mail.status import ErrorKind, RecipientStatus, RemoteReply
from mailgate.queue.connection import connect
from mailgate.queue.entry import entry
from mailgate.queue.inspect import read
from mailgate.queue.item import Content, NewMessage, Source, State
from mailgate.queue.lease import Owner
from mailgate.queue.migrate import migrate
from mailgate.queue.pause import Pause, PauseOf
from mailgate.queue.tables import Tables
from mailgate.queue.why import Blocker, Kind, why

HOUR = 3_600_000
LATER = NOW_MS + HOUR
REFUSED = RecipientStatus("mx.test", ErrorKind.UNEXPECTED_REPLY, "", "RCPT TO", RemoteReply(450, "4.2.0", "Busy"))
DIRECTORY = RecipientStatus("directory ldap", ErrorKind.DEPENDENCY, "no answer in 5s")
FREE = {"remote": 25}


class Queue:
    def __init__(self, path):
        self.db = connect(path, write=True)
        migrate(self.db)
        self.tables = Tables(self.db, Owner.this_process().text, 60_000)

    def add(self, *people, **facts):
        content = Content(1, octets=b"x")
        message = NewMessage(1, NOW_MS, b"", content, "a@b.test", Source.UNAUTHENTICATED, people, **facts)
        self.tables.insert([entry(message)])

    def sql(self, statement, *values):
        self.db.execute(statement, values)

    def reasons(self, *, pauses=None, free=FREE, now_ms=NOW_MS, boot_ms=1000):
        (message,) = read(self.db, [1])
        return why(self.db, message, pauses or {}, free, now_ms, boot_ms)

    def blockers(self, **given):
        (reasons,) = self.reasons(**given)
        return list(reasons.blockers)


@pytest.fixture
def queue(tmp_path):
    queue = Queue(str(tmp_path / "queue.sqlite"))
    yield queue
    queue.db.close()


def failed(status=REFUSED, **facts):
    return recipient(retry_due_ms=LATER, state=State.TEMP_FAIL, status=status, retry_num=3, **facts)


def test_nothing_stands_in_the_way_of_what_is_due(queue):
    queue.add(recipient())
    (reasons,) = queue.reasons()
    assert reasons.blockers == ()
    assert (reasons.due_ms, reasons.expires_ms) == (NOW_MS, NOW_MS + 72 * HOUR)


def test_a_retry_names_the_error_and_the_moment(queue):
    queue.add(failed())
    detail = (
        "after failure number 3, mx.test: Unexpected response for RCPT TO: "
        "Code: 450, Enhanced code: 4.2.0, Message: Busy"
    )
    assert queue.blockers() == [Blocker(Kind.RETRY, "unexpected-reply", detail, LATER)]
    assert queue.blockers(now_ms=LATER) == []


@pytest.mark.spec("OUT-263")
def test_a_dependency_is_named_with_its_reason(queue):
    queue.add(failed(DIRECTORY))
    assert queue.blockers() == [Blocker(Kind.DEPENDENCY, "directory ldap", "no answer in 5s", LATER)]


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (ErrorKind.RATE, Kind.RATE),
        (ErrorKind.CONCURRENCY, Kind.CONCURRENCY),
        (ErrorKind.SUSPENDED, Kind.SUSPENSION),
    ],
)
def test_what_put_an_attempt_off_is_named(queue, kind, named):
    queue.add(failed(RecipientStatus("localhost", kind, "rule-7")))
    (blocker,) = queue.blockers()
    assert (blocker.kind, blocker.name, blocker.until_ms) == (named, "rule-7", LATER)


def test_a_hold_says_who_and_why_and_is_stronger_than_the_rest(queue):
    queue.add(failed(held=True))
    queue.sql("UPDATE recipient SET held_since = ?, held_reason = 'olga: odd'", NOW_MS)
    pause = Pause(NOW_MS, "otto", "a move", "")
    (reasons,) = queue.reasons(pauses={PauseOf.CLUSTER: pause}, free={"remote": 0})
    assert [blocker.kind for blocker in reasons.blockers] == [Kind.HOLD, Kind.PAUSE, Kind.SLOTS]
    assert reasons.blockers[0] == Blocker(Kind.HOLD, "operator", "since 2026-09-21 14:13:20Z, olga: odd")
    assert reasons.blockers[1] == Blocker(Kind.PAUSE, "cluster", "since 2026-09-21 14:13:20Z, by otto: a move")
    assert reasons.due_ms is None


def test_a_future_release_is_a_hold_of_the_sender(queue):
    queue.add(recipient(retry_due_ms=LATER), hold_ms=HOUR)
    assert queue.blockers() == [Blocker(Kind.HOLD, "futurerelease", "its sender asked for 3600 s", LATER)]


def test_who_was_put_off_by_an_operator_waits_without_an_error(queue):
    queue.add(recipient(retry_due_ms=LATER))
    assert [(each.kind, each.name) for each in queue.blockers()] == [(Kind.RETRY, "none")]


def test_a_full_queue_and_one_that_nobody_serves(queue):
    queue.add(recipient())
    assert [(each.kind, each.name) for each in queue.blockers(free={"remote": 0})] == [(Kind.SLOTS, "remote")]
    (blocker,) = queue.blockers(free={"remote": None})
    assert "nobody serves it" in blocker.detail
    assert queue.blockers(free={}) == []


def test_an_attempt_says_how_far_it_is(queue):
    queue.add(recipient())
    queue.tables.claim({"remote": 1}, NOW_MS, 1000)
    (blocker,) = queue.blockers(free={"remote": 0})
    assert (blocker.kind, blocker.name) == (Kind.ATTEMPT, f"process {Owner.this_process().pid}")
    assert blocker.detail.startswith("claimed")
    row = "INSERT INTO attempt VALUES (1, 'remote', 1, ?, ?, 'mx', 'mx.test', '192.0.2.1', '[0]', ?)"
    queue.sql(row, 0, "connected", NOW_MS)
    queue.sql(row, 1, "transmitting", NOW_MS + 1000)
    queue.sql("UPDATE recipient SET cancel_mark = 'cancel'")
    (blocker,) = queue.blockers()
    assert blocker.detail == (
        "transmitting at mx.test [192.0.2.1], since 2026-09-21 14:13:21Z, then cancel, as an operator said"
    )


def test_a_lease_of_the_dead_is_no_attempt(queue):
    queue.add(recipient())
    queue.tables.claim({"remote": 1}, NOW_MS, 1000)
    assert queue.blockers(boot_ms=1000 + 60_001) == []
    queue.sql("UPDATE unit SET lease_owner = 'another-boot/1/1'")
    assert queue.blockers() == []


def test_what_may_have_been_delivered_is_in_doubt(queue):
    queue.add(recipient(0), recipient(1))
    queue.sql("INSERT INTO attempt VALUES (1, 'remote', 0, 0, 'transmitting', 'mx', 'mx.test', '192.0.2.1', '[1]', 0)")
    first, second = queue.reasons()
    assert first.blockers == ()
    (blocker,) = second.blockers
    assert (blocker.kind, blocker.name) == (Kind.IN_DOUBT, "mx.test")
    assert "192.0.2.1" in blocker.detail


def test_who_is_done_has_only_its_notification_left(queue):
    done = RecipientStatus("mx.test", reply=RemoteReply(250, "2.0.0", "OK"))
    queue.add(
        recipient(0, state=State.COMPLETED, status=done, retry_due_ms=None, dsn_sent=True),
        recipient(1, state=State.PERM_FAIL, status=REFUSED, retry_due_ms=None),
    )
    (reasons,) = queue.reasons()
    assert reasons.recipient.index == 1
    assert [blocker.kind for blocker in reasons.blockers] == [Kind.NOTIFICATION]
    assert (reasons.due_ms, reasons.expires_ms) == (None, None)
