"""What operators ask of the queue: read-only, from any process, whether or not the daemon runs.

A selection looks at recipients: a message is selected when one of its
recipients meets everything that was asked. Contents are not looked at.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from urllib.parse import quote

from mailgate.mail.status import ErrorKind
from mailgate.queue.item import QueueItem
from mailgate.queue.lease import Owner, boot_ms
from mailgate.queue.migrate import VERSION, version
from mailgate.queue.place import StoreUnsuitable
from mailgate.queue.rows import read_status
from mailgate.queue.scope import error_text
from mailgate.queue.tables import items

_BUSY_SECONDS = 5.0
_PENDING = "recipient.state IN ('scheduled', 'temp_fail')"
_WAITS = f"{_PENDING} AND recipient.held_since IS NULL"
# The next delivery of a message; one that is held or over has none and stands last.
_DUE = f"(SELECT min(retry_due) FROM recipient WHERE message_id = message.id AND {_WAITS})"


class StateWord(Enum):
    """The words a recipient's state is asked for with; a held one is only `held`."""

    SCHEDULED = "scheduled"
    HELD = "held"
    TEMP_FAIL = "temp_fail"
    PERM_FAIL = "perm_fail"
    COMPLETED = "completed"


class By(Enum):
    """What messages can be grouped and counted by."""

    DOMAIN = "domain"
    ERROR = "error"
    QUEUE = "queue"


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

    @property
    def is_everything(self) -> bool:
        """True when nothing was asked for."""
        return self == _EVERYTHING


_EVERYTHING = Selection()


@dataclass(frozen=True, slots=True)
class Group:
    """Messages that have something in common."""

    name: str
    messages: int
    recipients: int
    oldest_ms: int
    """When its oldest message was accepted."""


def connect_read_only(path: str) -> sqlite3.Connection:
    """Open the queue for reading and nothing else.

    Raises `OSError` (there is none, no permission), `sqlite3.Error`, and
    `StoreUnsuitable` for a queue of another version.
    """
    # SQLite does not say why it cannot open a file.
    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    db = sqlite3.connect(f"file:{quote(os.path.abspath(path))}?mode=ro", uri=True, timeout=_BUSY_SECONDS)
    try:
        db.isolation_level = None
        db.execute("PRAGMA query_only = ON")
        found = version(db)
        if found != VERSION:
            raise StoreUnsuitable(f"the queue's tables have version {found}, this program knows version {VERSION}")
        db.create_function("error_text", 1, _error_text, deterministic=True)
    except BaseException:
        db.close()
        raise
    return db


def select(db: sqlite3.Connection, selection: Selection, limit: int | None, offset: int = 0) -> tuple[int, list[int]]:
    """How many messages are selected, and the ids of some of them by next delivery."""
    where, values = _where(selection)
    total: int = db.execute(f"SELECT count(*) FROM message WHERE {where}", values).fetchone()[0]
    found = db.execute(
        f"SELECT id FROM message WHERE {where} ORDER BY {_DUE} IS NULL, {_DUE}, id LIMIT ? OFFSET ?",
        (*values, -1 if limit is None else limit, offset),
    ).fetchall()
    return total, [id_ for (id_,) in found]


def group(db: sqlite3.Connection, selection: Selection, by: By) -> list[Group]:
    """The selected recipients by what they have in common, the largest group first."""
    conditions, values = _conditions(selection)
    name = {
        # The domain is what follows the last "@": no domain holds one.
        By.DOMAIN: "replace(recipient.address, rtrim(recipient.address, replace(recipient.address, '@', '')), '')",
        By.ERROR: "coalesce(error_text(recipient.status_json), '')",
        By.QUEUE: "recipient.queue",
    }[by]
    found = db.execute(
        f"SELECT {name} AS name, count(DISTINCT message.id), count(*), min(message.created)"
        f" FROM recipient JOIN message ON message.id = recipient.message_id"
        f" WHERE {' AND '.join(conditions) or 'true'} GROUP BY 1 ORDER BY 3 DESC, 1",
        values,
    ).fetchall()
    return [Group(*row) for row in found]


def read(db: sqlite3.Connection, ids: Sequence[int]) -> list[QueueItem]:
    """The messages of these ids, in this order; those that have left the queue meanwhile are left out."""
    found = items(db, ids)
    return [found[id_] for id_ in ids if id_ in found]


def in_attempt(db: sqlite3.Connection, ids: Iterable[int]) -> set[tuple[int, str]]:
    """Which units (message, virtual queue) of these messages a living process is attempting now."""
    wanted = set(ids)
    leased = db.execute(
        "SELECT message_id, queue, lease_owner FROM unit WHERE lease_owner IS NOT NULL AND lease_until >= ?",
        (boot_ms(),),
    ).fetchall()
    alive: dict[str, bool] = {}
    units: set[tuple[int, str]] = set()
    for id_, queue, text in leased:
        if id_ in wanted:
            if text not in alive:
                owner = Owner.parse(text)
                alive[text] = owner is not None and owner.is_alive()
            if alive[text]:
                units.add((id_, queue))
    return units


def _error_text(status_json: str | None) -> str:
    if status_json is None:
        return ""
    status = read_status(status_json)
    return "" if status.kind is ErrorKind.NONE else error_text(status)


_Value = str | int


def _where(selection: Selection) -> tuple[str, list[_Value]]:
    if selection.is_everything:
        return "true", []
    conditions, values = _conditions(selection)
    return (
        f"EXISTS (SELECT 1 FROM recipient WHERE recipient.message_id = message.id AND {' AND '.join(conditions)})",
        values,
    )


def _conditions(selection: Selection) -> tuple[list[str], list[_Value]]:
    """What a recipient and its message must meet, as SQL."""
    conditions: list[str] = []
    values: list[_Value] = []

    def demand(condition: str, *given: _Value) -> None:
        conditions.append(condition)
        values.extend(given)

    if selection.ids is not None:
        # An id is at most 63 bits in a table: a larger one is in none.
        demand(f"message.id IN ({','.join(str(id_) for id_ in sorted(selection.ids) if id_ < 1 << 63)})")
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
            " WHERE other.message_id = message.id AND instr(lower(other.address), ?) > 0))",
            text,
            text,
        )
    if selection.domain is not None:
        ending = "@" + selection.domain.lower()
        demand("substr(recipient.address, ?) = ?", -len(ending), ending)
    if selection.queue is not None:
        demand("recipient.queue = ?", selection.queue)
    if selection.status is StateWord.HELD:
        demand(f"recipient.held_since IS NOT NULL AND {_PENDING}")
    elif selection.status is not None:
        demand("recipient.state = ?", selection.status.value)
        demand(f"NOT (recipient.held_since IS NOT NULL AND {_PENDING})")
    if selection.before_ms is not None:
        demand(f"recipient.retry_due < ? AND {_WAITS}", selection.before_ms)
    if selection.after_ms is not None:
        demand(f"recipient.retry_due > ? AND {_WAITS}", selection.after_ms)
    if selection.created_before_ms is not None:
        demand("message.created < ?", selection.created_before_ms)
    if selection.created_after_ms is not None:
        demand("message.created > ?", selection.created_after_ms)
    if selection.error is not None:
        demand("instr(lower(coalesce(error_text(recipient.status_json), '')), ?) > 0", _lower(selection.error))
    return conditions, values


def _lower(text: str) -> str:
    """In lower case as SQLite has it: ASCII only."""
    return "".join(c.lower() if c.isascii() else c for c in text)
