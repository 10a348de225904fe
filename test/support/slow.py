"""What lies outside a session, answering when a test says so."""

from __future__ import annotations

from dataclasses import dataclass, field

from support.memory_store import MemorySpool, MemoryStore, StoredMessage
from support.zone import Zone
from twisted.internet.defer import Deferred

from mailgate.dns.resolver import Absent, Answer
from mailgate.mail.unknown import Unknown
from mailgate.queue.item import Content, NewMessage


class SlowZone(Zone):
    """Answers for texts only when told; a rule asks with `dns_query('slow.test', 'txt') = 'yes'`."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Deferred[Answer[str] | Absent | Unknown]] = []
        self.cancelled = 0

    async def txt(self, name: str) -> Answer[str] | Absent | Unknown:
        asked: Deferred[Answer[str] | Absent | Unknown] = Deferred(self._cancel)
        self.held.append(asked)
        return await asked

    def _cancel(self, asked: Deferred[Answer[str] | Absent | Unknown]) -> None:
        self.cancelled += 1
        self.held.remove(asked)

    def answer(self, text: str = "yes") -> None:
        """The oldest question."""
        self.held.pop(0).callback(Answer((text,), False, 300))

    def break_down(self) -> None:
        """The oldest question ends with what nobody foresaw."""
        self.held.pop(0).errback(RuntimeError("a mistake of ours"))

    def give_no_answer(self) -> None:
        """The oldest question ends as unknown."""
        self.held.pop(0).callback(Unknown("dns", "slow.test: SERVFAIL"))


class SlowSpool(MemorySpool):
    """Its end, or each write, waits where a test wants it."""

    def __init__(self, store: SlowStore) -> None:
        super().__init__()
        self._store = store

    def write(self, octets: bytes) -> Deferred[None] | None:
        super().write(octets)
        if not self._store.slow_writes:
            return None
        self._store.writing.append(Deferred())
        return self._store.writing[-1]

    async def finish(self) -> Content:
        if self._store.slow_finish:
            self._store.finishing.append(Deferred())
            await self._store.finishing[-1]
        return await super().finish()


@dataclass
class SlowStore(MemoryStore):
    """Commits when told."""

    slow_writes: bool = False
    slow_finish: bool = False
    slow_commit: bool = False
    writing: list[Deferred[None]] = field(default_factory=list)
    finishing: list[Deferred[None]] = field(default_factory=list)
    committing: list[tuple[Deferred[None], NewMessage]] = field(default_factory=list)
    cancelled: int = 0

    def spool(self, queue_id: int) -> MemorySpool:
        self.spools.append(SlowSpool(self))
        return self.spools[-1]

    def commit(self, message: NewMessage) -> Deferred[None]:
        if not self.slow_commit:
            return super().commit(message)
        kept: Deferred[None] = Deferred(self._cancel)
        self.committing.append((kept, message))
        return kept

    def _cancel(self, kept: Deferred[None]) -> None:
        self.cancelled += 1

    def end_commit(self, failure: Exception | None = None) -> None:
        """The oldest commit."""
        kept, message = self.committing.pop(0)
        if failure is not None:
            kept.errback(failure)
            return
        self.messages.append(StoredMessage(message))
        kept.callback(None)
