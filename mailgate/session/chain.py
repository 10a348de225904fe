"""Policies chained to one verdict (DESIGN D2, D3).

A chain is a tuple of policies in running order. Each is a function of the
stage's context, a coroutine function where it may have to wait; the first
verdict that is not `Proceed` ends the chain, and the changes of those before
it accumulate: each policy sees what its predecessors changed.

Waiting costs only when one waits: a policy's coroutine is started by hand,
and while none really suspends, the chain runs straight through and answers
with its verdict (`run`), or a Deferred that has fired already (`chain`). At
the first suspension the rest of the chain hangs on that policy's Deferred as
its callback.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Generic, Protocol, Self, TypeVar

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from mailgate.mail.change import Change
from mailgate.mail.verdict import PROCEED, Discard, Proceed, Refuse, Verdict

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

# Asked for in this way and not the other: Deferred is an abstract base class, for which isinstance is slow.
VERDICTS = (Proceed, Refuse, Discard)

# What an `async def` policy really answers.
Waits = Coroutine["Deferred[object]", None, Verdict]
Policy = Callable[[C], Verdict | Waits]


def settle(
    started: Coroutine[Deferred[object], None, T], failed: Callable[[Exception], T] | None = None
) -> T | Deferred[T]:
    """Run a coroutine: its result if it never waits, else a Deferred of it.

    What it raises goes to `failed`, whose answer is the result then. Without it
    what is raised before the first wait is raised here, and later exceptions
    fail the Deferred. Cancelling that cancels what the coroutine waits for.
    """
    try:
        waiting_for = started.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    except Exception as failure:
        if failed is None:
            raise
        return failed(failure)
    return _Resumed(started, waiting_for, failed).outcome


class _Resumed(Generic[T]):
    """Drives a coroutine that has suspended to its end, one awaited Deferred after the other.

    What `Deferred.fromCoroutine` does, without a context of its own for each:
    every accepted message passes here.
    """

    __slots__ = ("_coroutine", "_failed", "_waiting_for", "outcome")

    def __init__(
        self,
        started: Coroutine[Deferred[object], None, T],
        waiting_for: Deferred[object],
        failed: Callable[[Exception], T] | None = None,
    ) -> None:
        self._coroutine = started
        self._waiting_for = waiting_for
        self._failed = failed
        self.outcome: Deferred[T] = Deferred(self._cancel)
        waiting_for.addBoth(self._go_on)

    def _cancel(self, outcome: Deferred[T]) -> None:
        self._waiting_for.cancel()

    def _go_on(self, result: object) -> None:
        """The awaited Deferred has fired: its result is read from it by the coroutine."""
        try:
            if isinstance(result, Failure):
                waiting_for = self._coroutine.throw(result.value or CancelledError())
            else:
                waiting_for = self._coroutine.send(None)
        except StopIteration as done:
            self.outcome.callback(done.value)
        except BaseException as failure:
            self._break(failure)
        else:
            self._waiting_for = waiting_for
            waiting_for.addBoth(self._go_on)

    def _break(self, failure: BaseException) -> None:
        """The coroutine has raised, and this is called where it did."""
        if self._failed is None or not isinstance(failure, Exception):
            self.outcome.errback(Failure())
            return
        try:
            instead = self._failed(failure)
        except BaseException:
            self.outcome.errback(Failure())
        else:
            self.outcome.callback(instead)


def chain(policies: tuple[Policy[C], ...], context: C, limit: timedelta, clock: IReactorTime) -> Deferred[Verdict]:
    """Run `policies` in order; answer with the verdict of all.

    The Deferred has fired already when nothing waited. It fails with
    `TimeoutError` (Twisted's) when the whole chain takes longer than `limit`,
    and with whatever a policy raised: the driver turns both into a temporary
    refusal, and the transaction stays as it was.
    """
    verdict = run(policies, context, limit, clock)
    return succeed(verdict) if isinstance(verdict, VERDICTS) else verdict


def run(
    policies: tuple[Policy[C], ...], context: C, limit: timedelta, clock: IReactorTime
) -> Verdict | Deferred[Verdict]:
    """As `chain`, but for the verdict itself where nothing waits."""
    verdict = _run(policies, 0, context, ())
    return verdict if isinstance(verdict, VERDICTS) else verdict.addTimeout(limit.total_seconds(), clock)


def _run(
    policies: tuple[Policy[C], ...], position: int, context: C, changes: tuple[Change, ...]
) -> Verdict | Deferred[Verdict]:
    """Run the policies from `position` on, straight through or up to the first that waits."""
    for number in range(position, len(policies)):
        said = policies[number](context)
        # This is the innermost loop of every stage.
        if said is PROCEED:
            continue
        if isinstance(said, VERDICTS):
            verdict = said
        else:
            try:
                waiting_for = said.send(None)
            except StopIteration as done:
                verdict = done.value
                if verdict is PROCEED:
                    continue
            else:
                waited = _Resumed(said, waiting_for).outcome
                return waited.addCallback(_after, policies, number, context, changes)
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
