"""Why a recipient is not being delivered to now: everything that stands in its way, strongest first.

From the tables alone; what only the daemon knows (free slots) is given where
it could be asked. Nothing in the way means: the next scan starts it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from mailgate.mail.status import ErrorKind
from mailgate.queue.inspect import Ordered, orders
from mailgate.queue.item import ExpiresBy, QueuedRecipient, QueueItem, State
from mailgate.queue.lease import Owner
from mailgate.queue.pause import Pause, PauseOf
from mailgate.queue.scope import error_text, status_text


class Kind(Enum):
    """What can stand in the way."""

    NOTIFICATION = "notification"
    HOLD = "hold"
    PAUSE = "pause"
    ATTEMPT = "attempt"
    IN_DOUBT = "in-doubt"
    DEPENDENCY = "dependency"
    RATE = "rate"
    CONCURRENCY = "concurrency"
    SUSPENSION = "suspension"
    RETRY = "retry"
    SLOTS = "slots"


@dataclass(frozen=True, slots=True)
class Blocker:
    """One thing in the way; `until_ms` is when it ends by itself, where that is known."""

    kind: Kind
    name: str
    detail: str
    until_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Reasons:
    """One recipient and what keeps it."""

    recipient: QueuedRecipient
    due_ms: int | None
    expires_ms: int | None
    blockers: tuple[Blocker, ...]


@dataclass(frozen=True, slots=True)
class _Unit:
    owner: str | None
    is_attempted: bool
    since_ms: int | None


@dataclass(frozen=True, slots=True)
class _Mark:
    """A row of the journal."""

    queue: str
    phase: str
    host: str
    ip: str
    since_ms: int
    indexes: frozenset[int]


def why(
    db: sqlite3.Connection,
    message: QueueItem,
    pauses: Mapping[PauseOf, Pause],
    free_slots: Mapping[str, int | None],
    now_ms: int,
    boot_ms: int,
) -> list[Reasons]:
    """What keeps each recipient that is not done.

    `free_slots` are those of each virtual queue, None for one that nobody
    serves; it leaves out what could not be asked.
    """
    units = _units(db, message.id, boot_ms)
    journal = _journal(db, message.id)
    ordered = orders(db, [message.id])
    found = []
    for recipient in message.recipients:
        if recipient.state.is_final and recipient.dsn_sent:
            continue
        unit = units.get(recipient.queue, _NO_UNIT)
        marks = [mark for mark in journal if mark.queue == recipient.queue]
        of_recipient = ordered.get((message.id, recipient.index), Ordered())
        blockers = _blockers(message, recipient, unit, marks, of_recipient, pauses, free_slots, now_ms)
        is_open = not recipient.state.is_final
        has_end = is_open and recipient.expiry.by is ExpiresBy.TTL
        found.append(
            Reasons(
                recipient,
                recipient.retry_due_ms if is_open and not recipient.held else None,
                message.created_ms + recipient.expiry.value if has_end else None,
                tuple(blockers),
            )
        )
    return found


_NO_UNIT = _Unit(None, False, None)


def _blockers(
    message: QueueItem,
    recipient: QueuedRecipient,
    unit: _Unit,
    marks: list[_Mark],
    ordered: Ordered,
    pauses: Mapping[PauseOf, Pause],
    free_slots: Mapping[str, int | None],
    now_ms: int,
) -> list[Blocker]:
    found: list[Blocker] = []
    if recipient.state.is_final:
        text = status_text(recipient.state, recipient.status)
        found.append(Blocker(Kind.NOTIFICATION, "", f"delivery is over ({text}), its sender is still to be told"))
    elif recipient.held:
        since = "" if ordered.held_since_ms is None else f"since {_moment(ordered.held_since_ms)}"
        found.append(Blocker(Kind.HOLD, "operator", ", ".join(part for part in (since, ordered.held_reason) if part)))
    for scope, pause in pauses.items():
        by = f"{pause.actor}: {pause.reason}" if pause.reason else pause.actor
        found.append(Blocker(Kind.PAUSE, scope.value, f"since {_moment(pause.since_ms)}, by {by}"))
    if unit.is_attempted:
        found.append(_attempt(unit, marks, ordered))
    elif not recipient.state.is_final:
        found += [_in_doubt(mark, recipient) for mark in marks if _is_in_doubt(mark, recipient)]
    due = recipient.retry_due_ms
    if not recipient.state.is_final and not recipient.held and due is not None and due > now_ms:
        found.append(_waits(message, recipient, due))
    if not unit.is_attempted and recipient.queue in free_slots:
        free = free_slots[recipient.queue]
        if free is None:
            detail = "no virtual queue of the configuration in use has this name: nobody serves it"
            found.append(Blocker(Kind.SLOTS, recipient.queue, detail))
        elif free == 0:
            found.append(Blocker(Kind.SLOTS, recipient.queue, "all its attempts of this node are in use"))
    return found


def _attempt(unit: _Unit, marks: list[_Mark], ordered: Ordered) -> Blocker:
    owner = Owner.parse(unit.owner or "")
    name = f"process {owner.pid}" if owner is not None else unit.owner or ""
    # Of the transactions of an attempt the latest is the one under way.
    latest = max(marks, key=lambda mark: mark.since_ms, default=None)
    parts = []
    if latest is not None:
        parts.append(f"{latest.phase} at {latest.host} [{latest.ip}]" if latest.host else latest.phase)
        parts.append(f"since {_moment(latest.since_ms)}")
    elif unit.since_ms is not None:
        parts.append(f"claimed, since {_moment(unit.since_ms)}")
    else:
        parts.append("claimed")
    if ordered.cancel_mark is not None:
        parts.append(f"then {ordered.cancel_mark}, as an operator said")
    return Blocker(Kind.ATTEMPT, name, ", ".join(parts))


def _is_in_doubt(mark: _Mark, recipient: QueuedRecipient) -> bool:
    return mark.phase == "transmitting" and recipient.index in mark.indexes


def _in_doubt(mark: _Mark, recipient: QueuedRecipient) -> Blocker:
    detail = f"{mark.ip} may have taken it at {_moment(mark.since_ms)}, its answer is not known"
    return Blocker(Kind.IN_DOUBT, mark.host, detail, recipient.retry_due_ms)


def _waits(message: QueueItem, recipient: QueuedRecipient, due_ms: int) -> Blocker:
    status = recipient.status
    if recipient.state is State.SCHEDULED or status is None:
        if message.hold_ms and due_ms == message.created_ms + message.hold_ms:
            seconds = message.hold_ms // 1000
            return Blocker(Kind.HOLD, "futurerelease", f"its sender asked for {seconds} s", due_ms)
        return Blocker(Kind.RETRY, ErrorKind.NONE.value, "not tried yet, put off by an operator", due_ms)
    kind = _DEFERRED.get(status.kind)
    if kind is not None:
        name = status.entity if kind is Kind.DEPENDENCY else status.detail or status.entity
        return Blocker(kind, name, status.detail if kind is Kind.DEPENDENCY else error_text(status), due_ms)
    detail = f"after failure number {recipient.retry_num}, {status.entity}: {error_text(status)}"
    return Blocker(Kind.RETRY, status.kind.value, detail, due_ms)


_DEFERRED = {
    ErrorKind.DEPENDENCY: Kind.DEPENDENCY,
    ErrorKind.RATE: Kind.RATE,
    ErrorKind.CONCURRENCY: Kind.CONCURRENCY,
    ErrorKind.SUSPENDED: Kind.SUSPENSION,
}


def _units(db: sqlite3.Connection, id_: int, boot_ms: int) -> dict[str, _Unit]:
    found: dict[str, _Unit] = {}
    for queue, owner, until, progress in db.execute(
        "SELECT queue, lease_owner, lease_until, progress FROM unit WHERE message_id = ?", (id_,)
    ):
        parsed = Owner.parse(owner or "")
        is_live = parsed is not None and until is not None and until >= boot_ms and parsed.is_alive()
        found[queue] = _Unit(owner, is_live, progress)
    return found


def _journal(db: sqlite3.Connection, id_: int) -> list[_Mark]:
    return [
        _Mark(queue, phase, host, ip, since, frozenset(json.loads(indexes)))
        for queue, phase, host, ip, since, indexes in db.execute(
            "SELECT queue, phase, host, ip, since, rcpt_idx FROM attempt WHERE message_id = ? ORDER BY since", (id_,)
        )
    ]


def _moment(epoch_ms: int) -> str:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
