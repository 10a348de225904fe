"""One attempt at a work unit: groups, outcomes, schedules, notifications, and what is stored when."""

from __future__ import annotations

import email

import pytest
from support.delivery import World, delivered, no_connection, refused
from support.work_store import message, recipient
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.python.failure import Failure

from mailgate.deliver.attempt import Interrupted
from mailgate.deliver.fence import Fence
from mailgate.mail.envelope import Body, DeliverBy, Notify, Ret
from mailgate.mail.status import Delayed, Delivered, ErrorKind, RecipientStatus, RemoteReply
from mailgate.mail.unknown import Unknown
from mailgate.queue.item import ExpiresBy, Expiry, Late, Source, State
from mailgate.queue.store import StoreFailed

HOUR_MS = 3_600_000
SHORT = """
[queue.schedule.remote]
queue-name = "remote"
retry = ["1s", "2s", "3s"]
notify = ["2s", "4s"]
expire = "6s"
"""
TTL_6S = Expiry(ExpiresBy.TTL, 6000)


@pytest.fixture
def world():
    with World() as world:
        yield world


def subjects(world):
    return [email.message_from_bytes(world.store.contents[dsn.id])["Subject"] for dsn in world.store.dsns]


# --- outcomes -----------------------------------------------------------------------------------


def test_delivered_ends_the_message_in_one_transaction(world):
    item = world.store.add(message())
    assert world.attempt(item) is None
    assert world.store.items == {}
    ((_, (update,), dsn, end),) = world.store.records
    assert (update.state, update.dsn_sent, dsn, end) == (State.COMPLETED, True, None, True)
    assert [event["event"] for event in world.events] == [
        "delivery.attempt-start",
        "delivery.domain-delivery-start",
        "delivery.dsn-success",
        "delivery.completed",
    ]
    assert all(event["queueId"] == "0000000000001234" for event in world.events)


def test_a_temporary_failure_is_scheduled_and_the_lease_given_back(world):
    world.remote.default = no_connection()
    item = world.store.add(message())
    assert world.attempt(item) == 120_000
    one = world.one()
    assert (one.state, one.retry_num, one.retry_due_ms) == (State.TEMP_FAIL, 1, 120_000)
    assert world.store.leases == {}
    assert world.told("queue.rescheduled")[0]["nextRetry"] == 120_000


def test_nobody_is_attempted_before_its_time_nor_in_another_queue_nor_when_closed_or_held(world):
    item = world.store.add(
        message(
            recipient("a@example.org", retry_due_ms=1),
            recipient("b@example.org", queue="other"),
            recipient("c@example.org", held=True),
            recipient("d@example.org", state=State.COMPLETED, dsn_sent=True, retry_due_ms=None),
        )
    )
    world.attempt(item, "remote")
    assert world.remote.runs == []
    assert world.store.records[-1][3]


@pytest.mark.spec("OUT-011")
def test_retries_follow_the_list_and_its_last_value_repeats(world):
    world.configure(SHORT.replace('expire = "6s"', 'expire = "1d"'))
    world.remote.default = no_connection()
    item = world.store.add(message())
    world.attempt(item)
    dues = [world.one().retry_due_ms]
    for seconds in (1, 2, 3, 3):
        world.again(seconds)
        dues.append(world.one().retry_due_ms)
    assert dues == [1000, 3000, 6000, 9000, 12000]


def test_the_example_of_lasting_dns_failure_bounces_when_its_time_is_over(world):
    world.configure(SHORT)
    world.zone.fail("example.org")
    world.store.add(message(recipient(expiry=TTL_6S, notify=Notify.FAILURE)))
    world.attempt(world.store.items[0x1234])
    for seconds in (1, 2):
        world.again(seconds)
    assert len(world.remote.runs) == 3
    world.again(3)
    assert len(world.remote.runs) == 3
    assert world.told("delivery.failed")
    assert subjects(world) == ["Failed to deliver message"]
    assert 0x1234 not in world.store.items


@pytest.mark.spec("OUT-014")
def test_the_last_allowed_attempt_bounces_at_once(world):
    world.configure('[queue.schedule.remote]\nmax-attempts = 2\nretry = "1s"\n')
    world.remote.default = no_connection()
    world.attempt(world.store.add(message(recipient(expiry=Expiry(ExpiresBy.ATTEMPTS, 2)))))
    assert world.one().state is State.TEMP_FAIL
    world.again(1)
    assert subjects(world) == ["Failed to deliver message"]


@pytest.mark.spec("OUT-015")
def test_expiry_does_not_wait_for_the_next_retry(world):
    world.configure('[queue.schedule.remote]\nretry = "1h"\nexpire = "10s"\n')
    world.remote.default = no_connection()
    due = world.attempt(world.store.add(message(recipient(expiry=Expiry(ExpiresBy.TTL, 10_000)))))
    assert due == 10_000
    world.again(10)
    assert subjects(world) == ["Failed to deliver message"]
    assert len(world.remote.runs) == 1


@pytest.mark.spec("OUT-016")
def test_expired_without_any_attempt_says_so(world):
    item = world.store.add(message(recipient(expiry=TTL_6S)))
    world.clock.advance(7)
    world.attempt(item)
    assert world.remote.runs == []
    text = world.store.contents[world.store.dsns[0].id].decode()
    assert "(queue error: Message expired without any delivery attempts made.)" in text


@pytest.mark.spec("OUT-287", "OUT-289")
def test_recipients_of_another_queue_are_closed_and_told_by_whoever_has_that_unit(world):
    other = {"queue": "other", "schedule": "remote"}
    item = world.store.add(
        message(
            recipient("a@example.org", expiry=TTL_6S, **other),
            recipient("b@example.org", expiry=TTL_6S),
            recipient("c@example.org", state=State.PERM_FAIL, retry_due_ms=None, **other),
            recipient("d@example.org", notify_due_ms=1, **other),
        )
    )
    world.clock.advance(7)
    world.attempt(item, "remote")
    assert [world.one(index).state is State.PERM_FAIL for index in range(4)] == [False, True, True, False]
    (dsn,) = world.store.dsns
    assert world.store.contents[dsn.id].count(b"Final-Recipient") == 1
    world.attempt(world.store.items[0x1234], "other")
    assert len(world.store.dsns) == 2
    assert world.store.contents[world.store.dsns[1].id].count(b"Final-Recipient") == 3
    assert 0x1234 not in world.store.items


def test_who_has_moved_and_is_stored_is_in_anothers_hands(world):
    world.configure(
        "[queue.strategy]\nschedule = [ { if = 'retry_num > 0', then = \"'remote'\" }, { else = \"'slow'\" } ]\n"
        "[queue.schedule.slow]\nqueue-name = 'slow'\nnotify = '1s'\n[queue.virtual.slow]\nthreads-per-node = 1\n"
    )
    world.remote.outcomes = {"a@example.org": no_connection()}
    item = world.store.add(message(recipient("a@example.org"), recipient("x@other.example")))
    world.remote.slow = []
    world.attempt(item)
    world.remote.slow.pop().callback(None)
    assert world.one(0).queue == "slow"
    world.clock.advance(5)
    world.remote.slow.pop().callback(None)
    # Its notice of delay is due by now, and not for this attempt to give.
    assert world.store.dsns == []
    assert world.one(1).state is State.COMPLETED


@pytest.mark.spec("OUT-017")
def test_the_schedule_is_chosen_anew_with_the_failure_and_moves_the_recipient(world):
    world.configure(
        "[queue.strategy]\n"
        "schedule = [ { if = \"last_error == 'connection' && retry_num == 0\", then = \"'slow'\" },"
        " { else = \"'remote'\" } ]\n"
        '[queue.schedule.slow]\nqueue-name = "slow"\nretry = "9m"\nexpire = "7d"\n'
        "[queue.virtual.slow]\nthreads-per-node = 1\n"
    )
    world.remote.default = no_connection()
    world.attempt(world.store.add(message()))
    one = world.one()
    assert (one.queue, one.schedule, one.retry_due_ms) == ("slow", "slow", 540_000)
    assert one.expiry == Expiry(ExpiresBy.TTL, 7 * 24 * HOUR_MS)


def test_an_unknown_next_schedule_leaves_the_present_one(world):
    world.configure("[queue.strategy]\nschedule = \"key_get('names', rcpt)\"\n[lookup]\nnames = []\n")
    world.outside.unknown["store"] = Unknown("store:names", "down")
    world.remote.default = no_connection()
    world.attempt(world.store.add(message()))
    assert (world.one().schedule, world.one().retry_num) == ("remote", 1)
    assert world.one().status.kind is ErrorKind.CONNECTION


# --- groups -------------------------------------------------------------------------------------


def test_recipients_are_grouped_by_domain_and_results_stored_between_groups(world):
    item = world.store.add(
        message(recipient("a@example.org"), recipient("x@other.example"), recipient("b@example.org"))
    )
    world.attempt(item)
    assert [addresses for _, addresses in world.remote.runs] == [
        ["a@example.org", "b@example.org"],
        ["x@other.example"],
    ]
    (_, first, _, first_end), (_, second, _, second_end) = world.store.records
    assert ([update.index for update in first], first_end) == ([0, 2], False)
    assert second_end
    assert 1 in [update.index for update in second]


@pytest.mark.spec("OUT-080")
def test_recipients_of_one_domain_with_different_routes_are_different_groups(world):
    world.configure(
        "[queue.strategy]\nroute = [ { if = \"rcpt == 'a@example.org'\", then = \"'relay'\" }, { else = \"'mx'\" } ]\n"
        '[queue.route.relay]\ntype = "relay"\naddress = "192.0.2.77"\n'
    )
    world.attempt(world.store.add(message(recipient("a@example.org"), recipient("b@example.org"))))
    assert [hops[0].route for hops in world.remote.hops] == ["relay", "mx"]


@pytest.mark.spec("OUT-018", "OUT-079")
def test_a_route_on_retry_num_sends_the_second_attempt_elsewhere(world):
    world.configure(
        '[queue.strategy]\nroute = [ { if = "retry_num > 0", then = "\'fallback\'" }, { else = "\'mx\'" } ]\n'
        '[queue.route.fallback]\ntype = "relay"\naddress = "192.0.2.77"\n'
    )
    world.remote.default = no_connection()
    world.attempt(world.store.add(message()))
    world.again(120)
    assert [hops[0].host for hops in world.remote.hops] == ["example.org", "192.0.2.77"]


@pytest.mark.spec("OUT-251")
def test_the_local_route_needs_no_remote(tmp_path):
    world = World(
        f'[queue.route.local]\ntype = "local"\nmaildir = "{tmp_path}/%{{user}}/Maildir"\n', local=["example.org"]
    )
    world.attempt(world.store.add(message()))
    assert len(list((tmp_path / "jane" / "Maildir" / "new").iterdir())) == 1
    assert world.remote.runs == []
    assert world.store.items == {}


def test_a_lost_lease_between_groups_stops_the_attempt(world):
    item = world.store.add(message(recipient("a@example.org"), recipient("x@other.example")))
    lost = world.remote

    async def run(item, recipients, hops, watch):
        world.store.lost.add(item.id)
        return {one.index: delivered() for one in recipients}

    lost.run = run
    fence = Fence()
    assert world.attempt(item, fence=fence) is None
    assert fence.lost
    assert world.store.records == []
    assert world.told("delivery.late-result")


# --- faults -------------------------------------------------------------------------------------


def test_an_unexpected_fault_delays_its_group_and_no_other(world):
    world.remote.crash = ZeroDivisionError("bug")
    world.configure(
        "[queue.strategy]\nroute = [ { if = \"rcpt_domain == 'other.example'\", then = \"'local'\" },"
        " { else = \"'mx'\" } ]\n"
    )
    world.attempt(world.store.add(message(recipient("a@example.org"), recipient("x@other.example"))))
    assert world.one(0).status == RecipientStatus("localhost", ErrorKind.IO, "Queue system error.")
    assert world.one(1).status.reply.text == "local delivery is not configured"
    assert world.told("delivery.internal-error")[0]["queueId"] == "0000000000001234"


def test_a_forgotten_recipient_is_delayed(world):
    async def run(item, recipients, hops, watch):
        return {}

    world.remote.run = run
    world.attempt(world.store.add(message()))
    assert world.one().state is State.TEMP_FAIL


def test_a_store_that_fails_is_asked_again_until_it_works(world):
    world.store.fail_records = 2
    assert world.attempt(world.store.add(message())) is None
    assert world.store.records == []
    world.clock.advance(1)
    world.clock.advance(2)
    assert world.store.items == {}
    assert len(world.remote.runs) == 1


def test_storing_is_given_up_ten_minutes_after_the_lease(world):
    world.store.fail_records = 99
    fence = Fence()
    world.attempt(world.store.add(message()), fence=fence)
    world.clock.advance(1)
    fence.ends_ms = 60_000
    fence.lost = True
    for _ in range(70):
        world.clock.advance(11)
    # Ten minutes after its end the result is told for the last time.
    assert world.store.records == []
    assert [(event["stored"], event["duplicate"]) for event in world.told("delivery.late-result")] == [(False, False)]
    assert world.clock.getDelayedCalls() == []


def test_cancelling_keeps_what_is_known_and_gives_the_lease_back(world):
    world.remote.slow = []
    item = world.store.add(message(recipient("a@example.org"), recipient("x@other.example")))
    assert world.attempt(item) is None
    world.remote.slow.pop().callback(None)
    world.last.cancel()
    assert world.remote.cancelled == 1
    assert world.store.leases == {}
    assert world.one(0).state is State.COMPLETED
    assert (world.one(1).state, world.one(1).retry_num) == (State.SCHEDULED, 0)


def test_cancelling_within_a_group_keeps_what_is_decided(world):
    async def run(item, recipients, hops, watch):
        raise Interrupted({0: Delivered(RecipientStatus("mx.test", reply=RemoteReply(250, "2.1.5", "ok")))})

    world.remote.run = run
    world.attempt(world.store.add(message(recipient("a@example.org"), recipient("b@example.org"))))
    assert world.one(0).state is State.COMPLETED
    assert (world.one(1).state, world.one(1).retry_num) == (State.SCHEDULED, 0)
    assert world.store.leases == {}


def one_after_the_other(seen, world):
    """A next hop that takes one recipient in a transaction, in order; `seen` says what was stored before each."""

    async def run(item, recipients, hops, watch):
        outcomes = {}
        for one in recipients:
            seen.append([world.one(index).state for index in range(len(recipients))])
            made = {one.index: delivered() if one.index != 1 else refused(450, "4.2.0")}
            outcomes |= made
            if one is not recipients[-1]:
                await watch.settle(made, True)
        return outcomes

    return run


def test_each_transaction_of_a_group_is_stored_before_the_next_begins(world):
    seen = []
    world.remote.run = one_after_the_other(seen, world)
    world.attempt(world.store.add(message(*(recipient(f"{name}@example.org") for name in "abc"))))
    waits, done, delayed = State.SCHEDULED, State.COMPLETED, State.TEMP_FAIL
    assert seen == [[waits, waits, waits], [done, waits, waits], [done, delayed, waits]]
    assert [world.one(index).state for index in range(3)] == [done, delayed, done]
    # Counted once, however often it was stored.
    assert world.one(1).retry_num == 1


def test_no_further_transaction_begins_when_the_lease_was_lost(world):
    seen = []
    world.remote.run = one_after_the_other(seen, world)
    item = world.store.add(message(recipient("a@example.org"), recipient("b@example.org")))
    world.store.lost.add(item.id)
    world.attempt(item)
    assert len(seen) == 1
    assert world.one(0).state is State.SCHEDULED


# --- the journal, and leases that are lost ----------------------------------------------------------


def handing_over(world, then, indexes=None):
    """A next hop that is about to get the message, and then `then(watch)`."""

    async def run(item, recipients, hops, watch):
        wanted = [one.index for one in recipients] if indexes is None else indexes
        left = await watch.transmitting("mx", "mx.example.org", "192.0.2.1", wanted)
        return await then(watch, left)

    world.remote.run = run


def test_the_journal_knows_whom_a_transaction_is_for(world):
    async def then(watch, left):
        return {index: delivered() for index in left}

    handing_over(world, then)
    world.attempt(world.store.add(message(recipient("a@example.org"), recipient("b@example.org"))))
    (mark,) = world.store.marks
    assert (mark.number, mark.route, mark.host, mark.ip) == (0, "mx", "mx.example.org", "192.0.2.1")
    assert mark.indexes == (0, 1)
    assert world.store.items == {}


@pytest.mark.spec("OUT-204")
def test_without_a_lease_there_is_no_last_word(world):
    reached = []

    async def then(watch, left):
        reached.append(left)
        return {}

    handing_over(world, then)
    item = world.store.add(message())
    world.store.lost.add(item.id)
    fence = Fence()
    world.attempt(item, fence=fence)
    assert reached == []
    assert fence.lost
    assert world.store.records == []


@pytest.mark.spec("OUT-204")
def test_a_lease_that_is_lost_while_the_mark_is_written_stops_it_too(world):
    reached, marking = [], Deferred()

    async def then(watch, left):
        reached.append(left)
        return {}

    handing_over(world, then)
    world.store.transmitting = lambda lease, transmission: marking
    fence = Fence()
    world.attempt(world.store.add(message()), fence=fence)
    fence.lost = True
    marking.callback(frozenset({0}))
    assert reached == []


@pytest.mark.spec("OUT-205")
def test_a_delivery_whose_lease_was_lost_meanwhile_is_recorded_late(world):
    async def then(watch, left):
        world.store.lost.add(0x1234)
        return {0: delivered(), 1: refused(), 2: no_connection()}

    handing_over(world, then)
    names = ("a@example.org", "b@example.org", "c@example.org")
    world.attempt(world.store.add(message(*map(recipient, names))))
    ((_, learnt),) = world.store.late_results
    # What failed for now is no news.
    assert [(update.index, update.state) for update in learnt] == [(0, State.COMPLETED), (1, State.PERM_FAIL)]
    told = [(event["to"], event["result"], event["duplicate"]) for event in world.told("delivery.late-result")]
    assert told == [("a@example.org", "delivered", False), ("b@example.org", "failed", False)]


def test_a_late_result_says_when_it_is_a_duplicate(world):
    async def then(watch, left):
        world.store.lost.add(0x1234)
        return {0: delivered()}

    handing_over(world, then)
    world.store.worth = Late.DUPLICATE
    world.attempt(world.store.add(message()))
    (event,) = world.told("delivery.late-result")
    assert (event["duplicate"], event["stored"]) == (True, False)


def test_what_was_stored_before_is_not_late(world):
    async def then(watch, left):
        await watch.settle({0: delivered()}, True)
        world.store.lost.add(0x1234)
        return {1: delivered()}

    handing_over(world, then)
    world.attempt(world.store.add(message(recipient("a@example.org"), recipient("b@example.org"))))
    ((_, learnt),) = world.store.late_results
    assert [update.index for update in learnt] == [1]


def test_a_late_result_is_kept_while_it_cannot_be_stored(world):
    async def then(watch, left):
        world.store.lost.add(0x1234)
        return {0: delivered()}

    handing_over(world, then)
    late, failures = world.store.late, [1, 2]

    def failing(*given):
        return fail(StoreFailed("disk")) if failures and failures.pop() else late(*given)

    world.store.late = failing
    fence = Fence()
    fence.ends_ms = 60_000
    world.attempt(world.store.add(message()), fence=fence)
    assert world.store.late_results == []
    world.clock.advance(1)
    world.clock.advance(2)
    assert len(world.store.late_results) == 1


def test_replies_that_come_one_by_one_are_stored_as_they_come(world):
    seen = []

    async def then(watch, left):
        await watch.settle({0: delivered()}, False)
        seen.append([world.one(index).state for index in range(3)])
        await watch.settle({1: refused(450, "4.2.0")}, False)
        seen.append([world.one(index).state for index in range(3)])
        return {0: delivered(), 1: refused(450, "4.2.0"), 2: delivered()}

    handing_over(world, then)
    world.attempt(world.store.add(message(*(recipient(f"{name}@example.org") for name in "abc"))))
    waits, done, delayed = State.SCHEDULED, State.COMPLETED, State.TEMP_FAIL
    assert seen == [[done, waits, waits], [done, delayed, waits]]
    assert [world.one(index).state for index in range(3)] == [done, delayed, done]
    assert world.one(1).retry_num == 1


def test_a_reply_that_cannot_be_stored_at_once_is_stored_with_the_next(world):
    async def then(watch, left):
        world.store.fail_records = 1
        await watch.settle({0: delivered()}, False)
        await watch.settle({1: delivered()}, False)
        assert [world.one(index).state for index in range(3)] == [State.COMPLETED, State.COMPLETED, State.SCHEDULED]
        return {2: no_connection()}

    handing_over(world, then)
    world.attempt(world.store.add(message(*(recipient(f"{name}@example.org") for name in "abc"))))
    assert world.one(2).state is State.TEMP_FAIL


def test_replies_go_on_being_read_when_the_lease_is_lost_between_them(world):
    read = []

    async def then(watch, left):
        world.store.lost.add(0x1234)
        for index in (0, 1):
            await watch.settle({index: delivered()}, False)
            read.append(index)
        return {2: delivered()}

    handing_over(world, then)
    world.attempt(world.store.add(message(*(recipient(f"{name}@example.org") for name in "abc"))))
    assert read == [0, 1]
    assert [update.index for _, learnt in world.store.late_results for update in learnt] == [0, 1, 2]


def test_who_was_dropped_has_no_result_and_the_rest_have(world):
    async def then(watch, left):
        assert left == {1}
        return {1: no_connection()}

    handing_over(world, then)
    world.store.canceled.add(0)
    world.attempt(world.store.add(message(recipient("a@example.org"), recipient("b@example.org"))))
    ((_, updates, _, _),) = world.store.records
    assert [update.index for update in updates] == [1]


def test_a_shutdown_while_a_next_hop_decides_leaves_a_doubt_that_waits_a_minute(world):
    async def then(watch, left):
        await Deferred()

    handing_over(world, then, indexes=(0,))
    world.remote.slow = []
    item = world.store.add(message(recipient("a@example.org"), recipient("b@example.org")))
    run, world.clock.rightNow = world.remote.run, 5.0

    async def interrupted(*given):
        try:
            return await run(*given)
        except CancelledError:
            raise Interrupted({}) from None

    world.remote.run = interrupted
    world.attempt(item)
    world.clock.advance(3)
    world.last.cancel()
    (event,) = world.told("delivery.in-doubt")
    assert (event["to"], event["host"], event["since"]) == (["a@example.org"], "mx.example.org", 5000)
    assert [world.one(index).retry_due_ms for index in range(2)] == [68_000, 0]
    assert [world.one(index).retry_num for index in range(2)] == [0, 0]
    assert world.store.leases == {}


def test_a_cancelled_recipient_is_left_out_of_the_notification(world):
    world.remote.outcomes = {name: refused() for name in ("a@example.org", "b@example.org")}
    item = world.store.add(message(recipient("a@example.org"), recipient("b@example.org")))
    world.store.canceled.add(0)
    world.attempt(item)
    (dsn,) = world.store.dsns
    text = world.store.contents[dsn.id]
    assert b"b@example.org" in text
    assert b"Final-Recipient: rfc822;a@example.org" not in text
    assert [event["to"] for event in world.told("delivery.dsn-perm-fail")] == ["b@example.org"]
    assert world.store.items.keys() == {dsn.id}


def test_where_all_are_cancelled_there_is_no_notification(world):
    world.remote.default = refused()
    world.store.canceled.add(0)
    world.attempt(world.store.add(message()))
    assert world.store.dsns == []
    assert world.store.items == {}


def test_the_route_an_operator_has_chosen_wins(world):
    world.configure(
        '[queue.strategy]\nroute = "\'mx\'"\n[queue.route.detour]\ntype = "relay"\naddress = "192.0.2.9"\nport = 26\n'
    )
    first = recipient("a@example.org", route_override="detour")
    world.attempt(world.store.add(message(first, recipient("b@example.org"))))
    hosts = {
        addresses[0]: hops[0].host for (_, addresses), hops in zip(world.remote.runs, world.remote.hops, strict=True)
    }
    assert hosts == {"a@example.org": "192.0.2.9", "b@example.org": "example.org"}


def test_a_chosen_route_that_is_gone_gives_the_built_in_one_with_an_event(world):
    world.attempt(world.store.add(message(recipient(route_override="gone"))))
    assert world.told("smtp.id-not-found")[0]["id"] == "gone"
    assert world.store.items == {}


def test_without_time_a_result_that_cannot_be_stored_is_left(world):
    world.store.fail_records = 99
    fence = Fence()
    world.attempt(world.store.add(message()), fence=fence)
    assert fence.pausing
    fence.hurry = True
    world.last.cancel()
    assert world.clock.getDelayedCalls() == []
    assert world.one().state is State.SCHEDULED


# --- what cannot be found out (unknown answers) ---------------------------------------------------


@pytest.mark.spec("OUT-257")
def test_a_directory_that_does_not_answer_delays_without_counting(world):
    world.outside.unknown["directory"] = Unknown("directory:main", "no route to host")
    world.attempt(
        world.store.add(message(recipient(retry_num=3, state=State.TEMP_FAIL, status=no_connection().status)))
    )
    one = world.one()
    assert (one.state, one.retry_num, one.retry_due_ms) == (State.TEMP_FAIL, 3, 300_000)
    assert one.status == RecipientStatus("directory:main", ErrorKind.DEPENDENCY, "no route to host")
    event = world.told("queue.dependency-unavailable")[0]
    assert (event["dependency"], event["queueId"]) == ("directory:main", "0000000000001234")
    world.outside.unknown.clear()
    world.again(300)
    assert world.store.items == {}


@pytest.mark.spec("OUT-258")
def test_a_schedule_unknown_at_acceptance_is_chosen_before_the_first_attempt(world):
    world.outside.unknown["directory"] = Unknown("directory:main", "down")
    world.attempt(world.store.add(message(recipient(queue="default", notify_due_ms=24 * HOUR_MS))))
    assert world.remote.runs == []
    assert world.one().status.kind is ErrorKind.DEPENDENCY
    world.outside.unknown.clear()
    due = world.again(120)
    one = world.one()
    assert (one.queue, one.schedule) == ("remote", "remote")
    assert due <= world.wall_ms()
    assert world.remote.runs == []
    world.attempt(world.store.items[0x1234], "remote")
    assert len(world.remote.runs) == 1


@pytest.mark.spec("OUT-259")
def test_an_outage_of_ours_uses_up_no_attempts(world):
    world.outside.unknown["directory"] = Unknown("directory:main", "down")
    world.store.add(message(recipient(expiry=Expiry(ExpiresBy.ATTEMPTS, 2))))
    for _ in range(10):
        world.again(300)
    assert world.one().state is State.TEMP_FAIL
    assert world.store.dsns == []


@pytest.mark.spec("OUT-260")
def test_unknown_dns_about_a_destination_counts_as_an_attempt_and_delays(world):
    world.zone.fail("example.org")
    world.attempt(world.store.add(message()))
    one = world.one()
    assert (one.state, one.retry_num, one.status.kind) == (State.TEMP_FAIL, 1, ErrorKind.DNS)


@pytest.mark.spec("OUT-261")
def test_an_unknown_rule_of_the_dsn_delays_it_and_it_is_sent_once(world):
    world.configure("[report.dsn]\nfrom-name = \"key_get('names', sender)\"\n[lookup]\nnames = []\n")
    world.outside.unknown["store"] = Unknown("store:names", "down")
    world.remote.default = refused()
    item = world.store.add(message())
    world.attempt(item)
    assert world.store.dsns == []
    assert (world.one().state, world.one().dsn_sent) == (State.PERM_FAIL, False)
    # The lease is kept until it runs out: no endless loop of attempts.
    assert world.store.leases
    world.outside.unknown.clear()
    world.again(60)
    assert len(world.store.dsns) == 1
    assert len(world.remote.runs) == 1
    assert 0x1234 not in world.store.items


ASKS = "key_get('names', rcpt)"
NAMES = "[lookup]\nnames = []\n"
UNKNOWNS = {
    "route": (f'[queue.strategy]\nroute = "{ASKS}"\n{NAMES}', "store:names"),
    "connection": (f'[queue.strategy]\nconnection = "{ASKS}"\n{NAMES}', "store:names"),
    "tls": (f'[queue.strategy]\ntls = "{ASKS}"\n{NAMES}', "store:names"),
    "local domains": ("", "directory:main"),
    "MX": ("", "example.org"),
    "a Maildir that is not mounted": (
        '[queue.strategy]\nroute = "\'box\'"\n[queue.route.box]\ntype = "local"\nmaildir = "/not/mounted/%{user}"\n',
        "localhost",
    ),
}


@pytest.mark.spec("OUT-264")
@pytest.mark.parametrize("name", UNKNOWNS)
def test_what_nobody_can_say_fails_nobody_before_the_time_to_live_is_over(world, name):
    toml, entity = UNKNOWNS[name]
    world.configure(toml)
    world.outside.unknown["store"] = Unknown("store:names", "down")
    if name == "local domains":
        world.outside.unknown["directory"] = Unknown("directory:main", "down")
    elif name == "MX":
        world.zone.fail("example.org")
    world.store.add(message(recipient(expiry=Expiry(ExpiresBy.TTL, HOUR_MS))))
    for _ in range(11):
        world.again(300)
        one = world.one()
        assert (one.state, one.status.entity) == (State.TEMP_FAIL, entity)
    assert world.store.dsns == []
    world.again(300)
    assert 0x1234 not in world.store.items
    assert len(world.store.dsns) == 1


def test_a_dsn_that_cannot_be_stored_marks_nothing(world):
    world.store.fail_dsns = True
    world.remote.default = refused()
    world.attempt(world.store.add(message()))
    assert (world.one().state, world.one().dsn_sent) == (State.PERM_FAIL, False)
    world.store.fail_dsns = False
    world.again(60)
    assert len(world.store.dsns) == 1


# --- notifications ------------------------------------------------------------------------------


@pytest.mark.spec("OUT-151")
def test_default_flags_tell_of_failure_and_delay_not_of_success(world):
    world.configure(SHORT)
    world.attempt(world.store.add(message(id=1)))
    assert world.store.dsns == []
    world.remote.default = refused()
    world.attempt(world.store.add(message(id=2)))
    world.remote.default = no_connection()
    world.attempt(world.store.add(message(recipient(notify_due_ms=0), id=3)))
    assert subjects(world) == ["Failed to deliver message", "Warning: Delay in message delivery"]


@pytest.mark.spec("OUT-152")
def test_never_and_success(world):
    world.remote.outcomes = {"b@example.org": refused()}
    world.attempt(
        world.store.add(
            message(
                recipient("a@example.org", notify=Notify.SUCCESS),
                recipient("b@example.org", notify=Notify.NEVER),
            )
        )
    )
    (dsn,) = world.store.dsns
    octets = world.store.contents[dsn.id]
    assert b"Action: delivered\r\n" in octets
    assert b"b@example.org" not in octets
    assert 0x1234 not in world.store.items


def test_the_dsn_is_ordinary_mail_from_the_null_sender(world):
    world.remote.default = refused()
    world.attempt(world.store.add(message(trace="t1")))
    (dsn,) = world.store.dsns
    assert (dsn.return_path, dsn.source, dsn.trace) == ("", Source.DSN, "t1")
    (addressee,) = dsn.recipients
    assert (addressee.address, addressee.notify) == ("joe@sender.example", Notify.NONE)
    assert (addressee.queue, addressee.schedule) == ("dsn", "dsn")
    assert addressee.expiry == Expiry(ExpiresBy.ATTEMPTS, 10)
    # In the transaction that says who was told, and due at once.
    ((_, updates, stored, end),) = world.store.records
    assert stored is dsn
    assert end
    assert updates[0].dsn_sent
    assert world.told("queue.queue-dsn")[0]["original"] == "0000000000001234"


@pytest.mark.spec("OUT-159")
def test_delay_notices_come_at_their_thresholds_and_stop_after_the_last(world):
    world.configure(SHORT.replace('expire = "6s"', 'expire = "1h"'))
    world.remote.default = no_connection()
    world.store.add(message(recipient(expiry=Expiry(ExpiresBy.TTL, HOUR_MS), notify_due_ms=2000)))
    counts = []
    for seconds in (0, 1, 1, 1, 1, 10, 10):
        world.again(seconds)
        counts.append((len(world.store.dsns), world.one().notify_num, world.one().notify_due_ms))
    assert counts == [
        (0, 0, 2000),
        (0, 0, 2000),
        (1, 1, 4000),
        (1, 1, 4000),
        (2, 2, None),
        (2, 2, None),
        (2, 2, None),
    ]


def test_a_threshold_is_passed_even_if_nobody_wants_to_know(world):
    world.configure(SHORT)
    world.remote.default = no_connection()
    world.attempt(world.store.add(message(recipient(notify=Notify.FAILURE, notify_due_ms=0))))
    assert world.store.dsns == []
    assert (world.one().notify_num, world.one().notify_due_ms) == (1, 2000)
    assert world.told("delivery.dsn-temp-fail")


def test_deliver_by_notify_gives_one_notice_at_the_deadline(world):
    world.configure(SHORT.replace('expire = "6s"', 'expire = "1h"'))
    world.remote.default = no_connection()
    one = recipient(notify_due_ms=1000, expiry=Expiry(ExpiresBy.TTL, HOUR_MS))
    world.store.add(message(one, deliver_by=DeliverBy(1, "N")))
    world.again(1)
    assert (world.one().notify_num, world.one().notify_due_ms) == (1, None)
    assert len(world.store.dsns) == 1


@pytest.mark.spec("OUT-160")
def test_failures_of_one_attempt_share_a_dsn_those_of_different_attempts_do_not(world):
    world.remote.outcomes = {
        "a@example.org": refused(),
        "x@other.example": refused(),
        "b@example.org": no_connection(),
    }
    world.attempt(
        world.store.add(message(recipient("a@example.org"), recipient("x@other.example"), recipient("b@example.org")))
    )
    assert len(world.store.dsns) == 1
    octets = world.store.contents[world.store.dsns[0].id]
    assert b"a@example.org" in octets
    assert b"x@other.example" in octets
    world.remote.outcomes["b@example.org"] = refused()
    world.again(120)
    assert len(world.store.dsns) == 2
    assert b"a@example.org" not in world.store.contents[world.store.dsns[1].id]


@pytest.mark.spec("OUT-161")
def test_a_result_stored_before_a_crash_is_notified_by_the_next_attempt_once(world):
    closed = recipient("a@example.org", state=State.PERM_FAIL, status=refused().status, retry_due_ms=None)
    world.attempt(world.store.add(message(closed)))
    assert world.remote.runs == []
    assert len(world.store.dsns) == 1
    assert 0x1234 not in world.store.items
    ((_, (update,), dsn, _),) = world.store.records
    assert update.dsn_sent
    assert dsn is not None


@pytest.mark.spec("OUT-162")
@pytest.mark.parametrize(
    "ret, size, flags, whole",
    [
        (Ret.FULL, 2000, {}, True),
        (Ret.FULL, 1_048_577, {}, False),
        (Ret.HDRS, 2000, {}, False),
        (None, 2000, {}, False),
        (Ret.FULL, 2000, {"requiretls": True}, False),
    ],
)
def test_what_comes_back_of_the_original(world, ret, size, flags, whole):
    octets = b"Subject: x\r\n\r\n" + b"body line\r\n" * (size // 11 + 1)
    world.remote.default = refused()
    world.attempt(world.store.add(message(octets=octets, ret=ret, **flags)))
    back = world.store.contents[world.store.dsns[0].id]
    assert b"Subject: x\r\n\r\n" in back
    assert (b"body line" in back) is whole
    assert (octets in back) is whole


@pytest.mark.spec("OUT-139")
@pytest.mark.parametrize("asked", [True, False])
def test_a_report_about_a_message_that_requires_tls_requires_it_too(world, asked):
    world.remote.default = refused()
    world.attempt(world.store.add(message(ret=Ret.FULL, requiretls=asked)))
    (report,) = world.store.dsns
    assert report.requiretls is asked
    assert (b"body" in world.store.contents[report.id].partition(b"Subject: x")[2]) is not asked


def test_the_whole_message_comes_back_for_failures_only(world):
    world.attempt(world.store.add(message(recipient(notify=Notify.SUCCESS), ret=Ret.FULL)))
    assert b"body" not in world.store.contents[world.store.dsns[0].id].partition(b"message/rfc822")[2]


def test_a_binary_header_comes_back_as_text(world):
    world.remote.default = refused()
    octets = b"Subject: a\rb\nc\0d\r\nX: \r\r\n\r\n\0\n"
    world.attempt(world.store.add(message(octets=octets, body=Body.BINARY, ret=Ret.FULL)))
    back = world.store.contents[world.store.dsns[0].id]
    assert b"Subject: a b c d\r\nX:  \r\n\r\n" in back
    assert b"\0" not in back


def test_rules_that_give_no_address_leave_a_report_from_the_postmaster_of_the_submitter(world):
    world.configure("[report]\nsubmitter = \"'mx.test'\"\n[report.dsn]\nfrom-address = \"''\"\n")
    world.remote.default = refused()
    world.attempt(world.store.add(message()))
    assert b"<MAILER-DAEMON@mx.test>\r\n" in world.store.contents[world.store.dsns[0].id]


def test_missing_content_leaves_the_third_part_empty(world):
    item = world.store.add(message())
    world.store.contents.clear()
    world.remote.default = refused()
    world.attempt(item)
    assert len(world.store.dsns) == 1
    assert world.told("queue.content-not-found")


@pytest.mark.spec("OUT-163")
def test_the_null_sender_is_told_nothing_but_the_log_is(world):
    world.remote.default = refused()
    world.attempt(world.store.add(message(return_path="")))
    assert world.store.dsns == []
    assert 0x1234 not in world.store.items
    (event,) = world.told("delivery.double-bounce")
    assert "No such user" in event["details"]


def test_delays_of_the_null_sender_are_told_to_nobody(world):
    world.configure(SHORT)
    world.remote.default = no_connection()
    world.attempt(world.store.add(message(recipient(notify_due_ms=0), return_path="")))
    assert world.store.dsns == []
    assert world.one().notify_due_ms is None


@pytest.mark.spec("OUT-165")
def test_a_dsn_that_fails_follows_its_own_schedule_and_ends_silently(world):
    world.remote.default = refused()
    world.attempt(world.store.add(message()))
    (dsn,) = world.store.dsns
    world.remote.default = no_connection()
    for _ in range(10):
        world.clock.advance(7200)
        world.attempt(world.store.items[dsn.id], "dsn")
    assert world.store.items == {}
    assert len(world.store.dsns) == 1
    assert world.told("delivery.double-bounce")


def test_a_deferred_outcome_of_the_remote_side_is_not_counted(world):
    world.remote.default = Delayed(RecipientStatus("store:names", ErrorKind.DEPENDENCY, "down"))
    world.attempt(world.store.add(message()))
    assert (world.one().retry_num, world.one().retry_due_ms) == (0, 120_000)


def test_a_fault_in_storing_reaches_the_lane_as_a_failure(world):
    def broken(*_):
        raise ZeroDivisionError

    world.store.record = broken
    assert isinstance(world.attempt(world.store.add(message())), Failure)


def test_cancelling_while_results_are_stored_is_the_lanes_to_avoid(world):
    fence = Fence()
    waiting = Deferred()
    seen = []

    def record(*_):
        seen.append(fence.recording)
        return waiting

    world.store.record = record
    world.attempt(world.store.add(message()), fence=fence)
    assert seen == [True]
    waiting.callback(True)
    assert not fence.recording
