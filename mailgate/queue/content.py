"""The stored octets of a queued message, for whoever reads the database: the daemon's reader, and commands."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator

from mailgate.queue.item import QueueItem
from mailgate.queue.store import StoreFailed

BLOCK_OCTETS = 262_144


def content(db: sqlite3.Connection, spool_dir: str, item: QueueItem) -> tuple[bytes, int | None]:
    """The octets in the database and the open file of a message. Raises `StoreFailed` unless all octets are there."""
    row = db.execute("SELECT octets, path FROM content WHERE message_id = ?", (item.id,)).fetchone()
    if row is None:
        raise StoreFailed(f"message {item.id_text} has no content")
    octets: bytes = row[0]
    name: str | None = row[1]
    if name is None:
        _demand_size(item, len(octets))
        return octets, None
    fd = os.open(os.path.join(spool_dir, name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        _demand_size(item, len(octets) + os.fstat(fd).st_size)
    except StoreFailed:
        os.close(fd)
        raise
    return octets, fd


def blocks(octets: bytes, fd: int | None) -> Generator[bytes, None, None]:
    """What `content` gave, piece by piece; the file is closed at the end, or when the iterator is."""
    try:
        # A message that mailgate adds nothing to is all in its file.
        if octets:
            yield octets
        while fd is not None and (block := os.read(fd, BLOCK_OCTETS)):
            yield block
    finally:
        if fd is not None:
            os.close(fd)


def _demand_size(item: QueueItem, found_octets: int) -> None:
    if found_octets != item.size_octets:
        raise StoreFailed(f"the content of {item.id_text} has {found_octets} octets instead of {item.size_octets}")
