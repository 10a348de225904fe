"""Which recipients somebody is asking about, and the same as SQL over the queue's tables.

A selection looks at recipients: a message is selected when one of its
recipients meets everything that was asked. Contents are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum

from mailgate.mail.status import ErrorKind
from mailgate.queue.rows import read_status
from mailgate.queue.scope import error_text

PENDING = "recipient.state IN ('scheduled', 'temp_fail')"
WAITS = f"{PENDING} AND recipient.held_since IS NULL"


class StateWord(Enum):
    """The words a recipient's state is asked for with; a held one is only `held`."""

    SCHEDULED = "scheduled"
    HELD = "held"
    TEMP_FAIL = "temp_fail"
    PERM_FAIL = "perm_fail"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which recipients are asked for; what is None does not matter. Texts match in either case."""

    ids: frozenset[int] | None = None
    sender: str | None = None
    """Part of the return path; `<>` is the null sender."""
    rcpt: str | None = None
    text: str | None = None
    """Part of the return path or of any recipient."""
    domain: str | None = None
    queue: str | None = None
    status: StateWord | None = None
    before_ms: int | None = None
    """Next delivery strictly before this moment."""
    after_ms: int | None = None
    created_before_ms: int | None = None
    created_after_ms: int | None = None
    error: str | None = None
    """Part of the text of the last error."""
    match: str | None = None
    """An expression over the recipient context; SQL does not see it (`matching.py`)."""

    @property
    def is_everything(self) -> bool:
        """True when nothing was asked for."""
        return self == _EVERYTHING


_EVERYTHING = Selection()

Value = str | int


def hits(selection: Selection) -> tuple[str, list[Value]]:
    """The clauses FROM and WHERE of `recipient` that select its rows, and their values."""
    where, values = conditions(selection)
    tables = "recipient"
    if _needs_message(selection):
        tables += " JOIN message ON message.id = recipient.message_id"
    return f"FROM {tables} WHERE {' AND '.join(where) or 'true'}", values


def as_document(selection: Selection) -> dict[str, object]:
    """A selection as it goes through the control socket."""
    found: dict[str, object] = {}
    for field in fields(selection):
        value = getattr(selection, field.name)
        if isinstance(value, frozenset):
            found[field.name] = sorted(value)
        elif value is not None:
            found[field.name] = value.value if isinstance(value, Enum) else value
    return found


def of_document(document: Mapping[str, object]) -> Selection:
    """The selection somebody sent. Raises `ValueError` for what is none."""
    unknown = set(document) - {field.name for field in fields(Selection)}
    if unknown:
        raise ValueError(f"there is no selector {min(unknown)}")
    ids = document.get("ids")
    if ids is not None and not (isinstance(ids, list) and all(type(id_) is int and id_ >= 0 for id_ in ids)):
        raise ValueError("ids are numbers")

    def text(name: str) -> str | None:
        value = document.get(name)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{name} is a text")
        if value is not None and not is_text(value):
            raise ValueError(f"{name} is no UTF-8 text")
        return value

    def moment(name: str) -> int | None:
        value = document.get(name)
        if value is None:
            return None
        # SQLite knows 64 bits; a moment beyond is before or after everything as well.
        if not isinstance(value, int) or isinstance(value, bool) or not -_FARTHEST <= value <= _FARTHEST:
            raise ValueError(f"{name} is a moment in milliseconds")
        return value

    status = text("status")
    return Selection(
        ids=None if ids is None else frozenset(ids),
        sender=text("sender"),
        rcpt=text("rcpt"),
        text=text("text"),
        domain=text("domain"),
        queue=text("queue"),
        status=None if status is None else StateWord(status),
        before_ms=moment("before_ms"),
        after_ms=moment("after_ms"),
        created_before_ms=moment("created_before_ms"),
        created_after_ms=moment("created_after_ms"),
        error=text("error"),
        match=text("match"),
    )


def is_text(value: str) -> bool:
    """Whether a value can be in the queue, or be looked for there: a lone surrogate is in no UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


_FARTHEST = 2**62


def _needs_message(selection: Selection) -> bool:
    wanted = (selection.sender, selection.text, selection.created_before_ms, selection.created_after_ms)
    return any(value is not None for value in wanted)


def conditions(selection: Selection) -> tuple[list[str], list[Value]]:
    """What a recipient and its message must meet, as SQL."""
    where: list[str] = []
    values: list[Value] = []

    def demand(condition: str, *given: Value) -> None:
        where.append(condition)
        values.extend(given)

    if selection.ids is not None:
        # An id is at most 63 bits in a table: a larger one is in none.
        demand(f"recipient.message_id IN ({','.join(str(id_) for id_ in sorted(selection.ids) if id_ < 1 << 63)})")
    if selection.sender == "<>":
        demand("message.return_path = ''")
    elif selection.sender is not None:
        demand("instr(lower(message.return_path), ?) > 0", _lower(selection.sender))
    if selection.rcpt is not None:
        demand("instr(lower(recipient.address), ?) > 0", _lower(selection.rcpt))
    if selection.text is not None:
        text = _lower(selection.text)
        demand(
            "(instr(lower(message.return_path), ?) > 0 OR EXISTS (SELECT 1 FROM recipient AS other"
            " WHERE other.message_id = recipient.message_id AND instr(lower(other.address), ?) > 0))",
            text,
            text,
        )
    if selection.domain is not None:
        ending = "@" + selection.domain.lower()
        demand("substr(recipient.address, ?) = ?", -len(ending), ending)
    if selection.queue is not None:
        demand("recipient.queue = ?", selection.queue)
    if selection.status is StateWord.HELD:
        demand(f"recipient.held_since IS NOT NULL AND {PENDING}")
    elif selection.status is not None:
        demand("recipient.state = ?", selection.status.value)
        demand(f"NOT (recipient.held_since IS NOT NULL AND {PENDING})")
    if selection.before_ms is not None:
        demand(f"recipient.retry_due < ? AND {WAITS}", selection.before_ms)
    if selection.after_ms is not None:
        demand(f"recipient.retry_due > ? AND {WAITS}", selection.after_ms)
    if selection.created_before_ms is not None:
        demand("message.created < ?", selection.created_before_ms)
    if selection.created_after_ms is not None:
        demand("message.created > ?", selection.created_after_ms)
    if selection.error is not None:
        demand("instr(lower(coalesce(error_text(recipient.status_json), '')), ?) > 0", _lower(selection.error))
    return where, values


def _lower(text: str) -> str:
    """In lower case as SQLite has it: ASCII only."""
    return "".join(c.lower() if c.isascii() else c for c in text)


def sql_error_text(status_json: str | None) -> str:
    """SQL's `error_text`: the text of the error in a cell of `status_json`; empty for none."""
    if status_json is None:
        return ""
    status = read_status(status_json)
    return "" if status.kind is ErrorKind.NONE else error_text(status)
