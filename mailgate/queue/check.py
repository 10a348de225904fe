"""Whether the queue is what it has to be: the invariants of its tables, its ledger and its contents.

Looks and changes nothing; a store that is in use may be looked at, all from one
moment of it. `repair.py` puts right what can be put right without losing mail.
"""

from __future__ import annotations

import os
import sqlite3
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple

from mailgate.queue.content import BLOCK_OCTETS
from mailgate.queue.item import queue_id_text
from mailgate.queue.recover import directories, old_files
from mailgate.queue.units import FINAL, WANTED

_TABLES = (
    "message",
    "content",
    "content_chunk",
    "recipient",
    "unit",
    "attempt",
    "quota_charge",
    "quota_usage",
    "suspension",
    "report_bucket",
    "report_event",
    "incoming_report",
    "policy_cache",
    "maildrop",
    "flag",
    "node",
)


class Problem(NamedTuple):
    """Something that must not be. `id` is a queue id, or the name of what it is about."""

    invariant: str
    """`QI1` to `QI10`, or `integrity` for a database that is damaged as such."""
    id: str
    detail: str
    message_id: int | None = None
    """The message whose rows can be put right; None where that is not what helps."""


def problems(db: sqlite3.Connection, spool_dir: str, now_ms: int, garbage_age_ms: int) -> Iterator[Problem]:
    """Everything that is wrong; reads every content once. `db` is in no transaction."""
    db.execute("BEGIN")
    try:
        yield from _damage(db)
        yield from _messages(db)
        yield from _units(db, now_ms)
        yield from _ledger(db)
        yield from _leases(db)
        yield from _recipients(db)
    finally:
        db.execute("ROLLBACK")
    # Contents never change, and reading them all takes long: not in one transaction, which would hold up the log.
    yield from _contents(db, spool_dir)
    yield from _files(db, spool_dir, now_ms - garbage_age_ms)


def counts(db: sqlite3.Connection, spool_dir: str) -> dict[str, int]:
    """The rows of every table there is, and the files of the spool."""
    known = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    found: dict[str, int] = {
        table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in _TABLES if table in known
    }
    found["spool_files"] = sum(len(old_files(spool_dir, directory, 2**62)) for directory in directories())
    return found


def _damage(db: sqlite3.Connection) -> Iterator[Problem]:
    for (text,) in db.execute("PRAGMA integrity_check"):
        if text != "ok":
            yield Problem("integrity", "database", text)
    for table, _, parent, _ in db.execute("PRAGMA foreign_key_check"):
        yield Problem("integrity", table, f"a row without its {parent}")


def _messages(db: sqlite3.Connection) -> Iterator[Problem]:
    for (id_,) in db.execute(
        "SELECT id FROM message WHERE NOT EXISTS (SELECT 1 FROM recipient WHERE message_id = message.id)"
    ):
        yield Problem("QI1", queue_id_text(id_), "a message without recipients")
    # A unit is there while an attempt runs, and after one that was cut short: its next claim ends the message.
    for (id_,) in db.execute(
        "SELECT id FROM message WHERE EXISTS (SELECT 1 FROM recipient WHERE message_id = message.id)"
        " AND NOT EXISTS (SELECT 1 FROM unit WHERE message_id = message.id)"
        " AND NOT EXISTS (SELECT 1 FROM recipient"
        f" WHERE message_id = message.id AND (state NOT IN {FINAL} OR NOT dsn_sent))"
    ):
        yield Problem("QI1", queue_id_text(id_), "a message with nothing left to do", id_)
    for (id_,) in db.execute(
        "SELECT DISTINCT message_id FROM recipient WHERE message_id NOT IN (SELECT id FROM message)"
    ):
        yield Problem("QI1", queue_id_text(id_), "recipients without their message")


def _units(db: sqlite3.Connection, now_ms: int) -> Iterator[Problem]:
    wanted = f"WITH wanted (message_id, queue, due, expires) AS ({WANTED} GROUP BY 1, 2)"
    for id_, queue, due, expires, found, found_expires, is_there in db.execute(
        f"{wanted} SELECT wanted.message_id, wanted.queue, wanted.due, wanted.expires, unit.due, unit.expires,"
        " unit.message_id IS NOT NULL FROM wanted"
        " LEFT JOIN unit ON unit.message_id = wanted.message_id AND unit.queue = wanted.queue"
        " WHERE unit.message_id IS NULL OR unit.due IS NOT wanted.due OR unit.expires IS NOT wanted.expires"
    ):
        name = queue_id_text(id_)
        if not is_there:
            yield Problem("QI2", name, f"no unit for its recipients in queue {queue}", id_)
        elif due != found:
            yield Problem("QI3", name, f"its unit in queue {queue} is due at {found} instead of {due}", id_)
        if expires is not None and expires <= now_ms and (not is_there or expires != found_expires):
            yield Problem("QI10", name, f"past its time to live in queue {queue}, and no sweep would find it", id_)
        elif is_there and due == found and expires != found_expires:
            yield Problem("QI3", name, f"its unit in queue {queue} ends at {found_expires} instead of {expires}", id_)
    for id_, queue in db.execute(
        f"{wanted} SELECT unit.message_id, unit.queue FROM unit LEFT JOIN message ON message.id = unit.message_id"
        " WHERE (unit.message_id, unit.queue) NOT IN (SELECT message_id, queue FROM wanted)"
        " AND (message.id IS NULL OR unit.due IS NOT message.created OR unit.expires IS NOT NULL)"
    ):
        yield Problem("QI2", queue_id_text(id_), f"a unit in queue {queue} with nothing to do", id_)


def _contents(db: sqlite3.Connection, spool_dir: str) -> Iterator[Problem]:
    last = -1
    while page := db.execute(
        "SELECT id, content_kind, size, content_hash FROM message WHERE id > ? ORDER BY id LIMIT 500", (last,)
    ).fetchall():
        for id_, kind, size, digest in page:
            detail = _content_fault(db, spool_dir, id_, kind, size, digest)
            # A message that was finished meanwhile took its content along.
            if detail is not None and _is_there(db, id_):
                yield Problem("QI4", queue_id_text(id_), detail, id_)
        last = page[-1][0]
    for (id_,) in db.execute("SELECT message_id FROM content WHERE message_id NOT IN (SELECT id FROM message)"):
        yield Problem("QI4", queue_id_text(id_), "a content without its message")


def _content_fault(db: sqlite3.Connection, spool_dir: str, id_: int, kind: str, size: int, digest: str) -> str | None:
    row = db.execute("SELECT octets, path FROM content WHERE message_id = ?", (id_,)).fetchone()
    if row is None:
        return "no content"
    octets: bytes = row[0]
    path: str | None = row[1]
    hashed = sha256(octets)
    found_size = len(octets)
    if path is not None:
        try:
            with open(os.path.join(spool_dir, path), "rb", buffering=0) as file:
                while block := file.read(BLOCK_OCTETS):
                    hashed.update(block)
                    found_size += len(block)
        except OSError as failure:
            return f"its file {path} cannot be read: {failure.strerror}"
    found = urlsafe_b64encode(hashed.digest()).rstrip(b"=").decode("ascii")
    if found_size != size:
        return f"its content has {found_size} octets instead of {size}"
    if found != digest:
        return f"its content hashes to {found} instead of {digest}"
    if kind != ("inline" if path is None else "spool"):
        return f"its content is called {kind} and is in {path or 'its row'}"
    return None


def _ledger(db: sqlite3.Connection) -> Iterator[Problem]:
    for (id_,) in db.execute(
        "SELECT DISTINCT message_id FROM quota_charge WHERE message_id NOT IN (SELECT id FROM message)"
    ):
        yield Problem("QI5", queue_id_text(id_), "charges without their message")
    for bucket, octets, messages, used_octets, used_messages in db.execute(
        "WITH charged AS (SELECT bucket, sum(octets) AS octets, sum(messages) AS messages FROM quota_ledger GROUP BY 1)"
        " SELECT bucket, charged.octets, charged.messages, ifnull(used.octets, 0), ifnull(used.messages, 0)"
        " FROM charged LEFT JOIN quota_usage AS used USING (bucket)"
        " WHERE charged.octets IS NOT used.octets OR charged.messages IS NOT used.messages"
        " UNION ALL SELECT bucket, 0, 0, octets, messages FROM quota_usage"
        " WHERE (octets <> 0 OR messages <> 0) AND bucket NOT IN (SELECT bucket FROM quota_ledger)"
    ):
        detail = f"used are {used_messages} messages and {used_octets} octets, charged {messages} and {octets}"
        yield Problem("QI5", bucket, detail)


def _leases(db: sqlite3.Connection) -> Iterator[Problem]:
    for id_, queue in db.execute(
        "SELECT message_id, queue FROM unit WHERE (lease_owner IS NULL) <> (lease_until IS NULL)"
    ):
        yield Problem("QI6", queue_id_text(id_), f"half a lease of its unit in queue {queue}", id_)
    for id_, queue, generation, found in db.execute(
        "SELECT attempt.message_id, attempt.queue, max(attempt.lease_gen), unit.lease_gen FROM attempt"
        " JOIN unit ON unit.message_id = attempt.message_id AND unit.queue = attempt.queue"
        " WHERE attempt.lease_gen > unit.lease_gen GROUP BY 1, 2"
    ):
        detail = f"its unit in queue {queue} has lease {found}, and an attempt under lease {generation} is known"
        yield Problem("QI6", queue_id_text(id_), detail, id_)


def _recipients(db: sqlite3.Connection) -> Iterator[Problem]:
    for id_, index in db.execute(f"SELECT message_id, idx FROM recipient WHERE state NOT IN {FINAL} AND dsn_sent"):
        yield Problem("QI7", queue_id_text(id_), f"recipient {index} is open, and its end counts as told", id_)
    for id_, index in db.execute(
        f"SELECT message_id, idx FROM recipient WHERE state IN {FINAL} AND retry_due IS NOT NULL"
    ):
        yield Problem("QI9", queue_id_text(id_), f"recipient {index} is closed and has a next attempt", id_)
    for id_, index in db.execute(
        "SELECT recipient.message_id, idx FROM recipient JOIN quota_charge"
        " ON quota_charge.message_id = recipient.message_id AND scope = 'recipient ' || idx"
        f" WHERE state IN {FINAL}"
    ):
        yield Problem("QI9", queue_id_text(id_), f"recipient {index} is closed and still charged", id_)


def _files(db: sqlite3.Connection, spool_dir: str, before_ms: int) -> Iterator[Problem]:
    for directory in directories():
        for id_ in old_files(spool_dir, directory, before_ms):
            row = db.execute("SELECT path FROM content WHERE message_id = ?", (id_,)).fetchone()
            if row is None or row[0] is None:
                yield Problem("QI8", queue_id_text(id_), f"a file in spool directory {directory} without a message")


def _is_there(db: sqlite3.Connection, id_: int) -> bool:
    return db.execute("SELECT 1 FROM message WHERE id = ?", (id_,)).fetchone() is not None
