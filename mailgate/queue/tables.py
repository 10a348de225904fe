"""The statements that change the queue's tables, on the writer thread only.

Every method runs inside a transaction the writer has begun, and either does
all of what it says or raises, leaving the rest to that transaction's end.

A lease is (owner, generation, until) in a row of `unit`. Claiming raises the
generation by one, giving back raises it again: a result counts only under the
generation it was claimed with, so of two deliverers that believe they hold one
unit at most one is heard. A lease that ran out keeps its generation until the
unit is claimed anew: a late result is still welcome when nobody else began.
What is made of one that is not: `late.py`. What attempts leave behind when their
process ends: `journal.py`.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from itertools import chain

from mailgate.crash.point import ARMED, passed
from mailgate.queue import journal, late, rows
from mailgate.queue import lease as host
from mailgate.queue.entry import Entry
from mailgate.queue.item import (
    Lapsed,
    Late,
    Lease,
    QueueItem,
    RecipientUpdate,
    State,
    Stuck,
    Transmission,
    Whereabouts,
)
from mailgate.queue.ledger import Admission, admit
from mailgate.queue.store import QuotaExceeded
from mailgate.queue.units import FINAL, settle, units_found

_CLAIM = """
UPDATE unit SET lease_owner = ?, lease_until = ?, lease_gen = lease_gen + 1, progress = ?
WHERE queue = ? AND message_id IN (
    SELECT message_id FROM unit WHERE queue = ? AND lease_owner IS NULL AND due <= ? ORDER BY due LIMIT ?)
RETURNING message_id, queue, lease_gen, due"""

_EXPIRED = """
UPDATE unit SET lease_owner = ?, lease_until = ?, lease_gen = lease_gen + 1, progress = ?
WHERE (message_id, queue) IN (
    SELECT message_id, queue FROM unit
    WHERE lease_owner IS NULL AND expires IS NOT NULL AND expires <= ? ORDER BY expires LIMIT ?)
RETURNING message_id, queue, lease_gen, expires"""

_RENEW = """
UPDATE unit SET lease_until = ?, progress = max(ifnull(progress, 0), mine.since)
FROM (SELECT value ->> 0 AS id, value ->> 1 AS name, value ->> 2 AS gen, value ->> 3 AS since
    FROM json_each(?)) AS mine
WHERE message_id = mine.id AND queue = mine.name AND lease_gen = mine.gen AND lease_owner = ?
RETURNING message_id, queue"""

_REMOVE_LEASED = """
DELETE FROM message WHERE id = ?
AND EXISTS (SELECT 1 FROM unit WHERE message_id = ? AND queue = ? AND lease_gen = ?)"""

# A final state never changes; only the word about it (dsn_sent) may still be added. When an operator
# has asked for another attempt meanwhile, it comes when that one said, and expiry is as that one left it.
_UPDATE_RECIPIENT = f"""
UPDATE recipient SET state = ?, status_json = ?, queue = ?, schedule = ?,
    retry_due = CASE WHEN ? IS NOT NULL THEN ifnull(asked_due, ?) END, retry_num = ?,
    notify_due = ?, notify_num = ?,
    expires_kind = CASE WHEN asked_due IS NULL THEN ? ELSE expires_kind END,
    expires_value = CASE WHEN asked_due IS NULL THEN ? ELSE expires_value END,
    dsn_sent = ?, progress = ?, asked_due = NULL
WHERE message_id = ? AND idx = ? AND (state NOT IN {FINAL} OR state = ?)"""
# Names begin with the time in hex; what follows a "#" is the number of a recipient.
_FORGET_DROPS = """
DELETE FROM maildrop WHERE name IN (
    SELECT name FROM maildrop WHERE name < ? AND taken < ?
    AND substr(name || '#', 1, instr(name || '#', '#') - 1) NOT IN (SELECT value FROM json_each(?)) LIMIT ?)"""


class Recorded(Enum):
    """What became of a result."""

    LEASE_LOST = "lease-lost"
    """Nothing was stored."""
    STORED = "stored"
    REMOVED = "removed"
    """Stored, and the message is gone: nothing was left to do."""


class _Rows:
    """Inserts into one table, many rows with one statement.

    Each step of a statement lets another thread have the interpreter, and has
    to wait for it afterwards: a step for each row is most of what an insert costs.
    """

    _MOST = 32

    def __init__(self, db: sqlite3.Connection, table: str, columns: str) -> None:
        self._db = db
        self._head = f"INSERT INTO {table} ({columns}) VALUES "
        self._places = _places(columns)

    def insert(self, new: Sequence[rows.Row]) -> None:
        """Insert rows."""
        for at in range(0, len(new), self._MOST):
            some = new[at : at + self._MOST]
            cells = some[0] if len(some) == 1 else tuple(chain.from_iterable(some))
            self._db.execute(self._head + ",".join((self._places,) * len(some)), cells)


class Tables:
    """One writing connection, and the process it writes for."""

    def __init__(
        self, db: sqlite3.Connection, owner: str, lease_ms: int, wall_ms: Callable[[], int] = host.wall_ms
    ) -> None:
        self.db = db
        self._wall_ms = wall_ms
        self._owner = owner
        self._lease_ms = lease_ms
        self._new = tuple(
            _Rows(db, table, columns)
            for table, columns in (
                ("message", rows.NEW_MESSAGE),
                ("content", rows.CONTENT),
                ("recipient", rows.RECIPIENT),
                ("unit", rows.UNIT),
            )
        )

    def insert(self, new: Sequence[Entry]) -> Mapping[int, QuotaExceeded]:
        """Add messages with content, recipients and units.

        A message that a quota has no room for is left out: the answer names those, by their place in `new`.
        """
        admission: Admission | None = None
        if any(each.of.charges for each in new):
            admission = admit(self.db, [each.of for each in new])
            new = [each for place, each in enumerate(new) if place not in admission.refused]
        messages, contents, recipients, units = self._new
        messages.insert([each.message for each in new])
        contents.insert([each.content for each in new])
        recipients.insert([row for each in new for row in each.recipients])
        units.insert([row for each in new for row in each.units])
        drops = [row for each in new for row in each.drops]
        if drops:
            # A name that is there already fails the message: it is in the queue.
            self.db.executemany("INSERT INTO maildrop (name, message_id, taken) VALUES (?, ?, ?)", drops)
        if admission is None:
            return {}
        admission.write(self.db)
        return admission.refused

    def lapse(self, boot_ms: int, now_ms: int) -> list[Lapsed]:
        """Free the units whose lease has run out."""
        return journal.free(self.db, journal.lapsed_units(self.db, boot_ms), now_ms)

    def revoke(self, before_ms: int, now_ms: int, limit: int) -> list[Stuck]:
        """Take the leases of attempts that made no progress since a moment."""
        return journal.revoke(self.db, before_ms, now_ms, limit)

    def claim(self, slots: Mapping[str, int], now_ms: int, boot_ms: int) -> list[Lease]:
        """Lease due units, at most so many of each virtual queue; the one longest due comes first."""
        claimed: list[tuple[int, str, int, int]] = []
        for queue, count in slots.items():
            if count > 0:
                until = boot_ms + self._lease_ms
                claimed += self.db.execute(_CLAIM, (self._owner, until, now_ms, queue, queue, now_ms, count)).fetchall()
        if ARMED and claimed:
            passed("S1")
        return self._leases(claimed)

    def expired(self, now_ms: int, limit: int, boot_ms: int) -> list[Lease]:
        """Lease free units with a recipient past its time to live."""
        until = boot_ms + self._lease_ms
        return self._leases(self.db.execute(_EXPIRED, (self._owner, until, now_ms, now_ms, limit)).fetchall())

    def renew(
        self, leases: Sequence[Lease], moved: Mapping[tuple[int, str], Whereabouts], boot_ms: int
    ) -> set[tuple[int, str]]:
        """Extend leases, and write down where those attempts are that have `moved`; the units that are lost."""
        mine = json.dumps(
            [
                (id_, queue, lease.generation, moved[id_, queue].since_ms if (id_, queue) in moved else 0)
                for lease in leases
                for id_, queue in ((lease.item.id, lease.queue),)
            ]
        )
        held = set(self.db.execute(_RENEW, (boot_ms + self._lease_ms, mine, self._owner)).fetchall())
        lost: set[tuple[int, str]] = set()
        for lease in leases:
            unit = (lease.item.id, lease.queue)
            if unit not in held:
                lost.add(unit)
            elif unit in moved:
                journal.note(self.db, lease, moved[unit])
        return lost

    def transmitting(self, lease: Lease, transmission: Transmission, boot_ms: int) -> frozenset[int] | None:
        """Write down that a transaction is about to end: whom it may still be for; None when the lease is lost."""
        return journal.mark(self.db, lease, transmission, self._wall_ms(), boot_ms)

    def record(
        self,
        lease: Lease,
        updates: Sequence[RecipientUpdate],
        dsn: Entry | None,
        end: bool,
        closes: bool = True,
        silenced: frozenset[int] = frozenset(),
    ) -> Recorded | frozenset[int]:
        """Store results under a lease; nothing at all when it was lost, or when a DSN tells of the unmentionable.

        The second is answered by the recipients a notification must not tell
        of, because an operator has cancelled them; `silenced` are those the
        caller knows of. With `closes` the transaction in the journal is over.
        """
        if end and _delivers_all(lease, updates):
            key = (lease.item.id, lease.item.id, lease.queue, lease.generation)
            done = Recorded.REMOVED if self.db.execute(_REMOVE_LEASED, key).rowcount else Recorded.LEASE_LOST
        else:
            if dsn is not None:
                unmentionable = self._canceled(lease, updates) - silenced
                if unmentionable:
                    return unmentionable
            done = self._record_rows(lease, updates, end, closes)
        if dsn is not None and done is not Recorded.LEASE_LOST:
            self.insert((dsn,))
        return done

    def _canceled(self, lease: Lease, updates: Sequence[RecipientUpdate]) -> frozenset[int]:
        marked = self.db.execute(
            "SELECT idx FROM recipient WHERE message_id = ? AND cancel_mark IN ('cancel', 'drop')", (lease.item.id,)
        ).fetchall()
        return frozenset(idx for (idx,) in marked) & {update.index for update in updates}

    def _record_rows(self, lease: Lease, updates: Sequence[RecipientUpdate], end: bool, closes: bool) -> Recorded:
        id_ = lease.item.id
        found = units_found(self.db, id_)
        if lease.queue not in found or found[lease.queue].generation != lease.generation:
            return Recorded.LEASE_LOST
        now_ms = self._wall_ms()
        if updates:
            self.db.executemany(_UPDATE_RECIPIENT, [rows.update_row(id_, update, now_ms) for update in updates])
        if end:
            self.db.execute(
                "UPDATE unit SET lease_owner = NULL, lease_until = NULL, lease_gen = lease_gen + 1, progress = ?"
                " WHERE message_id = ? AND queue = ?",
                (now_ms, id_, lease.queue),
            )
            journal.honour(self.db, id_, lease.queue, now_ms)
        if closes:
            journal.close(self.db, lease)
        left = settle(self.db, id_, lease.item.created_ms, found, ending=lease.queue if end else None)
        return Recorded.STORED if left else Recorded.REMOVED

    def late(self, lease: Lease, learnt: Sequence[RecipientUpdate], boot_ms: int) -> Mapping[int, Late]:
        """Store what is still news of results whose lease was lost."""
        return late.merge(self.db, lease, learnt, self._wall_ms(), boot_ms)

    def forget_drops(self, before_ms: int, present: Sequence[str], limit: int) -> int:
        """Forget what was taken from the maildrop before a moment, but for the files that are still there; how many."""
        return self.db.execute(_FORGET_DROPS, (f"{before_ms:012x}", before_ms, json.dumps(present), limit)).rowcount

    def release_all(self) -> list[Lapsed]:
        """Give back what this process still holds, so that the next one need not wait."""
        mine = self.db.execute(
            "SELECT message_id, queue FROM unit WHERE lease_owner IS NOT NULL AND lease_owner = ?", (self._owner,)
        ).fetchall()
        return journal.free(self.db, mine, self._wall_ms())

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
        f"SELECT {rows.RECIPIENT_READ} FROM recipient WHERE message_id IN (SELECT value FROM json_each(?))"
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


def _delivers_all(lease: Lease, updates: Sequence[RecipientUpdate]) -> bool:
    """True when these updates close the whole message, so that there is no row worth writing.

    Not where one has failed: an operator may have had a say in that meanwhile.
    """
    recipients = lease.item.recipients
    return (
        len(updates) >= len(recipients)
        and all(recipient.queue == lease.queue for recipient in recipients)
        and all(update.state is State.COMPLETED and update.dsn_sent for update in updates)
        and {update.index for update in updates} == {recipient.index for recipient in recipients}
    )
