"""What table `unit` must say of a message: `schedule.due_ms` and `expires_ms`, as the least of each virtual queue."""

from __future__ import annotations

import sqlite3

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
