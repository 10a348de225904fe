"""A finished transaction into the queue (RFC 5321 6.1).

The only way a message of a session becomes mailgate's own: the header block
is put above it, and 250 is answered only after the store has said that the
message is on disk for good (I1). Whatever goes wrong before leaves nothing
behind and is a 4xx.
"""

from __future__ import annotations

from collections.abc import Callable

from mailgate.mail import replies
from mailgate.mail.reply import Reply
from mailgate.mail.session import Session
from mailgate.mail.transaction import Transaction
from mailgate.mail.unknown import Unknown
from mailgate.mail.verdict import Cause, Reason, Refuse
from mailgate.net.log import EventLog
from mailgate.queue.charge import Charge
from mailgate.queue.enqueue import Arrival, Schedules, queued_recipients
from mailgate.queue.item import NewMessage, QueuedRecipient, Source, queue_id_text
from mailgate.queue.quota import Quotas, QuotaUnknown
from mailgate.queue.store import QueueStore, QuotaExceeded, Spool, StoreFailed, StoreFull
from mailgate.session import trace
from mailgate.session.context import MessageContext
from mailgate.session.unanswered import unanswered

_log = EventLog(namespace="mailgate.session")


class Acceptance:
    """Puts messages into the queue, for all listeners of one generation."""

    def __init__(
        self,
        store: QueueStore,
        schedules: Schedules,
        quotas: Quotas,
        wall: Callable[[], float],
        queued: Callable[[], None],
    ) -> None:
        """`queued` is called after each commit: there is something to deliver."""
        self._store = store
        self._schedules = schedules
        self._quotas = quotas
        self._wall = wall
        self._queued = queued
        self._dates = trace.DateText()

    async def prepare(self, context: MessageContext, transaction: Transaction, spool: Spool) -> NewMessage | Refuse:
        """Make the message as it will be kept, its content on disk where it is large; a refusal keeps nothing.

        The spool stays the caller's, who discards it when this refuses, raises or is cancelled.
        """
        prefix = await self._header_block(context, transaction)
        if isinstance(prefix, Refuse):
            return prefix
        created_ms = int(self._wall() * 1000)
        session = context.session
        parameters = transaction.parameters
        arrival = Arrival(
            created_ms=created_ms,
            return_path=transaction.reverse_path.stored,
            source=Source.UNAUTHENTICATED if session.identity is None else Source.AUTHENTICATED,
            size_octets=len(prefix) + spool.size_octets,
            priority=parameters.priority or 0,
            hold_ms=transaction.hold_seconds * 1000,
            deliver_by=parameters.deliver_by,
            from_ip=session.remote_ip,
            via_port=session.local_port,
        )
        recipients = await queued_recipients(arrival, transaction.recipients, self._schedules)
        charges = self._quotas.of_all
        if charges is None:
            asked = await self._charges(context, arrival, recipients)
            if isinstance(asked, Refuse):
                return asked
            charges = asked
        try:
            content = await spool.finish()
        except StoreFailed as failure:
            return _not_kept(failure)
        return NewMessage(
            id=context.queue_id,
            created_ms=created_ms,
            prefix=prefix,
            content=content,
            return_path=arrival.return_path,
            source=arrival.source,
            recipients=recipients,
            trace=transaction.trace_id,
            env_id=parameters.envid,
            ret=parameters.ret,
            smtputf8=parameters.smtputf8,
            requiretls=parameters.requiretls,
            body=parameters.body,
            priority=arrival.priority,
            hold_ms=arrival.hold_ms,
            deliver_by=parameters.deliver_by,
            from_ip=arrival.from_ip,
            via_port=arrival.via_port,
            charges=charges,
        )

    async def keep(self, message: NewMessage, session: Session) -> Reply | Refuse:
        """Keep the message for good and answer 250, or refuse for now with nothing kept.

        Not to be cancelled: what becomes of the message is decided by the store alone.
        """
        try:
            await self._store.commit(message)
        except QuotaExceeded as exceeded:
            _log_exceeded(exceeded, message, session)
            return _over_quota(exceeded)
        except StoreFailed as failure:
            return _not_kept(failure)
        queue_id = queue_id_text(message.id)
        try:
            self._queued()
        except Exception:
            # The message is kept whatever happens to its delivery, and the client must be told so.
            _log.failure("{event} queueId={queueId}", event="queue.nudge-failed", queueId=queue_id)
        _log.info(
            "{event}",
            event="queue.queue-message" if session.identity is None else "queue.queue-message-authenticated",
            queueId=queue_id,
            trace=message.trace,
            **{"from": message.return_path or "<>"},
            to=[recipient.address for recipient in message.recipients],
            size=message.size_octets,
            listener=session.listener,
            remoteIp=session.remote_ip,
        )
        return replies.queued(queue_id)

    async def _charges(
        self, context: MessageContext, arrival: Arrival, recipients: tuple[QueuedRecipient, ...]
    ) -> tuple[Charge, ...] | Refuse:
        """What the message is charged; a refusal for now where a quota's `match` has no answer."""
        found = await self._quotas.charges(arrival, recipients, context.note)
        if isinstance(found, QuotaUnknown):
            return unanswered(found.unknown, found.cause, temporary=replies.QUEUE_FAILED)
        return found

    async def _header_block(self, context: MessageContext, transaction: Transaction) -> bytes | Refuse:
        """The fields mailgate adds, top first: Received, Return-Path, Date, Message-ID."""
        rules = context.rules.data.add_headers
        fields = b""
        date = self._dates.at(self._wall())
        for choice, make in (
            (rules.received, _received),
            (rules.return_path, _return_path),
            (rules.date, _date),
            (rules.message_id, _message_id),
        ):
            fixed = choice.fixed
            wanted = fixed[0] if fixed is not None else await choice.value(context)
            if isinstance(wanted, Unknown):
                return unanswered(wanted, context.cause(choice))
            if wanted:
                fields += make(context, transaction, date)
        return fields


def _over_quota(exceeded: QuotaExceeded) -> Refuse:
    limit, used = exceeded.charge.limit, exceeded.used
    reads: list[tuple[str, object]] = [("size", exceeded.size_octets)]
    if limit.max_messages is not None:
        reads += [("queued messages", used.messages), ("messages", limit.max_messages)]
    if limit.max_octets is not None:
        reads += [("queued octets", used.octets), ("octets", limit.max_octets)]
    cause = Cause(f"queue.quota.{limit.id}", limit.place, tuple(reads))
    return Refuse(replies.QUEUE_FULL, Reason.QUOTA_EXCEEDED, detail=str(exceeded), cause=cause)


def _log_exceeded(exceeded: QuotaExceeded, message: NewMessage, session: Session) -> None:
    charge, used = exceeded.charge, exceeded.used
    _log.info(
        "{event}",
        event="queue.quota-exceeded",
        queueId=queue_id_text(message.id),
        trace=message.trace,
        id=charge.limit.id,
        type=charge.limit.kind,
        bucket=charge.bucket,
        messages=used.messages,
        octets=used.octets,
        size=exceeded.size_octets,
        **{"from": message.return_path or "<>"},
        listener=session.listener,
        remoteIp=session.remote_ip,
    )


def _not_kept(failure: StoreFailed) -> Refuse:
    if isinstance(failure, StoreFull):
        return Refuse(replies.QUEUE_FULL, Reason.QUEUE_FULL, detail=str(failure))
    return Refuse(replies.QUEUE_FAILED, Reason.QUEUE_FAILED, detail=str(failure))


def _received(context: MessageContext, transaction: Transaction, date: str) -> bytes:
    return trace.received(context.session, context.queue_id, date)


def _return_path(context: MessageContext, transaction: Transaction, date: str) -> bytes:
    return trace.return_path(transaction.reverse_path)


def _date(context: MessageContext, transaction: Transaction, date: str) -> bytes:
    return b"" if context.header.has(b"date") else trace.date_field(date)


def _message_id(context: MessageContext, transaction: Transaction, date: str) -> bytes:
    return b"" if context.header.has(b"message-id") else trace.message_id(context.session.hostname)
