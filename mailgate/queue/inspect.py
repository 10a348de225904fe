"""What operators ask of the queue: read-only, from any process, whether or not the daemon runs."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from urllib.parse import quote

from mailgate.queue.item import QueueItem
from mailgate.queue.lease import Owner, boot_ms
from mailgate.queue.migrate import VERSION, version
from mailgate.queue.place import StoreUnsuitable
from mailgate.queue.selection import PENDING, WAITS, Selection, Value, conditions, hits, sql_error_text
from mailgate.queue.tables import items

_BUSY_SECONDS = 5.0
# The next delivery of a message; one that is held or over has none and stands last.
_DUE = f"(SELECT min(retry_due) FROM recipient WHERE message_id = hit.id AND {WAITS})"


class By(Enum):
    """What messages can be grouped and counted by."""

    DOMAIN = "domain"
    ERROR = "error"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class Group:
    """Messages that have something in common."""

    name: str
    messages: int
    recipients: int
    oldest_ms: int
    """When its oldest message was accepted."""


@dataclass(frozen=True, slots=True)
class Ordered:
    """What operators have said about a recipient, and when something last brought it nearer to its end."""

    held_since_ms: int | None = None
    held_reason: str | None = None
    """Who holds it, and why."""
    route: str | None = None
    cancel_mark: str | None = None
    """What the end of the attempt that runs will do with it."""
    progress_ms: int | None = None
    """None: nothing has happened since it was accepted."""


Orders = Mapping[tuple[int, int], Ordered]
"""By queue id and index."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many open recipients a virtual queue has, by state."""

    name: str
    scheduled: int
    held: int
    temp_fail: int
    oldest_ms: int
    """When its oldest message was accepted."""
    stalled_ms: int | None = None
    """When that of its due messages made progress that has made none since for the longest time; None: none is due."""


def connect_read_only(path: str) -> sqlite3.Connection:
    """Open the queue for reading and nothing else.

    Raises `OSError` (there is none, no permission), `sqlite3.Error`, and
    `StoreUnsuitable` for a queue of another version.
    """
    # SQLite does not say why it cannot open a file. To open and close it here would be the end of all locks this
    # process has on it, the daemon's own among them: then the next who closes the queue takes its log away.
    os.stat(path)
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    db = sqlite3.connect(f"file:{quote(os.path.abspath(path))}?mode=ro", uri=True, timeout=_BUSY_SECONDS)
    try:
        db.isolation_level = None
        db.execute("PRAGMA query_only = ON")
        found = version(db)
        if found != VERSION:
            raise StoreUnsuitable(f"the queue's tables have version {found}, this program knows version {VERSION}")
        db.create_function("error_text", 1, sql_error_text, deterministic=True)
    except BaseException:
        db.close()
        raise
    return db


def select(db: sqlite3.Connection, selection: Selection, limit: int | None, offset: int = 0) -> tuple[int, list[int]]:
    """How many messages are selected, and the ids of some of them by next delivery; `match` is not looked at."""
    if selection.is_everything:
        # One walk through the recipients tells due and number at once.
        found = f"SELECT message_id, min(CASE WHEN {WAITS} THEN retry_due END) FROM recipient GROUP BY 1"
        values: list[Value] = []
    else:
        clauses, values = hits(selection)
        found = f"SELECT id, {_DUE} FROM (SELECT DISTINCT recipient.message_id AS id {clauses}) AS hit"
    rows = db.execute(
        f"WITH hit (id, due) AS MATERIALIZED ({found})"
        " SELECT count(*) FROM hit UNION ALL"
        " SELECT id FROM (SELECT id FROM hit ORDER BY due IS NULL, due, id LIMIT ? OFFSET ?)",
        (*values, -1 if limit is None else limit, offset),
    ).fetchall()
    return rows[0][0], [id_ for (id_,) in rows[1:]]


def by_due(db: sqlite3.Connection, ids: Iterable[int]) -> list[int]:
    """These messages by next delivery, as `select` orders them."""
    found = db.execute(
        f"SELECT hit.value FROM json_each(?) AS hit ORDER BY {_DUE.replace('hit.id', 'hit.value')} IS NULL,"
        f" {_DUE.replace('hit.id', 'hit.value')}, hit.value",
        (json.dumps(list(ids)),),
    )
    return [id_ for (id_,) in found]


def pick(
    db: sqlite3.Connection, selection: Selection, after: int, until: int, messages: int
) -> dict[int, frozenset[int]]:
    """The selected recipients of the first so many messages with an id above `after` and up to `until`."""
    clauses, values = hits(selection)
    found: dict[int, set[int]] = {}
    cursor = db.execute(
        f"SELECT recipient.message_id, recipient.idx {clauses} AND recipient.message_id > ?"
        " AND recipient.message_id <= ? ORDER BY recipient.message_id, recipient.idx",
        (*values, after, until),
    )
    for id_, index in cursor:
        if id_ not in found and len(found) >= messages:
            break
        found.setdefault(id_, set()).add(index)
    cursor.close()
    return {id_: frozenset(indexes) for id_, indexes in found.items()}


def newest_id(db: sqlite3.Connection) -> int:
    """The highest queue id; 0 in an empty queue."""
    newest: int | None = db.execute("SELECT max(id) FROM message").fetchone()[0]
    return newest or 0


def group(
    db: sqlite3.Connection, selection: Selection, by: By, only: Mapping[int, frozenset[int]] | None = None
) -> list[Group]:
    """The selected recipients by what they have in common, the largest group first; `only` leaves some of them."""
    where, values = conditions(selection)
    if only is not None:
        where.append("(recipient.message_id, recipient.idx) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?))")
        values.append(json.dumps([(id_, index) for id_, indexes in only.items() for index in indexes]))
    name = {
        # The domain is what follows the last "@": no domain holds one.
        By.DOMAIN: "replace(recipient.address, rtrim(recipient.address, replace(recipient.address, '@', '')), '')",
        By.ERROR: "coalesce(error_text(recipient.status_json), '')",
        By.QUEUE: "recipient.queue",
    }[by]
    found = db.execute(
        f"SELECT {name} AS name, count(DISTINCT message.id), count(*), min(message.created)"
        f" FROM recipient JOIN message ON message.id = recipient.message_id"
        f" WHERE {' AND '.join(where) or 'true'} GROUP BY 1 ORDER BY 3 DESC, 1",
        values,
    ).fetchall()
    return [Group(*row) for row in found]


def counts(db: sqlite3.Connection, now_ms: int) -> list[Counts]:
    """Every virtual queue that has open recipients; `now_ms` says what is due."""
    # Queue ids ascend with time: looking at every message would cost as much again.
    found = db.execute(
        "SELECT queue, scheduled, held, temp_fail, (SELECT created FROM message WHERE id = oldest)"
        " FROM (SELECT queue, sum(held_since IS NULL AND state = 'scheduled') AS scheduled,"
        " sum(held_since IS NOT NULL) AS held, sum(held_since IS NULL AND state = 'temp_fail') AS temp_fail,"
        f" min(message_id) AS oldest FROM recipient WHERE {PENDING} GROUP BY queue) ORDER BY queue"
    )
    # What is being attempted is due until its result is stored.
    stalled = dict(
        db.execute(
            "SELECT queue, min(ifnull(progress, (SELECT created FROM message WHERE id = message_id))) FROM unit"
            " WHERE due <= ? GROUP BY queue",
            (now_ms,),
        ).fetchall()
    )
    return [
        Counts(name, scheduled, held, temp_fail, oldest, stalled.get(name))
        for name, scheduled, held, temp_fail, oldest in found
    ]


def read(db: sqlite3.Connection, ids: Sequence[int]) -> list[QueueItem]:
    """The messages of these ids, in this order; those that have left the queue meanwhile are left out."""
    found = items(db, ids)
    return [found[id_] for id_ in ids if id_ in found]


def orders(db: sqlite3.Connection, ids: Iterable[int]) -> dict[tuple[int, int], Ordered]:
    """What operators have said about the recipients of these messages."""
    found = db.execute(
        "SELECT message_id, idx, held_since, held_reason, route_override, cancel_mark, progress FROM recipient"
        " WHERE message_id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(ids)),),
    )
    return {(id_, index): Ordered(*facts) for id_, index, *facts in found}


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
