"""What is read without changing anything, on the reader thread's own connection."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from heapq import merge
from itertools import islice
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailgate.queue.content import BLOCK_OCTETS, content
from mailgate.queue.entry import content_hash, hash_text
from mailgate.queue.item import QueueItem
from mailgate.queue.place import os_failure, sqlite_failure
from mailgate.queue.spool import RunBlocking
from mailgate.queue.store import StoreFailed
from mailgate.queue.tables import items
from mailgate.queue.thread import Call, Job, StoreReactor, StoreThread

T = TypeVar("T")

_log = Logger(namespace="mailgate.queue")

_EARLIEST = """
SELECT min(due) FROM (
    SELECT (SELECT due FROM unit WHERE queue = asked.value AND lease_owner IS NULL AND due IS NOT NULL
        ORDER BY due LIMIT 1) AS due
    FROM json_each(?) AS asked)"""
# Each virtual queue is found by one step in the index, not by looking at its units.
_QUEUES = """
WITH RECURSIVE name (queue) AS (
    SELECT min(queue) FROM unit WHERE lease_owner IS NULL
    UNION ALL
    SELECT (SELECT min(queue) FROM unit WHERE lease_owner IS NULL AND queue > name.queue)
    FROM name WHERE name.queue IS NOT NULL)
SELECT queue FROM name WHERE queue IS NOT NULL"""
_LAST = 2**63 - 1


class Reader:
    """A thread with a connection that only reads."""

    def __init__(self, reactor: StoreReactor, opening: Callable[[], sqlite3.Connection]) -> None:
        self._thread = StoreThread("queue-reader", reactor, opening, _work, sqlite3.Connection.close)

    def start(self) -> Deferred[None]:
        """Open the connection."""
        return self._thread.start()

    def stop(self) -> Deferred[None]:
        """Answer what waits, then close."""
        return self._thread.stop()

    def ask(self, question: Callable[[sqlite3.Connection], T]) -> Deferred[T]:
        """Run a question; fails with `StoreFailed`."""
        job = Call(question)
        self._thread.submit(job)
        return job.deferred


class StoredContent:
    """The `ContentReader` of a store: first the octets in the database, then those of the file.

    `digest` is the hash that all of them together must have: where they have
    another, the read that would give the last octets fails, so that nobody can
    take for whole what is not what it was.
    """

    def __init__(self, octets: bytes, fd: int | None, size_octets: int, digest: str, run_blocking: RunBlocking) -> None:
        self._octets = octets
        self._at = 0
        self._fd = fd
        self._left = size_octets - len(octets)
        self._digest = digest
        self._hashed = sha256(octets)
        self._run_blocking = run_blocking
        self._reading = False
        self._closed = False

    async def read(self) -> bytes:
        """The next octets, at most 256 KiB; empty at the end. Raises `StoreFailed`."""
        if self._closed:
            raise StoreFailed("the content was closed")
        if self._at < len(self._octets):
            start, self._at = self._at, self._at + BLOCK_OCTETS
            return self._octets[start : self._at] if start or self._at < len(self._octets) else self._octets
        fd = self._fd
        if fd is None:
            return b""
        self._reading = True
        try:
            return await self._run_blocking(lambda: self._read_on(fd))
        except OSError as error:
            raise os_failure(error) from error
        finally:
            self._reading = False
            if self._closed:
                self._close_file()

    def _read_on(self, fd: int) -> bytes:
        """The next octets of the file, on another thread."""
        octets = os.read(fd, BLOCK_OCTETS)
        self._left -= len(octets)
        self._hashed.update(octets)
        if self._left <= 0 and octets and hash_text(self._hashed.digest()) != self._digest:
            raise StoreFailed("the stored content is not what it was")
        return octets

    def close(self) -> None:
        """Give back the file and the octets. May be called twice."""
        self._closed = True
        self._octets = b""
        # A number that is closed under a reading thread could be another's file by then.
        if not self._reading:
            self._close_file()

    def _close_file(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            # The last close of a removed file frees its blocks, which takes a while.
            self._run_blocking(lambda: os.close(fd)).addErrback(_not_closed)


def _not_closed(failure: Failure) -> None:
    _log.warn("{event}", event="queue.file-not-closed", reason=failure.getErrorMessage())


def stored(db: sqlite3.Connection, spool_dir: str, item: QueueItem, run_blocking: RunBlocking) -> StoredContent:
    """The octets of a message, to be read. Raises `StoreFailed` when they are missing or not what they were."""
    octets, fd = content(db, spool_dir, item)
    row = db.execute("SELECT content_hash FROM message WHERE id = ?", (item.id,)).fetchone()
    digest: str = row[0] if row is not None else ""
    if fd is None and content_hash(octets) != digest:
        raise StoreFailed(f"the content of {item.id_text} is not what it was")
    return StoredContent(octets, fd, item.size_octets, digest, run_blocking)


def next_due(db: sqlite3.Connection, queues: Sequence[str]) -> int | None:
    """When the earliest free unit of these virtual queues falls due."""
    due: int | None = db.execute(_EARLIEST, (json.dumps(list(queues)),)).fetchone()[0]
    return due


def settled_drops(db: sqlite3.Connection, name: str) -> frozenset[str]:
    """What is recorded of one drop of the maildrop."""
    # "$" follows "#".
    found = db.execute(
        "SELECT name FROM maildrop WHERE name = ? OR (name > ? AND name < ?)", (name, f"{name}#", f"{name}$")
    )
    return frozenset(row[0] for row in found.fetchall())


def listed(db: sqlite3.Connection, limit: int, offset: int) -> list[QueueItem]:
    """Messages in due order, units that are never due last; reads about `limit + offset` rows of each queue."""
    db.execute("BEGIN")
    try:
        queues = [queue for (queue,) in db.execute(_QUEUES).fetchall()]
        free = [_of_queue(db, queue) for queue in queues]
        leased = db.execute(
            "SELECT ifnull(due, ?), message_id FROM unit WHERE lease_owner IS NOT NULL ORDER BY 1, 2", (_LAST,)
        ).fetchall()
        ids = _first_seen((id_ for _, id_ in merge(leased, *free)), limit + offset)[offset:]
        found = items(db, ids)
    finally:
        db.execute("COMMIT")
    return [found[id_] for id_ in ids]


def messages_present(ids: Iterable[int], db: sqlite3.Connection) -> set[int]:
    """Which of these are queued."""
    asked = json.dumps(list(ids))
    return {
        id_ for (id_,) in db.execute("SELECT id FROM message WHERE id IN (SELECT value FROM json_each(?))", (asked,))
    }


def _of_queue(db: sqlite3.Connection, queue: str) -> Iterable[tuple[int, int]]:
    yield from db.execute(
        "SELECT due, message_id FROM unit WHERE queue = ? AND lease_owner IS NULL AND due IS NOT NULL ORDER BY due",
        (queue,),
    )
    for (id_,) in db.execute(
        "SELECT message_id FROM unit WHERE queue = ? AND lease_owner IS NULL AND due IS NULL", (queue,)
    ):
        yield _LAST, id_


def _first_seen(ids: Iterable[int], count: int) -> list[int]:
    seen: dict[int, None] = {}
    for id_ in ids:
        if len(seen) >= count:
            break
        seen.setdefault(id_)
    return list(islice(seen, count))


def _work(db: sqlite3.Connection, batch: Sequence[Job[sqlite3.Connection]]) -> None:
    for job in batch:
        try:
            if db.in_transaction:
                # One question could not end its own: in it, all others would see the queue as it was then.
                db.execute("ROLLBACK")
            job.run(db)
        except StoreFailed as error:
            job.fail(error)
        except sqlite3.Error as error:
            job.fail(sqlite_failure(error))
        except OSError as error:
            job.fail(os_failure(error))
        except Exception as error:
            job.fail(StoreFailed(repr(error)))
