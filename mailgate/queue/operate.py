"""What operators change: retry, hold, release, reroute, cancel, drop.

Statements of the writer thread; they need no lease. Whatever belongs to one
message (its recipients, its units, its removal) changes in one transaction.
Only the rows an order decides about are written, so an attempt that runs
meanwhile and an order never undo each other: while a unit is leased a cancel
is a mark and a retry a wish, and the end of the attempt honours both.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from mailgate.mail.status import ErrorKind, RecipientStatus
from mailgate.queue.item import ExpiresBy, State
from mailgate.queue.rows import SPOOL, status_cell
from mailgate.queue.units import settle, units_found

CANCELED = RecipientStatus("localhost", ErrorKind.IO, "Delivery canceled.")
MORE_ATTEMPTS = 10
"""What a recipient gets whose time to live ends before the moment an operator has it tried."""

Picked = Mapping[int, frozenset[int] | None]
"""Recipients by queue id and index; None stands for all of a message."""


class Action(Enum):
    """What can be ordered."""

    RETRY = "retry"
    HOLD = "hold"
    RELEASE = "release"
    REROUTE = "reroute"
    CANCEL = "cancel"
    DROP = "drop"


class Mark(Enum):
    """What the end of a running attempt is to do with a recipient that it did not deliver to."""

    CANCEL = "cancel"
    NOTIFY = "notify"
    """Cancel, and tell the sender."""
    DROP = "drop"
    """Remove the whole message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One change. `at_ms` is the next attempt of `retry`, and of `reroute` where it shall not wait; `route` of
    `reroute` is None to give the choice back to `queue.strategy.route`; `notify` has `cancel` tell the sender.
    """

    action: Action
    at_ms: int | None = None
    route: str | None = None
    notify: bool = False
    actor: str = ""
    reason: str = ""


class Change(NamedTuple):
    """What an order did to one message."""

    id: int
    recipients: int
    """How many were changed; all of them when the message was dropped."""
    removed: bool = False
    """The message is gone: nothing was left to do."""
    spooled: bool = False
    """Its content is in a file."""
    created_ms: int = 0
    held: int = 0
    """Recipients left alone by a retry because somebody holds them."""


class _Row(NamedTuple):
    """What an order may change of a recipient, and whom it is about."""

    state: str
    status_json: str | None
    retry_due: int | None
    retry_num: int
    notify_due: int | None
    expires_kind: str
    expires_value: int
    dsn_sent: int
    held_since: int | None
    held_reason: str | None
    route_override: str | None
    cancel_mark: str | None
    asked_due: int | None
    progress: int | None
    queue: str
    message_id: int
    idx: int


class _Message(NamedTuple):
    id: int
    created: int
    hold: int
    deliver_by: str | None
    content_kind: str


_KEY = ("message_id", "idx")
_UNCHANGED = ("retry_num", "queue", *_KEY)
_CHANGING = tuple(name for name in _Row._fields if name not in _UNCHANGED)
_UPDATE = (
    f"UPDATE recipient SET {', '.join(f'{name} = :{name}' for name in _CHANGING)}"
    " WHERE message_id = :message_id AND idx = :idx"
)
_OPEN = (State.SCHEDULED.value, State.TEMP_FAIL.value)


def carry_out(
    db: sqlite3.Connection, order: Order, picked: Picked, now_ms: int, *, dry_run: bool = False
) -> list[Change]:
    """Change what was picked, as far as it is still queued and open; with `dry_run` only say what would change.

    One `Change` for each message that is in the queue, also where nothing had to be done.
    """
    asked = json.dumps(list(picked))
    messages = db.execute(
        "SELECT id, created, hold, deliver_by, content_kind FROM message"
        " WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id",
        (asked,),
    ).fetchall()
    recipients: dict[int, list[_Row]] = defaultdict(list)
    for cells in db.execute(
        f"SELECT {', '.join(_Row._fields)} FROM recipient WHERE message_id IN (SELECT value FROM json_each(?))"
        " ORDER BY message_id, idx",
        (asked,),
    ).fetchall():
        row = _Row(*cells)
        recipients[row.message_id].append(row)
    leased: dict[int, set[str]] = defaultdict(set)
    for id_, queue in db.execute(
        "SELECT message_id, queue FROM unit"
        " WHERE lease_owner IS NOT NULL AND message_id IN (SELECT value FROM json_each(?))",
        (asked,),
    ).fetchall():
        leased[id_].add(queue)
    ledger = None if dry_run else db
    return [
        _message(ledger, order, message, recipients[message.id], picked[message.id], leased[message.id], now_ms)
        for message in (_Message(*cells) for cells in messages)
    ]


def _message(
    db: sqlite3.Connection | None,
    order: Order,
    message: _Message,
    rows: list[_Row],
    indexes: frozenset[int] | None,
    leased: set[str],
    now_ms: int,
) -> Change:
    """Carry the order out on one message; without `db` only in thought."""
    spooled = message.content_kind == SPOOL
    if order.action is Action.DROP and not leased:
        if db is not None:
            db.execute("DELETE FROM message WHERE id = ?", (message.id,))
        return Change(message.id, len(rows), True, spooled, message.created)
    changed: list[_Row] = []
    for row in rows:
        if row.state not in _OPEN or not (order.action is Action.DROP or _is_picked(row, indexes)):
            continue
        new = _recipient(order, message, row, row.queue in leased, now_ms)
        if new is not None:
            changed.append(new._replace(progress=now_ms))
    held = 0
    if order.action is Action.RETRY:
        held = sum(row.held_since is not None and row.state in _OPEN for row in rows if _is_picked(row, indexes))
    count = len(rows) if order.action is Action.DROP else len(changed)
    if db is None or not changed:
        return Change(message.id, count, held=held)
    db.executemany(_UPDATE, [{name: getattr(row, name) for name in (*_CHANGING, *_KEY)} for row in changed])
    if order.action is Action.RELEASE:
        _prolong(db, message, rows, {row.idx for row in changed}, now_ms)
    removed = _settle(db, message, {row.queue for row in changed}, now_ms)
    return Change(message.id, count, removed, removed and spooled, message.created, held)


def _is_picked(row: _Row, indexes: frozenset[int] | None) -> bool:
    return indexes is None or row.idx in indexes


def _recipient(order: Order, message: _Message, row: _Row, leased: bool, now_ms: int) -> _Row | None:
    """The new facts of an open recipient; None when the order changes nothing."""
    match order.action:
        case Action.RETRY:
            # Who is held stays held: a retry of everything must not let go what somebody stopped.
            return None if row.held_since is not None else _tried_at(row, message, order.at_ms or now_ms, leased)
        case Action.HOLD:
            if row.held_since is not None:
                return None
            return row._replace(held_since=now_ms, held_reason=_who_and_why(order))
        case Action.RELEASE:
            return _released(row, message, leased, now_ms)
        case Action.REROUTE:
            new = row._replace(route_override=order.route)
            if order.at_ms is not None and row.held_since is None:
                new = _tried_at(new, message, order.at_ms, leased)
            return new if new != row else None
        case Action.CANCEL:
            if leased:
                return row._replace(cancel_mark=(Mark.NOTIFY if order.notify else Mark.CANCEL).value)
            return row._replace(
                state=State.PERM_FAIL.value,
                status_json=status_cell(CANCELED),
                retry_due=None,
                notify_due=None,
                dsn_sent=int(not order.notify),
                held_since=None,
                held_reason=None,
                # A delivery whose result comes late must not take back what the sender is told.
                cancel_mark=Mark.NOTIFY.value if order.notify else None,
                asked_due=None,
            )
        case Action.DROP:
            # The attempt that runs removes the message with all recipients, whichever queue they are in.
            return row._replace(cancel_mark=Mark.DROP.value)


def _tried_at(row: _Row, message: _Message, at_ms: int, leased: bool) -> _Row:
    new = row._replace(retry_due=at_ms, asked_due=at_ms if leased else row.asked_due)
    if row.expires_kind == ExpiresBy.TTL.value and message.created + row.expires_value <= at_ms:
        new = new._replace(expires_kind=ExpiresBy.ATTEMPTS.value, expires_value=row.retry_num + MORE_ATTEMPTS)
    return new


def _released(row: _Row, message: _Message, leased: bool, now_ms: int) -> _Row | None:
    """Due at once; the time it was held counts neither towards its end nor towards the next notice."""
    if row.held_since is None:
        return None
    held_ms = max(now_ms - row.held_since, 0)
    new = row._replace(
        held_since=None, held_reason=None, retry_due=now_ms, asked_due=now_ms if leased else row.asked_due
    )
    if row.notify_due is not None:
        new = new._replace(notify_due=row.notify_due + held_ms)
    if row.expires_kind == ExpiresBy.TTL.value:
        seconds, _, mode = (message.deliver_by or "").partition(";")
        value = row.expires_value + held_ms
        # RFC 2852 4: a deadline that the sender set counts from acceptance, whatever happens here.
        new = new._replace(expires_value=min(value, int(seconds) * 1000) if mode[:1] == "R" else value)
    return new


def _prolong(db: sqlite3.Connection, message: _Message, rows: list[_Row], released: set[int], now_ms: int) -> None:
    """Where a whole message was held, a schedule chosen later starts from the end of that time, too."""
    held = [row.held_since for row in rows if row.state in _OPEN]
    if all(row.idx in released for row in rows if row.state in _OPEN):
        held_ms = min(max(now_ms - since, 0) for since in held if since is not None)
        db.execute("UPDATE message SET hold = hold + ? WHERE id = ?", (held_ms, message.id))


def _settle(db: sqlite3.Connection, message: _Message, touched: set[str], now_ms: int) -> bool:
    """Bring the units up to date with the recipients; True when nothing was left to do and the message is gone."""
    if not settle(db, message.id, message.created, units_found(db, message.id)):
        return True
    db.executemany(
        "UPDATE unit SET progress = ? WHERE message_id = ? AND queue = ?",
        [(now_ms, message.id, queue) for queue in touched],
    )
    return False


def _who_and_why(order: Order) -> str:
    return f"{order.actor}: {order.reason}" if order.reason else order.actor
