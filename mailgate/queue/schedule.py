"""When a recipient is tried, told about, and given up: pure arithmetic.

Every moment is milliseconds since the epoch and comes from the caller, as does
chance. `first_plan` starts a recipient off; `after_failure`, `after_deferral`
and `expire` say what becomes of it, as the row the store will write. Nothing
here reads a clock or a setting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NamedTuple

from mailgate.mail.envelope import DeliverBy
from mailgate.mail.lean import lean
from mailgate.mail.status import ErrorKind, RecipientStatus
from mailgate.queue.item import ExpiresBy, Expiry, QueuedRecipient, RecipientUpdate, State

NEVER_ATTEMPTED = "Message expired without any delivery attempts made."
RETRY_DEFAULT = tuple(timedelta(minutes=m) for m in (2, 5, 10, 15, 30, 60, 120))
EXPIRE_DEFAULT = timedelta(days=3)
# Random additions to an interval stay below this, however long the interval is.
_JITTER_LIMIT_MS = 300_000
_MS = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Schedule:
    """One `queue.schedule.<id>`: when to retry, when to tell the sender, when to give up.

    `max_attempts`, where set, takes the place of `expire`. `jitter` is percent
    of an interval. `retry` is never empty.
    """

    name: str
    queue: str = "default"
    retry: tuple[timedelta, ...] = RETRY_DEFAULT
    notify: tuple[timedelta, ...] = ()
    expire: timedelta = EXPIRE_DEFAULT
    max_attempts: int | None = None
    jitter: int = 0


class Plan(NamedTuple):
    """How a recipient starts: first attempt, first notice of delay, end."""

    retry_due_ms: int
    notify_due_ms: int | None
    expiry: Expiry


@lean
@dataclass(frozen=True, slots=True)
class Terms:
    """What a message brings along for the arithmetic: when it came, and what its sender asked for."""

    created_ms: int
    hold_ms: int = 0
    """FUTURERELEASE (RFC 4865)."""
    deliver_by: DeliverBy | None = None


def first_plan(schedule: Schedule, terms: Terms) -> Plan:
    """Plan a recipient of a message that is being accepted."""
    start = terms.created_ms + terms.hold_ms
    expiry = _expiry(schedule, terms)
    by = terms.deliver_by
    if by is None:
        return Plan(start, _first_threshold(schedule, start), expiry)
    if by.mode == "R":
        # RFC 2852 4: the deadline counts from acceptance; a hold does not move it.
        return Plan(start, _first_threshold(schedule, start), Expiry(ExpiresBy.TTL, by.seconds * 1000))
    return Plan(start, _deadline_notice(schedule, terms, by), expiry)


def after_failure(
    recipient: QueuedRecipient, status: RecipientStatus, schedule: Schedule, terms: Terms, now_ms: int, chance: float
) -> RecipientUpdate:
    """Say what becomes of a recipient after an attempt that failed for now.

    `schedule` is the one chosen anew, knowing the failure; `chance` is drawn
    evenly from 0 to 1. The recipient is tried again, or has failed for good:
    its attempts are used up, or its time is.
    """
    # The list does not end: its last interval repeats.
    interval_ms = _ms(schedule.retry[min(recipient.retry_num, len(schedule.retry) - 1)])
    # The limit bounds the draw, not its result: recipients would all meet at the limit.
    jitter_ms = int(min(interval_ms * schedule.jitter / 100, _JITTER_LIMIT_MS) * chance)
    update = replace(
        _unchanged(recipient),
        state=State.TEMP_FAIL,
        status=status,
        retry_due_ms=now_ms + interval_ms + jitter_ms,
        retry_num=recipient.retry_num + 1,
    )
    if schedule.name != recipient.schedule:
        update = _moved(update, schedule, terms, now_ms)
    return _failed(update) if _is_over(update.expiry, update.retry_num, terms.created_ms, now_ms) else update


def after_deferral(
    recipient: QueuedRecipient, status: RecipientStatus, retry_due_ms: int, created_ms: int, now_ms: int
) -> RecipientUpdate:
    """Put an attempt off until `retry_due_ms` without counting it (limits, unknown answers).

    A recipient whose time to live is over fails for good all the same.
    """
    update = replace(_unchanged(recipient), state=State.TEMP_FAIL, status=status, retry_due_ms=retry_due_ms)
    over = recipient.expiry.by is ExpiresBy.TTL and _is_over(recipient.expiry, 0, created_ms, now_ms)
    return _failed(update) if over else update


def final(recipient: QueuedRecipient, state: State, status: RecipientStatus) -> RecipientUpdate:
    """Close a recipient: `state` is COMPLETED or PERM_FAIL; whether its sender is told is still open."""
    return replace(_unchanged(recipient), state=state, status=status, retry_due_ms=None, notify_due_ms=None)


def expire(recipient: QueuedRecipient, created_ms: int, now_ms: int) -> RecipientUpdate | None:
    """Close an open recipient whose time to live is over, with its last error; None when it is not."""
    ends_ms = expires_ms(recipient, created_ms)
    if ends_ms is None or ends_ms > now_ms:
        return None
    status = recipient.status
    if recipient.state is State.SCHEDULED or status is None:
        status = RecipientStatus(recipient.domain, ErrorKind.IO, NEVER_ATTEMPTED)
    return final(recipient, State.PERM_FAIL, status)


def next_notice(
    recipient: QueuedRecipient, schedule: Schedule, terms: Terms, now_ms: int
) -> tuple[int | None, int] | None:
    """Advance past a notice of delay that is due: (next moment or None, notices so far); None when none is due."""
    if recipient.notify_due_ms is None or recipient.notify_due_ms > now_ms or recipient.state.is_final:
        return None
    by = terms.deliver_by
    # RFC 2852 4: mode N asks for one notice, at the deadline.
    due = None if by is not None and by.mode == "N" else _threshold_after(schedule, terms, now_ms)
    return due, recipient.notify_num + 1


def expires_ms(recipient: QueuedRecipient, created_ms: int) -> int | None:
    """When an open recipient's time to live ends; None where attempts are counted, it is held, or it is closed."""
    if recipient.expiry.by is ExpiresBy.TTL and not recipient.state.is_final and not recipient.held:
        return created_ms + recipient.expiry.value
    return None


def due_ms(recipient: QueuedRecipient, created_ms: int) -> int | None:
    """When a recipient next needs looking at: retry, notice or end, whichever is first.

    A closed recipient whose notification is still open needs it at once; one
    that is settled, or held, never does.
    """
    if recipient.state.is_final:
        return None if recipient.dsn_sent else created_ms
    if recipient.held:
        return None
    moments = (recipient.retry_due_ms, recipient.notify_due_ms, expires_ms(recipient, created_ms))
    return min((m for m in moments if m is not None), default=None)


def _ms(interval: timedelta) -> int:
    return interval // _MS


def _first_threshold(schedule: Schedule, start_ms: int) -> int | None:
    return start_ms + _ms(schedule.notify[0]) if schedule.notify else None


def _threshold_after(schedule: Schedule, terms: Terms, now_ms: int) -> int | None:
    # Every threshold counts from the end of the hold, not from the notice before it.
    start = terms.created_ms + terms.hold_ms
    return min((due for due in (start + _ms(n) for n in schedule.notify) if due > now_ms), default=None)


def _deadline_notice(schedule: Schedule, terms: Terms, by: DeliverBy) -> int | None:
    """The first notice under BY mode N: at the deadline, unless the message ends before it."""
    if by.seconds <= 0:
        return None
    start = terms.created_ms + terms.hold_ms
    if schedule.max_attempts is not None or _ms(schedule.expire) > by.seconds * 1000:
        return start + by.seconds * 1000
    return _first_threshold(schedule, start)


def _expiry(schedule: Schedule, terms: Terms) -> Expiry:
    if schedule.max_attempts is not None:
        return Expiry(ExpiresBy.ATTEMPTS, schedule.max_attempts)
    return Expiry(ExpiresBy.TTL, terms.hold_ms + _ms(schedule.expire))


def _capped(expiry: Expiry, by: DeliverBy | None) -> Expiry:
    if by is None or by.mode != "R":
        return expiry
    deadline = by.seconds * 1000
    return Expiry(ExpiresBy.TTL, min(expiry.value, deadline) if expiry.by is ExpiresBy.TTL else deadline)


def _moved(update: RecipientUpdate, schedule: Schedule, terms: Terms, now_ms: int) -> RecipientUpdate:
    """Put a recipient under another schedule: its queue, end and thresholds; those gone by count as sent."""
    update = replace(
        update,
        queue=schedule.queue,
        schedule=schedule.name,
        expiry=_capped(_expiry(schedule, terms), terms.deliver_by),
    )
    if terms.deliver_by is not None and terms.deliver_by.mode == "N":
        return update
    start = terms.created_ms + terms.hold_ms
    gone_by = sum(start + _ms(n) <= now_ms for n in schedule.notify)
    return replace(update, notify_due_ms=_threshold_after(schedule, terms, now_ms), notify_num=gone_by)


def _is_over(expiry: Expiry, retry_num: int, created_ms: int, now_ms: int) -> bool:
    if expiry.by is ExpiresBy.ATTEMPTS:
        return retry_num >= expiry.value
    return created_ms + expiry.value <= now_ms


def _failed(update: RecipientUpdate) -> RecipientUpdate:
    return replace(update, state=State.PERM_FAIL, retry_due_ms=None, notify_due_ms=None)


def _unchanged(recipient: QueuedRecipient) -> RecipientUpdate:
    return RecipientUpdate(
        index=recipient.index,
        state=recipient.state,
        status=recipient.status,
        queue=recipient.queue,
        schedule=recipient.schedule,
        retry_due_ms=recipient.retry_due_ms,
        retry_num=recipient.retry_num,
        notify_due_ms=recipient.notify_due_ms,
        notify_num=recipient.notify_num,
        expiry=recipient.expiry,
        dsn_sent=recipient.dsn_sent,
    )
