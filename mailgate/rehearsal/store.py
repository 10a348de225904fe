"""A store that keeps nothing but what a test asks about: the last message it was given, without its octets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twisted.internet.defer import Deferred, fail, succeed

from mailgate.queue.charge import EMPTY, Usage, is_over
from mailgate.queue.item import (
    Content,
    Late,
    Lease,
    NewMessage,
    QueueItem,
    RecipientUpdate,
    Stuck,
    Transmission,
    Whereabouts,
)
from mailgate.queue.store import ContentReader, QuotaExceeded, StoreFailed
from mailgate.rehearsal.case import QuotaAnswer

_HEAD_OCTETS = 256 * 1024


class NoSpool:
    """Counts the octets of a message; keeps its header."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._size = 0

    @property
    def size_octets(self) -> int:
        """Octets written so far."""
        return self._size

    def head(self) -> bytes:
        """The first octets written."""
        return bytes(self._head)

    def write(self, octets: bytes) -> Deferred[None] | None:
        """Take octets, at once."""
        self._size += len(octets)
        self._head += octets[: _HEAD_OCTETS - len(self._head)]
        return None

    async def finish(self) -> Content:
        """A content of the right size, and of nothing else."""
        return Content(self._size)

    def discard(self) -> None:
        """Forget the octets."""
        self._head.clear()


class NoStore:
    """The queue of a rehearsal: what is committed is gone when the test is over."""

    def __init__(self, quotas: Mapping[str, QuotaAnswer]) -> None:
        """`quotas` says what is in use; of others nothing is."""
        self._quotas = quotas
        self.queued: NewMessage | None = None

    def new_id(self) -> int:
        """The same for every message: there is never more than one."""
        return 1

    def spool(self, queue_id: int) -> NoSpool:
        """Begin counting a message's octets."""
        return NoSpool()

    def commit(self, message: NewMessage) -> Deferred[None]:
        """Remember what was decided about the message, unless a quota has no room for it."""
        for charge in message.charges:
            answer = self._quotas.get(charge.limit.id)
            used = EMPTY if answer is None else answer.used
            if answer is not None and answer.is_full:
                used = Usage(charge.limit.max_messages or 0, charge.limit.max_octets or 0)
            if is_over(charge.limit, used, message.size_octets):
                return fail(QuotaExceeded(charge, used, message.size_octets))
        self.queued = message
        return succeed(None)

    async def claim(self, slots: Mapping[str, int], now_ms: int) -> list[Lease]:
        """Nothing is ever due."""
        return []

    async def expired(self, now_ms: int, limit: int) -> list[Lease]:
        """Nothing ever expires."""
        return []

    async def renew(
        self, leases: Sequence[Lease], moved: Mapping[tuple[int, str], Whereabouts]
    ) -> set[tuple[int, str]]:
        """There are no leases."""
        return set()

    async def revoke_stuck(self, before_ms: int, limit: int) -> list[Stuck]:
        """There are no leases."""
        return []

    def transmitting(self, lease: Lease, transmission: Transmission) -> Deferred[frozenset[int] | None]:
        """There are no leases."""
        return succeed(None)

    def late(self, lease: Lease, learnt: Sequence[RecipientUpdate]) -> Deferred[Mapping[int, Late]]:
        """Nothing is ever delivered."""
        return succeed({})

    async def read(self, item: QueueItem) -> ContentReader:
        """There are no octets."""
        raise StoreFailed("a rehearsal keeps no message")

    def record(
        self,
        lease: Lease,
        updates: Sequence[RecipientUpdate],
        dsn: NewMessage | None,
        end: bool,
        closes: bool = True,
        silenced: frozenset[int] = frozenset(),
    ) -> Deferred[bool | frozenset[int]]:
        """There are no leases."""
        return succeed(False)

    async def next_due(self, queues: Sequence[str]) -> int | None:
        """Nothing is ever due."""
        return None

    async def list(self, limit: int, offset: int = 0) -> list[QueueItem]:
        """The queue is empty."""
        return []

    async def get(self, queue_id: int) -> QueueItem | None:
        """The queue is empty."""
        return None
