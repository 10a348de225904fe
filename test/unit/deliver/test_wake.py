"""Due work into lanes: when a scan happens, how much it claims, leases, expiry, shutdown."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.delivery import World, no_connection
from support.work_store import message, recipient
from twisted.internet.defer import Deferred

from mailgate.deliver.wake import Pace
from mailgate.queue.item import ExpiresBy, Expiry, Phase, State

LONG = Expiry(ExpiresBy.TTL, 360_000_000)
TTL_1H = Expiry(ExpiresBy.TTL, 3_600_000)


@pytest.fixture
def world():
    with World(pace=Pace(poll_seconds=5, lease_seconds=60)) as world:
        world.remote.slow = []
        yield world


def fill(world, count, start=1, **facts):
    for number in range(start, start + count):
        world.store.add(message(recipient(**facts), id=number))


def finish(world, count=None):
    """End attempts that wait for their host."""
    slow = world.remote.slow
    for _ in range(len(slow) if count is None else count):
        slow.pop(0).callback(None)


def started(world):
    wake = world.wake()
    wake.start()
    world.clock.advance(0)
    return wake


def stop(world, wake, grace=30):
    """What `stop` answers: an empty list while it waits."""
    found = []
    Deferred.fromCoroutine(wake.stop(grace)).addBoth(found.append)
    return found


# --- scans --------------------------------------------------------------------------------------


def test_what_is_due_at_start_is_attempted_at_once(world):
    fill(world, 3)
    wake = started(world)
    assert wake.running == 3


def test_new_mail_is_attempted_at_once_when_idle(world):
    wake = started(world)
    world.clock.advance(1)
    fill(world, 1)
    wake.nudge()
    world.clock.advance(0)
    assert wake.running == 1


def test_a_flood_of_nudges_makes_one_scan_each_hundredth_of_a_second(world):
    world.remote.slow = None
    wake = started(world)
    before = len(world.store.claims)
    for number in range(100):
        fill(world, 1, start=number + 1)
        wake.nudge()
        wake.nudge()
        world.clock.advance(0.001)
    world.clock.advance(0.02)
    assert len(world.store.claims) - before <= 12
    assert world.store.items == {}


def test_nudges_during_a_scan_lead_to_one_more(world):
    world.store.slow_claims = []
    wake = started(world)
    for _ in range(5):
        wake.nudge()
    assert len(world.store.slow_claims) == 1
    world.store.slow_claims.pop().callback(None)
    world.clock.advance(0.02)
    assert len(world.store.claims) == 2


def test_nothing_is_found_later_than_the_poll_limit(world):
    wake = started(world)
    fill(world, 1)
    world.clock.advance(4.9)
    assert wake.running == 0
    world.clock.advance(0.2)
    assert wake.running == 1


def test_the_next_due_moment_sets_the_timer(world):
    fill(world, 1, retry_due_ms=2000)
    wake = started(world)
    world.clock.advance(1.99)
    assert wake.running == 0
    world.clock.advance(0.02)
    assert wake.running == 1


def test_a_retry_comes_when_it_is_due(world):
    world.configure('[queue.schedule.remote]\nretry = "1s"\n')
    world.remote.slow = None
    world.remote.default = no_connection()
    fill(world, 1)
    started(world)
    for _ in range(35):
        world.clock.advance(0.1)
    assert len(world.remote.runs) == 4


def test_a_notification_is_attempted_without_waiting_for_the_poll(world):
    world.remote.slow = None
    world.zone.records.clear()
    world.zone.a("sender.example", "192.0.2.3")
    fill(world, 1)
    started(world)
    world.clock.advance(0.05)
    assert [addresses for _, addresses in world.remote.runs] == [["jane@example.org"], ["joe@sender.example"]]


def test_a_store_that_does_not_answer_is_asked_again_at_the_poll_limit(world):
    world.store.fail_claims = 1
    fill(world, 1)
    wake = started(world)
    assert wake.running == 0
    assert world.told("queue.claim-failed")
    world.clock.advance(5)
    assert wake.running == 1


def test_a_fault_in_a_scan_does_not_end_scanning(world):
    async def broken(slots, now_ms):
        raise ZeroDivisionError

    claim, world.store.claim = world.store.claim, broken
    fill(world, 1)
    wake = started(world)
    world.store.claim = claim
    world.clock.advance(5)
    assert wake.running == 1
    assert world.told("queue.scheduler-failed")


# --- lanes --------------------------------------------------------------------------------------


TWO = "[queue.virtual.remote]\nthreads-per-node = 2\n"


@pytest.mark.spec("OUT-009")
def test_a_lane_never_runs_more_than_its_slots_while_others_proceed(world):
    world.configure(TWO)
    fill(world, 5)
    fill(world, 3, start=10, queue="default", schedule="remote")
    wake = started(world)
    assert len([item for item, _ in world.remote.runs if item.id < 10]) == 2
    assert len([item for item, _ in world.remote.runs if item.id >= 10]) == 3
    assert all(slots.get("remote", 0) <= 2 for slots in world.store.claims)
    most = 0
    while world.store.items:
        world.clock.advance(0.02)
        most = max(most, sum(running.lease.queue == "remote" for running in wake._running.values()))
        finish(world, 1)
    assert most == 2


@pytest.mark.spec("OUT-023")
def test_a_full_queue_does_not_hold_up_another(world):
    world.configure(TWO + "[queue.virtual.fast]\nthreads-per-node = 1\n")
    fill(world, 50)
    wake = started(world)
    world.store.add(message(recipient(queue="fast", schedule="remote"), id=99, priority=6))
    wake.nudge()
    world.clock.advance(0.01)
    assert 99 in [item.id for item, _ in world.remote.runs]


def test_freed_slots_are_filled_in_batches(world):
    fill(world, 200)
    started(world)
    assert len(world.remote.runs) == 50
    before = len(world.store.claims)
    for _ in range(20):
        finish(world, 1)
    world.clock.advance(0.01)
    assert len(world.store.claims) == before + 1
    assert world.store.claims[-1]["remote"] == 20
    assert len(world.remote.runs) == 70


def test_slots_change_with_the_configuration_and_running_attempts_go_on(world):
    world.configure(TWO)
    fill(world, 9)
    wake = started(world)
    world.configure(TWO.replace("2", "4"))
    wake.use(world.generation)
    world.clock.advance(0.01)
    assert wake.running == 4
    world.configure(TWO.replace("2", "1"))
    wake.use(world.generation)
    world.clock.advance(0.01)
    assert wake.running == 4
    finish(world, 3)
    world.clock.advance(0.01)
    assert wake.running == 1
    finish(world, 1)
    world.clock.advance(0.01)
    assert wake.running == 1


def test_a_queue_a_reload_took_away_is_still_served(world):
    world.configure("[queue.virtual.old]\nthreads-per-node = 1\n")
    wake = started(world)
    world.configure("")
    wake.use(world.generation)
    fill(world, 30, queue="old", schedule="remote")
    world.clock.advance(0.01)
    assert wake.running == 25


@pytest.mark.spec("OUT-028")
def test_back_pressure_is_told_once_a_minute_and_queue(world):
    world.configure(TWO)
    fill(world, 5)
    wake = started(world)
    for _ in range(30):
        wake.nudge()
        world.clock.advance(1)
    assert [(event["queueName"], event["limit"]) for event in world.told("queue.back-pressure")] == [("remote", 2)]
    for _ in range(40):
        world.clock.advance(1)
    assert len(world.told("queue.back-pressure")) == 2


def test_one_message_in_two_queues_is_two_units(world):
    item, octets = message(recipient("a@example.org"), recipient("b@example.org", queue="default", schedule="remote"))
    world.store.add((item, octets))
    wake = started(world)
    assert wake.running == 2
    finish(world)
    assert world.store.items == {}


# --- faults and leases ----------------------------------------------------------------------------


def test_an_attempt_that_ends_by_a_fault_frees_its_slot(world):
    def broken(*_):
        raise ZeroDivisionError

    world.store.record = broken
    fill(world, 1)
    wake = started(world)
    finish(world)
    assert wake.running == 0
    assert world.told("delivery.internal-error")[0]["queueId"] == "0000000000000001"


def test_leases_are_renewed_while_attempts_run(world):
    fill(world, 2)
    started(world)
    world.clock.advance(20)
    world.clock.advance(20)
    assert [len(leases) for leases in world.store.renewals] == [2, 2]
    finish(world)
    world.clock.advance(20)
    world.clock.advance(20)
    assert len(world.store.renewals) == 2


def test_a_lost_lease_ends_its_attempt(world):
    fill(world, 2)
    wake = started(world)
    world.store.lost.add(1)
    world.clock.advance(20)
    assert world.remote.cancelled == 1
    assert wake.running == 1
    assert [event["queueId"] for event in world.told("queue.lease-expired")] == ["0000000000000001"]


def test_leases_nobody_could_renew_for_two_thirds_of_their_time_count_as_lost(world):
    world.store.fail_renewals = 9
    fill(world, 1)
    wake = started(world)
    world.clock.advance(20)
    assert wake.running == 1
    world.clock.advance(20)
    assert wake.running == 0
    assert world.remote.cancelled == 1


def test_where_a_long_attempt_is_goes_with_the_renewal_once(world):
    fill(world, 1)
    wake = started(world)
    world.clock.advance(20)
    (running,) = wake._running.values()
    running.fence.reached(Phase.ENVELOPE, "mx", "mx.example.org", "192.0.2.1", 20_500)
    world.clock.advance(20)
    world.clock.advance(20)
    first, second, third = world.store.moved
    assert [where.phase for where in first.values()] == [Phase.ROUTED]
    assert [(unit, where.phase, where.since_ms) for unit, where in second.items()] == [
        ((1, "remote"), Phase.ENVELOPE, 20_500)
    ]
    assert third == {}


def test_a_renewal_that_failed_takes_the_progress_along_the_next_time(world):
    world.store.fail_renewals = 1
    fill(world, 1)
    started(world)
    world.clock.advance(20)
    world.clock.advance(20)
    assert [len(moved) for moved in world.store.moved] == [1, 1]


@pytest.mark.spec("OUT-205")
def test_an_attempt_whose_message_is_with_the_next_hop_goes_on_without_a_lease(world):
    transmit(world)
    fill(world, 1)
    wake = started(world)
    world.store.lost.add(1)
    world.clock.advance(20)
    assert world.told("queue.lease-expired")
    assert (wake.running, world.remote.cancelled) == (1, 0)
    finish(world)
    assert wake.running == 0
    assert [update.state for _, learnt in world.store.late_results for update in learnt] == [State.COMPLETED]


def test_a_result_that_cannot_be_stored_is_kept_ten_minutes_past_the_lease(world):
    fill(world, 1)
    wake = started(world)
    world.store.fail_records = world.store.fail_renewals = 10_000
    finish(world)
    for _ in range(64):
        world.clock.advance(10)
    assert wake.running == 1
    for _ in range(6):
        world.clock.advance(10)
    assert wake.running == 0
    assert world.told("delivery.late-result")


def transmit(world):
    """From now on every next hop has the message while it waits for `finish`."""
    run = world.remote.run

    async def handing_over(item, recipients, hops, watch):
        await watch.transmitting("mx", "mx.example.org", "192.0.2.1", [one.index for one in recipients])
        return await run(item, recipients, hops, watch)

    world.remote.run = handing_over


def test_of_one_claim_the_higher_priority_begins_first_and_who_waited_long_before_all(world):
    world.clock.advance(700)
    facts = {"retry_due_ms": 690_000}
    for number, priority in ((1, 0), (2, 4), (3, -2), (4, 0)):
        world.store.add(message(recipient(**facts), id=number, priority=priority))
    world.store.add(message(recipient(retry_due_ms=99_000), id=5, priority=-9))
    started(world)
    assert [item.id for item, _ in world.remote.runs] == [5, 2, 1, 4, 3]


def test_many_of_one_claim_begin_in_random_order_and_a_few_do_not(world):
    draws = iter([0.3, 0.1, 0.2, 0.4])
    world.around = replace(world.around, chance=lambda: next(draws))
    fill(world, 4)
    started(world)
    assert [item.id for item, _ in world.remote.runs] == [2, 3, 1, 4]
    finish(world)
    world.remote.runs.clear()
    fill(world, 3)
    started(world)
    assert [item.id for item, _ in world.remote.runs] == [1, 2, 3]


# --- shutdown -------------------------------------------------------------------------------------


def test_stopping_waits_for_attempts_and_claims_nothing_more(world):
    fill(world, 60)
    wake = started(world)
    ended = stop(world, wake)
    assert ended == []
    claims = len(world.store.claims)
    wake.nudge()
    finish(world)
    world.clock.advance(1)
    assert ended == [None]
    assert len(world.store.claims) == claims
    assert world.store.leases == {}
    assert len(world.store.items) == 10
    assert world.clock.getDelayedCalls() == []


def test_attempts_that_have_handed_over_nothing_are_ended_after_a_third_of_the_grace(world):
    fill(world, 2)
    wake = started(world)
    ended = stop(world, wake, grace=9)
    world.clock.advance(2.9)
    assert ended == []
    world.clock.advance(0.1)
    assert ended == [None]
    assert world.remote.cancelled == 2
    assert world.store.leases == {}
    assert all(world.one(id=number).state is State.SCHEDULED for number in (1, 2))


def test_a_claim_under_way_at_shutdown_is_given_back(world):
    world.store.slow_claims = []
    fill(world, 2)
    wake = started(world)
    ended = stop(world, wake)
    assert ended == []
    world.store.slow_claims.pop().callback(None)
    assert ended == [None]
    assert world.store.leases == {}
    assert world.remote.runs == []


def test_stopping_an_idle_scheduler_is_immediate(world):
    wake = started(world)
    assert stop(world, wake) == [None]
    assert world.clock.getDelayedCalls() == []


def test_attempts_whose_message_is_with_the_next_hop_get_all_of_the_grace(world):
    transmit(world)
    fill(world, 2)
    wake = started(world)
    ended = stop(world, wake, grace=9)
    world.clock.advance(8.9)
    assert world.remote.cancelled == 0
    finish(world, 1)
    world.clock.advance(0.1)
    assert ended == [None]
    assert world.remote.cancelled == 1
    assert world.store.leases == {}
    assert 1 not in world.store.items


def test_results_that_cannot_be_stored_do_not_keep_the_program_from_ending(world):
    fill(world, 2)
    wake = started(world)
    world.store.fail_records = 10_000
    finish(world)
    world.clock.advance(1)
    ended = stop(world, wake, grace=9)
    for _ in range(8):
        world.clock.advance(1)
    assert ended == []
    world.clock.advance(1)
    assert ended == [None]
    assert world.clock.getDelayedCalls() == []
    # What is known is lost with the process, the messages are not: they are tried again.
    assert len(world.store.items) == 2


def test_results_that_are_being_stored_when_the_grace_ends_are_waited_for(world):
    fill(world, 1)
    wake = started(world)
    record, waiting = world.store.record, Deferred()
    world.store.record = lambda *given: waiting.addCallback(lambda _: record(*given))
    finish(world)
    ended = stop(world, wake, grace=9)
    world.clock.advance(3)
    world.clock.advance(6)
    assert ended == []
    waiting.callback(None)
    assert ended == [None]
    assert world.store.items == {}
