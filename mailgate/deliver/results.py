"""What is known of the recipients of one leased unit, and how it is stored and told.

Facts are gathered (`set`, `learn`), and stored in one transaction with the one
notification that tells the sender all there is to tell. What cannot be stored is
kept and tried again, longer than the lease holds; what was learnt under a lease
that is lost is handed over as a late result.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

from twisted.internet.defer import CancelledError

from mailgate.crash.point import ARMED, passed
from mailgate.deliver.context import message_facts, recipient_scope
from mailgate.deliver.fence import Fence
from mailgate.deliver.maildir import LocalDelivery
from mailgate.deliver.plan import Plan
from mailgate.dns.resolver import Resolver
from mailgate.expr.outside import Outside
from mailgate.mail.unknown import Unknown
from mailgate.net.log import EventLog
from mailgate.queue.item import Late, Lease, NewMessage, QueuedRecipient, RecipientUpdate, State
from mailgate.queue.schedule import Terms, due_ms, expire, expires_ms, next_notice
from mailgate.queue.scope import MessageFacts, RecipientScope
from mailgate.queue.store import QueueStore, StoreFailed
from mailgate.reports.dsn import Kind, is_wanted, kind_due
from mailgate.reports.submit import DsnRules, Notifier
from mailgate.reports.wording import dsn_line

_LONGEST_PAUSE_SECONDS = 15.0
# How long a result is kept after its lease has ended.
_KEPT_MS = 600_000

_log = EventLog(namespace="mailgate.deliver")


@dataclass(frozen=True, slots=True)
class Generation:
    """What attempts take from one generation of the configuration."""

    plan: Plan
    local: LocalDelivery
    dsn: DsnRules
    outside: Outside
    resolver: Resolver


class Surroundings(Protocol):
    """What is used here that a reload does not change."""

    @property
    def store(self) -> QueueStore:
        """Where the unit is."""
        ...

    @property
    def notifier(self) -> Notifier:
        """Who writes notifications."""
        ...

    @property
    def wall_ms(self) -> Callable[[], int]:
        """Milliseconds since the epoch."""
        ...

    @property
    def pause(self) -> Callable[[float], Awaitable[None]]:
        """Waits so many seconds."""
        ...


class Results:
    """The recipients of a unit as they are by now."""

    def __init__(self, lease: Lease, around: Surroundings, generation: Generation, fence: Fence) -> None:
        self.lease = lease
        self.recipients = list(lease.item.recipients)
        item = lease.item
        # Whoever holds another unit of this message closes and tells what is in that one: none is told twice.
        self._own = frozenset([each.index for each in item.recipients if each.queue == lease.queue])
        self.terms = Terms(item.created_ms, item.hold_ms, item.deliver_by)
        self._around = around
        self._generation = generation
        self._plan = generation.plan
        self._fence = fence
        self._facts: MessageFacts | None = None
        self._updates: dict[int, RecipientUpdate] = {}
        self._learnt: dict[int, RecipientUpdate] = {}
        """What a next hop has said for good, as long as it is not stored."""
        self._silenced: frozenset[int] = frozenset()
        """Cancelled by an operator meanwhile: nobody is told."""
        self._announces: list[tuple[QueuedRecipient, Kind]] = []
        self._dsn_due_ms: int | None = None

    # --- facts -------------------------------------------------------------------------

    def message(self) -> MessageFacts:
        """What rules see of the message."""
        if self._facts is None:
            self._facts = message_facts(self.lease.item)
        return self._facts

    def scope(self, recipient: QueuedRecipient, now_ms: int) -> RecipientScope:
        """What rules see of a recipient."""
        return recipient_scope(self.message(), recipient, self._generation.outside, now_ms)

    def set(self, update: RecipientUpdate) -> None:
        """Take what became of a recipient."""
        before = self.recipients[update.index]
        self._updates[update.index] = update
        self.recipients[update.index] = _updated(before, update)
        if update.state is State.PERM_FAIL and before.state is not State.PERM_FAIL:
            item = self.lease.item
            _log.info(
                "{event}",
                event="delivery.failed",
                queueId=item.id_text,
                to=before.address,
                details=dsn_line(self.recipients[update.index]),
            )

    def learn(self, update: RecipientUpdate) -> None:
        """Take what a next hop has said for good: it counts even when the lease is lost."""
        self.set(update)
        self._learnt[update.index] = update

    def expire(self, now_ms: int) -> None:
        """Close whose time to live is over."""
        for recipient in self.lease.item.recipients:
            if recipient.index in self._own and not recipient.state.is_final:
                update = expire(recipient, self.lease.item.created_ms, now_ms)
                if update is not None:
                    self.set(update)

    # --- telling and storing -----------------------------------------------------------

    def has_delay_due(self, now_ms: int) -> bool:
        """Whether somebody is to be told of a delay."""
        return any(
            recipient.notify_due_ms is not None and recipient.notify_due_ms <= now_ms
            for recipient in self.recipients
            if not recipient.dsn_sent and recipient.index in self._own
        )

    async def tell_and_record(self, now_ms: int, end: bool) -> bool:
        """Store the facts, and with them one notification of all there is to tell; False when the unit is not ours.

        A notification that cannot be made marks nothing: the facts are stored
        alone, and the unit stays leased until the lease runs out, which is when
        the next evaluation tries again.
        """
        while True:
            before = self.recipients[:], dict(self._updates)
            told = self._evaluate(now_ms)
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
                        queueId=self.lease.item.id_text,
                        dependency=made.dependency,
                        reason=made.reason,
                    )
                    self.recipients, self._updates = before
                    await self.record(end=False)
                    return False
                dsn = made
            if ARMED:
                if dsn is not None:
                    passed("N1")
                if end and all(recipient.state.is_final for recipient in self.recipients):
                    passed("F1")
            try:
                kept = await self._record(dsn, end)
            except StoreFailed:
                self.recipients, self._updates = before
                await self.record(end=False)
                return False
            if isinstance(kept, frozenset):
                self.recipients, self._updates = before
                self._silenced |= kept
                continue
            if kept:
                if ARMED:
                    if dsn is not None:
                        passed("N2" if end else "N3")
                    if end:
                        passed("D7")
                self._announce(dsn)
            return kept

    def _evaluate(self, now_ms: int) -> list[tuple[QueuedRecipient, Kind]]:
        """Mark everybody there is something to tell of; those the sender wants to hear about."""
        marks: list[RecipientUpdate] = []
        told: list[tuple[QueuedRecipient, Kind]] = []
        self._announces = []
        has_sender = bool(self.lease.item.return_path)
        for recipient in self.recipients:
            kind = kind_due(recipient, now_ms) if recipient.index in self._own else None
            if kind is None:
                continue
            if recipient.index not in self._silenced:
                self._announces.append((recipient, kind))
                if has_sender and is_wanted(recipient, kind):
                    told.append((recipient, kind))
            if kind is not Kind.DELAY:
                marks.append(replace(unchanged(recipient), dsn_sent=True))
                continue
            schedule = self._plan.schedules.named(recipient.schedule)
            advanced = next_notice(recipient, schedule, self.terms, now_ms)
            due, number = advanced if advanced is not None else (None, recipient.notify_num)
            # Nobody is there to be told of a notification's own delays.
            marks.append(replace(unchanged(recipient), notify_due_ms=due if has_sender else None, notify_num=number))
        for update in marks:
            self.set(update)
        return told

    async def _notification(self, told: list[tuple[QueuedRecipient, Kind]], now_ms: int) -> NewMessage | Unknown:
        scope = self.scope(told[0][0], now_ms)
        generation = self._generation
        return await self._around.notifier.notification(
            self.lease.item, told, generation.dsn, self._plan.schedules, scope
        )

    async def record(self, end: bool, closes: bool = True) -> bool:
        """Store the facts; False when the lease was lost. With `closes` the transaction has all its results."""
        return await self._record(None, end, closes) is True

    async def _record(self, dsn: NewMessage | None, end: bool, closes: bool = True) -> bool | frozenset[int]:
        updates = list(self._updates.values())
        if not updates and dsn is None and not end and not (closes and self._fence.is_journaled):
            return True
        kept = await self._stored(updates, dsn, end, closes)
        if isinstance(kept, frozenset):
            return kept
        self._updates.clear()
        if kept:
            self._learnt.clear()
            self._leave(updates)
            if closes:
                self._fence.concluded(self._around.wall_ms())
        else:
            self._fence.lost = True
            await self.store_late()
        return kept

    async def _stored(
        self, updates: list[RecipientUpdate], dsn: NewMessage | None, end: bool, closes: bool
    ) -> bool | frozenset[int]:
        """Store results, again and again until it works or the lease was lost; False then.

        Raises `StoreFailed` when there is a notification with them, whose
        content is gone, and `CancelledError` when there is no time left.
        """
        fence, wall_ms = self._fence, self._around.wall_ms
        wait_seconds = 1.0
        while True:
            fence.recording = True
            try:
                return await self._around.store.record(
                    self.lease, updates, dsn, end, closes and fence.is_journaled, self._silenced
                )
            except StoreFailed as fault:
                self._not_stored(fault)
                if dsn is not None:
                    raise
            finally:
                fence.recording = False
            if fence.lost and wall_ms() > fence.ends_ms + _KEPT_MS:
                return False
            await self._pause(wait_seconds)
            wait_seconds = min(wait_seconds * 2, _LONGEST_PAUSE_SECONDS)

    async def store_now(self, closes: bool) -> bool:
        """Store the facts if that is possible at once, else with the next ones; False when the lease is lost."""
        fence = self._fence
        updates = list(self._updates.values())
        fence.recording = True
        try:
            kept = await self._around.store.record(self.lease, updates, None, False, closes)
        except StoreFailed as fault:
            self._not_stored(fault)
            return True
        finally:
            fence.recording = False
        for update in updates:
            self._updates.pop(update.index, None)
        if not kept:
            fence.lost = True
            await self.store_late()
            return False
        for update in updates:
            self._learnt.pop(update.index, None)
        self._leave(updates)
        fence.progressed(self._around.wall_ms())
        return True

    def _leave(self, stored: list[RecipientUpdate]) -> None:
        """Who has moved to another virtual queue may be in another's hands by now."""
        self._own -= {update.index for update in stored if update.queue != self.lease.queue}

    async def store_late(self) -> None:
        """The lease is lost: what was learnt may still be news."""
        learnt, self._learnt = self._learnt, {}
        if not learnt:
            return
        item = self.lease.item
        worth = await self._merged(list(learnt.values()))
        for index, update in learnt.items():
            late = worth.get(index)
            _log.info(
                "{event}",
                event="delivery.late-result",
                queueId=item.id_text,
                to=self.recipients[index].address,
                result="delivered" if update.state is State.COMPLETED else "failed",
                stored=late is Late.STORED,
                duplicate=late is Late.DUPLICATE,
                details=dsn_line(self.recipients[index]),
            )

    async def _merged(self, learnt: list[RecipientUpdate]) -> dict[int, Late]:
        fence, wall_ms = self._fence, self._around.wall_ms
        wait_seconds = 1.0
        while True:
            fence.recording = True
            try:
                return dict(await self._around.store.late(self.lease, learnt))
            except StoreFailed as fault:
                self._not_stored(fault)
            finally:
                fence.recording = False
            if wall_ms() > fence.ends_ms + _KEPT_MS:
                return {}
            await self._pause(wait_seconds)
            wait_seconds = min(wait_seconds * 2, _LONGEST_PAUSE_SECONDS)

    def _not_stored(self, fault: StoreFailed) -> None:
        _log.error("{event}", event="queue.record-failed", queueId=self.lease.item.id_text, details=str(fault))

    async def _pause(self, seconds: float) -> None:
        """Wait before the next try, unless there is no time for one."""
        fence = self._fence
        if fence.hurry:
            raise CancelledError
        fence.pausing = True
        try:
            await self._around.pause(seconds)
        finally:
            fence.pausing = False

    def _announce(self, dsn: NewMessage | None) -> None:
        """Log what was told, or would have been."""
        item = self.lease.item
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
                    expires=expires_ms(recipient, item.created_ms),
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

    def after(self, now_ms: int) -> int | None:
        """Log how the attempt ended; the moment something is due again."""
        item = self.lease.item
        open_ones = [recipient for recipient in self.recipients if not recipient.state.is_final]
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


def unchanged(recipient: QueuedRecipient) -> RecipientUpdate:
    """A recipient as it is, to change some of it."""
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
