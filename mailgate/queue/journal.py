"""The journal: what attempts are doing, and what is made of it when their deliverer is gone.

    mark      the octets that end the message may go out from now on: durable before they do
    note      where a long attempt is, for those who look at it
    free      a deliverer is gone: who may have been delivered to waits a minute, so that a next hop
              that is still busy can finish; nobody else does
    revoke    a deliverer makes no progress: its lease is taken from it

A transaction that is marked is in doubt until its result is stored. It is
repeated with identical octets: losing mail is worse than a duplicate.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence

from mailgate.queue.item import Doubt, Lapsed, Lease, Phase, Stuck, Transmission, Whereabouts
from mailgate.queue.operate import CANCELED
from mailgate.queue.rows import status_cell
from mailgate.queue.units import FINAL, settle, units_found

IN_DOUBT_MS = 60_000
"""The least time between a delivery that is in doubt and its repetition."""

_NOBODY = -1
_TRANSMITTING = Phase.TRANSMITTING.value

# A next hop must not get the message for one who has it, or shall not have it, by now.
_DROPS = f"idx BETWEEN ? AND ? AND (state IN {FINAL} OR cancel_mark IS NOT NULL)"

_MARK = f"""
INSERT INTO attempt (message_id, queue, lease_gen, group_no, phase, route, host, ip, rcpt_idx, since)
SELECT message_id, queue, lease_gen, ?, '{_TRANSMITTING}', ?, ?, ?, ?, ? FROM unit
WHERE message_id = ? AND queue = ? AND lease_gen = ? AND lease_owner IS NOT NULL AND lease_until >= ?
    AND NOT EXISTS (SELECT 1 FROM recipient WHERE message_id = unit.message_id AND {_DROPS})
ON CONFLICT DO UPDATE SET phase = excluded.phase, route = excluded.route, host = excluded.host, ip = excluded.ip,
    rcpt_idx = excluded.rcpt_idx, since = excluded.since"""

_NOTE = f"""
INSERT INTO attempt (message_id, queue, lease_gen, group_no, phase, route, host, ip, rcpt_idx, since)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET phase = excluded.phase, route = excluded.route, host = excluded.host, ip = excluded.ip,
    rcpt_idx = excluded.rcpt_idx, since = excluded.since WHERE phase <> '{_TRANSMITTING}'"""

_DROPPED = f"SELECT idx FROM recipient WHERE message_id = ? AND {_DROPS}"

# Whoever an attempt has moved to a virtual queue where nobody tries it has no other end to wait for.
_CANCEL = f"""
UPDATE recipient SET state = 'perm_fail', status_json = ?, retry_due = NULL, notify_due = NULL, progress = ?,
    dsn_sent = (cancel_mark <> 'notify')
WHERE message_id = ? AND cancel_mark IS NOT NULL AND state NOT IN {FINAL} AND (queue = ? OR cancel_mark = 'drop'
    OR NOT EXISTS (SELECT 1 FROM unit WHERE unit.message_id = recipient.message_id AND unit.queue = recipient.queue
        AND lease_owner IS NOT NULL))"""

# Of a message that is to go without a word nobody is told, whatever became of it.
_SILENCE = f"""
UPDATE recipient SET dsn_sent = 1 WHERE message_id = ? AND state IN {FINAL} AND NOT dsn_sent
AND EXISTS (SELECT 1 FROM recipient AS other WHERE other.message_id = recipient.message_id AND cancel_mark = 'drop')"""

_ASKED = f"""
UPDATE recipient SET retry_due = asked_due, asked_due = NULL
WHERE message_id = ? AND queue = ? AND asked_due IS NOT NULL AND state NOT IN {FINAL}"""


def mark(
    db: sqlite3.Connection, lease: Lease, transmission: Transmission, now_ms: int, boot_ms: int
) -> frozenset[int] | None:
    """Write down that a transaction is about to end; the recipients it may still be for, None when the lease is lost.

    Nothing is written when nobody is left.
    """
    left = frozenset(transmission.indexes)
    lowest, highest = min(left), max(left)
    key = (lease.item.id, lease.queue, lease.generation, boot_ms)
    if _write(db, transmission, left, now_ms, key, lowest, highest):
        return left
    # The lease is lost, or somebody dropped out; the rest are looked at one by one then.
    left -= {idx for (idx,) in db.execute(_DROPPED, (lease.item.id, lowest, highest))}
    if left:
        return left if _write(db, transmission, left, now_ms, key, _NOBODY, _NOBODY) else None
    held = db.execute(
        "SELECT 1 FROM unit WHERE message_id = ? AND queue = ? AND lease_gen = ? AND lease_until >= ?", key
    ).fetchone()
    return None if held is None else left


def _write(
    db: sqlite3.Connection,
    transmission: Transmission,
    left: frozenset[int],
    now_ms: int,
    key: tuple[int, str, int, int],
    lowest: int,
    highest: int,
) -> bool:
    """Write a mark under a lease that holds, unless one of these recipients has dropped out."""
    about = (transmission.number, transmission.route, transmission.host, transmission.ip)
    named = f"[{','.join(map(str, sorted(left)))}]"
    return bool(db.execute(_MARK, (*about, named, now_ms, *key, lowest, highest)).rowcount)


def note(db: sqlite3.Connection, lease: Lease, where: Whereabouts) -> None:
    """Write down where an attempt is, unless more is known of that transaction."""
    at = where.transmission
    db.execute(
        _NOTE,
        (
            lease.item.id,
            lease.queue,
            lease.generation,
            at.number,
            where.phase.value,
            at.route,
            at.host,
            at.ip,
            json.dumps(at.indexes),
            where.since_ms,
        ),
    )


def close(db: sqlite3.Connection, lease: Lease) -> None:
    """The transactions of a lease have their results."""
    db.execute("DELETE FROM attempt WHERE message_id = ? AND queue = ?", (lease.item.id, lease.queue))


def honour(db: sqlite3.Connection, message_id: int, queue: str, now_ms: int) -> None:
    """At the end of an attempt: do what operators asked for meanwhile of those it did not decide about."""
    db.execute(_CANCEL, (status_cell(CANCELED), now_ms, message_id, queue))
    db.execute(_SILENCE, (message_id,))
    db.execute(_ASKED, (message_id, queue))


def free(db: sqlite3.Connection, units: Iterable[tuple[int, str]], now_ms: int) -> list[Lapsed]:
    """Take units from deliverers that are gone; each can be claimed again, or waits because it is in doubt."""
    lapsed = []
    for id_, queue in units:
        (owner,) = db.execute(
            "SELECT lease_owner FROM unit WHERE message_id = ? AND queue = ?", (id_, queue)
        ).fetchone()
        doubts = _doubts(db, id_, queue, now_ms)
        db.execute("DELETE FROM attempt WHERE message_id = ? AND queue = ?", (id_, queue))
        honour(db, id_, queue, now_ms)
        (created,) = db.execute("SELECT created FROM message WHERE id = ?", (id_,)).fetchone()
        # While the unit still has an owner: where nothing is left to do, whoever claims it next says so and ends it.
        settle(db, id_, created, units_found(db, id_))
        db.execute(
            "UPDATE unit SET lease_owner = NULL, lease_until = NULL WHERE message_id = ? AND queue = ?", (id_, queue)
        )
        lapsed.append(Lapsed(id_, queue, owner or "", doubts))
    return lapsed


def _doubts(db: sqlite3.Connection, id_: int, queue: str, now_ms: int) -> tuple[Doubt, ...]:
    """Put off everybody who may have been delivered to."""
    doubts = []
    for named, host, since in db.execute(
        f"SELECT rcpt_idx, host, since FROM attempt WHERE message_id = ? AND queue = ? AND phase = '{_TRANSMITTING}'",
        (id_, queue),
    ).fetchall():
        addresses = db.execute(
            "UPDATE recipient SET retry_due = max(ifnull(retry_due, 0), ?) WHERE message_id = ?"
            f" AND idx IN (SELECT value FROM json_each(?)) AND state NOT IN {FINAL} RETURNING address",
            (now_ms + IN_DOUBT_MS, id_, named),
        ).fetchall()
        if addresses:
            doubts.append(Doubt(tuple(address for (address,) in addresses), host, since))
    return tuple(doubts)


def revoke(db: sqlite3.Connection, before_ms: int, now_ms: int, limit: int) -> list[Stuck]:
    """Take their leases from attempts without progress since a moment: their results are late from now on."""
    stuck = []
    for id_, queue, progress in db.execute(
        "SELECT message_id, queue, progress FROM unit INDEXED BY unit_lease"
        " WHERE lease_owner IS NOT NULL AND progress IS NOT NULL AND progress < ? LIMIT ?",
        (before_ms, limit),
    ).fetchall():
        last = db.execute(
            "SELECT phase, host FROM attempt WHERE message_id = ? AND queue = ? ORDER BY group_no DESC LIMIT 1",
            (id_, queue),
        ).fetchone()
        db.execute("UPDATE unit SET lease_gen = lease_gen + 1 WHERE message_id = ? AND queue = ?", (id_, queue))
        phase, host = (Phase(last[0]), last[1]) if last is not None else (Phase.CLAIMED, "")
        (lapsed,) = free(db, ((id_, queue),), now_ms)
        stuck.append(Stuck(lapsed, phase, host, now_ms - progress))
    return stuck


def lapsed_units(db: sqlite3.Connection, boot_ms: int) -> Sequence[tuple[int, str]]:
    """The units whose lease has run out: (queue id, virtual queue)."""
    return db.execute(
        "SELECT message_id, queue FROM unit WHERE lease_owner IS NOT NULL AND lease_until < ?", (boot_ms,)
    ).fetchall()
