"""Answers kept as long as they say: positive and negative TTLs, bounded by octets, equal questions merged.

A resolver port around another one. `Unknown` is never kept: an outage ends when
it ends. The least recently used answer leaves first when a type's share is full.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from mailgate.dns.resolver import Absent, Answer, MxRecord, Resolver, TlsaRecord
from mailgate.mail.unknown import Unknown

R = TypeVar("R")

# RFC 8767 4 suggests days as a cap; one is enough for mail and forgets mistakes by tomorrow.
_LONGEST_SECONDS = 86400
# RFC 2308 5: one to three hours work well for negative answers.
_LONGEST_ABSENCE_SECONDS = 10800
# What Python needs for one entry besides its texts, measured.
_ENTRY_OCTETS = 400
_RECORD_OCTETS = 120


class Clock(Protocol):
    """Where the time comes from: a reactor."""

    def seconds(self) -> float:
        """Seconds since an arbitrary moment."""
        ...


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """Octets each record type may take."""

    mx: int = 5_000_000
    ipv4: int = 5_000_000
    ipv6: int = 5_000_000
    txt: int = 5_000_000
    ptr: int = 1_000_000
    tlsa: int = 1_000_000


class _Share(Generic[R]):
    """The cache of one record type."""

    def __init__(
        self, ask: Callable[[str], Awaitable[Answer[R] | Absent | Unknown]], limit_octets: int, clock: Clock
    ) -> None:
        self._ask = ask
        self._limit = limit_octets
        self._clock = clock
        self._octets = 0
        self._entries: OrderedDict[str, tuple[float, int, Answer[R] | Absent]] = OrderedDict()
        self._waiting: dict[str, list[Deferred[Answer[R] | Absent | Unknown]]] = {}

    async def get(self, key: str) -> Answer[R] | Absent | Unknown:
        """The kept answer while it lives; else ask, once for all who want it meanwhile."""
        entry = self._entries.get(key)
        if entry is not None:
            if entry[0] > self._clock.seconds():
                self._entries.move_to_end(key)
                return entry[2]
            self._forget(key)
        mine: Deferred[Answer[R] | Absent | Unknown] = Deferred()
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.append(mine)
        else:
            # The question belongs to nobody who waits: one of them giving up does not end it for the others.
            self._waiting[key] = [mine]
            Deferred.fromCoroutine(self._fetch(key)).addErrback(self._broken, key)
        return await mine

    async def _fetch(self, key: str) -> None:
        answer = await self._ask(key)
        if not isinstance(answer, Unknown) and answer.ttl_seconds > 0:
            self._keep(key, answer)
        for waiter in self._waiting.pop(key):
            if not waiter.called:
                waiter.callback(answer)

    def _broken(self, failure: Failure, key: str) -> None:
        for waiter in self._waiting.pop(key, ()):
            if not waiter.called:
                waiter.errback(failure)

    def _keep(self, key: str, answer: Answer[R] | Absent) -> None:
        octets = _ENTRY_OCTETS + len(key)
        if isinstance(answer, Answer):
            octets += sum(_RECORD_OCTETS + len(str(record)) for record in answer.records)
        if octets > self._limit:
            return
        if key in self._entries:
            self._forget(key)
        longest = _LONGEST_SECONDS if isinstance(answer, Answer) else _LONGEST_ABSENCE_SECONDS
        until = self._clock.seconds() + min(answer.ttl_seconds, longest)
        self._entries[key] = (until, octets, answer)
        self._octets += octets
        while self._octets > self._limit:
            self._forget(next(iter(self._entries)))

    def _forget(self, key: str) -> None:
        self._octets -= self._entries.pop(key)[1]


class CachingResolver:
    """The resolver port with a memory; names are compared without regard to case."""

    def __init__(self, resolver: Resolver, clock: Clock, sizes: CacheSizes = CacheSizes()) -> None:
        self._mx: _Share[MxRecord] = _Share(resolver.mx, sizes.mx, clock)
        self._ipv4: _Share[str] = _Share(resolver.ipv4, sizes.ipv4, clock)
        self._ipv6: _Share[str] = _Share(resolver.ipv6, sizes.ipv6, clock)
        self._txt: _Share[str] = _Share(resolver.txt, sizes.txt, clock)
        self._ptr: _Share[str] = _Share(resolver.ptr, sizes.ptr, clock)
        self._tlsa: _Share[TlsaRecord] = _Share(resolver.tlsa, sizes.tlsa, clock)

    async def mx(self, name: str) -> Answer[MxRecord] | Absent | Unknown:
        """The MX records of `name`."""
        return await self._mx.get(name.lower())

    async def ipv4(self, name: str) -> Answer[str] | Absent | Unknown:
        """The A records of `name`."""
        return await self._ipv4.get(name.lower())

    async def ipv6(self, name: str) -> Answer[str] | Absent | Unknown:
        """The AAAA records of `name`."""
        return await self._ipv6.get(name.lower())

    async def txt(self, name: str) -> Answer[str] | Absent | Unknown:
        """The TXT records of `name`."""
        return await self._txt.get(name.lower())

    async def ptr(self, ip: str) -> Answer[str] | Absent | Unknown:
        """The names `ip` points back to."""
        return await self._ptr.get(ip)

    async def tlsa(self, name: str) -> Answer[TlsaRecord] | Absent | Unknown:
        """The TLSA records of `name`."""
        return await self._tlsa.get(name.lower())
