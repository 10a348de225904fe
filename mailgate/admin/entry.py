"""A queued message as commands tell it, to programs and to people."""

from __future__ import annotations

from collections.abc import Container

from mailgate.decisions.explain import timestamp
from mailgate.mail.status import ErrorKind
from mailgate.queue.inspect import Ordered, Orders
from mailgate.queue.item import ExpiresBy, QueuedRecipient, QueueItem, State
from mailgate.queue.scope import error_text

_WORDS = {
    State.SCHEDULED: "scheduled",
    State.COMPLETED: "delivered",
    State.TEMP_FAIL: "tempfail",
    State.PERM_FAIL: "permfail",
}


_NOTHING = Ordered()


def state_word(recipient: QueuedRecipient) -> str:
    """The state of a recipient in one word for people."""
    return "held" if recipient.held and not recipient.state.is_final else _WORDS[recipient.state]


def status_words(recipient: QueuedRecipient) -> str:
    """What was said last about a recipient; empty before the first attempt."""
    status = recipient.status
    if status is None or recipient.state is State.SCHEDULED:
        return ""
    if recipient.state is State.COMPLETED:
        return str(status.reply) if status.reply is not None else status.detail
    return f"Error for {status.entity}: {error_text(status)}"


def entry(message: QueueItem, leased: Container[tuple[int, str]], orders: Orders) -> dict[str, object]:
    """The entry object of a message; `leased` are the units (message, virtual queue) in an attempt."""
    ordered = [orders.get((message.id, recipient.index), _NOTHING) for recipient in message.recipients]
    progress_ms = max((each.progress_ms for each in ordered if each.progress_ms is not None), default=None)
    facts: dict[str, object] = {
        "id": message.id_text,
        "return_path": message.return_path,
        "created": timestamp(message.created_ms),
        "progress": timestamp(message.created_ms if progress_ms is None else progress_ms),
        "size": message.size_octets,
        "source": message.source.value,
        "blob_hash": message.content_hash,
    }
    if message.trace is not None:
        facts["trace"] = message.trace
    if message.priority:
        facts["priority"] = message.priority
    if message.env_id is not None:
        facts["env_id"] = message.env_id
    facts["recipients"] = [
        _recipient(message, recipient, (message.id, recipient.queue) in leased, each)
        for recipient, each in zip(message.recipients, ordered, strict=True)
    ]
    return facts


def _recipient(message: QueueItem, recipient: QueuedRecipient, attempted: bool, ordered: Ordered) -> dict[str, object]:
    facts: dict[str, object] = {
        "address": recipient.address,
        "queue": recipient.queue,
        "status": "scheduled"
        if recipient.state is State.SCHEDULED
        else {recipient.state.value: status_words(recipient)},
        "retry_num": recipient.retry_num,
    }
    if not recipient.state.is_final:
        if recipient.retry_due_ms is not None and not recipient.held:
            facts["next_retry"] = timestamp(recipient.retry_due_ms)
        if recipient.notify_due_ms is not None:
            facts["next_notify"] = timestamp(recipient.notify_due_ms)
        if recipient.expiry.by is ExpiresBy.TTL:
            facts["expires"] = timestamp(message.created_ms + recipient.expiry.value)
        else:
            facts["attempts_left"] = max(recipient.expiry.value - recipient.retry_num, 0)
        if recipient.held:
            facts["held"] = True
            if ordered.held_since_ms is not None:
                facts["held_since"] = timestamp(ordered.held_since_ms)
            if ordered.held_reason:
                facts["held_reason"] = ordered.held_reason
        if attempted:
            facts["in_attempt"] = True
    if recipient.status is not None and recipient.status.kind is not ErrorKind.NONE:
        facts["last_error"] = recipient.status.kind.value
    if recipient.orcpt is not None:
        facts["orcpt"] = recipient.orcpt
    if ordered.route is not None:
        facts["route"] = ordered.route
    return facts
