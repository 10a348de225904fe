"""The queue's tables without threads: a connection, the statements, and two clocks that stand still."""

from __future__ import annotations

import json
from types import SimpleNamespace

from support.queue_invariants import violations
from support.sqlite_store import NOW_MS

from mailgate.queue.entry import entry
from mailgate.queue.item import Content, NewMessage, Source
from mailgate.queue.migrate import migrate
from mailgate.queue.sqlite import connect
from mailgate.queue.tables import Tables

LEASE_MS = 60_000
OCTETS = b"Subject: x\r\n\r\nx\r\n"


class QueueTables:
    """Every change is followed by a look at the invariants."""

    def __init__(self, directory, owner="me"):
        self.path = str(directory / "queue.sqlite")
        self.spool = str(directory / "spool")
        self.now_ms = NOW_MS
        self.boot_ms = 1_000_000
        self.db = connect(self.path, write=True)
        migrate(self.db)
        self.tables = Tables(self.db, owner, LEASE_MS, lambda: self.now_ms)

    def pass_ms(self, ms):
        """Move both clocks on."""
        self.now_ms += ms
        self.boot_ms += ms

    def add(self, *recipients, id=7, **facts):
        """Insert a message."""
        facts = {"source": Source.UNAUTHENTICATED, "return_path": "sender@example.org"} | facts
        content = Content(len(OCTETS), octets=OCTETS)
        self.tables.insert([entry(NewMessage(id, NOW_MS, b"", content, recipients=recipients, **facts))])
        return id

    def claim(self, queue="remote"):
        """Lease what is due."""
        return self.tables.claim({queue: 10}, self.now_ms, self.boot_ms)

    def lease(self, queue="remote"):
        """The one lease there is."""
        (lease,) = self.claim(queue)
        return lease

    def lapse(self):
        """What ran out."""
        return self.sound(self.tables.lapse(self.boot_ms, self.now_ms))

    def mark(self, lease, transmission):
        """As before the final octets."""
        return self.sound(self.tables.transmitting(lease, transmission, self.boot_ms))

    def record(self, lease, updates=(), dsn=None, end=True, **facts):
        """Store results."""
        return self.sound(self.tables.record(lease, updates, dsn, end, **facts))

    def late(self, lease, learnt):
        """Results of a lease that was lost."""
        return self.sound(dict(self.tables.late(lease, learnt, self.boot_ms)))

    def sound(self, result):
        """The invariants hold."""
        assert violations(self.path, self.spool) == []
        return result

    def row(self, index=0, id=7):
        """A recipient's row."""
        return self._one("SELECT * FROM recipient WHERE message_id = ? AND idx = ?", id, index)

    def unit(self, queue="remote", id=7):
        """A unit's row; None when there is none."""
        return self._one("SELECT * FROM unit WHERE message_id = ? AND queue = ?", id, queue)

    def journal(self):
        """Every row of the journal: generation, number, phase, host, recipients."""
        return [
            (generation, number, phase, host, json.loads(indexes))
            for generation, number, phase, host, indexes in self.db.execute(
                "SELECT lease_gen, group_no, phase, host, rcpt_idx FROM attempt ORDER BY lease_gen, group_no"
            )
        ]

    def set(self, index, **cells):
        """What an operator's command writes."""
        names = ", ".join(f"{name} = ?" for name in cells)
        self.db.execute(f"UPDATE recipient SET {names} WHERE message_id = 7 AND idx = ?", (*cells.values(), index))

    def is_there(self, id=7):
        """The message is in the queue."""
        return self.db.execute("SELECT count(*) FROM message WHERE id = ?", (id,)).fetchone() == (1,)

    def _one(self, question, *given):
        cursor = self.db.execute(question, given)
        names = [column[0] for column in cursor.description]
        row = cursor.fetchone()
        return None if row is None else SimpleNamespace(**dict(zip(names, row, strict=True)))
