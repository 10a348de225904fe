"""What delivery rules see: a queued recipient, and the host it is about to go to.

The recipient scope is the queue's (`mailgate.queue.scope`), the same on both
sides of the queue; this makes it, and that of a host, from queue items.
"""

from __future__ import annotations

from mailgate.expr.outside import Outside
from mailgate.mail.status import RecipientStatus
from mailgate.queue.item import QueuedRecipient, QueueItem, State
from mailgate.queue.scope import HostScope, MessageFacts, RecipientScope


def message_facts(item: QueueItem) -> MessageFacts:
    """What is the same for all recipients of a message."""
    return MessageFacts(
        created_ms=item.created_ms,
        return_path=item.return_path,
        addresses=tuple(recipient.address.lower() for recipient in item.recipients),
        priority=item.priority,
        from_ip=item.from_ip,
        via_port=item.via_port,
        source=item.source,
        size_octets=item.size_octets,
    )


def recipient_scope(message: MessageFacts, recipient: QueuedRecipient, outside: Outside, now_ms: int) -> RecipientScope:
    """The scope of one recipient as the queue knows it."""
    return RecipientScope(
        message,
        recipient.address,
        outside,
        now_ms,
        recipient.state,
        recipient.status,
        recipient.retry_num,
        recipient.notify_num,
        recipient.queue,
        recipient.expiry,
    )


def failed_scope(
    message: MessageFacts, recipient: QueuedRecipient, status: RecipientStatus, outside: Outside, now_ms: int
) -> RecipientScope:
    """The scope in which the next schedule is chosen: with the new failure, and the count before it."""
    return RecipientScope(
        message,
        recipient.address,
        outside,
        now_ms,
        State.TEMP_FAIL,
        status,
        recipient.retry_num,
        recipient.notify_num,
        recipient.queue,
        recipient.expiry,
    )


def host_scope(recipient: RecipientScope, host: str, remote_ip: str = "0.0.0.0") -> HostScope:
    """The host scope for a group whose first recipient has the scope `recipient`."""
    return HostScope(
        recipient.message,
        recipient.address,
        recipient.outside,
        recipient.now_ms,
        recipient.state,
        recipient.status,
        recipient.retry_num,
        recipient.notify_num,
        recipient.queue_name,
        recipient.expiry,
        recipient.notes,
        host,
        remote_ip,
    )
