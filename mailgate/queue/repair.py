"""What can be put right in a queue without losing mail.

Everything here can be done again, and to what is in order: the rows of one
message are made to agree with what its recipients say, in one transaction. A
content that is gone or changed cannot be had back, and is left as it is.
"""

from __future__ import annotations

import sqlite3

from mailgate.queue.units import FINAL, settle, units_found


def repair_message(db: sqlite3.Connection, id_: int) -> None:
    """Make the rows of one message agree; it is removed when all its recipients are done and told."""
    row = db.execute("SELECT created FROM message WHERE id = ?", (id_,)).fetchone()
    if row is None:
        db.execute("DELETE FROM unit WHERE message_id = ? AND lease_owner IS NULL", (id_,))
        return
    created: int = row[0]
    # Rather told twice than never.
    db.execute(f"UPDATE recipient SET dsn_sent = 0 WHERE message_id = ? AND dsn_sent AND state NOT IN {FINAL}", (id_,))
    db.execute(f"UPDATE recipient SET retry_due = NULL WHERE message_id = ? AND state IN {FINAL}", (id_,))
    db.execute(
        "DELETE FROM quota_charge WHERE message_id = ? AND scope IN"
        f" (SELECT 'recipient ' || idx FROM recipient WHERE message_id = ? AND state IN {FINAL})",
        (id_, id_),
    )
    _repair_leases(db, id_)
    _repair_kind(db, id_)
    _repair_units(db, id_, created)


def _repair_leases(db: sqlite3.Connection, id_: int) -> None:
    db.execute(
        "UPDATE unit SET lease_owner = NULL, lease_until = NULL, lease_gen = lease_gen + 1"
        " WHERE message_id = ? AND (lease_owner IS NULL) <> (lease_until IS NULL)",
        (id_,),
    )
    # Whoever holds a generation that was never given must not be heard.
    db.execute(
        "UPDATE unit SET lease_owner = NULL, lease_until = NULL, lease_gen = 1 + newest FROM"
        " (SELECT queue AS name, max(lease_gen) AS newest FROM attempt WHERE message_id = ?1 GROUP BY queue)"
        " WHERE message_id = ?1 AND queue = name AND newest > lease_gen",
        (id_,),
    )


def _repair_kind(db: sqlite3.Connection, id_: int) -> None:
    db.execute(
        "UPDATE message SET content_kind = iif(path IS NULL, 'inline', 'spool')"
        " FROM content WHERE id = ?1 AND message_id = ?1",
        (id_,),
    )


def _repair_units(db: sqlite3.Connection, id_: int, created: int) -> None:
    # A message without recipients cannot be delivered, and is not removed either.
    if db.execute("SELECT 1 FROM recipient WHERE message_id = ? LIMIT 1", (id_,)).fetchone() is not None:
        settle(db, id_, created, units_found(db, id_))


def repair_ledger(db: sqlite3.Connection) -> None:
    """Forget charges without a message, and derive what is used from the ledger again."""
    db.execute("DELETE FROM quota_charge WHERE message_id NOT IN (SELECT id FROM message)")
    db.execute("DELETE FROM quota_usage")
    db.execute(
        "INSERT INTO quota_usage (bucket, octets, messages)"
        " SELECT bucket, sum(octets), sum(messages) FROM quota_ledger GROUP BY bucket"
    )
