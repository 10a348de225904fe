"""Idle connections kept for the next message to the same place.

A connection serves again only where everything that was decided when it was
opened would be decided the same way: `Place` holds all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from mailgate.deliver.conversation import Conversation
from mailgate.deliver.nexthop import Credentials, ReuseLimits
from mailgate.deliver.security import Security


class Place(NamedTuple):
    """What two transactions must have in common to share a connection."""

    queue: str
    route: str
    host: str
    address: str
    port: int
    protocol: str
    source_ip: str | None
    ehlo_name: str
    credentials: Credentials | None
    security: Security


@dataclass(slots=True, eq=False)
class _Idle:
    place: Place
    conversation: Conversation
    until: float


class IdleConnections:
    """The kept connections, at most `limit(queue)` per virtual queue (its threads per node); the oldest goes first."""

    def __init__(self, clock: IReactorTime, limit: Callable[[str], int]) -> None:
        self._clock = clock
        self._limit = limit
        # Oldest first.
        self._idle: dict[str, list[_Idle]] = {}
        self._timer: IDelayedCall | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return sum(map(len, self._idle.values()))

    def take(self, place: Place, reuse: ReuseLimits) -> Conversation | None:
        """The connection to this place that was used last, None when none may be used."""
        entries = self._idle.get(place.queue)
        if not entries:
            return None
        now = self._clock.seconds()
        for entry in reversed(entries):
            if entry.place == place:
                entries.remove(entry)
                conversation = entry.conversation
                conversation.stream.watch(None)
                if conversation.is_usable and now < entry.until and self._may_serve(conversation, reuse, now):
                    conversation.is_reused = True
                    return conversation
                conversation.leave()
                return self.take(place, reuse)
        return None

    def keep(self, place: Place, conversation: Conversation, reuse: ReuseLimits) -> None:
        """Keep a connection for later, or close it where it has served its time."""
        now = self._clock.seconds()
        limit = self._limit(place.queue)
        if self._is_closed or limit < 1 or not conversation.is_usable or not self._may_serve(conversation, reuse, now):
            conversation.leave()
            return
        entry = _Idle(place, conversation, now + reuse.idle.total_seconds())
        entries = self._idle.setdefault(place.queue, [])
        entries.append(entry)
        conversation.stream.watch(lambda: self._ended(entry))
        while len(entries) > limit:
            self._drop(entries[0])
        self._arm(entry.until)

    def close(self, queue: str | None = None) -> None:
        """Close the idle connections of one virtual queue, or of all."""
        for name, entries in self._idle.items():
            if queue is None or queue == name:
                for entry in tuple(entries):
                    self._drop(entry)

    def stop(self) -> None:
        """Close all, and from now on each connection as soon as its transaction is over."""
        self._is_closed = True
        self.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @staticmethod
    def _may_serve(conversation: Conversation, reuse: ReuseLimits, now: float) -> bool:
        return conversation.transactions < reuse.messages and now - conversation.opened < reuse.duration.total_seconds()

    def _ended(self, entry: _Idle) -> None:
        """The server said something nobody asked for, or went away."""
        if entry in self._idle[entry.place.queue]:
            self._drop(entry)

    def _drop(self, entry: _Idle) -> None:
        self._idle[entry.place.queue].remove(entry)
        entry.conversation.stream.watch(None)
        entry.conversation.leave()

    def _arm(self, until: float) -> None:
        # One timer for all, and none is touched while connections come and go quickly.
        if self._timer is None:
            self._timer = self._clock.callLater(max(0.0, until - self._clock.seconds()), self._sweep)
        elif until < self._timer.getTime():
            self._timer.reset(max(0.0, until - self._clock.seconds()))

    def _sweep(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        everyone = [entry for entries in self._idle.values() for entry in entries]
        for entry in everyone:
            if entry.until <= now:
                self._drop(entry)
        left = [entry.until for entry in everyone if entry.until > now]
        if left:
            self._arm(min(left))
