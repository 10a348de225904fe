"""What a start finds after a crash, and what is swept up while running.

Leases of processes that are gone are given back at once, so that the next
daemon need not wait for them; what they may have been delivering just then waits
a minute (`journal.py`). Spool files without a message (a client that
vanished, a crash between the file and its commit) are removed when they are
old enough to belong to no session any more; ids are never used again, so
nothing can have taken such a file meanwhile.
"""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Callable, Iterable
from datetime import timedelta

from mailgate.queue import journal
from mailgate.queue.item import Lapsed
from mailgate.queue.lease import Owner

GARBAGE_AGE = timedelta(hours=1)
"""A file without a message that is older belongs to no session any more."""

_DIRECTORIES = tuple(f"{number:02x}" for number in range(256))


def release_dead(
    db: sqlite3.Connection, me: Owner, now_ms: int, is_alive: Callable[[Owner], bool] = Owner.is_alive
) -> list[Lapsed]:
    """Free the units leased by processes that are gone, or by this one before it had the store."""
    db.execute("BEGIN IMMEDIATE")
    try:
        units: list[tuple[int, str]] = []
        for (text,) in db.execute("SELECT DISTINCT lease_owner FROM unit WHERE lease_owner IS NOT NULL").fetchall():
            owner = Owner.parse(text)
            if owner is None or owner == me or not is_alive(owner):
                units += db.execute(
                    "SELECT message_id, queue FROM unit WHERE lease_owner IS NOT NULL AND lease_owner = ?", (text,)
                ).fetchall()
        freed = journal.free(db, units, now_ms)
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
    return freed


def old_files(spool_dir: str, directory: str, before_ms: int) -> list[int]:
    """The queue ids of the spool files in one of its directories that were last written before a moment."""
    try:
        entries = os.scandir(os.path.join(spool_dir, directory))
    except FileNotFoundError:
        return []
    with entries:
        return [int(entry.name, 16) for entry in entries if _is_id(entry.name) and _written_ms(entry) < before_ms]


def _written_ms(entry: os.DirEntry[str]) -> float:
    """When it was last written; later than any moment where it is gone by now, its message being finished."""
    try:
        return entry.stat(follow_symlinks=False).st_mtime_ns // 1_000_000
    except FileNotFoundError:
        return math.inf


def directories() -> Iterable[str]:
    """The directories a spool may have."""
    return _DIRECTORIES


def _is_id(name: str) -> bool:
    return len(name) == 16 and all(c in "0123456789abcdef" for c in name)
