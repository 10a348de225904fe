"""What a hand-over tells the one it is made for, and asks: a port between `attempt.py` and `unit.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from mailgate.mail.status import Outcome
from mailgate.queue.item import Phase


class Watch(Protocol):
    """Whoever a group is handed over for: is told how far it is, and has the last word before each message."""

    def reached(self, phase: Phase, route: str = "", host: str = "", ip: str = "") -> None:
        """The attempt got further."""
        ...

    async def transmitting(self, route: str, host: str, ip: str, indexes: Sequence[int]) -> frozenset[int]:
        """The octets that end a message are about to go out: those of these recipients whom they may be for.

        `CancelledError` when they must not go out; raises `StoreFailed` when that cannot be known.
        """
        ...

    async def settle(self, outcomes: Mapping[int, Outcome], closes: bool) -> None:
        """What a transaction came to, before the next one of the group begins; without `closes` a part of it.

        `CancelledError` when no other may begin.
        """
        ...


class Unwatched:
    """Nobody looks, nobody objects."""

    def reached(self, phase: Phase, route: str = "", host: str = "", ip: str = "") -> None:
        """Nothing is made of it."""

    async def transmitting(self, route: str, host: str, ip: str, indexes: Sequence[int]) -> frozenset[int]:
        """All of them."""
        return frozenset(indexes)

    async def settle(self, outcomes: Mapping[int, Outcome], closes: bool) -> None:
        """Nothing is made of it."""


UNWATCHED = Unwatched()
