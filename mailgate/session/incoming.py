"""The message that is coming in: where its octets go, its queue id, and what became of its BDAT chunks.

It begins with DATA or the first chunk and ends with the transaction; what is
let in and what is refused the driver says. RFC 3030 2.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred

from mailgate.mail.verdict import Reason, Refuse
from mailgate.queue.store import QueueStore, Spool
from mailgate.session.stages import data


class Incoming:
    """One transaction's message, as far as it has come."""

    __slots__ = ("_limit", "_store", "chunk_refusal", "chunked", "chunks_refused", "queue_id", "spool", "too_big")

    def __init__(self, store: QueueStore) -> None:
        self._store = store
        self._limit = 0
        self.spool: Spool | None = None
        """Where the octets are; None before the first and after the last, and when they are not wanted."""
        self.forget()

    def forget(self) -> None:
        """The transaction is over: nothing is known of a message any more. Its spool has been seen to."""
        self.queue_id = 0
        """0 while there is none, and when the message will not be queued."""
        self.too_big = False
        """It went over the limit; its octets are gone."""
        self.chunked = False
        """BDAT has been used in this transaction."""
        self.chunk_refusal: Refuse | None = None
        """Why the present chunk is thrown away."""
        self.chunks_refused: Refuse | None = None
        """What the chunks up to LAST are answered after one was refused."""

    @property
    def size_octets(self) -> int:
        """Octets kept so far."""
        spool = self.spool
        return spool.size_octets if spool is not None else 0

    def begin(self, limit: int) -> None:
        """Make room for a message of up to `limit` octets. Raises what the store raises."""
        self.queue_id = self._store.new_id()
        self.too_big = False
        self._limit = limit
        self.spool = self._store.spool(self.queue_id)

    def write(self, octets: bytes) -> Deferred[None] | None:
        """Take octets, of DATA or BDAT alike, where they are wanted. A Deferred means: no more before it fires."""
        spool = self.spool
        if spool is None or self.chunk_refusal is not None:
            return None
        if spool.size_octets + len(octets) > self._limit:
            self.too_big = True
            self.discard()
            return None
        return spool.write(octets)

    def discard(self) -> None:
        """Let go of the octets; those still to come are not kept."""
        if self.spool is not None:
            self.spool.discard()
            self.spool = None

    def hand_over(self) -> None:
        """The octets are the store's from here on."""
        self.spool = None

    def chunk_begins(self, refusal: Refuse | None) -> None:
        """A chunk is announced: it will be read to its end, and thrown away where there is a refusal."""
        self.chunk_refusal = refusal
        if refusal is not None:
            self.discard()

    def chunk_ends(self) -> Refuse | None:
        """The chunk was read to its end: why it was thrown away, if it was."""
        refusal = self.chunk_refusal
        self.chunk_refusal = None
        return refusal

    def chunk_was_refused(self, refusal: Refuse, last: bool) -> None:
        """A chunk of an open transaction is refused, and with it what follows up to the last one."""
        offered = refusal.reason is not Reason.PARAMETER_NOT_OFFERED
        self.chunked = self.chunked or offered
        if last:
            self.chunks_refused = None
            self.too_big = False
        elif offered and self.chunks_refused is None:
            # RFC 3030 2: nothing of the message counts any more. A client that sends on all the same takes the
            # reply to the last chunk for that of the message: a temporary refusal must not become a final one.
            self.chunks_refused = refusal if refusal.reply.is_temporary else data.REFUSED_BEFORE
