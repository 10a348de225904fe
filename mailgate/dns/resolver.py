"""The resolver port: what decisions may ask of DNS.

Every question has three kinds of answer (DESIGN D2): records, `Absent`
(the name or the type does not exist), or `Unknown`. A failure is never turned
into "there is none".

What DNSSEC says of an answer is what a server that the operator trusts says:

| status        | answer                                              |
|---------------|-----------------------------------------------------|
| secure        | `authentic`                                         |
| insecure      | neither `authentic` nor `indeterminate`             |
| indeterminate | `indeterminate`: the server's word does not count   |
| bogus         | `Bogus`, an `Unknown`: there are records, and they are forged or broken |
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
    time to live among the records, counted from when they were asked for.
    """

    records: tuple[R, ...]
    authentic: bool = False
    ttl_seconds: int = 0
    indeterminate: bool = False
    """From a server whose word on DNSSEC does not count."""


@dataclass(frozen=True, slots=True)
class Absent:
    """DNS answered, and there is no such record."""

    name_exists: bool
    """False for NXDOMAIN, True where only the type is missing."""
    authentic: bool = False
    ttl_seconds: int = 0
    indeterminate: bool = False
    """From a server whose word on DNSSEC does not count."""


class Bogus(Unknown):
    """A trusted resolver refused the answer because its signatures are wrong; without validation there is one."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class MxRecord:
    """One MX record; `host` without its final dot, "" for the null MX (RFC 7505)."""

    preference: int
    host: str


@dataclass(frozen=True, slots=True)
class TlsaRecord:
    """One TLSA record (RFC 6698 2.1), its numbers as they stand: nothing is known of their use here."""

    usage: int
    selector: int
    matching: int
    data: bytes


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

    async def tlsa(self, name: str) -> Answer[TlsaRecord] | Absent | Unknown:
        """The TLSA records of `name`, such as `_25._tcp.mx.example.org`."""
        ...
