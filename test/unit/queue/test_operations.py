"""Random operations on one store, the invariants of its tables after every few of them."""

import random
from contextlib import closing
from dataclasses import replace

import pytest
from support.queue_invariants import violations
from support.sqlite_store import DAY_MS, NOW_MS, message, recipient

from mailgate.mail.status import ErrorKind, RecipientStatus
from mailgate.queue.check import problems
from mailgate.queue.connection import connect
from mailgate.queue.item import ExpiresBy, Expiry, State, Transmission
from mailgate.queue.operate import Action, Order
from mailgate.queue.schedule import Schedule, Terms, after_failure, expire, final

QUEUES = ("local", "remote", "slow")
STATUS = RecipientStatus("mx.test", ErrorKind.CONNECTION, "timed out")


class Play:
    """Plays the sessions and the deliverers of one store."""

    def __init__(self, stores, seed):
        self.stores, self.run, self.chance = stores, stores.reactor.run, random.Random(seed)
        self.store = stores.open(inline_octets=500)
        self.leases = []
        self.accepted, self.closed = set(), set()

    def accept(self):
        ends = [Expiry(ExpiresBy.ATTEMPTS, 3), Expiry(ExpiresBy.TTL, 60_000), Expiry(ExpiresBy.TTL, DAY_MS)]
        people = [
            recipient(
                n,
                queue=self.chance.choice(QUEUES),
                expiry=self.chance.choice(ends),
                retry_due_ms=self.now + self.chance.randrange(9_000),
                notify_due_ms=self.chance.choice([None, self.now + 5_000]),
                held=self.chance.random() < 0.05,
            )
            for n in range(self.chance.randrange(1, 5))
        ]
        queue_id = self.store.new_id()
        spool = self.store.spool(queue_id)
        spool.write(bytes(self.chance.randrange(1000)))
        content = self.run(spool.finish())
        self.run(self.store.commit(message(self.store, *people, id=queue_id, created_ms=self.now, content=content)))
        self.accepted.add(queue_id)

    @property
    def now(self):
        return self.stores.clocks.wall

    def claim(self):
        self.leases += self.run(self.store.claim({queue: self.chance.randrange(4) for queue in QUEUES}, self.now))

    def sweep(self):
        self.leases += self.run(self.store.expired(self.now, 3))

    def renew(self):
        lost = self.run(self.store.renew(self.leases, {}))
        self.leases = [lease for lease in self.leases if (lease.item.id, lease.queue) not in lost]

    def mark(self):
        """Say that a message is about to be handed over; results may follow, or never."""
        if not self.leases:
            return
        lease = self.chance.choice(self.leases)
        mine = tuple(each.index for each in lease.item.recipients if each.queue == lease.queue)
        left = self.run(self.store.transmitting(lease, Transmission(0, "mx", "mx.test", "192.0.2.1", mine)))
        assert left is None or left <= set(mine)

    def revoke(self):
        """Take the leases of whoever has been quiet for a while; they are late from now on."""
        self.run(self.store.revoke_stuck(self.now - self.chance.randrange(20_000, 90_000), 2))

    def late(self):
        """Tell what a lease has come to that may be lost, or not."""
        if not self.leases:
            return
        lease = self.leases.pop(self.chance.randrange(len(self.leases)))
        learnt = [
            final(each, self.chance.choice([State.COMPLETED, State.PERM_FAIL]), STATUS)
            for each in lease.item.recipients
            if each.queue == lease.queue and not each.state.is_final
        ]
        self.run(self.store.late(lease, learnt))

    def order(self):
        """An operator has his say, whether or not an attempt runs."""
        action = self.chance.choice(
            [Action.CANCEL, Action.CANCEL, Action.DROP, Action.RETRY, Action.HOLD, Action.RELEASE]
        )
        items = self.run(self.store.list(20))
        if items:
            item = self.chance.choice(items)
            some = frozenset(each.index for each in item.recipients if self.chance.random() < 0.5)
            order = Order(action=action, at_ms=self.now, notify=self.chance.random() < 0.3)
            self.run(self.store.operate(order, {item.id: None if action is Action.DROP else some}))

    def pass_time(self):
        self.stores.clocks.advance(self.chance.randrange(30_000))

    def record(self):
        if not self.leases:
            return
        lease = self.leases.pop(self.chance.randrange(len(self.leases)))
        end = self.chance.random() < 0.7
        updates = [
            self.outcome(lease, each) for each in lease.item.recipients if each.queue == lease.queue and not each.held
        ]
        dsn = None
        if self.chance.random() < 0.1:
            dsn = message(self.store, recipient(queue="local"), created_ms=self.now, return_path="")
        if self.run(self.store.record(lease, updates, dsn, end)) and not end:
            self.leases.append(lease)

    def outcome(self, lease, each):
        created = lease.item.created_ms
        if each.state.is_final:
            update = final(each, each.state, each.status)
        else:
            update = expire(each, created, self.now)
        if update is None and self.chance.random() < 0.4:
            update = final(each, self.chance.choice([State.COMPLETED, State.PERM_FAIL]), STATUS)
        if update is None:
            schedule = Schedule(self.chance.choice(QUEUES), self.chance.choice(QUEUES))
            update = after_failure(each, STATUS, schedule, Terms(created), self.now, 0.5)
        told = update.state.is_final and self.chance.random() < 0.7
        return replace(update, dsn_sent=each.dsn_sent or told)

    def restart(self):
        """Stop in order, and go on with the same file."""
        if self.chance.random() < 0.8:
            return
        self.stores.stop(self.store)
        self.leases = []
        self.store = self.stores.open(inline_octets=500)


@pytest.mark.parametrize("seed", range(6))
def test_invariants_hold_after_every_operation(stores, seed):
    play = Play(stores, seed)
    stores.clocks.wall = NOW_MS
    moves = [play.accept, play.claim, play.claim, play.record, play.record, play.record]
    moves += [play.pass_time, play.sweep, play.renew, play.restart]
    moves += [play.mark, play.mark, play.revoke, play.late, play.order]
    for step in range(150):
        play.chance.choice(moves)()
        if step % 5 == 0:
            assert violations(stores.path, stores.spool_dir) == []
    assert violations(stores.path, stores.spool_dir) == []
    with closing(connect(stores.path, write=False)) as db:
        # What operators are told is what these tests hold to be right.
        assert list(problems(db, stores.spool_dir, play.now - 10 * DAY_MS, 3_600_000)) == []
    assert play.accepted
