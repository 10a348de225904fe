"""What table `unit` must say of a message: `schedule.due_ms` and `expires_ms`, as the least of each virtual queue."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import NamedTuple

FINAL = "('completed', 'perm_fail')"
"""The states nothing follows, as SQL."""

NEVER = 2**63 - 1

WANTED = f"""
SELECT message_id, queue,
    min(CASE
        WHEN state IN {FINAL} THEN created
        WHEN held_since IS NULL THEN nullif(min(
            ifnull(retry_due, {NEVER}), ifnull(notify_due, {NEVER}),
            CASE expires_kind WHEN 'ttl' THEN created + expires_value ELSE {NEVER} END), {NEVER})
        END),
    min(CASE WHEN state NOT IN {FINAL} AND held_since IS NULL AND expires_kind = 'ttl'
        THEN created + expires_value END)
FROM recipient JOIN message ON message.id = recipient.message_id
WHERE (state NOT IN {FINAL} OR NOT dsn_sent)"""
"""The queue id, virtual queue, due moment and expiry of every unit there should be; more conditions may follow."""

_OF_ONE = f"{WANTED} AND recipient.message_id = ? GROUP BY 1, 2"


def units_wanted(db: sqlite3.Connection, message_id: int) -> dict[str, tuple[int | None, int | None]]:
    """The due moment and the expiry of every unit one message should have, by virtual queue."""
    return {queue: (due, expires) for _, queue, due, expires in db.execute(_OF_ONE, (message_id,)).fetchall()}


class Unit(NamedTuple):
    """What table `unit` says of one virtual queue of a message."""

    generation: int
    owner: str | None
    due: int | None
    expires: int | None


def units_found(db: sqlite3.Connection, message_id: int) -> dict[str, Unit]:
    """The units of a message as they are, by virtual queue."""
    return {
        queue: Unit(*cells)
        for queue, *cells in db.execute(
            "SELECT queue, lease_gen, lease_owner, due, expires FROM unit WHERE message_id = ?", (message_id,)
        ).fetchall()
    }


def settle(
    db: sqlite3.Connection, message_id: int, created_ms: int, found: Mapping[str, Unit], ending: str | None = None
) -> bool:
    """Bring the units of a message in line with its recipients; False when nothing was left, and the message is gone.

    `ending` is the virtual queue whose attempt is over; the units of other
    attempts stay until these end.
    """
    wanted = units_wanted(db, message_id)
    idle: list[str] = []
    for queue, unit in found.items():
        if queue in wanted:
            continue
        if queue == ending or unit.owner is None:
            idle.append(queue)
        else:
            # Under an attempt: it stays until that one's end. Should the end never come, the unit is
            # due, and whoever claims it then has nothing to do but end it.
            wanted[queue] = (created_ms, None)
    if not wanted:
        db.execute("DELETE FROM message WHERE id = ?", (message_id,))
        return False
    for queue in idle:
        db.execute("DELETE FROM unit WHERE message_id = ? AND queue = ?", (message_id, queue))
    # Recipients may have been in a virtual queue before: no claim of it may look like one of that time.
    newest = max((unit.generation for unit in found.values()), default=0)
    for queue, (due, expires) in wanted.items():
        if queue not in found:
            db.execute(
                "INSERT INTO unit (message_id, queue, due, expires, lease_gen) VALUES (?, ?, ?, ?, ?)",
                (message_id, queue, due, expires, newest),
            )
        elif found[queue][2:] != (due, expires):
            db.execute(
                "UPDATE unit SET due = ?, expires = ? WHERE message_id = ? AND queue = ?",
                (due, expires, message_id, queue),
            )
    return True
