"""One attempt: everything that happens to a claimed work unit until its results are stored.

Expired recipients are closed; delays that are due are told; the due recipients
are grouped by domain and route, each group is handed over, its outcomes become
new facts, and those are stored before the next group begins; of a large group
after each transaction, and of several LMTP replies as they come. At the end one
notification tells the sender all there is to tell, in the same transaction as
the facts it tells (`results.py`). A fault of the program delays the group it happened in; it
never loses a recipient, and never ends more than this attempt.

Before the octets that end a message go out, the journal says so, and whom they
are still for: from then on the end of the attempt is waited for, whatever
becomes of the lease.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

from twisted.internet.defer import CancelledError

from mailgate.crash.point import ARMED, passed
from mailgate.deliver.attempt import Interrupted
from mailgate.deliver.context import failed_scope
from mailgate.deliver.fence import Fence
from mailgate.deliver.hop import candidates
from mailgate.deliver.maildir import LocalRoute
from mailgate.deliver.nexthop import Candidate
from mailgate.deliver.plan import MxRoute, RelayRoute, Route
from mailgate.deliver.results import Generation, Results, unchanged
from mailgate.deliver.watch import Watch
from mailgate.mail.status import DEFERRALS, Delayed, Delivered, ErrorKind, Outcome, RecipientStatus
from mailgate.mail.unknown import Unknown
from mailgate.net.log import EventLog
from mailgate.queue.enqueue import DEFAULT
from mailgate.queue.item import Lease, Phase, QueuedRecipient, QueueItem, State, Transmission
from mailgate.queue.journal import IN_DOUBT_MS
from mailgate.queue.schedule import Schedule, after_deferral, after_failure, final, first_plan
from mailgate.queue.store import QueueStore
from mailgate.reports.submit import Notifier

# An outage of our own neither uses up attempts nor backs off for hours.
_LONGEST_DEFERRAL = timedelta(minutes=5)

_log = EventLog(namespace="mailgate.deliver")


class Remote(Protocol):
    """Hands a group over to the first host that will have it (`attempt.py`)."""

    async def run(
        self, item: QueueItem, recipients: Sequence[QueuedRecipient], hops: AsyncIterator[Candidate], watch: Watch
    ) -> Mapping[int, Outcome]:
        """One outcome for each recipient, by its index; ends at once, connection and all, when cancelled.

        Outcomes that are known before the group is done are told to `watch`,
        which also says whom the message may still be sent to.
        """
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What attempts use that a reload does not change.

    `wall_ms` is milliseconds since the epoch, `chance` draws evenly from 0 to
    1, `pause` waits so many seconds.
    """

    store: QueueStore
    remote: Remote
    notifier: Notifier
    wall_ms: Callable[[], int]
    chance: Callable[[], float]
    pause: Callable[[float], Awaitable[None]]


class UnitAttempt:
    """One attempt at one unit. Use once: `await UnitAttempt(...).run()`. It is the `Watch` of its groups."""

    def __init__(self, lease: Lease, around: Surroundings, generation: Generation, fence: Fence) -> None:
        self._lease = lease
        self._around = around
        self._generation = generation
        self._plan = generation.plan
        self._fence = fence
        self._results = Results(lease, around, generation, fence)
        self._settled: set[int] = set()
        """Whose outcome is stored already, or who need not be sent to any more."""

    async def run(self) -> int | None:
        """Do it; the moment something of this message is due again, None when nothing is or it is not known."""
        item = self._lease.item
        results = self._results
        now_ms = self._around.wall_ms()
        results.expire(now_ms)
        if results.has_delay_due(now_ms) and not await results.tell_and_record(now_ms, end=False):
            return None
        due = [
            recipient
            for recipient in results.recipients
            if recipient.queue == self._lease.queue
            and not recipient.state.is_final
            and not recipient.held
            and recipient.retry_due_ms is not None
            and recipient.retry_due_ms <= now_ms
        ]
        if due:
            _log.info(
                "{event}",
                event="delivery.attempt-start",
                queueId=item.id_text,
                queueName=self._lease.queue,
                to=[recipient.address for recipient in due],
                size=item.size_octets,
                total=len(item.recipients),
                **{"from": item.return_path or "<>"},
            )
            try:
                if not await self._deliver(due, now_ms):
                    return None
            except CancelledError:
                # Shutting down: what is known is kept, the rest is as if it had not been tried.
                if self._fence.lost:
                    await results.store_late()
                    raise
        now_ms = self._around.wall_ms()
        if not await results.tell_and_record(now_ms, end=True):
            return None
        return results.after(now_ms)

    async def _deliver(self, due: Sequence[QueuedRecipient], now_ms: int) -> bool:
        """Work through the groups; False when the lease was lost."""
        groups = await self._groups(due, now_ms)
        last = len(groups) - 1
        for number, (route, group) in enumerate(groups):
            try:
                outcomes = await self._hand_over(route, group)
            except Interrupted as interrupted:
                # Who has an outcome must not be tried again.
                for recipient in group:
                    if recipient.index in interrupted.outcomes and recipient.index not in self._settled:
                        await self._apply(recipient, interrupted.outcomes[recipient.index])
                self._doubt(group, interrupted.outcomes)
                raise
            for recipient in group:
                if recipient.index in self._settled:
                    continue
                outcome = outcomes.get(recipient.index)
                if outcome is None:
                    # The next hop's side of the program forgot one: delayed, never lost.
                    outcome = Delayed(_internal_error())
                await self._apply(recipient, outcome)
            if number != last:
                if not await self._results.record(end=False):
                    return False
                if ARMED:
                    passed("D9")
        return True

    def _doubt(self, group: Sequence[QueuedRecipient], outcomes: Mapping[int, Outcome]) -> None:
        """The attempt was ended while a next hop had the message, and had not said what it does with it."""
        fence = self._fence
        if not fence.transmitting or fence.lost:
            return
        due_ms = self._around.wall_ms() + IN_DOUBT_MS
        doubtful = [
            recipient for recipient in group if recipient.index in fence.indexes and recipient.index not in outcomes
        ]
        for recipient in doubtful:
            self._results.set(replace(unchanged(recipient), retry_due_ms=due_ms))
        if doubtful:
            _log.warn(
                "{event}",
                event="delivery.in-doubt",
                queueId=self._lease.item.id_text,
                to=[recipient.address for recipient in doubtful],
                host=fence.host,
                since=fence.since_ms,
            )

    async def _groups(self, due: Sequence[QueuedRecipient], now_ms: int) -> list[tuple[Route, list[QueuedRecipient]]]:
        """The due recipients by domain and route; those whose rules cannot be evaluated are put off."""
        groups: dict[tuple[str, str], tuple[Route, list[QueuedRecipient]]] = {}
        for recipient in due:
            scope = self._results.scope(recipient, now_ms)
            if recipient.schedule == DEFAULT and recipient.retry_num == 0:
                # When the message was accepted the rule may not have been able to say.
                schedule = await self._plan.schedules.choose(scope)
                if isinstance(schedule, Unknown):
                    self._put_off(recipient, schedule)
                    continue
                if schedule.name != recipient.schedule:
                    self._move(recipient, schedule)
                    continue
            if recipient.route_override is not None:
                route: Route | Unknown = self._plan.route.named(recipient.route_override)
            else:
                route = await self._plan.route.select(scope)
            if isinstance(route, Unknown):
                self._put_off(recipient, route)
                continue
            key = (recipient.domain, route.name)
            if key in groups:
                groups[key][1].append(recipient)
            else:
                groups[key] = (route, [recipient])
        return list(groups.values())

    async def _hand_over(self, route: Route, group: list[QueuedRecipient]) -> Mapping[int, Outcome]:
        lease = self._lease
        domain = group[0].domain
        _log.info(
            "{event}",
            event="delivery.domain-delivery-start",
            queueId=lease.item.id_text,
            domain=domain,
            route=route.name,
            total=len(group),
        )
        self.reached(Phase.ROUTED, route.name)
        try:
            if isinstance(route, LocalRoute):
                return await self._generation.local.deliver(route, lease, group)
            hosts = self._hosts(route, domain, group[0])
            return await self._around.remote.run(lease.item, group, hosts, self)
        except CancelledError:
            raise
        except Exception:
            _log.failure("{event}", event="delivery.internal-error", queueId=lease.item.id_text)
            delayed = Delayed(_internal_error())
            return {recipient.index: delayed for recipient in group}

    # --- what the groups tell ------------------------------------------------------------

    def reached(self, phase: Phase, route: str = "", host: str = "", ip: str = "") -> None:
        """The attempt got further."""
        self._fence.reached(phase, route, host, ip, self._around.wall_ms())

    async def transmitting(self, route: str, host: str, ip: str, indexes: Sequence[int]) -> frozenset[int]:
        """Write down that the octets that end the message are about to go out; those they may still be for.

        `CancelledError` when the lease was lost: they must not. Raises `StoreFailed`.
        """
        fence = self._fence
        transmission = Transmission(fence.number, route, host, ip, tuple(indexes))
        fence.is_journaled = True
        left = await self._around.store.transmitting(self._lease, transmission)
        if left is None or fence.lost:
            fence.lost = True
            raise CancelledError
        self._settled.update(set(indexes) - left)
        if left:
            fence.indexes = transmission.indexes
            fence.reached(Phase.TRANSMITTING, route, host, ip, self._around.wall_ms())
        return left

    async def settle(self, outcomes: Mapping[int, Outcome], closes: bool) -> None:
        """Store what a transaction came to, or with `closes` unset a part of it, while the rest is waited for.

        `CancelledError` when the lease was lost and the transaction is over: no other may begin.
        """
        for index, outcome in outcomes.items():
            if index not in self._settled:
                await self._apply(self._results.recipients[index], outcome)
                self._settled.add(index)
        if not closes:
            await self._results.store_now(closes)
        elif not await self._results.record(end=False):
            raise CancelledError

    def _hosts(self, route: MxRoute | RelayRoute, domain: str, first: QueuedRecipient) -> AsyncIterator[Candidate]:
        scope = self._results.scope(first, self._around.wall_ms())
        return candidates(route, domain, scope, self._plan, self._generation.resolver, self._lease.item.id_text)

    # --- what becomes of a recipient ---------------------------------------------------

    async def _apply(self, recipient: QueuedRecipient, outcome: Outcome) -> None:
        status = outcome.status
        if isinstance(outcome, Delivered):
            self._results.learn(final(recipient, State.COMPLETED, status))
        elif not isinstance(outcome, Delayed):
            self._results.learn(final(recipient, State.PERM_FAIL, status))
        elif status.kind in DEFERRALS:
            self._put_off(recipient, Unknown(status.entity, status.detail), status)
        else:
            now_ms = self._around.wall_ms()
            scope = failed_scope(self._results.message(), recipient, status, self._generation.outside, now_ms)
            schedule = await self._plan.schedules.choose(scope)
            if isinstance(schedule, Unknown):
                # The failure is known even if the next schedule is not: the present one goes on.
                schedule = self._plan.schedules.named(recipient.schedule)
            chance = self._around.chance()
            self._results.set(after_failure(recipient, status, schedule, self._results.terms, now_ms, chance))

    def _put_off(self, recipient: QueuedRecipient, why: Unknown, status: RecipientStatus | None = None) -> None:
        """Delay a recipient without counting it as an attempt: something of ours could not answer."""
        if status is None:
            status = RecipientStatus(why.dependency, ErrorKind.DEPENDENCY, why.reason)
        if status.kind is ErrorKind.DEPENDENCY:
            _log.warn(
                "{event}",
                event="queue.dependency-unavailable",
                queueId=self._lease.item.id_text,
                to=recipient.address,
                dependency=why.dependency,
                reason=why.reason,
            )
        retry = self._plan.schedules.named(recipient.schedule).retry
        wait = min(retry[min(recipient.retry_num, len(retry) - 1)], _LONGEST_DEFERRAL)
        now_ms = self._around.wall_ms()
        due = now_ms + wait // timedelta(milliseconds=1)
        self._results.set(after_deferral(recipient, status, due, self._lease.item.created_ms, now_ms))

    def _move(self, recipient: QueuedRecipient, schedule: Schedule) -> None:
        """Put a recipient that was not tried yet under its real schedule; it is due there at once."""
        plan = first_plan(schedule, self._results.terms)
        self._results.set(
            replace(
                unchanged(recipient),
                queue=schedule.queue,
                schedule=schedule.name,
                retry_due_ms=recipient.retry_due_ms,
                notify_due_ms=plan.notify_due_ms,
                expiry=plan.expiry,
            )
        )


def _internal_error() -> RecipientStatus:
    return RecipientStatus("localhost", ErrorKind.IO, "Queue system error.")
