"""One queued message as it goes to a next hop: its octets block by block, its MAIL and RCPT commands.

Small contents are one block, read once per attempt; larger ones are read
again for each transaction, so that memory stays bounded (RFC 5321 leaves no
limit to their size).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from mailgate.mail.envelope import Body, DeliverBy, MailParameters, RcptParameters
from mailgate.mail.path import Path
from mailgate.mail.status import RemoteReply
from mailgate.queue.item import QueuedRecipient, QueueItem
from mailgate.queue.store import ContentReader, StoreFailed
from mailgate.wire.smtp.answer import Extensions
from mailgate.wire.smtp.command import Mail, Rcpt

HEAD_OCTETS = 64 * 1024
"""Contents up to this size are held as one block."""


class ContentSource(Protocol):
    """What of the queue's store an attempt needs."""

    async def read(self, item: QueueItem) -> ContentReader:
        """Open the stored octets. Raises `StoreFailed`."""
        ...


class Outgoing:
    """The octets of one message for one attempt."""

    def __init__(self, store: ContentSource, item: QueueItem) -> None:
        self.item = item
        self._store = store
        self._head: bytes | None = None
        self._reader: ContentReader | None = None

    async def head(self) -> bytes:
        """The first octets, all of them when the message is small. Raises `StoreFailed`."""
        if self._head is None:
            self._reader = await self._store.read(self.item)
            self._head = await self._first(self._reader)
            if self.is_whole:
                self.close()
        return self._head

    @property
    def is_whole(self) -> bool:
        """True when `head` has all octets of the message."""
        return self._head is not None and len(self._head) == self.item.size_octets

    async def blocks(self) -> AsyncIterator[bytes]:
        """All octets in order, exactly as many as the item says. Raises `StoreFailed`."""
        head = await self.head()
        if self.is_whole:
            yield head
            return
        if self._reader is None:
            # An earlier transaction has used it up.
            self._reader = await self._store.read(self.item)
            await self._first(self._reader)
        reader = self._reader
        try:
            yield head
            sent = len(head)
            while sent < self.item.size_octets:
                block = await reader.read()
                sent += len(block)
                if not block or sent > self.item.size_octets:
                    raise StoreFailed("the stored content does not have its recorded size")
                yield block
        finally:
            self.close()

    async def _first(self, reader: ContentReader) -> bytes:
        head = b""
        while len(head) < self.item.size_octets and len(head) < HEAD_OCTETS:
            block = await reader.read()
            if not block:
                raise StoreFailed("the stored content does not have its recorded size")
            head = head + block if head else block
        if len(head) > self.item.size_octets:
            raise StoreFailed("the stored content does not have its recorded size")
        return head

    def close(self) -> None:
        """Give back the reader. May be called twice."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()


def mail_for(outgoing: Outgoing, head: bytes, now_ms: int) -> Mail:
    """The MAIL command with everything the message asks for; the dialogue leaves out what is not offered."""
    item = outgoing.item
    body = item.body
    if body is not Body.BINARY and (body is Body.EIGHT_BIT or not outgoing.is_whole or not head.isascii()):
        # RFC 6152 3: 8BITMIME also covers 7-bit content, so it is right for what has not been looked at.
        body = Body.EIGHT_BIT
    return Mail(
        Path.parse(item.return_path),
        MailParameters(
            size_octets=item.size_octets,
            body=body,
            smtputf8=item.smtputf8,
            requiretls=item.requiretls,
            ret=item.ret,
            envid=item.env_id,
            deliver_by=_by(item, now_ms),
            priority=item.priority,
        ),
    )


def rcpt_for(recipient: QueuedRecipient) -> Rcpt:
    """The RCPT command of one recipient."""
    return Rcpt(Path.parse(recipient.address), RcptParameters(notify=recipient.notify, orcpt=recipient.orcpt))


def _by(item: QueueItem, now_ms: int) -> DeliverBy | None:
    """What is left of the time in whole seconds, rounded down (RFC 2852 4.1.4)."""
    by = item.deliver_by
    if by is None:
        return None
    age_ms = now_ms - item.created_ms
    return DeliverBy((by.seconds * 1000 - age_ms) // 1000, by.mode, by.trace)


def is_too_late(item: QueueItem, now_ms: int) -> bool:
    """True when a message must be returned instead of relayed: mode R, and its time is up (RFC 2852 4.1.4)."""
    by = _by(item, now_ms)
    return by is not None and by.mode == "R" and by.seconds <= 0


TOO_LATE = RemoteReply(550, "5.4.7", "Delivery time expired")
_NO_REQUIRETLS = RemoteReply(550, "5.7.30", "REQUIRETLS support required")
_NO_SMTPUTF8 = RemoteReply(550, "5.6.7", "SMTPUTF8 support required")
_NO_BINARYMIME = RemoteReply(550, "5.6.3", "BINARYMIME support required")


def lacking(
    item: QueueItem, recipients: Sequence[QueuedRecipient], head: bytes, offered: Extensions
) -> RemoteReply | None:
    """What this host would have to offer for the message and does not; None when it can take it."""
    if item.requiretls and not offered.requiretls:
        return _NO_REQUIRETLS
    if item.body is Body.BINARY and not (offered.chunking and offered.binarymime):
        return _NO_BINARYMIME
    if not offered.smtputf8 and _needs_smtputf8(item, recipients, head):
        return _NO_SMTPUTF8
    return None


def _needs_smtputf8(item: QueueItem, recipients: Sequence[QueuedRecipient], head: bytes) -> bool:
    if not item.return_path.isascii() or any(not recipient.address.isascii() for recipient in recipients):
        return True
    return item.smtputf8 and not head.partition(b"\r\n\r\n")[0].isascii()


def too_big(item: QueueItem, offered: Extensions) -> RemoteReply | None:
    """The reply the host would give to MAIL, where it has told its limit (RFC 1870 6.1)."""
    if offered.size_limit_octets and item.size_octets > offered.size_limit_octets:
        return RemoteReply(552, "5.3.4", f"Message size exceeds the host's limit of {offered.size_limit_octets} octets")
    return None
