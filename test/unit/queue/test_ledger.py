"""Quotas in the store: who is admitted, who is charged what, and when it is given back."""

import random
import sqlite3
from dataclasses import replace

import pytest
from support.queue_invariants import violations
from support.sqlite_store import NOW_MS, message, recipient

from mailgate.mail.status import ErrorKind, RecipientStatus, RemoteReply
from mailgate.queue.charge import Charge, QuotaLimit, Usage, domain_scope, recipient_scope, take
from mailgate.queue.entry import entry
from mailgate.queue.item import RecipientUpdate, Source, State
from mailgate.queue.migrate import migrate
from mailgate.queue.schedule import final
from mailgate.queue.store import QuotaExceeded, StoreFull
from mailgate.queue.tables import Tables

REFUSED = RecipientStatus("mx.example.net", ErrorKind.UNEXPECTED_REPLY, "", "RCPT TO", RemoteReply(450, "4.2.0", "no"))

ALL = QuotaLimit("all", "Sender", "t.toml:1", 3, None)
BY_SENDER = QuotaLimit("each", "Sender", "t.toml:2", 2, None)
BY_DOMAIN = QuotaLimit("domains", "Domain", "t.toml:3", None, 1000)
BY_RCPT = QuotaLimit("rcpts", "Recipient", "t.toml:4", 1, None)
OF_ALL = Charge(ALL, "all")


def settled(of, state=State.COMPLETED):
    return replace(final(of, state, REFUSED), dsn_sent=True)


def tried(of):
    """The update of a recipient that was tried in vain."""
    names = [name for name in RecipientUpdate.__slots__ if name != "index"]
    facts = {name: getattr(of, name) for name in names} | {"state": State.TEMP_FAIL, "status": REFUSED}
    return RecipientUpdate(of.index, **facts)


def usage(stores):
    db = sqlite3.connect(f"file:{stores.path}?mode=ro", uri=True)
    found = {bucket: (messages, octets) for bucket, octets, messages in db.execute("SELECT * FROM quota_usage")}
    db.close()
    return {bucket: used for bucket, used in found.items() if used != (0, 0)}


@pytest.fixture
def holds(stores):
    """Whether the buckets hold this, and the ledger says the same."""

    def check(**wanted):
        assert usage(stores) == wanted
        assert violations(stores.path, stores.spool_dir) == []

    return check


@pytest.fixture
def claimed(store, run):
    def claim(of):
        (lease,) = [lease for lease in run(store.claim({"remote": 10}, NOW_MS)) if lease.item.id == of.id]
        return lease

    return claim


@pytest.mark.spec("OUT-044", "OUT-047")
def test_no_room_for_one_more_until_one_has_left(store, run, holds, claimed):
    kept = [message(store, charges=(OF_ALL,)) for _ in range(3)]
    for each in kept:
        run(store.commit(each))
    size = kept[0].size_octets
    with pytest.raises(QuotaExceeded) as refused:
        run(store.commit(message(store, charges=(OF_ALL,))))
    assert isinstance(refused.value, StoreFull)
    assert str(refused.value) == f"queue.quota.all: 3 of 3 messages are taken, {size} octets were to come"
    holds(all=(3, 3 * size))
    lease = claimed(kept[0])
    run(store.record(lease, [settled(lease.item.recipients[0])], None, True))
    holds(all=(2, 2 * size))
    run(store.commit(message(store, charges=(OF_ALL,))))
    holds(all=(3, 3 * size))


def test_each_message_of_a_batch_sees_those_before_it(store, run, holds):
    # All five wait for the writer together: it takes them in one transaction.
    given = [message(store, charges=(OF_ALL,)) for _ in range(5)]
    waiting = [store.commit(each) for each in given]
    outcomes = []
    for each in waiting:
        try:
            run(each)
            outcomes.append("kept")
        except QuotaExceeded:
            outcomes.append("refused")
    assert outcomes == ["kept"] * 3 + ["refused"] * 2
    assert [run(store.get(each.id)) is not None for each in given] == [True] * 3 + [False] * 2
    holds(all=(3, 3 * given[0].size_octets))


def test_others_of_a_batch_are_kept_also_when_one_of_them_fails(store, run, holds):
    first = message(store, charges=(OF_ALL,))
    run(store.commit(first))
    waiting = [store.commit(each) for each in (message(store, id=first.id), message(store, charges=(OF_ALL,)))]
    waiting += [store.commit(message(store, charges=(OF_ALL,))) for _ in range(2)]
    results = []
    for each in waiting:
        each.addErrback(lambda failure: results.append(failure.type.__name__))
        run(each)
    assert results == ["StoreFailed", "QuotaExceeded"]
    holds(all=(3, 3 * first.size_octets))


@pytest.mark.spec("OUT-045")
def test_size_counts_what_mailgate_puts_above_a_message(store, run, holds):
    charges = (Charge(BY_DOMAIN, "domains:x", domain_scope("example.net")),)
    fits = message(store, octets=b"x" * 500, prefix=b"p" * 100, charges=charges)
    run(store.commit(fits))
    holds(**{"domains:x": (1, 600)})
    with pytest.raises(QuotaExceeded, match="600 of 1000 octets are taken, 401 octets were to come"):
        run(store.commit(message(store, octets=b"x" * 400, prefix=b"p", charges=charges)))
    run(store.commit(message(store, octets=b"x" * 300, prefix=b"p" * 100, charges=charges)))
    holds(**{"domains:x": (2, 1000)})


@pytest.mark.spec("OUT-046")
def test_one_full_bucket_refuses_the_whole_message_and_nothing_is_charged(store, run, holds):
    full = (Charge(BY_RCPT, "rcpts:b", recipient_scope(0)),)
    run(store.commit(message(store, charges=full)))
    both = (
        OF_ALL,
        Charge(BY_RCPT, "rcpts:a", recipient_scope(0)),
        Charge(BY_RCPT, "rcpts:b", recipient_scope(1)),
    )
    refused = message(store, recipient(0), recipient(1), charges=both)
    with pytest.raises(QuotaExceeded, match=r"queue\.quota\.rcpts"):
        run(store.commit(refused))
    assert run(store.get(refused.id)) is None
    holds(**{"rcpts:b": (1, refused.size_octets)})


@pytest.mark.spec("OUT-051")
def test_recipients_that_finish_apart_give_back_once_each(store, run, holds, claimed):
    charges = (
        OF_ALL,
        Charge(BY_RCPT, "rcpts:a", recipient_scope(0)),
        Charge(BY_RCPT, "rcpts:b", recipient_scope(1)),
        Charge(BY_RCPT, "rcpts:c", recipient_scope(2)),
        Charge(BY_DOMAIN, "domains:n", domain_scope("example.net")),
        Charge(BY_DOMAIN, "domains:o", domain_scope("example.org")),
    )
    given = message(store, recipient(0), recipient(1), recipient(2, "user2@example.org"), charges=charges)
    run(store.commit(given))
    one = (1, given.size_octets)
    everything = {"all": one, "rcpts:a": one, "rcpts:b": one, "rcpts:c": one, "domains:n": one, "domains:o": one}
    holds(**everything)
    lease = claimed(given)
    a, b, c = lease.item.recipients
    run(store.record(lease, [settled(a), tried(b)], None, False))
    del everything["rcpts:a"]
    holds(**everything)
    # Told again, nothing is given back twice.
    run(store.record(lease, [settled(a)], None, False))
    holds(**everything)
    run(store.record(lease, [settled(c)], None, True))
    del everything["rcpts:c"], everything["domains:o"]
    holds(**everything)
    lease = claimed(given)
    run(store.record(lease, [settled(b, State.PERM_FAIL)], None, True))
    holds()


def test_whoever_closes_a_recipient_gives_back(stores, store, run, holds):
    """An operator's cancellation, the sweeper: the release is the table's own."""
    charges = (Charge(BY_RCPT, "rcpts:a", recipient_scope(0)), Charge(BY_SENDER, "each:x"))
    given = message(store, recipient(0), recipient(1), charges=charges)
    run(store.commit(given))
    db = sqlite3.connect(stores.path)
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("UPDATE recipient SET state = 'perm_fail', retry_due = NULL WHERE idx = 0")
    db.commit()
    assert usage(stores) == {"each:x": (1, given.size_octets)}
    db.execute("DELETE FROM message")
    db.commit()
    db.close()
    holds()


@pytest.mark.spec("OUT-052")
def test_what_mailgate_writes_itself_needs_no_room(store, run, holds, claimed):
    full = [message(store, charges=(OF_ALL,)) for _ in range(3)]
    for each in full:
        run(store.commit(each))
    run(store.commit(message(store, source=Source.REPORT)))
    lease = claimed(full[0])
    notice = message(store, source=Source.DSN, return_path="")
    failed = settled(lease.item.recipients[0], State.PERM_FAIL)
    assert run(store.record(lease, [failed], notice, True))
    assert run(store.get(notice.id)) is not None
    holds(all=(2, 2 * full[0].size_octets))


@pytest.mark.spec("OUT-053")
def test_usage_is_the_same_after_a_restart(stores, run, holds):
    store = stores.open()
    charges = (OF_ALL, Charge(BY_SENDER, "each:x"))
    given = [message(store, charges=charges) for _ in range(2)]
    for each in given:
        run(store.commit(each))
    stores.stop(store)
    store = stores.open()
    size = sum(each.size_octets for each in given)
    holds(**{"all": (2, size), "each:x": (2, size)})
    with pytest.raises(QuotaExceeded, match=r"queue\.quota\.each: 2 of 2"):
        run(store.commit(message(store, charges=charges)))


def test_the_file_of_a_large_message_that_is_refused_is_removed(stores, run, holds):
    store = stores.open(inline_octets=1000)
    tight = Charge(QuotaLimit("q", "Sender", "", None, 10_000), "q")
    queue_id = store.new_id()
    spool = store.spool(queue_id)
    if (wait := spool.write(b"x" * 20_000)) is not None:
        run(wait)
    content = run(spool.finish())
    with pytest.raises(QuotaExceeded):
        run(store.commit(message(store, id=queue_id, content=content, charges=(tight,))))
    assert [path for path in (stores.directory / "spool").rglob("*") if path.is_file()] == []
    holds()


def test_two_quotas_over_all_mail_are_both_charged(store, run, holds):
    other = QuotaLimit("other", "Sender", "", 9, None)
    given = message(store, charges=(OF_ALL, Charge(other, "other")))
    run(store.commit(given))
    holds(all=(1, given.size_octets), other=(1, given.size_octets))


class Numbers:
    """Queue ids for `message`."""

    last = 0

    def new_id(self):
        self.last += 1
        return self.last


def test_usage_equals_the_ledger_after_many_operations_in_any_order():
    """New mail, results, cancellations and removals as they come, against sums made by hand."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("PRAGMA foreign_keys = ON")
    migrate(db)
    tables, numbers, chance = Tables(db, "me", 60_000), Numbers(), random.Random(20260101)
    queued: dict[int, dict[tuple[str, str], int]] = {}
    still_open: dict[int, set[int]] = {}

    def arrive():
        addresses = [f"u{index}@{chance.choice(('a.test', 'b.test'))}" for index in range(chance.randint(1, 4))]
        recipients = [recipient(index, address) for index, address in enumerate(addresses)]
        charges = [OF_ALL, Charge(BY_SENDER, f"each:{chance.randint(0, 9)}")]
        charges += [Charge(BY_DOMAIN, f"domains:{d}", domain_scope(d)) for d in sorted({r.domain for r in recipients})]
        charges += [Charge(BY_RCPT, f"rcpts:{r.address}", recipient_scope(r.index)) for r in recipients]
        wanted = tuple(charge for charge in charges if chance.random() < 0.7)
        made = message(numbers, *recipients, octets=b"x" * chance.randint(1, 400), charges=wanted)
        used = {bucket: Usage(count, octets) for bucket, (count, octets) in expected().items()}
        over = take(wanted, made.size_octets, used)
        refused = tables.insert([entry(made)])
        assert bool(refused) is (over is not None)
        if over is None:
            queued[made.id] = {(charge.scope, charge.bucket): made.size_octets for charge in wanted}
            still_open[made.id] = set(range(len(recipients)))
            domains[made.id] = [r.domain for r in recipients]

    def close():
        id_ = chance.choice(sorted(queued))
        index = chance.randrange(len(domains[id_]))
        state = chance.choice(("completed", "perm_fail", "temp_fail"))
        db.execute(
            "UPDATE recipient SET state = ? WHERE message_id = ? AND idx = ?"
            " AND state NOT IN ('completed', 'perm_fail')",
            (state, id_, index),
        )
        if state != "temp_fail":
            still_open[id_].discard(index)
            left = {domains[id_][at] for at in still_open[id_]}
            for scope, bucket in list(queued[id_]):
                kind, _, what = scope.partition(" ")
                if (kind == "recipient" and int(what) == index) or (kind == "domain" and what not in left):
                    if kind == "domain" and what != domains[id_][index]:
                        continue
                    del queued[id_][scope, bucket]

    def leave():
        id_ = chance.choice(sorted(queued))
        db.execute("DELETE FROM message WHERE id = ?", (id_,))
        del queued[id_], still_open[id_], domains[id_]

    def expected():
        sums: dict[str, tuple[int, int]] = {}
        for charges in queued.values():
            for (_, bucket), size in charges.items():
                count, octets = sums.get(bucket, (0, 0))
                sums[bucket] = count + 1, octets + size
        return sums

    domains: dict[int, list[str]] = {}
    db.execute("BEGIN")
    for number in range(10_000):
        if not queued or chance.random() < 0.4:
            arrive()
        elif chance.random() < 0.7:
            close()
        else:
            leave()
        if number % 100 == 0:
            found = {b: (m, o) for b, m, o in db.execute("SELECT bucket, messages, octets FROM quota_usage") if m or o}
            assert found == expected()
            ledger = "SELECT bucket, sum(messages), sum(octets) FROM quota_ledger GROUP BY bucket"
            assert {bucket: (m, o) for bucket, m, o in db.execute(ledger)} == expected()
    db.execute("COMMIT")
    assert numbers.last > 2000
    db.execute("DELETE FROM message")
    assert db.execute("SELECT count(*) FROM quota_charge").fetchone() == (0,)
    assert db.execute("SELECT sum(messages), sum(octets) FROM quota_usage").fetchone() in ((0, 0), (None, None))
