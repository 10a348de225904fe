"""`SqliteStore`: the queue in one SQLite file and a spool directory (DESIGN D4).

Three kinds of thread work for it, and none of them is the reactor's: the one
writer (`writer.py`), one reader (`reads.py`), and whatever `run_blocking` uses
for spool files. Start order: lock, place, schema, leases of the dead; then the
queue serves, and garbage is looked for in the background. Nothing is read in
full, so a start costs the same with a million recipients.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from hashlib import sha256
from weakref import WeakValueDictionary

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from mailgate.crash.point import ARMED, passed
from mailgate.queue import lease as host
from mailgate.queue import place, reads, recover
from mailgate.queue.connection import connect
from mailgate.queue.content import BLOCK_OCTETS
from mailgate.queue.entry import Entry, entry, hash_text
from mailgate.queue.item import (
    Lapsed,
    Late,
    Lease,
    NewMessage,
    QueueItem,
    RecipientUpdate,
    Stuck,
    Transmission,
    Whereabouts,
    queue_id_text,
)
from mailgate.queue.migrate import migrate
from mailgate.queue.operate import Action, Change, Order, Picked, carry_out
from mailgate.queue.reads import Reader, StoredContent
from mailgate.queue.repair import repair_ledger, repair_message
from mailgate.queue.spool import FileSpool, RunBlocking
from mailgate.queue.store import ContentReader, StoreFailed
from mailgate.queue.tables import Recorded, Tables, items
from mailgate.queue.thread import DelayedCall, StoreReactor
from mailgate.queue.writer import Writer

INLINE_OCTETS = 262_144
MIN_FREE_OCTETS = 268_435_456
_GARBAGE_INTERVAL = timedelta(hours=1)
_FORGOTTEN_AT_ONCE = 1000
# A queue id: milliseconds, then 6 bits of the process, then 14 bits of a sequence.
_SEQUENCE_BITS = 14
_PROCESS_BITS = 6
_SEQUENCES = 1 << _SEQUENCE_BITS

# What a change of one message's rows adds to the log, about.
_MESSAGE_OCTETS = 16_384

_log = Logger(namespace="mailgate.queue")


class SqliteStore:
    """The `QueueStore` of one host.

    `path` is the database, beside which `<path>.lock` is made; `lease` is how
    long a claimed unit stays claimed without `renew`; spool files without a
    message are garbage after `garbage_age`, which must be longer than any
    inbound session. The journal outlives a power cut only when it is synced.
    `process` (0 to 63) differs between the processes that
    make queue ids for one store. `boot_ms` is a clock nobody can set. `soon`
    says when changes go to the writer's thread: by default in the reactor's
    next turn.
    """

    def __init__(
        self,
        path: str,
        spool_dir: str,
        *,
        reactor: StoreReactor,
        run_blocking: RunBlocking,
        inline_octets: int = INLINE_OCTETS,
        min_free_octets: int = MIN_FREE_OCTETS,
        lease: timedelta = timedelta(seconds=60),
        garbage_age: timedelta = recover.GARBAGE_AGE,
        journal_synced: bool = True,
        process: int = 0,
        wall_ms: Callable[[], int] = host.wall_ms,
        boot_ms: Callable[[], int] = host.boot_ms,
        soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self._path = path
        self._spool_dir = spool_dir
        self._reactor = reactor
        self._run_blocking = run_blocking
        self._inline_octets = inline_octets
        self._lease_ms = lease // timedelta(milliseconds=1)
        self._garbage_age_ms = garbage_age // timedelta(milliseconds=1)
        self._process = process % (1 << _PROCESS_BITS)
        self._wall_ms = wall_ms
        self._boot_ms = boot_ms
        self._space = place.Space((os.path.dirname(path) or ".", spool_dir), min_free_octets)
        self._writer = Writer(reactor, self._space, self._open, self._close, soon)
        self._writer.marks_are_synced = journal_synced
        self._reader = Reader(reactor, lambda: connect(path, write=False))
        self._in_files: WeakValueDictionary[int, FileSpool] = WeakValueDictionary()
        self._lock: int | None = None
        self._id_ms = 0
        self._ids_left = _SEQUENCES
        self._sequence = random.randrange(_SEQUENCES)
        self._next_collection: DelayedCall | None = None
        self._collecting: Deferred[None] | None = None

    def adjust(self, inline_octets: int, min_free_octets: int, journal_synced: bool) -> None:
        """Take other limits for the messages that come in from now on, and another way to keep the journal."""
        self._inline_octets = inline_octets
        self._writer.marks_are_synced = journal_synced
        self._space.demand_from_now(min_free_octets)

    # --- start and stop -------------------------------------------------------

    async def start(self) -> None:
        """Open the store and free what dead processes held.

        Raises `StoreInUse` when another daemon has it, `StoreUnsuitable` when
        it must not be used, `StoreFailed` for everything else.
        """
        await self._writer.start()
        try:
            await self._reader.start()
        except Exception as error:
            await self._writer.stop()
            raise StoreFailed(f"the queue cannot be read: {error}") from error
        self._collect()

    async def stop(self) -> None:
        """Finish what was asked for, give leases and lock back, close."""
        if self._next_collection is not None and self._next_collection.active():
            self._next_collection.cancel()
        if self._collecting is not None:
            self._collecting.cancel()
        await self._reader.stop()
        await self._writer.stop()

    def _open(self) -> Tables:
        try:
            directory = os.path.dirname(self._path) or "."
            if not os.path.isdir(directory):
                os.makedirs(directory, 0o750, exist_ok=True)
                # Everybody may pass, to the maildrop, whatever the umask is; what else is in it has modes of its own.
                os.chmod(directory, 0o751)
            os.makedirs(self._spool_dir, 0o700, exist_ok=True)
            place.refuse_network(directory, self._spool_dir)
            self._lock = place.lock(self._path)
            try:
                tables = self._open_tables(directory)
            except BaseException:
                place.unlock(self._lock)
                self._lock = None
                raise
        except sqlite3.Error as error:
            raise place.sqlite_failure(error) from error
        except OSError as error:
            raise place.os_failure(error) from error
        return tables

    def _open_tables(self, directory: str) -> Tables:
        # Made here, so that nobody but the owner and the group can read mail whatever the umask is.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640))
        db = connect(self._path, write=True)
        try:
            mode: str = db.execute("PRAGMA journal_mode").fetchone()[0]
            if mode != "wal":
                raise place.StoreUnsuitable(f"the file system of {self._path} cannot carry a write-ahead log")
            migrate(db)
            place.sync_directory(directory)
            me = host.Owner.this_process()
            freed = recover.release_dead(db, me, self._wall_ms())
            if freed:
                _log.info("{event}", event="queue.leases-released", count=len(freed))
                _tell_doubts(freed)
            newest: int | None = db.execute("SELECT max(id) FROM message").fetchone()[0]
            # Also when the clock was set back: ids ascend past those that are there.
            self._id_ms = ((newest or 0) >> (_SEQUENCE_BITS + _PROCESS_BITS)) + 1
        except BaseException:
            db.close()
            raise
        return Tables(db, me.text, self._lease_ms, self._wall_ms)

    def _close(self, tables: Tables) -> None:
        try:
            tables.db.execute("BEGIN IMMEDIATE")
            doubtful = tables.release_all()
            tables.db.execute("COMMIT")
            _tell_doubts(doubtful)
            tables.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            tables.db.close()
            if self._lock is not None:
                place.unlock(self._lock)
                self._lock = None

    # --- new mail ---------------------------------------------------------------

    def new_id(self) -> int:
        """A queue id, unique over restarts and processes, and roughly ordered by time."""
        now = self._wall_ms()
        if now > self._id_ms:
            self._id_ms = now
            self._ids_left = _SEQUENCES
        elif self._ids_left == 0:
            self._id_ms += 1
            self._ids_left = _SEQUENCES
        self._ids_left -= 1
        self._sequence = (self._sequence + 1) % _SEQUENCES
        return (self._id_ms << _PROCESS_BITS | self._process) << _SEQUENCE_BITS | self._sequence

    def spool(self, queue_id: int) -> FileSpool:
        """Begin taking a message's octets."""
        return FileSpool(
            queue_id, self._spool_dir, self._inline_octets, self._run_blocking, self._space, self._in_files
        )

    def commit(self, message: NewMessage) -> Deferred[None]:
        """Keep the message for good: fires after the commit that holds it is on disk (I1).

        Fails with `StoreFull` or `StoreFailed`; then nothing is kept, and the
        spool file of the content, if any, is removed.
        """
        if message.content.path is None:
            return self._writer.insert(message, None)
        return Deferred.fromCoroutine(self._commit_spooled(message))

    async def _commit_spooled(self, message: NewMessage) -> None:
        self._take_over(message)
        try:
            await self._writer.insert(message, await self._file_hash(message))
        except StoreFailed:
            await self._remove_file(message.id)
            raise

    async def settled_drops(self, name: str) -> frozenset[str]:
        """What is recorded of one drop: its name, or its name with `#` and the number of a recipient."""
        return await self._reader.ask(lambda db: reads.settled_drops(db, name))

    async def forget_drops(self, before_ms: int, present: Sequence[str]) -> None:
        """Forget the drops that were taken before a moment and whose files are not `present` any more."""
        while await self._writer.submit(lambda tables: tables.forget_drops(before_ms, present, _FORGOTTEN_AT_ONCE)):
            continue

    # --- delivery ------------------------------------------------------------------

    async def claim(self, slots: Mapping[str, int], now_ms: int) -> list[Lease]:
        """Lease due units of the given virtual queues, at most so many of each, due order first."""
        boot = self._boot_ms()

        def change(tables: Tables) -> tuple[list[Lapsed], list[Lease]]:
            return tables.lapse(boot, now_ms), tables.claim(slots, now_ms, boot)

        leases = _announced(await self._writer.submit(change))
        if ARMED and leases:
            passed("S2")
        return leases

    async def expired(self, now_ms: int, limit: int) -> list[Lease]:
        """Lease units with an open recipient past its time to live, whatever their queue, due time or free slots."""
        boot = self._boot_ms()

        def change(tables: Tables) -> tuple[list[Lapsed], list[Lease]]:
            return tables.lapse(boot, now_ms), tables.expired(now_ms, limit, boot)

        return _announced(await self._writer.submit(change))

    async def renew(
        self, leases: Sequence[Lease], moved: Mapping[tuple[int, str], Whereabouts]
    ) -> set[tuple[int, str]]:
        """Extend leases, and write down where those attempts are that have moved; answers the units that are lost."""
        boot = self._boot_ms()
        lost = await self._writer.submit(lambda tables: tables.renew(leases, moved, boot))
        if ARMED and len(lost) < len(leases):
            passed("S3")
        return lost

    async def revoke_stuck(self, before_ms: int, limit: int) -> list[Stuck]:
        """Take the leases of attempts that made no progress since `before_ms`."""
        now = self._wall_ms()
        stuck = await self._writer.submit(lambda tables: tables.revoke(before_ms, now, limit))
        _tell_doubts([each.lapsed for each in stuck])
        return stuck

    def transmitting(self, lease: Lease, transmission: Transmission) -> Deferred[frozenset[int] | None]:
        """Write down that the last octets of a message are about to be sent, durably, before it fires."""
        boot = self._boot_ms()
        return self._writer.mark(lambda tables: tables.transmitting(lease, transmission, boot))

    def late(self, lease: Lease, learnt: Sequence[RecipientUpdate]) -> Deferred[Mapping[int, Late]]:
        """Store what is still news of results whose lease was lost; what each was worth, by recipient index."""
        boot = self._boot_ms()
        return self._writer.submit(lambda tables: tables.late(lease, learnt, boot))

    def record(
        self,
        lease: Lease,
        updates: Sequence[RecipientUpdate],
        dsn: NewMessage | None,
        end: bool,
        closes: bool = True,
        silenced: frozenset[int] = frozenset(),
    ) -> Deferred[bool | frozenset[int]]:
        """Store results in one transaction, and the DSN they call for with them. False: the lease was lost.

        A set: the DSN tells of these recipients, who have been cancelled, and nothing was stored.
        """
        if lease.item.spooled or (dsn is not None and dsn.content.path is not None):
            return Deferred.fromCoroutine(self._record_with_files(lease, updates, dsn, end, closes, silenced))
        notice = None if dsn is None else entry(dsn)
        return self._record(lease, updates, notice, end, closes, silenced).addCallback(_was_kept)

    def _record(
        self,
        lease: Lease,
        updates: Sequence[RecipientUpdate],
        notice: Entry | None,
        end: bool,
        closes: bool,
        silenced: frozenset[int],
    ) -> Deferred[Recorded | frozenset[int]]:
        octets = 0 if notice is None else len(notice.of.prefix) + len(notice.of.content.octets or b"")
        return self._writer.submit(lambda tables: tables.record(lease, updates, notice, end, closes, silenced), octets)

    async def _record_with_files(
        self,
        lease: Lease,
        updates: Sequence[RecipientUpdate],
        dsn: NewMessage | None,
        end: bool,
        closes: bool,
        silenced: frozenset[int],
    ) -> bool | frozenset[int]:
        dsn_file = dsn.id if dsn is not None and dsn.content.path is not None else None
        try:
            notice: Entry | None = None
            if dsn is not None:
                self._take_over(dsn)
                notice = entry(dsn, None if dsn_file is None else await self._file_hash(dsn))
            done = await self._record(lease, updates, notice, end, closes, silenced)
        except StoreFailed:
            # Only now is it known that nothing refers to the file: one who gives up waiting does not know.
            if dsn_file is not None:
                await self._remove_file(dsn_file)
            raise
        kept = _was_kept(done)
        if kept is not True and dsn_file is not None:
            await self._remove_file(dsn_file)
        if done is Recorded.REMOVED and lease.item.spooled:
            if ARMED:
                passed("F2")
            await self._remove_file(lease.item.id)
        return kept

    async def read(self, item: QueueItem) -> ContentReader:
        """Open the stored octets. Raises `StoreFailed` when they are missing or not what they were."""
        opened: list[StoredContent] = []

        def question(db: sqlite3.Connection) -> StoredContent:
            opened.append(reads.stored(db, self._spool_dir, item, self._run_blocking))
            return opened[0]

        try:
            return await self._reader.ask(question)
        except CancelledError:
            # The file may be opened after this: the reader's next job comes after that.
            def close(_: object) -> None:
                for content in opened:
                    content.close()

            self._reader.ask(lambda _: None).addBoth(close)
            raise

    # --- questions --------------------------------------------------------------------

    async def next_due(self, queues: Sequence[str]) -> int | None:
        """When the earliest unleased unit of these virtual queues falls due, in ms; None if there is none."""
        return await self._reader.ask(lambda db: reads.next_due(db, queues))

    async def list(self, limit: int, offset: int = 0) -> list[QueueItem]:
        """Queued messages in due order."""
        return await self._reader.ask(lambda db: reads.listed(db, limit, offset))

    async def get(self, queue_id: int) -> QueueItem | None:
        """One queued message."""
        return (await self._reader.ask(lambda db: items(db, (queue_id,)))).get(queue_id)

    # --- operators ------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The database: whoever asks for much opens it for himself, so that delivery need not wait."""
        return self._path

    async def operate(self, order: Order, picked: Picked) -> Sequence[Change]:
        """Carry an operator's order out, in one transaction: pick so few that new mail does not wait for it."""
        now_ms = self._wall_ms()
        job = partial(_carried_out, order=order, picked=picked, now_ms=now_ms)
        changes = await self._writer.submit(job, len(picked) * _MESSAGE_OCTETS)
        if ARMED:
            if order.action is Action.CANCEL:
                passed("M1")
            elif order.action is Action.RETRY:
                passed("M2")
        for change in changes:
            if change.spooled:
                await self._remove_file(change.id)
        return changes

    async def repair(self, ids: Sequence[int], ledger: bool) -> None:
        """Put the rows of these messages right, and what is used of quotas, in one transaction (`repair.py`)."""

        def change(tables: Tables) -> None:
            for id_ in ids:
                repair_message(tables.db, id_)
            if ledger:
                repair_ledger(tables.db)

        await self._writer.submit(change, len(ids) * _MESSAGE_OCTETS)

    async def set_flag(self, name: str, value: str | None) -> None:
        """Keep a word about the whole queue, for every process of it; None forgets it."""

        def change(tables: Tables) -> None:
            tables.db.execute("DELETE FROM flag WHERE name = ?", (name,))
            if value is not None:
                tables.db.execute("INSERT INTO flag (name, value) VALUES (?, ?)", (name, value))

        await self._writer.submit(change)

    # --- spool files --------------------------------------------------------------------

    async def collect_garbage(self) -> int:
        """Remove spool files without a message that are old enough; how many."""
        before_ms = self._wall_ms() - self._garbage_age_ms
        removed = 0
        for directory in recover.directories():
            old = await self._run_blocking(partial(recover.old_files, self._spool_dir, directory, before_ms))
            if old:
                present = await self._reader.ask(partial(reads.messages_present, old))
                for queue_id in set(old) - present:
                    if ARMED:
                        passed("F3")
                    await self._remove_file(queue_id)
                    removed += 1
        return removed

    def _collect(self) -> None:
        self._collecting = Deferred.fromCoroutine(self._collect_and_wait())

    async def _collect_and_wait(self) -> None:
        try:
            removed = await self.collect_garbage()
            if removed:
                _log.info("{event}", event="queue.garbage-removed", count=removed)
        except CancelledError:
            return
        except (StoreFailed, OSError) as error:
            _log.warn("{event}", event="queue.garbage-failed", reason=str(error))
        self._next_collection = self._reactor.callLater(_GARBAGE_INTERVAL.total_seconds(), self._collect)

    def _take_over(self, message: NewMessage) -> None:
        """From here on a discarded spool no longer removes the file: the store does, when the commit fails."""
        spool = self._in_files.pop(message.id, None)
        if spool is not None:
            spool.keep()

    async def _file_hash(self, message: NewMessage) -> str:
        path = self._file(message.id)

        def digest() -> str:
            hashed = sha256(message.prefix)
            block = bytearray(BLOCK_OCTETS)
            view = memoryview(block)
            with open(path, "rb", buffering=0) as file:
                while count := file.readinto(block):
                    hashed.update(view[:count])
            return hash_text(hashed.digest())

        try:
            return await self._run_blocking(digest)
        except OSError as error:
            raise place.os_failure(error) from error

    async def _remove_file(self, queue_id: int) -> None:
        path = self._file(queue_id)

        def remove() -> None:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass

        try:
            await self._run_blocking(remove)
        except OSError as error:
            # Without its row it is garbage, and found as such later.
            _log.warn("{event}", event="queue.file-not-removed", path=path, reason=str(error))

    def _file(self, queue_id: int) -> str:
        return os.path.join(self._spool_dir, place.spool_name(queue_id))


def _carried_out(tables: Tables, order: Order, picked: Picked, now_ms: int) -> Sequence[Change]:
    return carry_out(tables.db, order, picked, now_ms)


def _was_kept(done: Recorded | frozenset[int]) -> bool | frozenset[int]:
    return done if isinstance(done, frozenset) else done is not Recorded.LEASE_LOST


def _announced(result: tuple[list[Lapsed], list[Lease]]) -> list[Lease]:
    lapsed, leases = result
    for each in lapsed:
        _log.info("{event}", event="queue.lease-expired", queueId=queue_id_text(each.queue_id), queue=each.queue)
    _tell_doubts(lapsed)
    return leases


def _tell_doubts(lapsed: Iterable[Lapsed]) -> None:
    for each in lapsed:
        for doubt in each.doubts:
            _log.warn(
                "{event}",
                event="delivery.in-doubt",
                queueId=queue_id_text(each.queue_id),
                to=list(doubt.addresses),
                host=doubt.host,
                since=doubt.since_ms,
            )
