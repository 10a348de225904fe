"""How much one message may ask of DNS.

Senders choose the names that rules and records lead to: without a limit one
message could have us ask, of whomever its sender likes, as much as he likes. A
message that has used up its questions gets no further answers: what needs one
is unknown, and the client is asked to come back.
"""

from __future__ import annotations

from mailgate.dns.resolver import Absent, Answer, MxRecord, Resolver, TlsaRecord
from mailgate.mail.unknown import Unknown

QUESTIONS = 100
QUESTIONS_PER_RECIPIENT = 10

_SPENT = Unknown("dns", "too many questions for one message")


class Budget:
    """The questions that are left."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = QUESTIONS

    def renew(self) -> None:
        """Begin another message."""
        self.left = QUESTIONS

    def add_recipient(self) -> None:
        """Make room for the rules about one more recipient."""
        self.left += QUESTIONS_PER_RECIPIENT

    def spend(self) -> bool:
        """Take one question; False when none is left."""
        self.left -= 1
        return self.left >= 0


class BudgetedResolver:
    """The resolver port within a budget; an answer out of the cache counts like any other."""

    __slots__ = ("_budget", "_resolver")

    def __init__(self, resolver: Resolver, budget: Budget) -> None:
        self._resolver = resolver
        self._budget = budget

    async def mx(self, name: str) -> Answer[MxRecord] | Absent | Unknown:
        """The MX records of `name`."""
        return await self._resolver.mx(name) if self._budget.spend() else _SPENT

    async def ipv4(self, name: str) -> Answer[str] | Absent | Unknown:
        """The A records of `name`."""
        return await self._resolver.ipv4(name) if self._budget.spend() else _SPENT

    async def ipv6(self, name: str) -> Answer[str] | Absent | Unknown:
        """The AAAA records of `name`."""
        return await self._resolver.ipv6(name) if self._budget.spend() else _SPENT

    async def txt(self, name: str) -> Answer[str] | Absent | Unknown:
        """The TXT records of `name`."""
        return await self._resolver.txt(name) if self._budget.spend() else _SPENT

    async def ptr(self, ip: str) -> Answer[str] | Absent | Unknown:
        """The names `ip` points back to."""
        return await self._resolver.ptr(ip) if self._budget.spend() else _SPENT

    async def tlsa(self, name: str) -> Answer[TlsaRecord] | Absent | Unknown:
        """The TLSA records of `name`."""
        return await self._resolver.tlsa(name) if self._budget.spend() else _SPENT
