"""The ledger of the quotas, on the writer thread: is there room, and who is charged what.

Runs inside the transaction that stores the messages. What ends a charge is in
the schema: triggers release it with the message, the last recipient of a
domain, or the recipient, whoever closes that.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field

from mailgate.queue.charge import EMPTY, Usage, take
from mailgate.queue.item import NewMessage
from mailgate.queue.store import QuotaExceeded

_USED = "SELECT bucket, messages, octets FROM quota_usage WHERE bucket IN (SELECT value FROM json_each(?))"
_CHARGE = "INSERT INTO quota_charge (message_id, scope, bucket, octets, messages) VALUES (?, ?, ?, ?, 1)"
_USE = """
INSERT INTO quota_usage (bucket, messages, octets) VALUES (?, ?, ?)
ON CONFLICT (bucket) DO UPDATE SET messages = messages + excluded.messages, octets = octets + excluded.octets"""


@dataclass(slots=True)
class Admission:
    """What was decided about some messages, and is to be written once they are in their table."""

    refused: dict[int, QuotaExceeded] = field(default_factory=dict)
    """By the place of the message among those asked about."""
    charges: list[tuple[int, str, str, int]] = field(default_factory=list)
    added: dict[str, Usage] = field(default_factory=dict)

    def write(self, db: sqlite3.Connection) -> None:
        """Charge those that were admitted."""
        if self.charges:
            db.executemany(_CHARGE, self.charges)
        if self.added:
            db.executemany(_USE, [(bucket, used.messages, used.octets) for bucket, used in self.added.items()])


def admit(db: sqlite3.Connection, messages: Sequence[NewMessage]) -> Admission:
    """Decide which messages have room in all their buckets, each counted before the next. Writes nothing."""
    buckets = {charge.bucket for message in messages for charge in message.charges}
    asked = json.dumps(sorted(buckets))
    used = {bucket: Usage(count, octets) for bucket, count, octets in db.execute(_USED, (asked,)).fetchall()}
    admission = Admission()
    for place, message in enumerate(messages):
        if message.charges:
            _decide(message, place, used, admission)
    return admission


def _decide(message: NewMessage, place: int, used: dict[str, Usage], admission: Admission) -> None:
    """Admit one message, or refuse it and leave everything as it was."""
    size = message.size_octets
    over = take(message.charges, size, used)
    if over is not None:
        admission.refused[place] = QuotaExceeded(over, used.get(over.bucket, EMPTY), size)
        return
    kept_apart = message.charge_of_all
    for charge in message.charges:
        admission.added[charge.bucket] = admission.added.get(charge.bucket, EMPTY).with_one(size)
        if charge is not kept_apart:
            admission.charges.append((message.id, charge.scope, charge.bucket, size))
