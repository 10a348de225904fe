"""The resolver port: what decisions may ask of DNS.

Every question has three kinds of answer (DESIGN D2): records, `Absent`
(the name or the type does not exist), or `Unknown`. A failure is never turned
into "there is none".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mailgate.mail.unknown import Unknown

R = TypeVar("R", covariant=True)


@dataclass(frozen=True, slots=True)
class Answer(Generic[R]):
    """At least one record.

    `authentic` is the AD bit of a trusted resolver; `ttl_seconds` the least
    time to live among the records.
    """

    records: tuple[R, ...]
    authentic: bool = False
    ttl_seconds: int = 0


@dataclass(frozen=True, slots=True)
class Absent:
    """DNS answered, and there is no such record."""

    name_exists: bool
    """False for NXDOMAIN, True where only the type is missing."""
    authentic: bool = False
    ttl_seconds: int = 0


@dataclass(frozen=True, slots=True)
class MxRecord:
    """One MX record; `host` without its final dot, "" for the null MX (RFC 7505)."""

    preference: int
    host: str


class Resolver(Protocol):
    """Names are A-labels without a final dot. All answers may come from a cache."""

    async def mx(self, name: str) -> Answer[MxRecord] | Absent | Unknown:
        """The MX records of `name`, CNAMEs followed."""
        ...

    async def ipv4(self, name: str) -> Answer[str] | Absent | Unknown:
        """The A records of `name` as dotted quads."""
        ...

    async def ipv6(self, name: str) -> Answer[str] | Absent | Unknown:
        """The AAAA records of `name` in RFC 5952 form."""
        ...

    async def txt(self, name: str) -> Answer[str] | Absent | Unknown:
        """The TXT records of `name`, the strings of each joined."""
        ...

    async def ptr(self, ip: str) -> Answer[str] | Absent | Unknown:
        """The names an address points back to, without final dots."""
        ...
