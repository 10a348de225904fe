"""What a new message adds to the queue's tables, made ready before the writer's transaction begins.

It is made on the thread that hands the message over. Two threads of one
interpreter that take turns lose more by each turn than making rows costs: the
writer's thread only gives finished rows to SQLite, which lets others run
meanwhile.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from mailgate.mail.lean import lean
from mailgate.queue import rows
from mailgate.queue.item import NewMessage, QueuedRecipient
from mailgate.queue.place import spool_name
from mailgate.queue.schedule import due_ms, expires_ms

_HASHED_AT_ONCE = 16_384


@lean
@dataclass(frozen=True)
class Entry:
    """The rows of one new message."""

    of: NewMessage
    message: rows.Row
    content: rows.Row
    recipients: Sequence[rows.Row]
    units: Sequence[rows.Row]
    drops: Sequence[rows.Row]


def entry(message: NewMessage, digest: str | None = None) -> Entry:
    """Make the rows of a message; `digest` is the hash of a content that is in a file, and needed there.

    Raises `ValueError` for a content that is neither in memory nor hashed.
    """
    if message.content.octets is not None:
        stored = message.prefix + message.content.octets
        content: rows.Row = (message.id, stored, None)
        digest = content_hash(stored)
    else:
        content = (message.id, message.prefix, spool_name(message.id))
    if digest is None:
        raise ValueError(f"message {message.id:016x} has neither octets nor the hash of its file")
    return Entry(
        message,
        rows.message_row(message, digest),
        content,
        [rows.recipient_row(message, recipient) for recipient in message.recipients],
        _unit_rows(message),
        [(name, message.id, message.created_ms) for name in message.drops] if message.drops else (),
    )


def content_hash(stored: bytes) -> str:
    """SHA-256 of a message's stored octets, base64url without padding."""
    if len(stored) > _HASHED_AT_ONCE:
        return hash_text(sha256(stored).digest())
    # Above 2047 octets hashlib lets other threads run, and waits for them longer than a small hash takes.
    hashed = sha256()
    view = memoryview(stored)
    for at in range(0, len(stored), 2047):
        hashed.update(view[at : at + 2047])
    return hash_text(hashed.digest())


def hash_text(digest: bytes) -> str:
    """A digest as the queue shows it."""
    return urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def _unit_rows(message: NewMessage) -> list[rows.Row]:
    """One row for each virtual queue, its moments the least of its recipients."""
    created = message.created_ms
    if len(message.recipients) == 1:
        only = message.recipients[0]
        return [(message.id, only.queue, due_ms(only, created), expires_ms(only, created), 0)]
    by_queue: dict[str, list[QueuedRecipient]] = {}
    for recipient in message.recipients:
        by_queue.setdefault(recipient.queue, []).append(recipient)
    return [
        (
            message.id,
            queue,
            min((due for due in (due_ms(r, created) for r in inside) if due is not None), default=None),
            min((end for end in (expires_ms(r, created) for r in inside) if end is not None), default=None),
            0,
        )
        for queue, inside in by_queue.items()
    ]
