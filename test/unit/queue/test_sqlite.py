import os
import resource
import sqlite3
import threading
from dataclasses import replace
from functools import partial

import pytest
from support.queue_invariants import violations
from support.sqlite_store import DAY_MS, NOW_MS, message, recipient
from twisted.internet.defer import CancelledError, Deferred, gatherResults

from mailgate.mail.envelope import Body, DeliverBy, Notify, Ret
from mailgate.mail.status import ErrorKind, RecipientStatus, RemoteReply
from mailgate.queue import connection, place, sqlite, writer
from mailgate.queue.item import ExpiresBy, Expiry, RecipientUpdate, Source, State
from mailgate.queue.place import StoreInUse, StoreUnsuitable
from mailgate.queue.schedule import final
from mailgate.queue.store import StoreFailed, StoreFull

REPLY = RemoteReply(250, "2.0.0", "taken")
TAKEN = RecipientStatus("mx.example.net", reply=REPLY)
REFUSED = RecipientStatus("mx.example.net", ErrorKind.UNEXPECTED_REPLY, "", "RCPT TO", RemoteReply(450, "4.2.0", "no"))


def outside(stores):
    """A connection of somebody else."""
    return sqlite3.connect(stores.path, timeout=0, isolation_level=None)


def update(of, **facts):
    names = [name for name in RecipientUpdate.__slots__ if name != "index"]
    return RecipientUpdate(of.index, **{name: getattr(of, name) for name in names} | facts)


def settled(of, state=State.COMPLETED, status=TAKEN):
    return replace(final(of, state, status), dsn_sent=True)


def spooled(run, store, size):
    """The content of a large message, written through a spool."""
    queue_id = store.new_id()
    spool = store.spool(queue_id)
    octets = os.urandom(size)
    for start in range(0, size, 60_000):
        wait = spool.write(octets[start : start + 60_000])
        if wait is not None:
            run(wait)
    return queue_id, run(spool.finish()), octets


def _is_open(fd):
    return os.path.lexists(f"/proc/self/fd/{fd}")


async def whole(store, item):
    reader = await store.read(item)
    octets = b""
    while block := await reader.read():
        octets += block
    reader.close()
    return octets


# --- keeping -------------------------------------------------------------------------------


def test_every_fact_of_a_message_is_there_after_a_restart(stores, run):
    store = stores.open()
    kept = message(
        store,
        recipient(0, notify=Notify.NEVER, orcpt="Jane@Example.net"),
        recipient(1, notify=Notify.SUCCESS | Notify.FAILURE, notify_due_ms=NOW_MS + 5, queue="local"),
        recipient(2, notify=Notify.NONE, expiry=Expiry(ExpiresBy.ATTEMPTS, 8), held=True),
        recipient(3, state=State.TEMP_FAIL, status=REFUSED, retry_num=3, notify_num=2),
        trace="k3v7",
        env_id="id+1",
        ret=Ret.HDRS,
        smtputf8=True,
        requiretls=True,
        body=Body.BINARY,
        priority=-4,
        hold_ms=60_000,
        deliver_by=DeliverBy(-5, "N", True),
        from_ip="2001:db8::1",
        via_port=465,
        source=Source.AUTHENTICATED,
    )
    run(store.commit(kept))
    stores.stop(store)
    store = stores.open()
    item = run(store.get(kept.id))
    for name in (
        *("id", "created_ms", "size_octets", "return_path", "source", "recipients", "trace", "env_id", "ret"),
        *("smtputf8", "requiretls", "body", "priority", "hold_ms", "deliver_by", "from_ip", "via_port"),
    ):
        assert getattr(item, name) == getattr(kept, name), name
    assert run(whole(store, item)) == kept.prefix + kept.content.octets
    assert violations(stores.path, stores.spool_dir) == []


def test_a_plain_message_keeps_what_it_does_not_say(store, run):
    kept = message(store)
    run(store.commit(kept))
    item = run(store.get(kept.id))
    assert (item.trace, item.env_id, item.ret, item.body, item.deliver_by) == (None,) * 5
    assert (item.smtputf8, item.requiretls, item.spooled) == (False,) * 3


@pytest.mark.spec("OUT-226")
def test_changes_that_wait_together_are_one_commit_and_reported_after_it(stores, store, run):
    statements = []
    run(store._writer.submit(lambda tables: tables.db.set_trace_callback(statements.append)))
    statements.clear()
    seen = []
    other = outside(stores)

    def reported(_):
        seen.append((other.execute("SELECT count(*) FROM message").fetchone()[0], stores.reactor.turns))

    commits = [store.commit(message(store)).addCallback(reported) for _ in range(50)]
    run(commits[-1])
    # All are there when the first is told, and one call tells all.
    assert seen == [(50, seen[0][1])] * 50
    assert statements.count("BEGIN IMMEDIATE") == statements.count("COMMIT") == 1


@pytest.mark.spec("OUT-226")
def test_when_the_commit_fails_nothing_of_the_batch_is_kept_and_all_are_told(store, run):
    def no_commit(action, what, *_):
        return sqlite3.SQLITE_DENY if (action, what) == (sqlite3.SQLITE_TRANSACTION, "COMMIT") else sqlite3.SQLITE_OK

    with pytest.raises(StoreFailed):
        run(store._writer.submit(lambda tables: tables.db.set_authorizer(no_commit)))
    results = []
    for _ in range(5):
        store.commit(message(store)).addBoth(results.append)
    with pytest.raises(StoreFailed):
        run(store.commit(message(store)))
    assert [result.check(StoreFailed) for result in results] == [StoreFailed] * 5
    run(store._writer.submit(lambda tables: tables.db.set_authorizer(None)))
    assert run(store.list(10)) == []
    run(store.commit(message(store)))
    assert len(run(store.list(10))) == 1


@pytest.mark.spec("OUT-227")
def test_one_failing_change_fails_alone(stores, store, run):
    first = message(store)
    run(store.commit(first))
    results = []
    good = [message(store) for _ in range(4)]
    bad = replace(good[2], id=first.id)
    for each in (good[0], good[1], bad, good[2], good[3]):
        store.commit(each).addBoth(results.append)
    run(store.commit(message(store)))
    assert [isinstance(r, type(None)) for r in results] == [True, True, False, True, True]
    assert results[2].check(StoreFailed)
    assert {item.id for item in run(store.list(10))} >= {first.id, *(m.id for m in good)}
    assert violations(stores.path, stores.spool_dir) == []


def test_a_message_that_cannot_be_written_down_fails_and_the_next_is_kept(stores, store, run):
    with pytest.raises(StoreFailed):
        run(store.commit(message(store, return_path="\udc80@example.org")))
    run(store.commit(message(store)))
    assert len(run(store.list(10))) == 1


def test_a_full_database_refuses_new_mail_until_there_is_room_and_mail_leaves_meanwhile(stores, store, run):
    first = message(store)
    run(store.commit(first))
    pages = outside(stores).execute("PRAGMA page_count").fetchone()[0]
    run(store._writer.submit(lambda tables: tables.db.execute(f"PRAGMA max_page_count = {pages + 4}").fetchall()))
    small, large = message(store), message(store, octets=b"x" * 100_000)
    results = []
    for each in (large, small, replace(large, id=store.new_id())):
        store.commit(each).addBoth(results.append)
    (lease,) = run(store.claim({"remote": 1}, NOW_MS))
    assert run(store.record(lease, [settled(lease.item.recipients[0])], None, True))
    assert results[0].check(StoreFull)
    assert results[1] is None
    assert results[2].check(StoreFull)
    run(store._writer.submit(lambda tables: tables.db.execute("PRAGMA max_page_count = 1000000").fetchall()))
    run(store.commit(large))
    assert {item.id for item in run(store.list(10))} == {small.id, large.id}
    assert violations(stores.path, stores.spool_dir) == []


def test_where_the_log_cannot_grow_the_changes_that_fit_are_kept(stores, store, run):
    run(store.commit(message(store)))
    (lease,) = run(store.claim({"remote": 1}, NOW_MS))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    results = []
    # What does not fit in the log is noticed by COMMIT, not by a statement.
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(f"{stores.path}-wal") + 400_000, before[1]))
    try:
        small, large = message(store), message(store, octets=b"x" * 600_000)
        kept = store.record(lease, [settled(lease.item.recipients[0])], None, True)
        for change in (kept, store.commit(large), store.commit(small)):
            change.addBoth(results.append)
        stores.reactor.advance(0)
        while len(results) < 3:
            stores.reactor.turn()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert results[0] is True
    assert results[1].check(StoreFailed)
    assert results[2] is None
    assert [item.id for item in run(store.list(10))] == [small.id]
    assert violations(stores.path, stores.spool_dir) == []


def test_whatever_ends_a_change_leaves_no_transaction_open(stores, store, run):
    def broken(tables):
        tables.db.execute("DELETE FROM message")
        raise SystemExit(3)

    first = message(store)
    run(store.commit(first))
    with pytest.raises(StoreFailed, match="SystemExit"):
        run(store._writer.submit(broken))
    run(store.commit(message(store)))
    assert len(run(store.list(10))) == 2


class Poor(sqlite3.Connection):
    """A connection that has no memory for some statements, which is no `sqlite3.Error`."""

    out_of_memory = ()

    def execute(self, sql, *cells):
        """Execute a statement, or fail at the first of those there is no memory for."""
        if sql in self.out_of_memory:
            self.out_of_memory = self.out_of_memory[1:]
            raise MemoryError(sql)
        return super().execute(sql, *cells)


@pytest.mark.parametrize("statement", ["SAVEPOINT change", "COMMIT", "ROLLBACK"])
def test_a_commit_without_memory_fails_its_batch_and_not_the_store(stores, run, monkeypatch, statement):
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Poor))
    store = stores.open()
    first = message(store)
    run(store.commit(first))
    db = run(store._writer.submit(lambda tables: tables.db))
    db.out_of_memory = (statement,)
    results = []
    # The second is there already: each change is given a savepoint.
    for each in (message(store), first):
        store.commit(each).addBoth(results.append)
    stores.reactor.advance(0)
    while len(results) < 2:
        stores.reactor.turn()
    assert [result.check(StoreFailed) for result in results] == [StoreFailed] * 2
    assert db.out_of_memory == ()
    run(store.commit(message(store)))
    assert len(run(store.list(10))) == 2
    assert violations(stores.path, stores.spool_dir) == []


def test_an_answer_without_memory_does_not_leave_the_reader_in_the_past(stores, run, monkeypatch):
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Poor))
    store = stores.open()
    run(store.commit(message(store)))
    db = run(store._reader.ask(lambda db: db))
    db.out_of_memory = ("COMMIT",)
    with pytest.raises(StoreFailed, match="MemoryError"):
        run(store.list(10))
    second = message(store)
    run(store.commit(second))
    assert run(store.get(second.id)).id == second.id
    assert len(run(store.list(10))) == 2


def test_what_is_committed_is_told_so_whatever_becomes_of_the_log(stores, run, monkeypatch):
    monkeypatch.setattr(writer, "_CHECKPOINT_OCTETS", 1)
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Poor))
    store = stores.open()
    db = run(store._writer.submit(lambda tables: tables.db))
    db.out_of_memory = ("PRAGMA wal_checkpoint(PASSIVE)",)
    queue_id, content, octets = spooled(run, store, 300_000)
    kept = message(store, id=queue_id, content=content)
    run(store.commit(kept))
    assert db.out_of_memory == ()
    assert run(whole(store, run(store.get(queue_id)))) == kept.prefix + octets


def test_below_the_least_free_space_new_mail_is_refused_and_results_are_kept(stores, run):
    store = stores.open()
    run(store.commit(message(store)))
    stores.stop(store)
    store = stores.open(min_free_octets=1 << 62)
    with pytest.raises(StoreFull):
        run(store.commit(message(store)))
    queue_id = store.new_id()
    spool = store.spool(queue_id)
    spool.write(b"x" * 300_000)
    with pytest.raises(StoreFull):
        run(spool.finish())
    (lease,) = run(store.claim({"remote": 1}, NOW_MS))
    notice = message(store, recipient(address="sender@example.org", queue="dsn"), return_path="")
    assert run(store.record(lease, [settled(lease.item.recipients[0])], notice, True))
    assert [item.id for item in run(store.list(10))] == [notice.id]


def test_a_database_that_cannot_be_written_fails_the_change_and_not_the_store(store, run, monkeypatch):
    db = run(store._writer.submit(lambda tables: tables.db))

    def switch(word):
        db.execute(f"PRAGMA query_only = {word}").fetchall()

    run(store._writer.submit(lambda tables: switch("ON")))
    with pytest.raises(StoreFailed, match="READONLY"):
        run(store.commit(message(store)))
    # The writer looks at the disk before each batch: the one place to heal it from.
    monkeypatch.setattr(store._space, "demand", lambda: switch("OFF"))
    run(store.commit(message(store)))
    assert len(run(store.list(10))) == 1


def test_a_locked_database_fails_the_change_and_not_the_store(stores, run, monkeypatch):
    monkeypatch.setattr(connection, "BUSY_SECONDS", 0.05)
    store = stores.open()
    other = outside(stores)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreFailed, match="locked"):
        run(store.commit(message(store)))
    other.execute("ROLLBACK")
    run(store.commit(message(store)))
    assert len(run(store.list(10))) == 1


def test_a_store_that_is_not_open_fails_everything(stores, run):
    store = stores.make()
    for ask in (
        lambda: store.commit(message(store)),
        lambda: store.claim({"remote": 1}, NOW_MS),
        lambda: store.list(1),
    ):
        with pytest.raises(StoreFailed, match="not open"):
            run(ask())
    run(store.stop())


# --- contents ------------------------------------------------------------------------------


@pytest.mark.spec("OUT-231")
@pytest.mark.parametrize("more", [0, 1])
def test_a_content_of_the_limit_is_in_the_database_and_one_octet_more_is_in_a_file(stores, run, more):
    store = stores.open(inline_octets=100_000)
    queue_id, content, octets = spooled(run, store, 100_000 + more)
    kept = message(store, id=queue_id, content=content)
    run(store.commit(kept))
    path = outside(stores).execute("SELECT path FROM content").fetchone()[0]
    item = run(store.get(queue_id))
    assert (path is not None) is item.spooled is bool(more)
    assert run(whole(store, item)) == kept.prefix + octets
    assert violations(stores.path, stores.spool_dir) == []


@pytest.mark.spec("OUT-232")
def test_file_then_directory_then_commit_then_report(stores, store, run, monkeypatch):
    events = []
    real = os.fsync

    def fsync(fd):
        events.append(("fsync", os.readlink(f"/proc/self/fd/{fd}")))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    run(store._writer.submit(lambda tables: tables.db.set_trace_callback(lambda sql: events.append(("sql", sql)))))
    events.clear()
    queue_id, content, _ = spooled(run, store, 400_000)
    run(store.commit(message(store, id=queue_id, content=content)).addCallback(lambda _: events.append("reported")))
    directory = os.path.dirname(content.path)
    order = [events.index(("fsync", content.path)), events.index(("fsync", directory)), events.index(("sql", "COMMIT"))]
    assert order == sorted(order)
    assert events[-1] == "reported"
    # The directory is new, and its name was made durable too.
    assert ("fsync", stores.spool_dir) in events


@pytest.mark.spec("OUT-210")
def test_contents_go_with_their_message_and_equal_ones_are_independent(stores, store, run):
    octets = b"Subject: same\r\n\r\nsame\r\n"
    pairs = [message(store, octets=octets) for _ in range(2)]
    for _ in range(2):
        queue_id, content, _ = spooled(run, store, 300_000)
        pairs.append(message(store, id=queue_id, content=content))
    for each in pairs:
        run(store.commit(each))
    leases = run(store.claim({"remote": 9}, NOW_MS))
    gone, kept = leases[::2], leases[1::2]
    files = {lease.item.id: os.path.join(stores.spool_dir, place.spool_name(lease.item.id)) for lease in leases}
    for lease in gone:
        assert run(store.record(lease, [update(lease.item.recipients[0], retry_num=1)], None, False))
        assert run(whole(store, lease.item))
        assert run(store.record(lease, [settled(lease.item.recipients[0])], None, True))
        with pytest.raises(StoreFailed):
            run(store.read(lease.item))
        assert not os.path.exists(files[lease.item.id])
    assert outside(stores).execute("SELECT count(*) FROM content").fetchone() == (2,)
    for lease in kept:
        assert len(run(whole(store, lease.item))) == lease.item.size_octets
    assert violations(stores.path, stores.spool_dir) == []


def test_a_commit_that_fails_takes_the_spool_file_with_it(stores, store, run):
    queue_id, content, _ = spooled(run, store, 300_000)
    with pytest.raises(StoreFailed):
        run(store.commit(message(store, id=queue_id, content=content, return_path="\udc80@x.test")))
    assert not os.path.exists(content.path)


def test_discarding_a_spool_after_its_commit_leaves_the_file(stores, store, run):
    queue_id = store.new_id()
    spool = store.spool(queue_id)
    spool.write(b"x" * 300_000)
    kept = message(store, id=queue_id, content=run(spool.finish()))
    run(store.commit(kept))
    spool.discard()
    assert len(run(whole(store, run(store.get(queue_id))))) == kept.size_octets


def test_a_content_that_is_not_what_it_was_is_never_read_to_its_end(stores, store, run):
    queue_id, content, _ = spooled(run, store, 600_000)
    run(store.commit(message(store, id=queue_id, content=content)))
    small = message(store)
    run(store.commit(small))
    with open(content.path, "r+b") as file:
        file.seek(500_000)
        octet = file.read(1)
        file.seek(500_000)
        file.write(bytes([octet[0] ^ 1]))
    db = outside(stores)
    db.execute("UPDATE content SET octets = CAST(replace(octets, 'hello', 'hullo') AS BLOB) WHERE path IS NULL")
    db.close()
    with pytest.raises(StoreFailed, match="not what it was"):
        run(whole(store, run(store.get(queue_id))))
    with pytest.raises(StoreFailed, match="not what it was"):
        run(store.read(run(store.get(small.id))))


def test_a_content_that_is_short_or_missing_is_a_failure_of_the_store(stores, store, run):
    queue_id, content, _ = spooled(run, store, 300_000)
    run(store.commit(message(store, id=queue_id, content=content)))
    item = run(store.get(queue_id))
    os.truncate(content.path, 299_999)
    with pytest.raises(StoreFailed, match="octets instead of"):
        run(store.read(item))
    os.unlink(content.path)
    with pytest.raises(StoreFailed):
        run(store.read(item))


def test_one_who_stops_waiting_for_a_content_leaves_no_file_open(stores, store, run):
    queue_id, content, _ = spooled(run, store, 300_000)
    run(store.commit(message(store, id=queue_id, content=content)))
    item = run(store.get(queue_id))
    reading = Deferred.fromCoroutine(store.read(item))
    reading.cancel()
    with pytest.raises(CancelledError):
        run(reading)
    # Whatever the reader and the pool were asked for before is done after these: they need all threads of the pool.
    run(store.list(1))
    all_threads = threading.Barrier(stores.pool.max)
    run(gatherResults([stores.run_blocking(partial(all_threads.wait, 10)) for _ in range(stores.pool.max)]))
    open_files = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)}
    assert content.path not in open_files


@pytest.mark.spec("OUT-233")
def test_files_without_message_are_removed_when_they_are_old_enough(stores, store, run):
    def abandoned(age_ms):
        path = os.path.join(stores.spool_dir, place.spool_name(store.new_id()))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"x")
        moment = (NOW_MS - age_ms) / 1000
        os.utime(path, (moment, moment))
        return path

    queue_id, content, _ = spooled(run, store, 300_000)
    run(store.commit(message(store, id=queue_id, content=content)))
    os.utime(content.path, (1, 1))
    old, young = abandoned(3_600_001), abandoned(3_599_000)
    foreign = os.path.join(os.path.dirname(old), "README")
    open(foreign, "w").close()
    os.utime(foreign, (1, 1))
    run(store.collect_garbage())
    assert [os.path.exists(path) for path in (old, young, foreign, content.path)] == [False, True, True, True]
    stores.clocks.advance(2_000)
    run(store.collect_garbage())
    assert not os.path.exists(young)


# --- leases --------------------------------------------------------------------------------


@pytest.mark.spec("OUT-024")
def test_units_are_claimed_by_due_time_and_no_more_than_there_are_slots(stores, store, run):
    made = [
        message(store, recipient(retry_due_ms=NOW_MS - 10)),
        message(store, recipient(retry_due_ms=NOW_MS + 50, notify_due_ms=NOW_MS - 30)),
        message(store, recipient(retry_due_ms=NOW_MS + 50, expiry=Expiry(ExpiresBy.TTL, -20))),
        message(store, recipient(0, retry_due_ms=NOW_MS + 9), recipient(1, retry_due_ms=NOW_MS - 40)),
        message(store, recipient(retry_due_ms=NOW_MS + 1)),
        message(store, recipient(queue="local", retry_due_ms=NOW_MS)),
    ]
    for each in made:
        run(store.commit(each))
    assert run(store.next_due(["remote", "local"])) == NOW_MS - 40
    assert [i.id for i in run(store.list(10))] == [made[n].id for n in (3, 1, 2, 0, 5, 4)]
    first = run(store.claim({"remote": 3, "local": 0, "dsn": 5}, NOW_MS))
    assert [lease.item.id for lease in first] == [made[n].id for n in (3, 1, 2)]
    second = run(store.claim({"remote": 3, "local": 2}, NOW_MS))
    assert [lease.item.id for lease in second] == [made[n].id for n in (0, 5)]
    assert run(store.claim({"remote": 3, "local": 2}, NOW_MS)) == []
    assert run(store.next_due(["remote", "local"])) == NOW_MS + 1
    assert run(store.next_due(["local"])) is None
    # Leased ones are listed in their places.
    assert [i.id for i in run(store.list(2, 1))] == [made[1].id, made[2].id]
    assert {lease.generation for lease in (*first, *second)} == {1}


@pytest.mark.spec("OUT-026")
def test_a_message_in_two_virtual_queues_is_two_units_and_goes_with_the_last(stores, store, run):
    kept = message(store, recipient(0), recipient(1, queue="local"), recipient(2))
    run(store.commit(kept))
    leases = run(store.claim({"remote": 5, "local": 5}, NOW_MS))
    assert sorted(lease.queue for lease in leases) == ["local", "remote"]
    remote, local = sorted(leases, key=lambda lease: lease.queue, reverse=True)
    assert remote.item.recipients == kept.recipients
    mine = [r for r in remote.item.recipients if r.queue == "remote"]
    assert run(store.record(remote, [settled(r) for r in mine], None, True))
    assert [r.state for r in run(store.get(kept.id)).recipients] == [
        State.COMPLETED,
        State.SCHEDULED,
        State.COMPLETED,
    ]
    assert run(store.claim({"remote": 5, "local": 5}, NOW_MS)) == []
    assert run(store.record(local, [settled(local.item.recipients[1])], None, True))
    assert run(store.get(kept.id)) is None
    assert violations(stores.path, stores.spool_dir) == []


def test_a_result_without_lease_changes_nothing(stores, store, run):
    run(store.commit(message(store)))
    (first,) = run(store.claim({"remote": 1}, NOW_MS))
    stores.clocks.advance(60_001)
    (second,) = run(store.claim({"remote": 1}, NOW_MS))
    assert (first.generation, second.generation) == (1, 2)
    notice = message(store, recipient(address="sender@example.org"), return_path="")
    for end in (False, True):
        for updates in ([settled(first.item.recipients[0])], []):
            assert run(store.record(first, updates, notice, end)) is False
    assert run(store.get(first.item.id)).recipients == first.item.recipients
    assert run(store.get(notice.id)) is None
    assert run(store.record(second, [settled(second.item.recipients[0])], None, True)) is True
    assert run(store.record(second, [], None, True)) is False


def test_a_lease_that_was_given_back_is_over(stores, store, run):
    run(store.commit(message(store)))
    (lease,) = run(store.claim({"remote": 1}, NOW_MS))
    later = update(
        lease.item.recipients[0], state=State.TEMP_FAIL, status=REFUSED, retry_due_ms=NOW_MS + 9, retry_num=1
    )
    assert run(store.record(lease, [later], None, True))
    assert run(store.record(lease, [settled(lease.item.recipients[0])], None, True)) is False
    assert run(store.next_due(["remote"])) == NOW_MS + 9
    assert run(store.claim({"remote": 1}, NOW_MS + 8)) == []
    (again,) = run(store.claim({"remote": 1}, NOW_MS + 9))
    assert again.item.recipients[0].status == REFUSED
    assert again.generation > lease.generation


def test_a_late_result_counts_while_nobody_else_has_begun(stores, store, run):
    run(store.commit(message(store)))
    (lease,) = run(store.claim({"remote": 1}, NOW_MS))
    stores.clocks.advance(60_001)
    assert run(store.claim({"local": 1}, NOW_MS)) == []
    assert run(store.record(lease, [settled(lease.item.recipients[0])], None, True))
    assert run(store.list(10)) == []


def test_renewal_keeps_others_away_and_tells_what_is_lost(stores, store, run):
    kept, lost = message(store), message(store)
    run(store.commit(kept))
    run(store.commit(lost))
    leases = {lease.item.id: lease for lease in run(store.claim({"remote": 2}, NOW_MS))}
    stores.clocks.advance(50_000)
    assert run(store.renew([leases[kept.id]], {})) == set()
    stores.clocks.advance(50_000)
    assert [lease.item.id for lease in run(store.claim({"remote": 2}, NOW_MS))] == [lost.id]
    assert run(store.renew(list(leases.values()), {})) == {(lost.id, "remote")}
    assert run(store.renew([], {})) == set()


def test_the_wall_clock_does_not_end_a_lease(stores, store, run):
    run(store.commit(message(store)))
    run(store.claim({"remote": 1}, NOW_MS))
    stores.clocks.wall += 10 * DAY_MS
    assert run(store.claim({"remote": 1}, stores.clocks.wall)) == []


def test_expired_recipients_are_found_whatever_their_queue_and_due_time(stores, store, run):
    short = Expiry(ExpiresBy.TTL, 1_000)
    expired = message(store, recipient(0, queue="gone", expiry=short), recipient(1))
    run(store.commit(expired))
    run(store.commit(message(store, recipient(expiry=Expiry(ExpiresBy.ATTEMPTS, 2)))))
    run(store.commit(message(store, recipient(expiry=short, held=True))))
    assert run(store.expired(NOW_MS + 999, 10)) == []
    (lease,) = run(store.expired(NOW_MS + 1_000, 10))
    assert (lease.item.id, lease.queue) == (expired.id, "gone")
    assert run(store.expired(NOW_MS + 1_000, 10)) == []
    closed = settled(lease.item.recipients[0], State.PERM_FAIL, REFUSED)
    assert run(store.record(lease, [closed], None, True))
    assert run(store.expired(NOW_MS + 2_000, 10)) == []
    assert violations(stores.path, stores.spool_dir) == []


def test_expired_units_come_in_bounded_batches(store, run):
    for _ in range(5):
        run(store.commit(message(store, recipient(expiry=Expiry(ExpiresBy.TTL, 1)))))
    assert [len(run(store.expired(NOW_MS + 1, 2))) for _ in range(4)] == [2, 2, 1, 0]


# --- results -------------------------------------------------------------------------------


def test_results_of_a_group_are_kept_before_the_end_of_the_attempt(stores, run):
    store = stores.open()
    kept = message(store, recipient(0), recipient(1))
    run(store.commit(kept))
    (lease,) = run(store.claim({"remote": 1}, NOW_MS))
    done = final(lease.item.recipients[0], State.COMPLETED, TAKEN)
    assert run(store.record(lease, [done], None, False))
    assert run(store.claim({"remote": 1}, NOW_MS)) == []
    stores.stop(store)
    store = stores.open()
    (again,) = run(store.claim({"remote": 1}, NOW_MS))
    assert [r.state for r in again.item.recipients] == [State.COMPLETED, State.SCHEDULED]
    assert again.item.recipients[0].status == TAKEN
    assert violations(stores.path, stores.spool_dir) == []


def test_a_closed_recipient_stays_due_until_its_notification_is_settled(stores, store, run):
    kept = message(store)
    run(store.commit(kept))
    (lease,) = run(store.claim({"remote": 1}, NOW_MS))
    failed = final(lease.item.recipients[0], State.PERM_FAIL, REFUSED)
    assert run(store.record(lease, [failed], None, True))
    (again,) = run(store.claim({"remote": 1}, NOW_MS))
    notice = message(store, recipient(address="sender@example.org", queue="dsn"), return_path="", source=Source.DSN)
    assert run(store.record(again, [replace(failed, dsn_sent=True)], notice, True))
    assert [item.id for item in run(store.list(10))] == [notice.id]
    assert violations(stores.path, stores.spool_dir) == []


def test_a_final_state_does_not_change(stores, store, run):
    run(store.commit(message(store, recipient(0), recipient(1))))
    (lease,) = run(store.claim({"remote": 1}, NOW_MS))
    failed = final(lease.item.recipients[0], State.PERM_FAIL, REFUSED)
    run(store.record(lease, [failed], None, False))
    run(store.record(lease, [final(lease.item.recipients[0], State.COMPLETED, TAKEN)], None, False))
    run(store.record(lease, [update(lease.item.recipients[0], retry_num=7)], None, False))
    assert run(store.get(lease.item.id)).recipients[0].state is State.PERM_FAIL
    assert run(store.get(lease.item.id)).recipients[0].retry_num == 0


def test_a_recipient_moves_to_another_virtual_queue(stores, store, run):
    run(store.commit(message(store, recipient(0), recipient(1))))
    (lease,) = run(store.claim({"remote": 1}, NOW_MS))
    moved = [
        update(r, state=State.TEMP_FAIL, status=REFUSED, queue="slow", schedule="slow", retry_due_ms=NOW_MS + 77)
        for r in lease.item.recipients
    ]
    assert run(store.record(lease, moved[:1], None, False))
    # The unit under attempt stays until its end, although nothing of it is open.
    assert run(store.record(lease, moved[1:], None, False))
    assert run(store.record(lease, [], None, True))
    assert outside(stores).execute("SELECT queue, due, lease_owner FROM unit").fetchall() == [
        ("slow", NOW_MS + 77, None)
    ]
    assert run(store.next_due(["remote", "slow"])) == NOW_MS + 77
    assert violations(stores.path, stores.spool_dir) == []


def test_an_attempt_cut_short_after_its_last_recipient_is_ended_by_the_next_claim(stores, store, run):
    run(store.commit(message(store)))
    (lease,) = run(store.claim({"remote": 1}, NOW_MS))
    later = update(lease.item.recipients[0], state=State.TEMP_FAIL, status=REFUSED, retry_due_ms=NOW_MS + DAY_MS)
    assert run(store.record(lease, [later], None, False))
    assert run(store.record(lease, [settled(lease.item.recipients[0])], None, False))
    stores.clocks.advance(60_001)
    (again,) = run(store.claim({"remote": 1}, NOW_MS))
    assert again.item.recipients[0].state is State.COMPLETED
    assert run(store.record(again, [], None, True))
    assert run(store.list(10)) == []


def test_a_notification_is_stored_with_the_result_or_not_at_all(stores, store, run):
    run(store.commit(message(store)))
    (lease,) = run(store.claim({"remote": 1}, NOW_MS))
    failed = settled(lease.item.recipients[0], State.PERM_FAIL, REFUSED)
    notice = message(store, recipient(address="sender@example.org"), return_path="", trace="\udc80")
    with pytest.raises(StoreFailed):
        run(store.record(lease, [failed], notice, True))
    assert run(store.get(lease.item.id)).recipients == lease.item.recipients
    assert run(store.record(lease, [failed], replace(notice, trace=None), True))
    assert [item.id for item in run(store.list(10))] == [notice.id]


def test_a_large_notification_is_in_a_file_and_goes_when_the_lease_is_lost(stores, store, run):
    run(store.commit(message(store)))
    (lease,) = run(store.claim({"remote": 1}, NOW_MS))
    failed = settled(lease.item.recipients[0], State.PERM_FAIL, REFUSED)
    contents = [spooled(run, store, 300_000) for _ in range(2)]
    notices = [
        message(store, recipient(address="sender@example.org", queue="dsn"), id=id_, content=content, return_path="")
        for id_, content, _ in contents
    ]
    assert run(store.record(replace(lease, generation=9), [failed], notices[0], True)) is False
    assert run(store.record(lease, [failed], notices[1], True))
    assert [os.path.exists(content.path) for _, content, _ in contents] == [False, True]
    assert violations(stores.path, stores.spool_dir) == []


@pytest.mark.spec("OUT-208")
def test_no_transaction_is_open_while_an_attempt_is_under_way(stores, store, run):
    run(store.commit(message(store)))
    (lease,) = run(store.claim({"remote": 1}, NOW_MS))
    reader = run(store.read(lease.item))
    assert run(store._reader.ask(lambda db: db.in_transaction)) is False
    # Nobody holds the write lock, nor a snapshot that would keep the log from being reset.
    other = outside(stores)
    other.execute("BEGIN IMMEDIATE")
    other.execute("ROLLBACK")
    assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    reader.close()


# --- place, start, stop --------------------------------------------------------------------


@pytest.mark.spec("OUT-213")
def test_a_second_store_on_the_same_file_is_refused_with_the_process_id(stores, store, run):
    with pytest.raises(StoreInUse, match=f"process {os.getpid()}") as refused:
        run(stores.make().start())
    assert refused.value.pid == os.getpid()
    stores.stop(store)
    stores.open()


@pytest.mark.spec("OUT-230")
def test_a_network_file_system_is_refused(stores, run, monkeypatch, tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        f"40 22 0:44 / {tmp_path} rw,relatime shared:20 - nfs4 server:/mail rw\n"
    )
    monkeypatch.setattr(place, "_MOUNTS", str(mounts))
    with pytest.raises(StoreUnsuitable, match="nfs4 is a network file system"):
        run(stores.make().start())
    assert not os.path.exists(stores.path)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/mail/queue", "nfs"),
        ("/srv/mailing", None),
        ("/mnt/with space/q", "cifs"),
        ("/over/q", None),
        ("/q", None),
    ],
)
def test_the_innermost_and_latest_mount_decides(path, kind):
    mounts = (
        "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
        "23 22 0:41 / /srv/mail rw - nfs server:/x rw\n"
        "24 22 0:42 / /mnt/with\\040space rw - cifs //server/x rw\n"
        "25 22 0:43 / /over rw - nfs server:/y rw\n"
        "26 25 8:2 / /over rw - xfs /dev/sdb rw\n"
    )
    assert place.network_type(path, mounts) == kind


def test_a_later_programs_tables_are_left_alone(stores, run):
    stores.stop(stores.open())
    db = outside(stores)
    db.execute("UPDATE flag SET value = '99' WHERE name = 'schema'")
    db.close()
    with pytest.raises(StoreUnsuitable, match="version 99"):
        run(stores.make().start())


def test_leases_of_processes_that_are_gone_are_free_at_once_and_those_of_others_are_not(stores, run):
    store = stores.open()
    alive = message(store)
    for each in (alive, message(store), message(store)):
        run(store.commit(each))
    leases = run(store.claim({"remote": 3}, NOW_MS))
    stores.stop(store)
    # What a crash leaves: owners of another boot, of this boot but gone, and of a process that runs.
    boot = sqlite.host.boot_id()
    other = sqlite.host.process_start(os.getppid())
    owners = [f"{boot}/{os.getppid()}/{other}", f"another-boot/{os.getpid()}/1", f"{boot}/{os.getpid()}/1"]
    db = outside(stores)
    for lease, owner in zip(sorted(leases, key=lambda lease: lease.item.id), owners, strict=True):
        db.execute(
            "UPDATE unit SET lease_owner = ?, lease_until = ? WHERE message_id = ?", (owner, 10**15, lease.item.id)
        )
    db.close()
    store = stores.open()
    claimed = run(store.claim({"remote": 9}, NOW_MS))
    assert {lease.item.id for lease in claimed} == {lease.item.id for lease in leases} - {alive.id}
    assert {lease.generation for lease in claimed} == {2}


def test_stopping_finishes_what_was_asked_and_gives_leases_back(stores, run):
    store = stores.open()
    run(store.commit(message(store)))
    run(store.claim({"remote": 1}, NOW_MS))
    late = [store.commit(message(store)) for _ in range(3)]
    stores.stop(store)
    assert all(commit.called for commit in late)
    assert not os.path.exists(stores.path + "-wal")
    assert outside(stores).execute("SELECT count(*), count(lease_owner) FROM unit").fetchone() == (4, 0)


def test_stopping_gives_all_leases_back_in_one_transaction(stores, run):
    store = stores.open()
    for _ in range(3):
        run(store.commit(message(store)))
    assert len(run(store.claim({"remote": 3}, NOW_MS))) == 3
    statements = []
    run(store._writer.submit(lambda tables: tables.db.set_trace_callback(statements.append)))
    statements.clear()
    stores.stop(store)
    changes = [statement.split(" ")[0] for statement in statements if statement.startswith(("UPDATE", "DELETE"))]
    assert changes.count("UPDATE") >= 3
    words = [statement.split(" ")[0] for statement in statements]
    assert [word for word in words if word in ("BEGIN", "COMMIT")] == ["BEGIN", "COMMIT"]
    assert words[0] == "BEGIN"


def test_ids_are_unique_ascend_and_go_on_after_those_that_are_there(stores, run):
    store = stores.open()
    ids = [store.new_id() for _ in range(40_000)]
    assert len(set(ids)) == 40_000
    assert all(0 < id_ < 2**63 for id_ in ids)
    assert ids[0] >> 20 == NOW_MS
    stores.clocks.advance(10)
    assert store.new_id() > max(ids)
    last = message(store)
    run(store.commit(last))
    stores.stop(store)
    stores.clocks.wall -= DAY_MS
    store = stores.open()
    assert (store.new_id() >> 20) >= (last.id >> 20)
    assert (stores.make(process=1).new_id() ^ store.new_id()) >> 14 & 63 == 1


@pytest.mark.spec("OUT-225")
def test_every_connection_writes_ahead_and_syncs_fully(store, run):
    def settings(db):
        return [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "foreign_keys")]

    assert run(store._writer.submit(lambda tables: settings(tables.db))) == ["wal", 2, 1]
    assert run(store._reader.ask(settings)) == ["wal", 2, 1]


@pytest.mark.spec("OUT-214")
def test_storage_is_touched_on_other_threads_only(stores, run, monkeypatch):
    here, calls = threading.get_ident(), []

    def watched(module, name):
        real = getattr(module, name)

        def call(*args, **named):
            calls.append((name, threading.get_ident()))
            return real(*args, **named)

        monkeypatch.setattr(module, name, call)

    # A connection refuses to be used by a thread that did not open it.
    watched(sqlite3, "connect")
    for name in ("open", "close", "read", "writev", "fsync", "unlink", "scandir", "fstat", "statvfs", "makedirs"):
        watched(os, name)
    store = stores.open(min_free_octets=1)
    run(store.commit(message(store)))
    queue_id, content, _ = spooled(run, store, 400_000)
    run(store.commit(message(store, id=queue_id, content=content)))
    gone = store.spool(store.new_id())
    gone.write(b"x" * 300_000)
    gone.discard()
    for lease in run(store.claim({"remote": 2}, NOW_MS)):
        run(whole(store, lease.item))
        run(store.renew([lease], {}))
        run(store.record(lease, [settled(lease.item.recipients[0])], None, True))
    run(store.expired(NOW_MS, 5))
    run(store.list(5))
    run(store.next_due(["remote"]))
    run(store.collect_garbage())
    stores.stop(store)
    assert {name for name, _ in calls} == {
        *("connect", "open", "close", "read", "writev", "fsync", "unlink", "scandir", "fstat", "statvfs", "makedirs")
    }
    assert [name for name, thread in calls if thread == here] == []


@pytest.mark.spec("OUT-236")
def test_an_operator_can_read_the_view_while_mail_comes_and_goes(stores, store, run):
    kept = message(store, recipient(address="jane@example.net"), recipient(1, address="zoe@example.net", held=True))
    run(store.commit(kept))
    for _ in range(20):
        run(store.commit(message(store, recipient(queue="local"))))
    view = sqlite3.connect(f"file:{stores.path}?mode=ro", uri=True)
    view.row_factory = sqlite3.Row
    assert view.execute("SELECT count(*) FROM queue_view").fetchone()[0] == 22
    for lease in run(store.claim({"local": 20}, NOW_MS)):
        run(store.record(lease, [settled(lease.item.recipients[0])], None, True))
        view.execute("SELECT * FROM queue_view").fetchall()
    (lease,) = run(store.claim({"remote": 1}, NOW_MS))
    later = update(lease.item.recipients[0], state=State.TEMP_FAIL, status=REFUSED, retry_num=1)
    run(store.record(lease, [later], None, False))
    first, second = view.execute("SELECT * FROM queue_view ORDER BY recipient").fetchall()
    assert first["queue_id"] == f"{kept.id:016x}"
    assert (first["sender"], first["recipient"]) == ("sender@example.org", "jane@example.net")
    assert (first["queue"], first["state"], first["retries"]) == ("remote", "temp_fail", 1)
    assert first["last_error"] == "unexpected-reply mx.example.net: 450 no"
    assert first["next_attempt"] == "2026-09-21 14:13:20"
    assert first["holder"].split("/")[1] == str(os.getpid())
    assert second["state"] == "held"
    run(store.commit(message(store)))


# --- how much is read ------------------------------------------------------------------------


def filled(stores, run, count):
    store = stores.open()
    for start in range(0, count, 500):
        commits = [
            store.commit(message(store, recipient(retry_due_ms=NOW_MS + n), octets=b""))
            for n in range(start, start + 500)
        ]
        for commit in commits:
            run(commit)
    return store


@pytest.mark.spec("OUT-237")
def test_a_start_and_a_claim_read_as_much_of_a_long_queue_as_of_a_short_one(stores, run, monkeypatch):
    steps = []
    real = sqlite.connect

    def connect(path, *, write):
        db = real(path, write=write)
        db.set_progress_handler(lambda: steps.append(1) and None, 20)
        return db

    def counted(what):
        steps.clear()
        run(what)
        return len(steps)

    def costs(store):
        stores.stop(store)
        with monkeypatch.context() as patch:
            patch.setattr(sqlite, "connect", connect)
            again = stores.make()
            found = {"start": counted(again.start())}
            stores._open.append(again)
        found["claim"] = counted(again.claim({"remote": 25, "local": 25}, NOW_MS + 50))
        found["expired"] = counted(again.expired(NOW_MS + 50, 100))
        found["next_due"] = counted(again.next_due(["remote", "local", "dsn"]))
        found["list"] = counted(again.list(20))
        return again, found

    store, small = costs(filled(stores, run, 500))
    for _ in range(10):
        commits = [
            store.commit(message(store, recipient(retry_due_ms=NOW_MS + 60 + n), octets=b"")) for n in range(950)
        ]
        for commit in commits:
            run(commit)
    _, large = costs(store)
    assert set(small) == {"start", "claim", "expired", "next_due", "list"}
    for name, count in large.items():
        assert count <= 2 * small[name] + 5, (name, small, large)


def test_a_file_that_held_much_becomes_small_again(stores, store, run, monkeypatch):
    monkeypatch.setattr(writer, "_UNUSED_PAGES", 12)
    monkeypatch.setattr(writer, "_CHECKPOINT_OCTETS", 0)
    for _ in range(20):
        run(store.commit(message(store, octets=b"x" * 50_000)))
    large = os.path.getsize(stores.path)
    for lease in run(store.claim({"remote": 20}, NOW_MS)):
        run(store.record(lease, [settled(lease.item.recipients[0])], None, True))
    run(store.commit(message(store)))
    run(store.commit(message(store)))
    assert os.path.getsize(stores.path) < large // 4
    assert violations(stores.path, stores.spool_dir) == []
