"""A SQLite store on disk without a reactor: its threads are real, `Turns` is the reactor they call back."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from mailgate.queue.item import Content, ExpiresBy, Expiry, NewMessage, QueuedRecipient, Source
from mailgate.queue.sqlite import SqliteStore

NOW_MS = 1_790_000_000_000
DAY_MS = 86_400_000


class Turns(Clock):
    """Runs what threads ask for only inside `run`, on the thread that calls it."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = SimpleQueue()
        self.turns = 0
        self.thread = threading.current_thread()

    def callFromThread(self, callable, *args, **named):
        """Keep the call for `run`."""
        self._calls.put((callable, args, named))

    def run(self, awaited, seconds=10.0):
        """Take turns until a Deferred or a coroutine has its result."""
        deferred = awaited if isinstance(awaited, Deferred) else Deferred.fromCoroutine(awaited)
        outcome = []
        deferred.addBoth(outcome.append)
        while not outcome:
            self.advance(0)
            if outcome:
                break
            self.turn(seconds)
        result = outcome[0]
        if hasattr(result, "raiseException"):
            result.raiseException()
        return result

    def turn(self, seconds=10.0):
        """Wait for one call of a thread and make it."""
        try:
            callable, args, named = self._calls.get(timeout=seconds)
        except Empty:
            raise AssertionError(f"no thread reported anything for {seconds} s") from None
        self.turns += 1
        callable(*args, **named)


class Clocks:
    """The wall clock and the boot-time clock, both stopped."""

    def __init__(self) -> None:
        self.wall = NOW_MS
        self.boot = 5_000_000

    def advance(self, ms):
        """Move both on."""
        self.wall += ms
        self.boot += ms


class Stores:
    """Opens stores in one directory, and closes what is left open."""

    def __init__(self, directory) -> None:
        self.directory = directory
        self.path = str(directory / "queue.sqlite")
        self.spool_dir = str(directory / "spool")
        self.reactor = Turns()
        self.clocks = Clocks()
        self.pool = ThreadPool(0, 4, name="blocking")
        self.pool.start()
        self._open = []

    def make(self, **settings):
        """A store that is not started yet."""
        settings = {
            "reactor": self.reactor,
            "run_blocking": self.run_blocking,
            "min_free_octets": 0,
            "wall_ms": lambda: self.clocks.wall,
            "boot_ms": lambda: self.clocks.boot,
        } | settings
        return SqliteStore(self.path, self.spool_dir, **settings)

    def open(self, **settings):
        """A store that serves."""
        store = self.make(**settings)
        self.reactor.run(store.start())
        self._open.append(store)
        return store

    def stop(self, store):
        """Stop a store in order."""
        self._open.remove(store)
        self.reactor.run(store.stop())

    def run_blocking(self, work):
        """Run on a pool thread."""
        return deferToThreadPool(self.reactor, self.pool, work)

    def close(self):
        """Stop everything."""
        for store in list(self._open):
            self.stop(store)
        self.pool.stop()


def recipient(index=0, address=None, queue="remote", **facts):
    """A recipient that is due at once and lives for three days."""
    facts = {"retry_due_ms": NOW_MS, "notify_due_ms": None, "expiry": Expiry(ExpiresBy.TTL, 3 * DAY_MS)} | facts
    return QueuedRecipient(index, address or f"user{index}@example.net", queue, schedule=queue, **facts)


def message(store, *recipients, octets=b"Subject: x\r\n\r\nhello\r\n", **facts):
    """A message ready for `store`, its content in memory unless given."""
    facts = {
        "id": store.new_id(),
        "created_ms": NOW_MS,
        "prefix": b"Received: from here\r\n",
        "content": Content(len(octets), octets=octets),
        "return_path": "sender@example.org",
        "source": Source.UNAUTHENTICATED,
        "recipients": recipients or (recipient(),),
    } | facts
    return NewMessage(**facts)
