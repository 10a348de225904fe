"""One attempt: everything that happens to a claimed work unit until its results are stored.

Expired recipients are closed; delays that are due are told; the due recipients
are grouped by domain and route, each group is handed over, its outcomes become
new facts, and those are stored before the next group begins; of a large group
after each transaction. At the end one
notification tells the sender all there is to tell, in the same transaction as
the facts it tells. A fault of the program delays the group it happened in; it
never loses a recipient, and never ends more than this attempt.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from mailgate.crash.point import ARMED, passed
from mailgate.deliver.attempt import Interrupted, Settle
from mailgate.deliver.context import failed_scope, message_facts, recipient_scope
from mailgate.deliver.hop import candidates
from mailgate.deliver.maildir import LocalDelivery, LocalRoute
from mailgate.deliver.nexthop import Candidate
from mailgate.deliver.plan import MxRoute, Plan, RelayRoute, Route
from mailgate.dns.resolver import Resolver
from mailgate.expr.outside import Outside
from mailgate.mail.status import DEFERRALS, Delayed, Delivered, ErrorKind, Outcome, RecipientStatus
from mailgate.mail.unknown import Unknown
from mailgate.queue.enqueue import DEFAULT
from mailgate.queue.item import Lease, NewMessage, QueuedRecipient, QueueItem, RecipientUpdate, State
from mailgate.queue.schedule import (
    Schedule,
    Terms,
    after_deferral,
    after_failure,
    due_ms,
    expire,
    final,
    first_plan,
    next_notice,
)
from mailgate.queue.scope import MessageFacts, RecipientScope
from mailgate.queue.store import QueueStore, StoreFailed
from mailgate.reports.dsn import Kind, is_wanted, kind_due
from mailgate.reports.submit import DsnRules, Notifier
from mailgate.reports.wording import dsn_line

# An outage of our own neither uses up attempts nor backs off for hours.
_LONGEST_DEFERRAL = timedelta(minutes=5)
_LONGEST_PAUSE_SECONDS = 15.0

_log = Logger(namespace="mailgate.deliver")


class Fence:
    """What an attempt and its lane tell each other.

    `lost`: the lease is gone, or nobody can say that it is not.
    `recording`: results are on their way to disk; it is not cut short then.
    """

    __slots__ = ("lost", "recording")

    def __init__(self) -> None:
        self.lost = False
        self.recording = False


class Remote(Protocol):
    """Hands a group over to the first host that will have it (`attempt.py`)."""

    async def run(
        self, item: QueueItem, recipients: Sequence[QueuedRecipient], hops: AsyncIterator[Candidate], settle: Settle
    ) -> Mapping[int, Outcome]:
        """One outcome for each recipient, by its index; ends at once, connection and all, when cancelled.

        Outcomes that are known before the group is done are told to `settle`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Generation:
    """What attempts take from one generation of the configuration."""

    plan: Plan
    local: LocalDelivery
    dsn: DsnRules
    outside: Outside
    resolver: Resolver


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
    """One attempt at one unit. Use once: `await UnitAttempt(...).run()`."""

    def __init__(
        self, lease: Lease, around: Surroundings, generation: Generation, fence: Fence, delivers: bool = True
    ) -> None:
        """Without `delivers` expired recipients are closed and told about, and nothing is handed over."""
        self._lease = lease
        self._around = around
        self._generation = generation
        self._plan = generation.plan
        self._fence = fence
        self._delivers = delivers
        self._recipients = list(lease.item.recipients)
        self._updates: dict[int, RecipientUpdate] = {}
        self._settled: set[int] = set()
        self._facts: MessageFacts | None = None
        self._announces: list[tuple[QueuedRecipient, Kind]] = []
        item = lease.item
        self._terms = Terms(item.created_ms, item.hold_ms, item.deliver_by)
        self._dsn_due_ms: int | None = None

    async def run(self) -> int | None:
        """Do it; the moment something of this message is due again, None when nothing is or it is not known."""
        item = self._lease.item
        now_ms = self._around.wall_ms()
        self._expire(now_ms)
        if self._has_delay_due(now_ms) and not await self._tell_and_record(now_ms, end=False):
            return None
        due = [
            recipient
            for recipient in self._recipients
            if self._delivers
            and recipient.queue == self._lease.queue
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
                    raise
        now_ms = self._around.wall_ms()
        if not await self._tell_and_record(now_ms, end=True):
            return None
        return self._after(now_ms)

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
                if not await self._record(None, end=False):
                    return False
                if ARMED:
                    passed("D9")
        return True

    async def _groups(self, due: Sequence[QueuedRecipient], now_ms: int) -> list[tuple[Route, list[QueuedRecipient]]]:
        """The due recipients by domain and route; those whose rules cannot be evaluated are put off."""
        groups: dict[tuple[str, str], tuple[Route, list[QueuedRecipient]]] = {}
        for recipient in due:
            scope = self._scope(recipient, now_ms)
            if recipient.schedule == DEFAULT and recipient.retry_num == 0:
                # When the message was accepted the rule may not have been able to say.
                schedule = await self._plan.schedules.choose(scope)
                if isinstance(schedule, Unknown):
                    self._put_off(recipient, schedule)
                    continue
                if schedule.name != recipient.schedule:
                    self._move(recipient, schedule)
                    continue
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
        try:
            if isinstance(route, LocalRoute):
                return await self._generation.local.deliver(route, lease, group)
            hosts = self._hosts(route, domain, group[0])
            return await self._around.remote.run(lease.item, group, hosts, self._settle)
        except CancelledError:
            raise
        except Exception:
            _log.failure("{event}", event="delivery.internal-error", queueId=lease.item.id_text)
            delayed = Delayed(_internal_error())
            return {recipient.index: delayed for recipient in group}

    async def _settle(self, outcomes: Mapping[int, Outcome]) -> None:
        """Store what one transaction came to; `CancelledError` when the lease was lost: no other may begin."""
        for index, outcome in outcomes.items():
            await self._apply(self._recipients[index], outcome)
            self._settled.add(index)
        if not await self._record(None, end=False):
            raise CancelledError

    def _hosts(self, route: MxRoute | RelayRoute, domain: str, first: QueuedRecipient) -> AsyncIterator[Candidate]:
        scope = self._scope(first, self._around.wall_ms())
        return candidates(route, domain, scope, self._plan, self._generation.resolver, self._lease.item.id_text)

    def _scope(self, recipient: QueuedRecipient, now_ms: int) -> RecipientScope:
        return recipient_scope(self._message(), recipient, self._generation.outside, now_ms)

    def _message(self) -> MessageFacts:
        if self._facts is None:
            self._facts = message_facts(self._lease.item)
        return self._facts

    # --- what becomes of a recipient ---------------------------------------------------

    def _set(self, update: RecipientUpdate) -> None:
        before = self._recipients[update.index]
        self._updates[update.index] = update
        self._recipients[update.index] = _updated(before, update)
        if update.state is State.PERM_FAIL and before.state is not State.PERM_FAIL:
            item = self._lease.item
            _log.info(
                "{event}",
                event="delivery.failed",
                queueId=item.id_text,
                to=before.address,
                details=dsn_line(self._recipients[update.index]),
            )

    def _expire(self, now_ms: int) -> None:
        for recipient in self._lease.item.recipients:
            if not recipient.state.is_final:
                update = expire(recipient, self._lease.item.created_ms, now_ms)
                if update is not None:
                    self._set(update)

    async def _apply(self, recipient: QueuedRecipient, outcome: Outcome) -> None:
        status = outcome.status
        if isinstance(outcome, Delivered):
            self._set(final(recipient, State.COMPLETED, status))
        elif not isinstance(outcome, Delayed):
            self._set(final(recipient, State.PERM_FAIL, status))
        elif status.kind in DEFERRALS:
            self._put_off(recipient, Unknown(status.entity, status.detail), status)
        else:
            now_ms = self._around.wall_ms()
            scope = failed_scope(self._message(), recipient, status, self._generation.outside, now_ms)
            schedule = await self._plan.schedules.choose(scope)
            if isinstance(schedule, Unknown):
                # The failure is known even if the next schedule is not: the present one goes on.
                schedule = self._plan.schedules.named(recipient.schedule)
            chance = self._around.chance()
            self._set(after_failure(recipient, status, schedule, self._terms, now_ms, chance))

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
        self._set(after_deferral(recipient, status, due, self._lease.item.created_ms, now_ms))

    def _move(self, recipient: QueuedRecipient, schedule: Schedule) -> None:
        """Put a recipient that was not tried yet under its real schedule; it is due there at once."""
        plan = first_plan(schedule, self._terms)
        self._set(
            replace(
                _unchanged(recipient),
                queue=schedule.queue,
                schedule=schedule.name,
                retry_due_ms=recipient.retry_due_ms,
                notify_due_ms=plan.notify_due_ms,
                expiry=plan.expiry,
            )
        )

    # --- telling and storing -----------------------------------------------------------

    def _has_delay_due(self, now_ms: int) -> bool:
        return any(
            recipient.notify_due_ms is not None and recipient.notify_due_ms <= now_ms
            for recipient in self._recipients
            if not recipient.dsn_sent
        )

    async def _tell_and_record(self, now_ms: int, end: bool) -> bool:
        """Store the facts, and with them one notification of all there is to tell; False when the lease was lost.

        A notification that cannot be made marks nothing: the facts are stored
        alone, and the unit stays leased until the lease runs out, which is when
        the next evaluation tries again.
        """
        marks, told = self._evaluate(now_ms)
        dsn: NewMessage | None = None
        if told:
            try:
                made = await self._notification(told, now_ms)
            except StoreFailed as fault:
                made = Unknown("queue", str(fault))
            if isinstance(made, Unknown):
                _log.warn(
                    "{event}",
                    event="queue.dependency-unavailable",
                    queueId=self._lease.item.id_text,
                    dependency=made.dependency,
                    reason=made.reason,
                )
                await self._record(None, end=False)
                return False
            dsn = made
        before = self._recipients[:], dict(self._updates)
        for update in marks:
            self._set(update)
        if ARMED:
            if dsn is not None:
                passed("N1")
            if end and all(recipient.state.is_final for recipient in self._recipients):
                passed("F1")
        try:
            kept = await self._record(dsn, end)
        except StoreFailed:
            self._recipients, self._updates = before
            await self._record(None, end=False)
            return False
        if kept:
            if ARMED:
                if dsn is not None:
                    passed("N2" if end else "N3")
                if end:
                    passed("D7")
            self._announce(dsn)
        return kept

    def _evaluate(self, now_ms: int) -> tuple[list[RecipientUpdate], list[tuple[QueuedRecipient, Kind]]]:
        """The marks of everybody there is something to tell of, and those the sender wants to hear about."""
        marks: list[RecipientUpdate] = []
        told: list[tuple[QueuedRecipient, Kind]] = []
        self._announces = []
        has_sender = bool(self._lease.item.return_path)
        for recipient in self._recipients:
            kind = kind_due(recipient, now_ms)
            if kind is None:
                continue
            self._announces.append((recipient, kind))
            if has_sender and is_wanted(recipient, kind):
                told.append((recipient, kind))
            if kind is not Kind.DELAY:
                marks.append(replace(_unchanged(recipient), dsn_sent=True))
                continue
            schedule = self._plan.schedules.named(recipient.schedule)
            advanced = next_notice(recipient, schedule, self._terms, now_ms)
            due, number = advanced if advanced is not None else (None, recipient.notify_num)
            # Nobody is there to be told of a notification's own delays.
            marks.append(replace(_unchanged(recipient), notify_due_ms=due if has_sender else None, notify_num=number))
        return marks, told

    async def _notification(self, told: list[tuple[QueuedRecipient, Kind]], now_ms: int) -> NewMessage | Unknown:
        scope = self._scope(told[0][0], now_ms)
        generation = self._generation
        return await self._around.notifier.notification(
            self._lease.item, told, generation.dsn, self._plan.schedules, scope
        )

    async def _record(self, dsn: NewMessage | None, end: bool) -> bool:
        updates = list(self._updates.values())
        if not updates and dsn is None and not end:
            return True
        kept = await self._stored(updates, dsn, end)
        self._updates.clear()
        if not kept:
            self._fence.lost = True
            _log.info("{event}", event="delivery.late-result", queueId=self._lease.item.id_text)
        return kept

    async def _stored(self, updates: list[RecipientUpdate], dsn: NewMessage | None, end: bool) -> bool:
        """Store results, again and again until it works or the lease is lost; False then.

        Raises `StoreFailed` when there is a notification with them, whose content is gone.
        """
        wait_seconds = 1.0
        while True:
            self._fence.recording = True
            try:
                return await self._around.store.record(self._lease, updates, dsn, end)
            except StoreFailed as fault:
                _log.error(
                    "{event}",
                    event="queue.record-failed",
                    queueId=self._lease.item.id_text,
                    details=str(fault),
                )
                if dsn is not None:
                    raise
            finally:
                self._fence.recording = False
            if self._fence.lost:
                return False
            await self._around.pause(wait_seconds)
            wait_seconds = min(wait_seconds * 2, _LONGEST_PAUSE_SECONDS)

    def _announce(self, dsn: NewMessage | None) -> None:
        """Log what was told, or would have been."""
        item = self._lease.item
        for recipient, kind in self._announces:
            status = recipient.status
            reply = status.reply if status is not None else None
            facts = {
                "queueId": item.id_text,
                "to": recipient.address,
                "host": status.entity if status is not None else "",
                "total": recipient.retry_num,
            }
            if kind is Kind.SUCCESS:
                _log.info(
                    "{event}",
                    event="delivery.dsn-success",
                    code=reply.code if reply is not None else 250,
                    text=reply.text if reply is not None else "",
                    **facts,
                )
            elif kind is Kind.FAILURE:
                _log.info("{event}", event="delivery.dsn-perm-fail", details=dsn_line(recipient), **facts)
            else:
                _log.info(
                    "{event}",
                    event="delivery.dsn-temp-fail",
                    details=dsn_line(recipient),
                    nextRetry=recipient.retry_due_ms,
                    expires=recipient.expiry.value,
                    **facts,
                )
        failed = [recipient for recipient, kind in self._announces if kind is Kind.FAILURE]
        if failed and not item.return_path:
            _log.info(
                "{event}",
                event="delivery.double-bounce",
                queueId=item.id_text,
                to=[recipient.address for recipient in failed],
                details="; ".join(dsn_line(recipient) for recipient in failed),
            )
        if dsn is not None:
            _log.info(
                "{event}",
                event="queue.queue-dsn",
                queueId=f"{dsn.id:016x}",
                original=item.id_text,
                to=item.return_path,
                size=dsn.size_octets,
            )
        self._dsn_due_ms = dsn.created_ms if dsn is not None else None

    def _after(self, now_ms: int) -> int | None:
        """Log how the attempt ended; the moment something is due again."""
        item = self._lease.item
        open_ones = [recipient for recipient in self._recipients if not recipient.state.is_final]
        if not open_ones:
            _log.info(
                "{event}",
                event="delivery.completed",
                queueId=item.id_text,
                elapsed=now_ms - item.created_ms,
            )
            return self._dsn_due_ms
        due = min((ms for r in open_ones if (ms := due_ms(r, item.created_ms)) is not None), default=None)
        _log.info(
            "{event}",
            event="queue.rescheduled",
            queueId=item.id_text,
            to=[recipient.address for recipient in open_ones],
            nextRetry=min((r.retry_due_ms for r in open_ones if r.retry_due_ms is not None), default=None),
            nextDsn=min((r.notify_due_ms for r in open_ones if r.notify_due_ms is not None), default=None),
            queues=sorted({recipient.queue for recipient in open_ones}),
        )
        if self._dsn_due_ms is not None:
            return self._dsn_due_ms
        return due


def _internal_error() -> RecipientStatus:
    return RecipientStatus("localhost", ErrorKind.IO, "Queue system error.")


def _updated(before: QueuedRecipient, update: RecipientUpdate) -> QueuedRecipient:
    return QueuedRecipient(
        before.index,
        before.address,
        update.queue,
        update.retry_due_ms,
        update.notify_due_ms,
        update.expiry,
        before.orcpt,
        before.notify,
        update.state,
        update.status,
        update.retry_num,
        update.notify_num,
        update.dsn_sent,
        before.held,
        update.schedule,
    )


def _unchanged(recipient: QueuedRecipient) -> RecipientUpdate:
    return RecipientUpdate(
        recipient.index,
        recipient.state,
        recipient.status,
        recipient.queue,
        recipient.schedule,
        recipient.retry_due_ms,
        recipient.retry_num,
        recipient.notify_due_ms,
        recipient.notify_num,
        recipient.expiry,
        recipient.dsn_sent,
    )
