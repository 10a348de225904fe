"""The one writer thread and its group commit (DESIGN D4).

All changes that wait go into one transaction; only after its COMMIT, which
syncs the write-ahead log, is any of them reported as done (I1). A change that
fails, fails alone: the batch is first tried as a whole, which is all that ever
happens on a healthy disk, and otherwise repeated with a savepoint around each.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mailgate.crash.point import ARMED, passed, passing
from mailgate.queue.entry import Entry, entry
from mailgate.queue.item import NewMessage
from mailgate.queue.place import Space, os_failure, sqlite_failure
from mailgate.queue.store import StoreFailed
from mailgate.queue.tables import Tables
from mailgate.queue.thread import Call, Job, StoreReactor, StoreThread

T = TypeVar("T")

_log = Logger(namespace="mailgate.queue")

# A log is copied back into the database when this much was written to it since the last time.
# Small steps: the commits that wait for one take milliseconds longer, not tens of them.
_CHECKPOINT_OCTETS = 2 * 1024 * 1024
# A file that once held a long queue is made smaller when this many pages, and half of all, are unused.
_UNUSED_PAGES = 4096
_SHRINK_PAGES = 256
# Rows of more than that are left to the writer's thread: the reactor has others to serve.
_AT_ONCE_OCTETS = 1024 * 1024
_AT_ONCE_RECIPIENTS = 1000
# Met by the commit of many, and not by each of them: what some have no room for, others may have.
_OUT_OF_ROOM = frozenset({"SQLITE_FULL", "SQLITE_IOERR_WRITE"})
# What a change adds to the log besides a message's octets.
_CHANGE_OCTETS = 4096


class Insertion(Job[Tables]):
    """A new message. `digest` is the hash of a content that is in a file."""

    def __init__(self, message: NewMessage, digest: str | None) -> None:
        self._message = message
        self._digest = digest
        self._entry: Entry | None = None
        self.octets = message.size_octets if message.content.octets is not None else len(message.prefix)
        self.deferred: Deferred[None] = Deferred()
        self._error: StoreFailed | None = None

    @property
    def entry(self) -> Entry:
        """The rows."""
        if self._entry is None:
            self._entry = entry(self._message, self._digest)
        return self._entry

    def make_ready(self) -> None:
        """Make the rows. Raises `ValueError` for a content in a file without its hash."""
        if self.octets <= _AT_ONCE_OCTETS and len(self._message.recipients) <= _AT_ONCE_RECIPIENTS:
            self._entry = entry(self._message, self._digest)

    def run(self, resource: Tables) -> None:
        """Insert this message alone."""
        for exceeded in resource.insert((self.entry,)).values():
            raise exceeded

    def fail(self, error: StoreFailed) -> None:
        """Keep an error as the result."""
        self._error = error

    def fire(self) -> None:
        """Fire the Deferred."""
        if self._error is not None:
            self.deferred.errback(self._error)
        else:
            self.deferred.callback(None)


class Mark(Call[Tables, T]):
    """A word in the journal, which need not survive a power cut where the operator says so (`queue.journal`)."""


class Writer:
    """Commits changes in groups. `submit` and `insert` are called on the reactor thread."""

    def __init__(
        self,
        reactor: StoreReactor,
        space: Space,
        opening: Callable[[], Tables],
        closing: Callable[[Tables], None],
        soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        """`soon` as `StoreThread` has it."""
        self._space = space
        self.marks_are_synced = True
        """Whether what only the journal says is synced like everything else."""
        self._is_synced = True
        self._thread = StoreThread("queue-writer", reactor, opening, self._work, closing, soon)
        self._since_checkpoint = 0

    def start(self) -> Deferred[None]:
        """Open the database; fires, or fails with what `opening` raised."""
        return self._thread.start()

    def stop(self) -> Deferred[None]:
        """Commit what waits, then close."""
        return self._thread.stop()

    def insert(self, message: NewMessage, digest: str | None) -> Deferred[None]:
        """Add a message, if there is room for new mail."""
        job = Insertion(message, digest)
        self._thread.submit(job)
        return job.deferred

    def submit(self, change: Callable[[Tables], T], octets: int = 0) -> Deferred[T]:
        """Make a change. It may be run more than once, each time in a transaction that was undone before."""
        job = Call(change, octets)
        self._thread.submit(job)
        return job.deferred

    def mark(self, change: Callable[[Tables], T]) -> Deferred[T]:
        """Make a change of the journal."""
        job = Mark(change)
        self._thread.submit(job)
        return job.deferred

    # Below: on the writer thread.

    def _work(self, tables: Tables, batch: Sequence[Job[Tables]]) -> None:
        # Only where undoing what the batch before had begun has failed as well.
        _roll_back(tables.db)
        self._sync_if(tables.db, self.marks_are_synced or not all(isinstance(job, Mark) for job in batch))
        batch = self._with_room(batch)
        if batch and not _commit_together(tables, batch):
            _commit_apart(tables, batch)
        self._since_checkpoint += sum(job.octets for job in batch) + _CHANGE_OCTETS * len(batch)
        if self._since_checkpoint >= _CHECKPOINT_OCTETS:
            self._since_checkpoint = 0
            _tidy(tables.db)

    def _sync_if(self, db: sqlite3.Connection, wanted: bool) -> None:
        """Have the next commit synced, or not: what is not outlives this process, and is on disk with the next."""
        if wanted is not self._is_synced:
            db.execute(f"PRAGMA synchronous = {'FULL' if wanted else 'NORMAL'}")
            self._is_synced = wanted

    def _with_room(self, batch: Sequence[Job[Tables]]) -> Sequence[Job[Tables]]:
        """The jobs without new mail when the disk is too full for it; results and notifications go on."""
        try:
            self._space.demand()
        except StoreFailed as error:
            for job in batch:
                if isinstance(job, Insertion):
                    job.fail(type(error)(*error.args))
            return [job for job in batch if not isinstance(job, Insertion)]
        return batch


def _commit_together(tables: Tables, batch: Sequence[Job[Tables]]) -> bool:
    """Commit all in one transaction, new messages with one statement per table.

    False: nothing was kept, and no job has an answer yet.
    """
    try:
        tables.db.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        # Locked past the time limit, or unusable: trying each alone would only wait as often.
        for job in batch:
            job.fail(_failure(error))
        return True
    try:
        insertions = [job for job in batch if isinstance(job, Insertion)]
        refused: Mapping[int, StoreFailed] = {}
        if insertions:
            refused = tables.insert([job.entry for job in insertions])
        if len(insertions) < len(batch):
            for job in batch:
                if not isinstance(job, Insertion):
                    job.run(tables)
        if ARMED and insertions:
            passed("Q1")
            passing("A3")
        tables.db.execute("COMMIT")
        if ARMED and insertions:
            if refused:
                passed("A6")
            passed("A4")
    except BaseException:
        # Whatever it was, it is met again below, by the change it belongs to.
        _roll_back(tables.db)
        return False
    for place, failure in refused.items():
        insertions[place].fail(failure)
    return True


def _commit_apart(tables: Tables, batch: Sequence[Job[Tables]]) -> None:
    """Commit all that can be in one transaction, each change in its own savepoint; else each by itself."""
    db = tables.db
    failures: dict[int, StoreFailed] = {}
    is_undone = False
    try:
        db.execute("BEGIN IMMEDIATE")
        for number, job in enumerate(batch):
            db.execute("SAVEPOINT change")
            try:
                job.run(tables)
            except BaseException as error:
                failures[number] = _failure(error)
                if not db.in_transaction:
                    break
                db.execute("ROLLBACK TO change")
            db.execute("RELEASE change")
        if db.in_transaction:
            db.execute("COMMIT")
            if ARMED and failures:
                passed("A6")
        else:
            # SQLite itself undid the whole transaction: as with a full disk.
            is_undone = True
    except BaseException as error:
        # Of SQLite, or for want of memory.
        _roll_back(db)
        failures = {number: _failure(error) for number in range(len(batch))}
        # The log is written by COMMIT: here, too, a disk is found to be full.
        is_undone = getattr(error, "sqlite_errorname", "") in _OUT_OF_ROOM
    if is_undone and len(batch) > 1:
        for job in batch:
            _commit_apart(tables, (job,))
        return
    for number, failure in failures.items():
        batch[number].fail(failure)


def _tidy(db: sqlite3.Connection) -> None:
    """Copy the log back, and give unused space to the file system; both a little at a time."""
    try:
        unused: int = db.execute("PRAGMA freelist_count").fetchone()[0]
        pages: int = db.execute("PRAGMA page_count").fetchone()[0]
        if unused > _UNUSED_PAGES and unused > pages // 2:
            # Its rows have no columns: `execute` would stop after the first page.
            db.executescript(f"PRAGMA incremental_vacuum({_SHRINK_PAGES})")
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    except Exception as error:
        # The log stays as it is and is as good as the database; the next time may be better. Whatever it was:
        # the batch is committed, and must not be told otherwise.
        _log.warn("{event}", event="queue.checkpoint-failed", reason=str(error) or repr(error))


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        db.execute("ROLLBACK")


def _failure(error: BaseException) -> StoreFailed:
    if isinstance(error, StoreFailed):
        return error
    if isinstance(error, sqlite3.Error):
        return sqlite_failure(error)
    if isinstance(error, OSError):
        return os_failure(error)
    return StoreFailed(repr(error))
