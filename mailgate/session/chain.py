"""Policies chained to one verdict (DESIGN D2, D3).

A chain is a tuple of policies in running order. Each is a coroutine function
of the stage's context; the first verdict that is not `Proceed` ends the
chain, and the changes of those before it accumulate: each policy sees what
its predecessors changed.

Waiting costs only when one waits: a policy's coroutine is started by hand,
and while none really suspends, the chain runs straight through and answers
with a Deferred that has fired already. At the first suspension the rest of
the chain hangs on that policy's Deferred as its callback.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from datetime import timedelta
from types import coroutine
from typing import Protocol, Self, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from mailgate.mail.change import Change
from mailgate.mail.verdict import PROCEED, Proceed, Verdict

T = TypeVar("T")


class Chained(Protocol):
    """What a chain asks of a stage's context."""

    def changed(self, changes: tuple[Change, ...]) -> Self:
        """The context as it is after these changes."""
        ...

    def decided(self, policy: str, verdict: Verdict) -> None:
        """Be told which policy ended the chain."""
        ...


C = TypeVar("C", bound=Chained)

# What an `async def` policy really is.
Policy = Callable[[C], Coroutine["Deferred[object]", None, Verdict]]


def settle(started: Coroutine[Deferred[object], None, T]) -> T | Deferred[T]:
    """Run a coroutine: its result if it never waits, else a Deferred of it.

    Exceptions it raises before its first wait are raised here.
    """
    try:
        waiting_for = started.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    return Deferred.fromCoroutine(_resumed(started, waiting_for))


@coroutine
def _resumed(
    started: Coroutine[Deferred[object], None, T], waiting_for: Deferred[object]
) -> Generator[Deferred[object], object, T]:
    """Drive an already suspended coroutine to its end, from inside a Deferred."""
    while True:
        try:
            try:
                yield waiting_for
            except BaseException as error:
                waiting_for = started.throw(error)
            else:
                waiting_for = started.send(None)
        except StopIteration as done:
            value: T = done.value
            return value


def chain(policies: tuple[Policy[C], ...], context: C, limit: timedelta, clock: IReactorTime) -> Deferred[Verdict]:
    """Run `policies` in order; answer with the verdict of all.

    The Deferred has fired already when nothing waited. It fails with
    `TimeoutError` (Twisted's) when the whole chain takes longer than `limit`,
    and with whatever a policy raised: the driver turns both into a temporary
    refusal, and the transaction stays as it was.
    """
    verdict = _run(policies, 0, context, ())
    if isinstance(verdict, Deferred):
        return verdict.addTimeout(limit.total_seconds(), clock)
    return succeed(verdict)


def _run(
    policies: tuple[Policy[C], ...], position: int, context: C, changes: tuple[Change, ...]
) -> Verdict | Deferred[Verdict]:
    """Run the policies from `position` on, straight through or up to the first that waits."""
    for number in range(position, len(policies)):
        verdict = settle(policies[number](context))
        if isinstance(verdict, Deferred):
            return verdict.addCallback(_after, policies, number, context, changes)
        if verdict is not PROCEED:
            if type(verdict) is not Proceed:
                context.decided(policies[number].__name__, verdict)
                return verdict
            if verdict.changes:
                changes += verdict.changes
                context = context.changed(verdict.changes)
    return Proceed(changes) if changes else PROCEED


def _after(
    verdict: Verdict, policies: tuple[Policy[C], ...], number: int, context: C, changes: tuple[Change, ...]
) -> Verdict | Deferred[Verdict]:
    """Go on after policy `number`, which waited, has spoken."""
    if type(verdict) is not Proceed:
        context.decided(policies[number].__name__, verdict)
        return verdict
    if verdict.changes:
        changes += verdict.changes
        context = context.changed(verdict.changes)
    return _run(policies, number + 1, context, changes)
