"""A violation of each invariant is found, and what can be put right is, without losing mail."""

import os
from base64 import urlsafe_b64encode
from contextlib import ExitStack
from hashlib import sha256

import pytest
from support.sqlite_store import DAY_MS, NOW_MS, recipient

from mailgate.mail.status import ErrorKind, RecipientStatus
from mailgate.queue.check import counts, problems
from mailgate.queue.connection import connect
from mailgate.queue.entry import entry
from mailgate.queue.item import Content, NewMessage, Source, State
from mailgate.queue.migrate import migrate
from mailgate.queue.place import spool_name
from mailgate.queue.recover import old_files
from mailgate.queue.repair import repair_ledger, repair_message
from mailgate.queue.tables import Tables

HOUR = 3_600_000
LATER = NOW_MS + HOUR
DONE = RecipientStatus("mx.example.net")
DNS = RecipientStatus("example.net", ErrorKind.DNS, "SERVFAIL")
FILE = os.urandom(1000)
OLD = 1_000_000_000


class Queue:
    """One message of two recipients (1), one with its content in a file (2), one that is under way (3)."""

    def __init__(self, directory):
        self.spool = str(directory / "spool")
        self.db = connect(str(directory / "queue.sqlite"), write=True)
        migrate(self.db)
        tables = Tables(self.db, "boot/1/1", 60_000)
        octets = b"Subject: x\r\n\r\nx\r\n"
        people = (
            recipient(0, state=State.COMPLETED, status=DONE, retry_due_ms=None, dsn_sent=True),
            recipient(1, state=State.TEMP_FAIL, status=DNS, retry_due_ms=LATER),
        )
        tables.insert([entry(self.message(1, Content(len(octets), octets=octets), people))])
        self.put(2, FILE)
        digest = urlsafe_b64encode(sha256(FILE).digest()).rstrip(b"=").decode()
        tables.insert([entry(self.message(2, Content(len(FILE), path="x"), (recipient(retry_due_ms=LATER),)), digest)])
        running = (recipient(queue="other"),)
        tables.insert([entry(self.message(3, Content(len(octets), octets=octets), running))])
        assert len(tables.claim({"other": 1}, NOW_MS, 0)) == 1
        self.sql("INSERT INTO quota_charge VALUES (1, 'recipient 1', 'john', 17, 1)")
        self.sql("INSERT INTO quota_usage VALUES ('john', 17, 1)")

    @staticmethod
    def message(id, content, people):
        return NewMessage(id, NOW_MS, b"", content, "a@example.org", Source.UNAUTHENTICATED, people)

    def put(self, id, octets, at=OLD):
        path = os.path.join(self.spool, spool_name(id))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(octets)
        os.utime(path, (at, at))
        return path

    def sql(self, *statements):
        self.db.execute("PRAGMA foreign_keys = OFF")
        for statement in statements:
            self.db.execute(statement)

    def found(self, now_ms=NOW_MS):
        return list(problems(self.db, self.spool, now_ms, HOUR))

    def repair(self, found):
        self.db.execute("PRAGMA foreign_keys = ON")
        for id_ in {problem.message_id for problem in found} - {None}:
            repair_message(self.db, id_)
        repair_ledger(self.db)


@pytest.fixture
def queue(tmp_path):
    queue = Queue(tmp_path)
    yield queue
    queue.db.close()


def test_a_queue_in_order_has_no_problem_and_a_repair_changes_nothing(queue):
    assert queue.found() == []
    before = list(queue.db.iterdump())
    for id_ in (1, 2, 3, 99):
        repair_message(queue.db, id_)
    repair_ledger(queue.db)
    assert list(queue.db.iterdump()) == before


CLOSE = "UPDATE recipient SET state = 'perm_fail', retry_due = NULL, dsn_sent = 1 WHERE message_id = 1"

REPAIRABLE = [
    ("QI1", 1, "nothing left", [CLOSE, "DELETE FROM quota_usage", "DELETE FROM unit WHERE message_id = 1"]),
    ("QI2", 1, "no unit", ["DELETE FROM unit WHERE message_id = 1"]),
    ("QI2", 2, "nothing to do", ["INSERT INTO unit (message_id, queue, due, lease_gen) VALUES (2, 'ghost', 5, 0)"]),
    ("QI2", 77, "nothing to do", ["INSERT INTO unit (message_id, queue, due, lease_gen) VALUES (77, 'ghost', 5, 0)"]),
    ("QI3", 1, f"due at {LATER + 1}", [f"UPDATE unit SET due = {LATER + 1} WHERE message_id = 1"]),
    ("QI3", 2, "ends at None", ["UPDATE unit SET expires = NULL WHERE message_id = 2"]),
    ("QI4", 2, "is called inline", ["UPDATE message SET content_kind = 'inline' WHERE id = 2"]),
    ("QI5", "john", "18 octets", ["UPDATE quota_usage SET octets = 18"]),
    ("QI5", "jane", "1 messages", ["INSERT INTO quota_usage VALUES ('jane', 5, 1)"]),
    ("QI5", 78, "without their message", ["INSERT INTO quota_charge VALUES (78, 'message', 'john', 0, 0)"]),
    ("QI6", 3, "half a lease", ["UPDATE unit SET lease_until = NULL WHERE message_id = 3"]),
    ("QI6", 3, "lease 1, and", ["INSERT INTO attempt VALUES (3, 'other', 7, 0, 'routed', '', '', '', '[0]', 0)"]),
    ("QI7", 1, "counts as told", ["UPDATE recipient SET dsn_sent = 1 WHERE message_id = 1 AND idx = 1"]),
    ("QI9", 1, "next attempt", ["UPDATE recipient SET retry_due = 5 WHERE message_id = 1 AND idx = 0"]),
    ("QI9", 1, "still charged", ["UPDATE quota_charge SET scope = 'recipient 0'"]),
]


@pytest.mark.spec("OUT-276")
@pytest.mark.parametrize(("invariant", "id", "detail", "statements"), REPAIRABLE)
def test_a_violation_is_found_and_put_right(queue, invariant, id, detail, statements):
    messages = queue.db.execute("SELECT id FROM message").fetchall()
    queue.sql(*statements)
    found = queue.found()
    name = id if isinstance(id, str) else f"{id:016x}"
    assert [(invariant, name)] == [
        (each.invariant, each.id) for each in found if detail in each.detail and each.invariant == invariant
    ]
    queue.repair(found)
    assert queue.found() == []
    kept = queue.db.execute("SELECT id FROM message").fetchall()
    # Only what was done and told goes.
    assert kept == [each for each in messages if not (invariant == "QI1" and each == (1,))]


@pytest.mark.spec("OUT-276")
def test_who_is_past_the_end_and_not_found_by_a_sweep_is_found(queue):
    queue.sql("UPDATE unit SET expires = NULL WHERE message_id = 1")
    now = NOW_MS + 4 * DAY_MS
    found = queue.found(now)
    assert [(each.invariant, each.id) for each in found] == [("QI10", f"{1:016x}")]
    queue.repair(found)
    assert queue.found(now) == []
    # What a sweep will find is no problem, nor what is held.
    queue.sql("UPDATE recipient SET held_since = 5 WHERE message_id = 2", "UPDATE unit SET due = NULL, expires = NULL")
    assert {each.id for each in queue.found(now)} == {f"{1:016x}", f"{3:016x}"}


@pytest.mark.spec("OUT-276")
def test_a_file_without_a_message_is_found_when_it_is_old(queue):
    queue.put(0x55, b"x", at=OLD)
    queue.put(0x56, b"x", at=NOW_MS / 1000 - 60)
    (found,) = queue.found()
    assert (found.invariant, found.id) == ("QI8", f"{0x55:016x}")


def test_a_file_that_goes_while_it_is_looked_for_is_none(queue, monkeypatch):
    """Its message was finished between the list of names and the look at each."""
    queue.put(0x55, b"x", at=OLD)

    class Gone(ExitStack):
        def __init__(self, path, listed=os.scandir):
            super().__init__()
            self.found = list(self.enter_context(listed(path)))

        def __iter__(self):
            for each in self.found:
                os.unlink(each.path)
            return iter(self.found)

    monkeypatch.setattr(os, "scandir", Gone)
    assert old_files(queue.spool, spool_name(0x55)[:2], NOW_MS) == []


LOST = [
    ("QI1", 2, "without recipients", ["DELETE FROM recipient WHERE message_id = 2"]),
    ("QI1", 79, "without their message", ["UPDATE recipient SET message_id = 79 WHERE message_id = 2"]),
    ("QI4", 1, "no content", ["DELETE FROM content WHERE message_id = 1"]),
    ("QI4", 1, "hashes to", ["UPDATE content SET octets = zeroblob(length(octets)) WHERE message_id = 1"]),
    ("QI4", 1, "octets instead of", ["UPDATE content SET octets = x'41' WHERE message_id = 1"]),
    ("QI4", 80, "without its message", ["INSERT INTO content VALUES (80, x'41', NULL)"]),
    ("QI4", 2, "cannot be read", ["UPDATE content SET path = '00/nowhere' WHERE message_id = 2"]),
]


@pytest.mark.spec("OUT-276")
@pytest.mark.parametrize(("invariant", "id", "detail", "statements"), LOST)
def test_what_cannot_be_had_back_is_told_and_left_alone(queue, invariant, id, detail, statements):
    queue.sql(*statements)
    messages = queue.db.execute("SELECT * FROM message").fetchall()
    contents = queue.db.execute("SELECT * FROM content").fetchall()

    def told():
        return [each for each in queue.found() if (each.invariant, each.id) == (invariant, f"{id:016x}")]

    assert [each for each in told() if detail in each.detail]
    queue.repair(queue.found())
    assert [each for each in told() if detail in each.detail]
    assert queue.db.execute("SELECT * FROM message").fetchall() == messages
    assert queue.db.execute("SELECT * FROM content").fetchall() == contents


def test_a_damaged_database_is_told(queue):
    queue.sql("UPDATE unit SET message_id = 81 WHERE message_id = 3")
    assert "integrity" in {each.invariant for each in queue.found()}


def test_a_repair_never_takes_a_lease_that_is_whole(queue):
    queue.sql("UPDATE unit SET due = 1 WHERE message_id = 3")
    before = queue.db.execute("SELECT lease_owner, lease_until, lease_gen FROM unit WHERE message_id = 3").fetchone()
    queue.repair(queue.found())
    assert queue.found() == []
    after = queue.db.execute("SELECT lease_owner, lease_until, lease_gen FROM unit WHERE message_id = 3").fetchone()
    assert after == before


def test_rows_and_files_are_counted(queue):
    found = counts(queue.db, queue.spool)
    assert found == {
        "message": 3,
        "content": 3,
        "recipient": 4,
        "unit": 3,
        "attempt": 0,
        "quota_charge": 1,
        "quota_usage": 1,
        "maildrop": 0,
        "flag": 1,
        "spool_files": 1,
    }
