"""Results that come after their lease was lost: another may have begun, ended or given up meanwhile.

What a next hop has taken is delivered, whoever else believes what: it ends the
recipient unless its sender has been told of a failure. A refusal counts while
nobody else is trying. A failure for now says nothing new.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from mailgate.queue.item import Late, Lease, RecipientUpdate, State
from mailgate.queue.operate import CANCELED
from mailgate.queue.rows import status_cell
from mailgate.queue.units import settle, units_found

# The sender is told, if it wants to know, by whoever claims the unit next: it is due at once.
_CLOSE = """
UPDATE recipient SET state = ?, status_json = ?, retry_due = NULL, notify_due = NULL, dsn_sent = 0, progress = ?
WHERE message_id = ? AND idx = ?"""


def merge(
    db: sqlite3.Connection, lease: Lease, learnt: Sequence[RecipientUpdate], now_ms: int, boot_ms: int
) -> dict[int, Late]:
    """Store of these results what is still news; what each was worth, by the recipient's index."""
    id_ = lease.item.id
    found = {
        idx: (State(state), bool(dsn_sent), status, mark, queue)
        for idx, state, dsn_sent, status, mark, queue in db.execute(
            "SELECT idx, state, dsn_sent, status_json, cancel_mark, queue FROM recipient WHERE message_id = ?", (id_,)
        ).fetchall()
    }
    live = {
        queue
        for (queue,) in db.execute(
            "SELECT queue FROM unit WHERE message_id = ? AND lease_owner IS NOT NULL AND lease_until >= ?",
            (id_, boot_ms),
        ).fetchall()
    }
    canceled = status_cell(CANCELED)
    worth: dict[int, Late] = {}
    for update in learnt:
        if update.index not in found:
            # Removed: nothing but a delivery removes a message without anybody being told, or an operator does.
            worth[update.index] = Late.TOLD
            continue
        state, dsn_sent, status, mark, queue = found[update.index]
        if update.state is State.COMPLETED:
            if state is State.COMPLETED:
                worth[update.index] = Late.DUPLICATE
                continue
            is_silent = not dsn_sent or (status == canceled and mark != "notify")
            news = not state.is_final or is_silent
        else:
            news = update.state is State.PERM_FAIL and not state.is_final and queue not in live
        worth[update.index] = Late.STORED if news else Late.TOLD
        if news:
            db.execute(_CLOSE, (update.state.value, status_cell(update.status), now_ms, id_, update.index))
    if Late.STORED in worth.values():
        settle(db, id_, lease.item.created_ms, units_found(db, id_))
    return worth
