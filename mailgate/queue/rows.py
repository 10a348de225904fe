"""Queue items as rows, and back: the one place that knows the order of columns.

Rarely used values are NULL, states are words, so that rows are narrow and an
operator can read them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from mailgate.mail.envelope import NOTIFY_DEFAULT, Body, DeliverBy, Notify, Ret
from mailgate.mail.status import ErrorKind, RecipientStatus, RemoteReply
from mailgate.queue.item import (
    ExpiresBy,
    Expiry,
    NewMessage,
    QueuedRecipient,
    QueueItem,
    RecipientUpdate,
    Source,
    State,
)

Cell = int | str | bytes | None
Row = tuple[Cell, ...]

MESSAGE = (
    "id, created, content_kind, content_hash, size, return_path, source, trace, env_id, ret, flags, priority, hold,"
    " deliver_by, from_ip, via_port"
)
NEW_MESSAGE = f"{MESSAGE}, quota"
CONTENT = "message_id, octets, path"
RECIPIENT = (
    "message_id, idx, address, orcpt, notify_flags, queue, schedule, state, status_json, retry_due, retry_num,"
    " notify_due, notify_num, expires_kind, expires_value, dsn_sent, held_since"
)
RECIPIENT_READ = f"{RECIPIENT}, route_override"
UNIT = "message_id, queue, due, expires, lease_gen"

INLINE = "inline"
SPOOL = "spool"

_SOURCE = {source.value: source for source in Source}
_STATE = {state.value: state for state in State}
_EXPIRES = {by.value: by for by in ExpiresBy}
_BODY = {body.value: body for body in Body}
_RET = {ret.value: ret for ret in Ret}
_KIND = {kind.value: kind for kind in ErrorKind}
# RFC 3461 4.1: the words in the order in which they are sent on.
_NOTIFY_WORDS = ((Notify.SUCCESS, "SUCCESS"), (Notify.DELAY, "DELAY"), (Notify.FAILURE, "FAILURE"))
_NOTIFY = {word: flag for flag, word in (*_NOTIFY_WORDS, (Notify.NEVER, "NEVER"))}


def message_row(message: NewMessage, content_hash: str) -> Row:
    """The row of a new message in table `message`."""
    by = message.deliver_by
    return (
        message.id,
        message.created_ms,
        SPOOL if message.content.path is not None else INLINE,
        content_hash,
        message.size_octets,
        message.return_path,
        message.source._value_,
        message.trace,
        message.env_id,
        None if message.ret is None else message.ret._value_,
        _flags(message) if message.body is not None or message.smtputf8 or message.requiretls else None,
        message.priority,
        message.hold_ms,
        None if by is None else f"{by.seconds};{by.mode}{'T' if by.trace else ''}",
        message.from_ip,
        message.via_port,
        None if not message.charges or (charge := message.charge_of_all) is None else charge.bucket,
    )


def recipient_row(message: NewMessage, recipient: QueuedRecipient) -> Row:
    """The row of one recipient of a new message in table `recipient`."""
    return (
        message.id,
        recipient.index,
        recipient.address,
        recipient.orcpt,
        None if recipient.notify is NOTIFY_DEFAULT else _notify_text(recipient.notify),
        recipient.queue,
        recipient.schedule,
        recipient.state._value_,
        status_cell(recipient.status),
        recipient.retry_due_ms,
        recipient.retry_num,
        recipient.notify_due_ms,
        recipient.notify_num,
        recipient.expiry.by._value_,
        recipient.expiry.value,
        recipient.dsn_sent,
        message.created_ms if recipient.held else None,
    )


def update_row(message_id: int, update: RecipientUpdate, now_ms: int) -> Row:
    """The cells of `UPDATE recipient` in the order of its statement, key and state guard last."""
    state = update.state._value_
    return (
        state,
        status_cell(update.status),
        update.queue,
        update.schedule,
        update.retry_due_ms,
        update.retry_due_ms,
        update.retry_num,
        update.notify_due_ms,
        update.notify_num,
        update.expiry.by._value_,
        update.expiry.value,
        update.dsn_sent,
        now_ms,
        message_id,
        update.index,
        state,
    )


def item(row: Sequence[Cell], recipients: Iterable[Sequence[Cell]]) -> QueueItem:
    """A queue item from its rows, recipients in the order given."""
    (
        id_,
        created,
        kind,
        digest,
        size,
        return_path,
        source,
        trace,
        env_id,
        ret,
        flags,
        priority,
        hold,
        by,
        from_ip,
        via_port,
    ) = row
    words = _text(flags).split() if flags is not None else ()
    return QueueItem(
        id=_number(id_),
        created_ms=_number(created),
        size_octets=_number(size),
        return_path=_text(return_path),
        source=_SOURCE[_text(source)],
        recipients=tuple([recipient(r) for r in recipients]),
        content_hash=_text(digest),
        trace=_text_or_none(trace),
        env_id=_text_or_none(env_id),
        ret=None if ret is None else _RET[_text(ret)],
        smtputf8="smtputf8" in words,
        requiretls="requiretls" in words,
        body=next((_BODY[word] for word in words if word in _BODY), None),
        priority=_number(priority),
        hold_ms=_number(hold),
        deliver_by=None if by is None else _deliver_by(_text(by)),
        from_ip=_text(from_ip),
        via_port=_number(via_port),
        spooled=kind == SPOOL,
    )


def recipient(row: Sequence[Cell]) -> QueuedRecipient:
    """One recipient from its row."""
    (
        _,
        idx,
        address,
        orcpt,
        notify,
        queue,
        schedule,
        state,
        status,
        retry_due,
        retry_num,
        notify_due,
        notify_num,
        kind,
        value,
        dsn_sent,
        held_since,
        route_override,
    ) = row
    return QueuedRecipient(
        index=_number(idx),
        address=_text(address),
        queue=_text(queue),
        retry_due_ms=_number_or_none(retry_due),
        notify_due_ms=_number_or_none(notify_due),
        expiry=Expiry(_EXPIRES[_text(kind)], _number(value)),
        orcpt=_text_or_none(orcpt),
        notify=NOTIFY_DEFAULT if notify is None else _notify(_text(notify)),
        state=_STATE[_text(state)],
        status=None if status is None else read_status(_text(status)),
        retry_num=_number(retry_num),
        notify_num=_number(notify_num),
        dsn_sent=bool(dsn_sent),
        held=held_since is not None,
        schedule=_text(schedule),
        route_override=_text_or_none(route_override),
    )


def _flags(message: NewMessage) -> str:
    words = [word for word, on in (("smtputf8", message.smtputf8), ("requiretls", message.requiretls)) if on]
    if message.body is not None:
        words.append(message.body.value)
    return " ".join(words)


def _deliver_by(text: str) -> DeliverBy:
    seconds, _, mode = text.partition(";")
    return DeliverBy(int(seconds), mode[0], mode.endswith("T"))


def _notify_text(notify: Notify) -> str:
    if notify & Notify.NEVER:
        return "NEVER"
    return ",".join(word for flag, word in _NOTIFY_WORDS if notify & flag)


def _notify(text: str) -> Notify:
    notify = Notify.NONE
    for word in text.split(",") if text else ():
        notify |= _NOTIFY[word]
    return notify


def status_cell(status: RecipientStatus | None) -> str | None:
    """A status as it is kept in `status_json`."""
    if status is None:
        return None
    facts: dict[str, str | int] = {"entity": status.entity}
    if status.kind is not ErrorKind.NONE:
        facts["kind"] = status.kind.value
    if status.detail:
        facts["detail"] = status.detail
    if status.command:
        facts["command"] = status.command
    if status.relayed:
        facts["relayed"] = 1
    if status.reply is not None:
        facts |= {"code": status.reply.code, "enhanced": status.reply.enhanced, "text": status.reply.text}
    return json.dumps(facts)


def read_status(text: str) -> RecipientStatus:
    """The status in a cell of `status_json`."""
    facts: dict[str, str | int] = json.loads(text)
    reply = None
    if "code" in facts:
        reply = RemoteReply(int(facts["code"]), str(facts["enhanced"]), str(facts["text"]))
    return RecipientStatus(
        str(facts["entity"]),
        _KIND[str(facts.get("kind", "none"))],
        str(facts.get("detail", "")),
        str(facts.get("command", "")),
        reply,
        "relayed" in facts,
    )


def _number(cell: Cell) -> int:
    if not isinstance(cell, int):
        raise TypeError(f"a number was expected in the queue's table, not {type(cell).__name__}")
    return cell


def _text(cell: Cell) -> str:
    if not isinstance(cell, str):
        raise TypeError(f"a text was expected in the queue's table, not {type(cell).__name__}")
    return cell


def _number_or_none(cell: Cell) -> int | None:
    return None if cell is None else _number(cell)


def _text_or_none(cell: Cell) -> str | None:
    return None if cell is None else _text(cell)
