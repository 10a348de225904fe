"""A queue in memory for delivery tests: claims, results, contents; a double of the whole `QueueStore` port."""

from __future__ import annotations

from dataclasses import replace

from support.memory_store import MemorySpool
from twisted.internet.defer import Deferred, fail, succeed

from mailgate.mail.envelope import NOTIFY_DEFAULT
from mailgate.queue.item import ExpiresBy, Expiry, Late, Lease, NewMessage, QueuedRecipient, QueueItem, Source
from mailgate.queue.schedule import due_ms, expires_ms
from mailgate.queue.store import StoreFailed

DAY_MS = 86_400_000


def recipient(address="jane@example.org", index=0, **facts):
    """A recipient that is due at once."""
    facts.setdefault("queue", "remote")
    facts.setdefault("schedule", facts["queue"])
    facts.setdefault("retry_due_ms", 0)
    facts.setdefault("notify_due_ms", None)
    facts.setdefault("expiry", Expiry(ExpiresBy.TTL, 3 * DAY_MS))
    facts.setdefault("notify", NOTIFY_DEFAULT)
    return QueuedRecipient(index, address, **facts)


def message(*recipients, octets=b"Subject: x\r\n\r\nbody\r\n", **facts):
    """An item and its octets, recipients numbered in order."""
    facts.setdefault("id", 0x1234)
    facts.setdefault("created_ms", 0)
    facts.setdefault("return_path", "joe@sender.example")
    facts.setdefault("source", Source.UNAUTHENTICATED)
    numbered = tuple(replace(one, index=index) for index, one in enumerate(recipients or (recipient(),)))
    return QueueItem(size_octets=len(octets), recipients=numbered, content_hash="", **facts), octets


class Reader:
    def __init__(self, octets, block=256 * 1024):
        self.octets, self.block, self.at = octets, block, 0

    async def read(self):
        piece = self.octets[self.at : self.at + self.block]
        self.at += len(piece)
        return piece

    def close(self):
        pass


class WorkStore:
    """Messages at rest, as the scheduler sees them. `slow`: results wait for `settle`."""

    def __init__(self):
        self.items: dict[int, QueueItem] = {}
        self.contents: dict[int, bytes] = {}
        self.leases: dict[tuple[int, str], int] = {}
        self.generations: dict[tuple[int, str], int] = {}
        self.records: list[tuple] = []
        self.claims: list[dict] = []
        self.renewals: list[list[Lease]] = []
        self.dsns: list[NewMessage] = []
        self.lost: set[int] = set()
        self.fail_claims = self.fail_records = self.fail_renewals = 0
        self.fail_dsns = False
        self.fail_marks = 0
        self.marks: list = []
        self.moved: list[dict] = []
        self.looks: list[int] = []
        self.stuck: list = []
        self.canceled: set[int] = set()
        """Indexes of recipients an operator has cancelled during an attempt."""
        self.late_results: list[tuple] = []
        self.worth = Late.STORED
        self.slow_claims: list[Deferred] | None = None
        self.block = 256 * 1024
        self._last_id = 0xD000

    def add(self, made):
        item, octets = made
        self.items[item.id] = item
        self.contents[item.id] = octets
        return item

    def lease(self, item, queue=None):
        queue = queue or item.recipients[0].queue
        key = (item.id, queue)
        self.generations[key] = self.generations.get(key, 0) + 1
        self.leases[key] = self.generations[key]
        return Lease(self.items[item.id], queue, self.generations[key])

    # --- the port -----------------------------------------------------------------------

    def new_id(self):
        self._last_id += 1
        return self._last_id

    def spool(self, queue_id):
        return MemorySpool()

    def commit(self, new):
        self._insert(new)
        return succeed(None)

    async def claim(self, slots, now_ms):
        self.claims.append(dict(slots))
        if self.slow_claims is not None:
            waiting = Deferred()
            self.slow_claims.append(waiting)
            await waiting
        if self.fail_claims:
            self.fail_claims -= 1
            raise StoreFailed("busy")
        found = []
        for queue, free in slots.items():
            due = sorted((ms, id_) for id_, ms in self._units(queue) if ms <= now_ms)
            found += [self.lease(self.items[id_], queue) for _, id_ in due[:free]]
        return found

    async def expired(self, now_ms, limit):
        found = []
        for item in list(self.items.values()):
            for queue in {one.queue for one in item.recipients}:
                moments = [expires_ms(one, item.created_ms) for one in item.recipients if one.queue == queue]
                if len(found) == limit:
                    return found
                if any(ms is not None and ms <= now_ms for ms in moments) and (item.id, queue) not in self.leases:
                    found.append(self.lease(item, queue))
        return found

    async def renew(self, leases, moved):
        self.renewals.append(list(leases))
        self.moved.append(dict(moved))
        if self.fail_renewals:
            self.fail_renewals -= 1
            raise StoreFailed("busy")
        return {(lease.item.id, lease.queue) for lease in leases if lease.item.id in self.lost}

    async def revoke_stuck(self, before_ms, limit):
        self.looks.append(before_ms)
        stuck, self.stuck = self.stuck, []
        return stuck

    def transmitting(self, lease, transmission):
        if self.fail_marks:
            self.fail_marks -= 1
            return fail(StoreFailed("disk"))
        if self.leases.get((lease.item.id, lease.queue)) != lease.generation or lease.item.id in self.lost:
            return succeed(None)
        self.marks.append(transmission)
        rows = self.items[lease.item.id].recipients
        left = {n for n in transmission.indexes if not rows[n].state.is_final and n not in self.canceled}
        return succeed(frozenset(left))

    def late(self, lease, learnt):
        if self.fail_records:
            self.fail_records -= 1
            return fail(StoreFailed("disk"))
        self.late_results.append((lease, tuple(learnt)))
        return succeed({update.index: self.worth for update in learnt})

    async def read(self, item):
        if item.id not in self.contents:
            raise StoreFailed("no content")
        return Reader(self.contents[item.id], self.block)

    def record(self, lease, updates, dsn, end, closes=True, silenced=frozenset()):
        if self.fail_records or (dsn is not None and self.fail_dsns):
            self.fail_records = max(0, self.fail_records - 1)
            return fail(StoreFailed("disk"))
        key = (lease.item.id, lease.queue)
        if self.leases.get(key) != lease.generation or lease.item.id in self.lost:
            return succeed(False)
        unmentionable = self.canceled & {update.index for update in updates} - silenced
        if dsn is not None and unmentionable:
            return succeed(frozenset(unmentionable))
        self.records.append((lease, tuple(updates), dsn, end))
        item = self.items[lease.item.id]
        rows = list(item.recipients)
        for update in updates:
            names = update.__slots__
            rows[update.index] = replace(rows[update.index], **{name: getattr(update, name) for name in names})
        self.items[item.id] = replace(item, recipients=tuple(rows))
        if dsn is not None:
            self._insert(dsn)
            self.dsns.append(dsn)
        if end:
            del self.leases[key]
            if all(one.state.is_final and one.dsn_sent for one in rows):
                del self.items[item.id]
        return succeed(True)

    async def next_due(self, queues):
        return min((ms for queue in queues for _, ms in self._units(queue)), default=None)

    async def list(self, limit, offset=0):
        return list(self.items.values())[offset : offset + limit]

    async def get(self, queue_id):
        return self.items.get(queue_id)

    def _units(self, queue):
        for item in self.items.values():
            moments = [due_ms(one, item.created_ms) for one in item.recipients if one.queue == queue]
            known = [ms for ms in moments if ms is not None]
            if known and (item.id, queue) not in self.leases:
                yield item.id, min(known)

    def _insert(self, new):
        octets = new.prefix + (new.content.octets or b"")
        names = set(QueueItem.__slots__) & set(NewMessage.__slots__) - {"size_octets"}
        facts = {name: getattr(new, name) for name in names}
        self.items[new.id] = QueueItem(size_octets=len(octets), content_hash="", **facts)
        self.contents[new.id] = octets
