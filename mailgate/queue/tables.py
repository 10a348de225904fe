"""The statements that change the queue's tables, on the writer thread only.

Every method runs inside a transaction the writer has begun, and either does
all of what it says or raises, leaving the rest to that transaction's end.

A lease is (owner, generation, until) in a row of `unit`. Claiming raises the
generation by one, giving back raises it again: a result counts only under the
generation it was claimed with, so of two deliverers that believe they hold one
unit at most one is heard. A lease that ran out keeps its generation until the
unit is claimed anew: a late result is still welcome when nobody else began.
"""

from __future__ import annotations

import json
import sqlite3
from base64 import urlsafe_b64encode
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from hashlib import sha256

from mailgate.crash.point import ARMED, passed
from mailgate.queue import rows
from mailgate.queue.item import Lease, NewMessage, QueuedRecipient, QueueItem, RecipientUpdate
from mailgate.queue.ledger import Admission, admit
from mailgate.queue.place import spool_name
from mailgate.queue.schedule import due_ms, expires_ms
from mailgate.queue.store import QuotaExceeded
from mailgate.queue.units import FINAL, units_wanted

_LAPSED = """
UPDATE unit SET lease_owner = NULL, lease_until = NULL WHERE lease_owner IS NOT NULL AND lease_until < ?
RETURNING message_id, queue"""

_CLAIM = """
UPDATE unit SET lease_owner = ?, lease_until = ?, lease_gen = lease_gen + 1
WHERE queue = ? AND message_id IN (
    SELECT message_id FROM unit WHERE queue = ? AND lease_owner IS NULL AND due <= ? ORDER BY due LIMIT ?)
RETURNING message_id, queue, lease_gen, due"""

_EXPIRED = """
UPDATE unit SET lease_owner = ?, lease_until = ?, lease_gen = lease_gen + 1
WHERE (message_id, queue) IN (
    SELECT message_id, queue FROM unit
    WHERE lease_owner IS NULL AND expires IS NOT NULL AND expires <= ? ORDER BY expires LIMIT ?)
RETURNING message_id, queue, lease_gen, expires"""

_RENEW = """
UPDATE unit SET lease_owner = ?, lease_until = ?
FROM (SELECT value ->> 0 AS id, value ->> 1 AS name, value ->> 2 AS gen FROM json_each(?)) AS mine
WHERE message_id = mine.id AND queue = mine.name AND lease_gen = mine.gen
RETURNING message_id, queue"""

_REMOVE_LEASED = """
DELETE FROM message WHERE id = ?
AND EXISTS (SELECT 1 FROM unit WHERE message_id = ? AND queue = ? AND lease_gen = ?)"""

# A final state never changes; only the word about it (dsn_sent) may still be added.
_UPDATE_RECIPIENT = f"""
UPDATE recipient SET state = ?, status_json = ?, queue = ?, schedule = ?, retry_due = ?, retry_num = ?,
    notify_due = ?, notify_num = ?, expires_kind = ?, expires_value = ?, dsn_sent = ?
WHERE message_id = ? AND idx = ? AND (state NOT IN {FINAL} OR state = ?)"""


class Recorded(Enum):
    """What became of a result."""

    LEASE_LOST = "lease-lost"
    """Nothing was stored."""
    STORED = "stored"
    REMOVED = "removed"
    """Stored, and the message is gone: nothing was left to do."""


def content_hash(stored: bytes) -> str:
    """SHA-256 of a message's stored octets, base64url without padding."""
    return hash_text(sha256(stored).digest())


def hash_text(digest: bytes) -> str:
    """A digest as the queue shows it."""
    return urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


class Tables:
    """One writing connection, and the process it writes for."""

    def __init__(self, db: sqlite3.Connection, owner: str, lease_ms: int) -> None:
        self.db = db
        self._owner = owner
        self._lease_ms = lease_ms
        self._insert = {
            table: f"INSERT INTO {table} ({columns}) VALUES {_places(columns)}"
            for table, columns in (
                ("message", rows.NEW_MESSAGE),
                ("content", rows.CONTENT),
                ("recipient", rows.RECIPIENT),
                ("unit", rows.UNIT),
            )
        }

    def insert(self, messages: Sequence[tuple[NewMessage, str | None]]) -> Mapping[int, QuotaExceeded]:
        """Add messages with content, recipients and units; the text is the hash of a content in a file.

        A message that a quota has no room for is left out: the answer names those, by their place in `messages`.
        """
        admission: Admission | None = None
        if any(message.charges for message, _ in messages):
            admission = admit(self.db, [message for message, _ in messages])
            messages = [each for place, each in enumerate(messages) if place not in admission.refused]
        message_rows: list[rows.Row] = []
        content_rows: list[rows.Row] = []
        recipient_rows: list[rows.Row] = []
        unit_rows: list[rows.Row] = []
        for message, digest in messages:
            if message.content.octets is not None:
                stored = message.prefix + message.content.octets
                content_rows.append((message.id, stored, None))
                digest = content_hash(stored)
            else:
                content_rows.append((message.id, message.prefix, spool_name(message.id)))
            if digest is None:
                raise ValueError(f"message {message.id:016x} has neither octets nor the hash of its file")
            message_rows.append(rows.message_row(message, digest))
            recipient_rows += [rows.recipient_row(message, recipient) for recipient in message.recipients]
            unit_rows += _unit_rows(message)
        self.db.executemany(self._insert["message"], message_rows)
        self.db.executemany(self._insert["content"], content_rows)
        self.db.executemany(self._insert["recipient"], recipient_rows)
        self.db.executemany(self._insert["unit"], unit_rows)
        if admission is None:
            return {}
        admission.write(self.db)
        return admission.refused

    def lapse(self, boot_ms: int) -> list[tuple[int, str]]:
        """Free the units whose lease has run out: (queue id, virtual queue) of each."""
        return self.db.execute(_LAPSED, (boot_ms,)).fetchall()

    def claim(self, slots: Mapping[str, int], now_ms: int, boot_ms: int) -> list[Lease]:
        """Lease due units, at most so many of each virtual queue; the one longest due comes first."""
        claimed: list[tuple[int, str, int, int]] = []
        for queue, count in slots.items():
            if count > 0:
                until = boot_ms + self._lease_ms
                claimed += self.db.execute(_CLAIM, (self._owner, until, queue, queue, now_ms, count)).fetchall()
        if ARMED and claimed:
            passed("S1")
        return self._leases(claimed)

    def expired(self, now_ms: int, limit: int, boot_ms: int) -> list[Lease]:
        """Lease free units with a recipient past its time to live."""
        until = boot_ms + self._lease_ms
        return self._leases(self.db.execute(_EXPIRED, (self._owner, until, now_ms, limit)).fetchall())

    def renew(self, leases: Sequence[Lease], boot_ms: int) -> set[int]:
        """Extend leases; the queue ids of those that are lost."""
        mine = json.dumps([(lease.item.id, lease.queue, lease.generation) for lease in leases])
        held = set(self.db.execute(_RENEW, (self._owner, boot_ms + self._lease_ms, mine)).fetchall())
        return {lease.item.id for lease in leases if (lease.item.id, lease.queue) not in held}

    def record(
        self,
        lease: Lease,
        updates: Sequence[RecipientUpdate],
        dsn: tuple[NewMessage, str | None] | None,
        end: bool,
    ) -> Recorded:
        """Store results under a lease; nothing at all when it was lost."""
        if end and _settles_all(lease, updates):
            key = (lease.item.id, lease.item.id, lease.queue, lease.generation)
            done = Recorded.REMOVED if self.db.execute(_REMOVE_LEASED, key).rowcount else Recorded.LEASE_LOST
        else:
            done = self._record_rows(lease, updates, end)
        if dsn is not None and done is not Recorded.LEASE_LOST:
            self.insert((dsn,))
        return done

    def _record_rows(self, lease: Lease, updates: Sequence[RecipientUpdate], end: bool) -> Recorded:
        id_ = lease.item.id
        units: dict[str, tuple[int, str | None, int | None, int | None]] = {
            queue: (gen, owner, due, expires)
            for queue, gen, owner, due, expires in self.db.execute(
                "SELECT queue, lease_gen, lease_owner, due, expires FROM unit WHERE message_id = ?", (id_,)
            ).fetchall()
        }
        if lease.queue not in units or units[lease.queue][0] != lease.generation:
            return Recorded.LEASE_LOST
        if updates:
            self.db.executemany(_UPDATE_RECIPIENT, [rows.update_row(id_, update) for update in updates])
        if end:
            self.db.execute(
                "UPDATE unit SET lease_owner = NULL, lease_until = NULL, lease_gen = lease_gen + 1"
                " WHERE message_id = ? AND queue = ?",
                (id_, lease.queue),
            )
        wanted = units_wanted(self.db, id_)
        idle: list[str] = []
        for queue, (_, owner, _, _) in units.items():
            if queue in wanted:
                continue
            if end if queue == lease.queue else owner is None:
                idle.append(queue)
            else:
                # Under an attempt: it stays until that one's end. Should the end never come, the unit is
                # due, and whoever claims it then has nothing to do but end it.
                wanted[queue] = (lease.item.created_ms, None)
        if not wanted:
            self.db.execute("DELETE FROM message WHERE id = ?", (id_,))
            return Recorded.REMOVED
        for queue in idle:
            self.db.execute("DELETE FROM unit WHERE message_id = ? AND queue = ?", (id_, queue))
        for queue, (due, expires) in wanted.items():
            if queue not in units:
                self.db.execute(self._insert["unit"], (id_, queue, due, expires, 0))
            elif units[queue][2:] != (due, expires):
                self.db.execute(
                    "UPDATE unit SET due = ?, expires = ? WHERE message_id = ? AND queue = ?",
                    (due, expires, id_, queue),
                )
        return Recorded.STORED

    def release_all(self) -> None:
        """Give back what this process still holds, so that the next one need not wait."""
        self.db.execute(
            "UPDATE unit SET lease_owner = NULL, lease_until = NULL WHERE lease_owner IS NOT NULL AND lease_owner = ?",
            (self._owner,),
        )

    def _leases(self, claimed: Sequence[tuple[int, str, int, int]]) -> list[Lease]:
        if not claimed:
            return []
        found = items(self.db, {row[0] for row in claimed})
        return [
            Lease(found[id_], queue, generation)
            for id_, queue, generation, _ in sorted(claimed, key=lambda row: (row[3], row[0]))
        ]


def items(db: sqlite3.Connection, ids: Iterable[int]) -> dict[int, QueueItem]:
    """Queue items by id, in two queries however many they are; ids that are not in the queue are left out."""
    wanted = json.dumps(list(ids))
    of_message: dict[rows.Cell, list[rows.Row]] = defaultdict(list)
    for row in db.execute(
        f"SELECT {rows.RECIPIENT} FROM recipient WHERE message_id IN (SELECT value FROM json_each(?))"
        " ORDER BY message_id, idx",
        (wanted,),
    ).fetchall():
        of_message[row[0]].append(row)
    messages = db.execute(
        f"SELECT {rows.MESSAGE} FROM message WHERE id IN (SELECT value FROM json_each(?))", (wanted,)
    ).fetchall()
    return {row[0]: rows.item(row, of_message[row[0]]) for row in messages}


def _places(columns: str) -> str:
    return "(" + ",".join("?" * (columns.count(",") + 1)) + ")"


def _unit_rows(message: NewMessage) -> list[rows.Row]:
    """One row for each virtual queue, its moments the least of its recipients."""
    created = message.created_ms
    if len(message.recipients) == 1:
        only = message.recipients[0]
        return [(message.id, only.queue, due_ms(only, created), expires_ms(only, created), 0)]
    by_queue: dict[str, list[QueuedRecipient]] = {}
    for recipient in message.recipients:
        by_queue.setdefault(recipient.queue, []).append(recipient)
    return [
        (
            message.id,
            queue,
            min((due for due in (due_ms(r, created) for r in inside) if due is not None), default=None),
            min((end for end in (expires_ms(r, created) for r in inside) if end is not None), default=None),
            0,
        )
        for queue, inside in by_queue.items()
    ]


def _settles_all(lease: Lease, updates: Sequence[RecipientUpdate]) -> bool:
    """True when these updates close the whole message, so that there is no row worth writing."""
    recipients = lease.item.recipients
    return (
        len(updates) >= len(recipients)
        and all(recipient.queue == lease.queue for recipient in recipients)
        and all(update.state.is_final and update.dsn_sent for update in updates)
        and {update.index for update in updates} == {recipient.index for recipient in recipients}
    )
