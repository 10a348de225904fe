"""A process that puts mail into a store and takes it out until it is killed, and tells what happened.

`python store_load.py DATABASE SPOOL SEED`. Each line of its output is written
at once: `kept ID` when the store has reported a commit, `going ID` before a
result is handed in that may remove the message, `gone ID` when one that does
was reported.
"""

from __future__ import annotations

import os
import random
import sys

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from mailgate.mail.status import RecipientStatus
from mailgate.queue.item import ExpiresBy, Expiry, NewMessage, QueuedRecipient, Source, State
from mailgate.queue.lease import wall_ms
from mailgate.queue.schedule import final
from mailgate.queue.sqlite import SqliteStore


def tell(word, queue_id):
    """One line, in the pipe before anything else happens."""
    os.write(1, f"{word} {queue_id:016x}\n".encode())


async def session(store, chance):
    """Put one message after another, every eighth of them in a file."""
    while True:
        queue_id = store.new_id()
        spool = store.spool(queue_id)
        for _ in range(chance.choice((1, 1, 1, 1, 1, 1, 1, 40))):
            wait = spool.write(chance.randbytes(4096))
            if wait is not None:
                await wait
        now = wall_ms()
        people = tuple(
            QueuedRecipient(n, f"u{n}@x.test", queue, now, None, Expiry(ExpiresBy.TTL, 86_400_000))
            for n, queue in enumerate(chance.choice((("remote",), ("remote", "local"))))
        )
        content = await spool.finish()
        await store.commit(NewMessage(queue_id, now, b"Received: x\r\n", content, "s@x.test", Source.DSN, people))
        tell("kept", queue_id)


async def deliverer(store, chance):
    """Take out some of what is claimed; leave the rest under its lease."""
    while True:
        leases = await store.claim({"remote": 4, "local": 4}, wall_ms())
        for lease in leases:
            if chance.random() < 0.5:
                continue
            updates = []
            for each in lease.item.recipients:
                if each.queue == lease.queue:
                    taken = final(each, State.COMPLETED, RecipientStatus("mx.test"))
                    updates.append(type(taken)(**{n: getattr(taken, n) for n in taken.__slots__} | {"dsn_sent": True}))
            tell("going", lease.item.id)
            assert await store.record(lease, updates, None, True)
            if len(lease.item.recipients) == 1:
                tell("gone", lease.item.id)
        pause = Deferred()
        reactor.callLater(0.01, pause.callback, None)
        await pause


async def run(database, spool, seed):
    """Start the store and everybody who uses it."""
    chance = random.Random(seed)
    store = SqliteStore(
        database, spool, reactor=reactor, run_blocking=deferToThread, inline_octets=65_536, min_free_octets=0
    )
    await store.start()
    tell("open", 0)
    for who in [session] * 10 + [deliverer]:
        Deferred.fromCoroutine(who(store, chance)).addErrback(broken)


def broken(failure):
    """Say it and end: the test looks at the exit status."""
    failure.printTraceback(sys.stderr)
    sys.stderr.flush()
    os._exit(3)


def main():
    """Run until killed."""
    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(run(*sys.argv[1:])).addErrback(broken))
    reactor.run()


if __name__ == "__main__":
    main()
