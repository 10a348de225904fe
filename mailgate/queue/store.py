"""The queue's port: what the rest of the program may ask of messages at rest.

Everything that blocks runs on the store's own threads; every method here is
awaitable and none is slow to call. Errors of the store (disk full, database
locked, I/O) raise `StoreFull` or `StoreFailed`: the caller answers 452 or 451,
and nothing of the message is kept. So does a quota without room
(`QuotaExceeded`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from mailgate.queue.charge import Charge, Usage
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

if TYPE_CHECKING:
    # The command line reads the queue and need not load Twisted for a name.
    from twisted.internet.defer import Deferred


class StoreFailed(Exception):
    """The store could not do it; nothing was changed."""


class StoreFull(StoreFailed):
    """No space for new mail: the disk is full or below `queue.min-free`."""


class QuotaExceeded(StoreFull):
    """A quota has no room for this message: the bucket, what is in it, and the size that was asked for."""

    def __init__(self, charge: Charge, used: Usage, size_octets: int) -> None:
        limit = charge.limit
        parts = []
        if limit.max_messages is not None:
            parts.append(f"{used.messages} of {limit.max_messages} messages")
        if limit.max_octets is not None:
            parts.append(f"{used.octets} of {limit.max_octets} octets")
        super().__init__(f"queue.quota.{limit.id}: {', '.join(parts)} are taken, {size_octets} octets were to come")
        self.charge = charge
        self.used = used
        self.size_octets = size_octets


class Spool(Protocol):
    """Takes one message's octets while they arrive, in bounded memory."""

    @property
    def size_octets(self) -> int:
        """Octets written so far."""
        ...

    def head(self) -> bytes:
        """The first octets written, up to 256 KiB: all of the header, and more or less of what follows it."""
        ...

    def write(self, octets: bytes) -> Deferred[None] | None:
        """Take octets. A Deferred means: send no more before it fires; it never fails."""
        ...

    async def finish(self) -> Content:
        """End of data: a large content is fsynced, then its directory, before this returns.

        Raises `StoreFull` or `StoreFailed`, also for what went wrong in `write`;
        the file is gone then.
        """
        ...

    def discard(self) -> None:
        """Forget the octets and remove the file, if any. May be called at any time, also twice."""
        ...


class ContentReader(Protocol):
    """Reads the stored octets (prefix and content) of one queued message in order."""

    async def read(self) -> bytes:
        """The next octets, at most 256 KiB; empty at the end. Raises `StoreFailed`."""
        ...

    def close(self) -> None:
        """Give back what reading held. May be called twice."""
        ...


class QueueStore(Protocol):
    """One store; there is exactly one writer of its state: the database."""

    def new_id(self) -> int:
        """A queue id, unique and roughly ordered by time."""
        ...

    def spool(self, queue_id: int) -> Spool:
        """Begin taking a message's octets."""
        ...

    def commit(self, message: NewMessage) -> Deferred[None]:
        """Keep the message for good: fires after the commit that holds it is on disk (I1).

        Fails with `QuotaExceeded`, `StoreFull` or `StoreFailed`; then nothing is
        kept, and the spool file of the content, if any, is removed.
        """
        ...

    async def claim(self, slots: Mapping[str, int], now_ms: int) -> list[Lease]:
        """Lease due units of the given virtual queues, at most so many of each, due order first."""
        ...

    async def expired(self, now_ms: int, limit: int) -> list[Lease]:
        """Lease units with an open recipient past its time to live, whatever their queue, due time or free slots.

        The leases are handled like those of `claim`: expiry is the first thing an attempt looks at.
        """
        ...

    async def renew(
        self, leases: Sequence[Lease], moved: Mapping[tuple[int, str], Whereabouts]
    ) -> set[tuple[int, str]]:
        """Extend leases; answers the units (queue id, virtual queue) that are lost.

        `moved` says where those attempts are that got further since the last
        time, by unit: it goes into the journal, and counts as progress.
        """
        ...

    async def revoke_stuck(self, before_ms: int, limit: int) -> list[Stuck]:
        """Take the leases of attempts that made no progress since `before_ms`; what these learn comes late."""
        ...

    def transmitting(self, lease: Lease, transmission: Transmission) -> Deferred[frozenset[int] | None]:
        """Write down that the last octets of a message are about to be sent: durably, before it fires.

        Answers the recipients it may still be sent to, without those that were
        delivered, given up or cancelled meanwhile; None when the lease is
        lost: then those octets must not be sent. Fails with `StoreFailed`.
        """
        ...

    def late(self, lease: Lease, learnt: Sequence[RecipientUpdate]) -> Deferred[Mapping[int, Late]]:
        """Store what is still news of results whose lease was lost; what each was worth, by recipient index."""
        ...

    async def read(self, item: QueueItem) -> ContentReader:
        """Open the stored octets. Raises `StoreFailed` when they are missing or not as long as `item` says."""
        ...

    def record(
        self,
        lease: Lease,
        updates: Sequence[RecipientUpdate],
        dsn: NewMessage | None,
        end: bool,
        closes: bool = True,
        silenced: frozenset[int] = frozenset(),
    ) -> Deferred[bool | frozenset[int]]:
        """Store results in one transaction, and the DSN they call for with them.

        With `end` the lease is given back, what operators asked for during the
        attempt is done, and the message is removed when no recipient is open
        and none waits for its notification. With `closes` the transactions in
        the journal have all their results. False when the lease was lost: then
        nothing was stored. Nothing either when the DSN tells of recipients who
        were cancelled meanwhile: answers them, and the caller makes another,
        naming them in `silenced`.
        """
        ...

    async def next_due(self, queues: Sequence[str]) -> int | None:
        """When the earliest unleased unit of these virtual queues falls due, in ms; None if there is none."""
        ...

    async def list(self, limit: int, offset: int = 0) -> list[QueueItem]:
        """Queued messages in due order."""
        ...

    async def get(self, queue_id: int) -> QueueItem | None:
        """One queued message."""
        ...
