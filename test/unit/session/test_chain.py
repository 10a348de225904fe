"""Policies chained to one verdict."""

from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.task import Clock, deferLater

from mailgate.mail import replies
from mailgate.mail.change import SetReversePath
from mailgate.mail.path import Path
from mailgate.mail.verdict import PROCEED, Proceed, Reason, Refuse
from mailgate.session.chain import chain, settle

LIMIT = timedelta(minutes=5)
NO = Refuse(replies.SENDER_NOT_ALLOWED, Reason.SENDER_NOT_ALLOWED)


@dataclass(frozen=True)
class Context:
    path: Path = field(default_factory=lambda: Path("a", "b.test"))
    log: list = field(default_factory=list)

    def changed(self, changes):
        return replace(self, path=changes[-1].path)

    def decided(self, policy, verdict):
        self.log.append((policy, verdict))


def quick(name, verdict=PROCEED):
    async def policy(context):
        context.log.append(name)
        return verdict

    policy.__name__ = name
    return policy


def slow(name, clock, seconds, verdict=PROCEED):
    async def policy(context):
        context.log.append(f"{name} begins")
        await deferLater(clock, seconds)
        context.log.append(f"{name} ends")
        return verdict

    policy.__name__ = name
    return policy


def result_of(deferred):
    got = []
    deferred.addBoth(got.append)
    return got[0] if got else None


def test_a_chain_gives_a_deferred_that_has_fired_when_nothing_waited():
    context = Context()
    deferred = chain((quick("one"), quick("two")), context, LIMIT, Clock())
    assert isinstance(deferred, Deferred)
    assert deferred.called
    assert result_of(deferred) is PROCEED
    assert context.log == ["one", "two"]


def test_nothing_that_does_not_wait_touches_the_clock():
    clock = Clock()
    chain((quick("one"),), Context(), LIMIT, clock)
    assert clock.getDelayedCalls() == []


def test_two_slow_policies_run_in_order_and_the_second_begins_after_the_first():
    clock, context = Clock(), Context()
    deferred = chain((slow("first", clock, 2), slow("second", clock, 1), quick("third")), context, LIMIT, clock)
    assert isinstance(deferred, Deferred)
    assert result_of(deferred) is None
    clock.advance(1.5)
    assert context.log == ["first begins"]
    clock.advance(0.5)
    assert context.log == ["first begins", "first ends", "second begins"]
    clock.advance(1)
    assert context.log == ["first begins", "first ends", "second begins", "second ends", "third"]
    assert deferred.called
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("waits", [False, True])
def test_the_first_verdict_that_is_not_proceed_ends_the_chain(waits):
    clock, context = Clock(), Context()
    refusing = slow("no", clock, 1, NO) if waits else quick("no", NO)
    deferred = chain((quick("yes"), refusing, quick("never")), context, LIMIT, clock)
    clock.advance(1)
    assert result_of(deferred) is NO
    assert context.log[-1] == ("no", NO)
    assert "never" not in context.log


@pytest.mark.parametrize("waits", [False, True])
def test_each_policy_sees_what_its_predecessors_changed_and_the_changes_accumulate(waits):
    clock, context, seen = Clock(), Context(), []
    first, second = SetReversePath(Path("x", "one.test")), SetReversePath(Path("x", "two.test"))

    async def looks(context):
        seen.append(context.path)
        return PROCEED

    changing = slow("a", clock, 1, Proceed((first,))) if waits else quick("a", Proceed((first,)))
    deferred = chain((changing, looks, quick("b", Proceed((second,))), looks), context, LIMIT, clock)
    clock.advance(1)
    assert result_of(deferred) == Proceed((first, second))
    assert seen == [first.path, second.path]


def test_the_limit_counts_for_the_whole_chain():
    clock, context = Clock(), Context()
    policies = (slow("first", clock, 3), slow("second", clock, 3))
    deferred = chain(policies, context, timedelta(seconds=5), clock)
    failures = []
    deferred.addErrback(failures.append)
    clock.advance(3)
    assert failures == []
    clock.advance(2)
    assert failures[0].check(TimeoutError)
    assert "second ends" not in context.log


def test_what_a_policy_raises_comes_out_of_the_chain():
    async def breaks(context):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        chain((breaks,), Context(), LIMIT, Clock())


def test_what_a_policy_raises_after_waiting_fails_the_deferred():
    clock = Clock()

    async def breaks(context):
        await deferLater(clock, 1)
        raise ValueError("broken")

    deferred = chain((quick("one"), breaks), Context(), LIMIT, clock)
    clock.advance(1)
    failures = []
    deferred.addErrback(failures.append)
    assert failures[0].check(ValueError)


def test_settle_drives_a_coroutine_that_waits_several_times():
    clock = Clock()

    async def three():
        total = 0
        for _ in range(3):
            total += await deferLater(clock, 1, lambda: 1)
        return total

    deferred = settle(three())
    for _ in range(3):
        clock.advance(1)
    assert result_of(deferred) == 3


def test_settle_hands_failures_into_the_coroutine():
    waiting = Deferred()

    async def survives():
        try:
            await waiting
        except ValueError:
            return "survived"

    deferred = settle(survives())
    waiting.errback(ValueError())
    assert result_of(deferred) == "survived"


def test_cancelling_ends_what_the_coroutine_waits_for():
    waiting, seen = Deferred(), []

    async def cleans_up():
        try:
            await waiting
        except CancelledError:
            seen.append("cancelled")
            raise

    deferred = settle(cleans_up())
    deferred.cancel()
    deferred.addErrback(lambda failure: failure.trap(CancelledError))
    assert seen == ["cancelled"]
