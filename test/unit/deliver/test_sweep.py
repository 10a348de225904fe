"""The sweeper: expiry whatever delivery does, and leases of those who make no progress."""

from __future__ import annotations

import email

import pytest
from support.delivery import World, no_connection
from support.work_store import message, recipient
from twisted.internet.defer import Deferred, fail

from mailgate.deliver.sweep import Rounds
from mailgate.mail.status import ErrorKind, RecipientStatus
from mailgate.queue.item import Doubt, ExpiresBy, Expiry, Lapsed, Phase, State, Stuck
from mailgate.queue.store import StoreFailed

HOUR_MS = 3_600_000
TTL_1H = Expiry(ExpiresBy.TTL, HOUR_MS)


@pytest.fixture
def world():
    with World() as world:
        world.clock.advance(2 * 3600)
        world.woken = 0
        yield world


def sweeper(world, **rounds):
    def wake():
        world.woken += 1

    made = world.sweeper(wake, Rounds(**rounds))
    made.start()
    return made


def stop(sweeper):
    found = []
    Deferred.fromCoroutine(sweeper.stop()).addBoth(found.append)
    return found


@pytest.mark.spec("OUT-285")
def test_what_expired_is_closed_and_told_without_a_scheduler(world):
    world.store.add(message(recipient("a@example.org", expiry=TTL_1H), recipient("b@example.org")))
    sweeper(world)
    assert world.one(0).state is State.PERM_FAIL
    assert world.one(1).state is State.SCHEDULED
    (dsn,) = world.store.dsns
    text = world.store.contents[dsn.id]
    assert b"Message expired without any delivery attempts made." in text
    assert email.message_from_bytes(text)["Subject"] == "Failed to deliver message"
    ((_, updates, told, end),) = world.store.records
    # The end of the recipient and its notification are one transaction.
    assert ([update.index for update in updates], told, end) == ([0], dsn, True)
    (event,) = world.told("queue.swept")
    assert (event["queueId"], event["to"]) == ("0000000000001234", ["a@example.org"])
    assert world.woken == 1
    assert world.store.leases == {}


def test_the_last_recipient_takes_the_message_with_it(world):
    world.store.add(message(recipient(expiry=TTL_1H)))
    sweeper(world)
    assert 0x1234 not in world.store.items
    assert world.told("delivery.completed")


@pytest.mark.spec("OUT-285")
def test_it_looks_once_in_each_interval(world):
    sweeper(world, sweep_seconds=30)
    world.store.add(message(recipient(expiry=TTL_1H)))
    world.clock.advance(29)
    assert world.store.dsns == []
    world.clock.advance(1)
    assert len(world.store.dsns) == 1


@pytest.mark.spec("OUT-286")
def test_nothing_but_an_operators_hold_keeps_a_recipient_from_expiring(world):
    limited = RecipientStatus("limiter", ErrorKind.RATE, "later")
    suspended = RecipientStatus("example.org", ErrorKind.SUSPENDED, "suspended")
    far = 10 * 24 * HOUR_MS
    late = {"expiry": TTL_1H, "retry_due_ms": far, "state": State.TEMP_FAIL}
    world.store.add(
        message(
            recipient("limited@example.org", status=limited, **late),
            recipient("suspended@example.org", status=suspended, **late),
            recipient("nobody-serves@example.org", queue="gone", expiry=TTL_1H),
            recipient("held@example.org", expiry=TTL_1H, held=True),
        )
    )
    # Nobody delivers: that is what a pause looks like from here.
    sweeper(world)
    assert [world.one(index).state is State.PERM_FAIL for index in range(4)] == [True, True, True, False]
    assert [world.one(index).status for index in range(2)] == [limited, suspended]


@pytest.mark.spec("OUT-287")
def test_an_attempt_that_runs_gives_its_recipients_their_end_itself(world):
    world.configure("[queue.schedule.remote]\nexpire = '1h'\n")
    item = world.store.add(message(recipient(expiry=Expiry(ExpiresBy.TTL, 2 * HOUR_MS + 1000))))
    world.remote.slow = []
    world.attempt(item)
    world.clock.advance(2)
    swept = sweeper(world)
    assert world.store.dsns == []
    assert world.one().state is State.SCHEDULED
    world.remote.slow.pop().callback(None)
    assert 0x1234 not in world.store.items
    assert world.store.dsns == []
    assert stop(swept) == [None]


@pytest.mark.spec("OUT-287", "OUT-289")
def test_an_attempt_that_fails_after_the_time_is_over_is_the_end_and_told_once(world):
    world.remote.default = no_connection()
    item = world.store.add(message(recipient(expiry=Expiry(ExpiresBy.TTL, 2 * HOUR_MS + 1000))))
    world.remote.slow = []
    world.attempt(item)
    world.clock.advance(2)
    sweeper(world)
    world.remote.slow.pop().callback(None)
    world.clock.advance(30)
    assert len(world.store.dsns) == 1
    assert b"Connection refused" in world.store.contents[world.store.dsns[0].id]


@pytest.mark.spec("OUT-289")
def test_when_the_sweeper_has_begun_the_attempt_finds_nothing(world):
    world.store.add(message(recipient(expiry=TTL_1H)))
    record, waiting = world.store.record, []

    def slow(*given):
        waiting.append(Deferred())
        return waiting[-1].addCallback(lambda _: record(*given))

    world.store.record = slow
    sweeper(world)
    wake = world.wake()
    wake.start()
    world.clock.advance(0)
    assert wake.running == 0
    world.store.record = record
    waiting.pop().callback(None)
    assert len(world.store.dsns) == 1
    world.clock.advance(60)
    assert len(world.store.dsns) == 1


def test_more_than_a_batch_is_closed_in_one_round(world):
    for number in range(1, 251):
        world.store.add(message(recipient(expiry=TTL_1H), id=number))
    sweeper(world)
    assert len(world.store.dsns) == 250


@pytest.mark.spec("OUT-288")
def test_a_lease_without_progress_is_revoked_and_told(world):
    world.store.stuck = [
        Stuck(
            Lapsed(0x1234, "remote", "boot/17/4", (Doubt(("a@example.org",), "mx.example.org", 1),)),
            Phase.TRANSMITTING,
            "mx.example.org",
            901_000,
        )
    ]
    sweeper(world, stall_seconds=900)
    assert world.store.looks == [world.wall_ms() - 900_000]
    (event,) = world.told("queue.stalled")
    facts = {name: event[name] for name in ("queueId", "queue", "owner", "phase", "host", "age")}
    assert facts == {
        "queueId": "0000000000001234",
        "queue": "remote",
        "owner": "boot/17/4",
        "phase": "transmitting",
        "host": "mx.example.org",
        "age": 901,
    }
    # It can be tried again.
    assert world.woken == 1


def test_a_store_that_does_not_answer_is_asked_again_in_the_next_round(world):
    async def fails(*_):
        raise StoreFailed("busy")

    expired, world.store.expired = world.store.expired, fails
    world.store.add(message(recipient(expiry=TTL_1H)))
    sweeper(world)
    assert world.told("queue.sweep-failed")
    world.store.expired = expired
    world.clock.advance(30)
    assert len(world.store.dsns) == 1


def test_one_message_that_cannot_be_closed_does_not_hold_up_the_others(world):
    world.store.add(message(recipient(expiry=TTL_1H), id=1))
    world.store.add(message(recipient(expiry=TTL_1H), id=2))
    record = world.store.record

    def broken(lease, *given):
        if lease.item.id == 1:
            raise ZeroDivisionError
        return record(lease, *given)

    world.store.record = broken
    sweeper(world)
    assert world.told("delivery.internal-error")
    assert [dsn.recipients[0].address for dsn in world.store.dsns] == ["joe@sender.example"]


def test_a_reload_changes_its_rounds(world):
    made = sweeper(world, sweep_seconds=30)
    made.use(world.generation, Rounds(sweep_seconds=5, stall_seconds=60))
    world.clock.advance(30)
    world.clock.advance(5)
    assert len(world.store.looks) == 3
    assert world.store.looks[-1] == world.wall_ms() - 60_000


def test_stopping_ends_it(world):
    made = sweeper(world)
    assert stop(made) == [None]
    world.clock.advance(100)
    assert len(world.store.looks) == 1
    assert world.clock.getDelayedCalls() == []


def test_stopping_does_not_wait_for_a_disk_that_is_full(world):
    world.store.add(message(recipient(expiry=TTL_1H)))
    world.store.record = lambda *_: fail(StoreFailed("full"))
    made = sweeper(world)
    assert world.one().state is State.SCHEDULED
    assert world.told("queue.record-failed")
    assert stop(made) == [None]
    assert world.clock.getDelayedCalls() == []


def test_stopping_waits_for_what_is_being_stored(world):
    world.store.add(message(recipient(expiry=TTL_1H)))
    record, waiting = world.store.record, Deferred()
    world.store.record = lambda *given: waiting.addCallback(lambda _: record(*given))
    ended = stop(sweeper(world))
    assert ended == []
    waiting.callback(None)
    assert ended == [None]
    assert len(world.store.dsns) == 1
