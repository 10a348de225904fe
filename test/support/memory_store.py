"""A queue in memory: the accepting side of the store's port."""

from __future__ import annotations

from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, fail, succeed

from mailgate.queue.charge import EMPTY, Usage, take
from mailgate.queue.item import Content, NewMessage
from mailgate.queue.store import QuotaExceeded, StoreFailed


class MemorySpool:
    """Keeps a message's octets in memory."""

    def __init__(self) -> None:
        self._octets = bytearray()
        self.discarded = False
        self.finished = False

    @property
    def size_octets(self) -> int:
        """Octets written so far."""
        return len(self._octets)

    def head(self) -> bytes:
        """The first octets."""
        return bytes(self._octets[: 256 * 1024])

    def write(self, octets: bytes) -> Deferred[None] | None:
        """Take octets, always at once."""
        self._octets += octets
        return None

    async def finish(self) -> Content:
        """The whole content."""
        self.finished = True
        return Content(len(self._octets), bytes(self._octets))

    def discard(self) -> None:
        """Forget the octets."""
        self.discarded = True
        self._octets.clear()


@dataclass
class StoredMessage:
    """What was committed, in the words of a dialogue."""

    message: NewMessage

    @property
    def sender(self) -> str:
        """The return path."""
        return self.message.return_path

    @property
    def recipients(self) -> list[str]:
        """The recipients' addresses in the queue's order."""
        return [recipient.address for recipient in self.message.recipients]

    @property
    def content(self) -> bytes:
        """The octets as received."""
        assert self.message.content.octets is not None
        return self.message.content.octets

    @property
    def octets(self) -> bytes:
        """The octets as they will leave."""
        return self.message.prefix + self.content


@dataclass
class MemoryStore:
    """Takes messages; `fail_with` makes every commit fail."""

    messages: list[StoredMessage] = field(default_factory=list)
    spools: list[MemorySpool] = field(default_factory=list)
    fail_with: StoreFailed | None = None
    used: dict[str, Usage] = field(default_factory=dict)
    """What the buckets of quotas hold; nothing ever leaves this queue."""
    _last_id: int = 0

    def new_id(self) -> int:
        """The next number."""
        self._last_id += 1
        return self._last_id

    def spool(self, queue_id: int) -> MemorySpool:
        """A spool in memory."""
        self.spools.append(MemorySpool())
        return self.spools[-1]

    def commit(self, message: NewMessage) -> Deferred[None]:
        """Keep the message, at once."""
        if self.fail_with is not None:
            return fail(self.fail_with)
        over = take(message.charges, message.size_octets, self.used)
        if over is not None:
            return fail(QuotaExceeded(over, self.used.get(over.bucket, EMPTY), message.size_octets))
        self.messages.append(StoredMessage(message))
        return succeed(None)
