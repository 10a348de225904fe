"""A resolver that answers from tables a test sets: the port of `mailgate.dns.resolver`, no sockets.

Names not in the table do not exist. `fail` makes a name, or one of its types,
unknown; `authentic` names carry the AD bit; `asked` counts the questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mailgate.dns.name import ascii_name, reverse_name
from mailgate.dns.resolver import Absent, Answer, Bogus, MxRecord, TlsaRecord
from mailgate.mail.unknown import Unknown


class Zone:
    """Settable zones: `Zone().mx("example.org", (10, "mx.example.org")).a("mx.example.org", "192.0.2.1")`."""

    def __init__(self, ttl_seconds: int = 300) -> None:
        self.ttl_seconds = ttl_seconds
        self.records: dict[tuple[str, str], list[object]] = {}
        self.faults: dict[tuple[str, str], str] = {}
        self.secure: set[str] = set()
        self.asked: Counter[tuple[str, str]] = Counter()

    def mx_set(self, name: str, *records: tuple[int, str]) -> Zone:
        return self._add(name, "MX", [MxRecord(preference, host) for preference, host in records])

    def a(self, name: str, *ips: str) -> Zone:
        return self._add(name, "A", ips)

    def aaaa(self, name: str, *ips: str) -> Zone:
        return self._add(name, "AAAA", ips)

    def text(self, name: str, *texts: str) -> Zone:
        return self._add(name, "TXT", texts)

    def pointer(self, ip: str, *names: str) -> Zone:
        return self._add(reverse_name(ip) or ip, "PTR", names)

    def tlsa_set(self, name: str, *records: tuple[int, int, int, bytes]) -> Zone:
        return self._add(name, "TLSA", [TlsaRecord(*record) for record in records])

    def fail(self, name: str, rdtype: str = "*", reason: str = "SERVFAIL") -> Zone:
        """Answer unknown for this name; `reason` is `SERVFAIL`, `timeout` or `bogus` (the server on sockets heeds it).

        A bogus name has its records for those who ask without validation.
        """
        self.faults[name.lower(), rdtype] = reason
        return self

    def heal(self, name: str, rdtype: str = "*") -> Zone:
        self.faults.pop((name.lower(), rdtype), None)
        return self

    def sign(self, *names: str) -> Zone:
        """Answers about these names carry the AD bit."""
        self.secure.update(name.lower() for name in names)
        return self

    def fault(self, name: str, rdtype: str) -> str | None:
        return self.faults.get((name, rdtype)) or self.faults.get((name, "*"))

    def exists(self, name: str) -> bool:
        return any(owner == name or owner.endswith("." + name) for owner, _ in self.records)

    def look_up(self, name: str, rdtype: str) -> Answer | Absent | Unknown:
        name = ascii_name(name) or name
        self.asked[name, rdtype] += 1
        fault = self.fault(name, rdtype)
        if fault is not None:
            return (Bogus if fault == "bogus" else Unknown)("dns", f"{name}: {fault}")
        return self.unchecked(name, rdtype)

    def unchecked(self, name: str, rdtype: str) -> Answer | Absent:
        """What the tables say, whatever is to fail."""
        authentic = name in self.secure
        records = self.records.get((name, rdtype))
        if records:
            return Answer(tuple(records), authentic, self.ttl_seconds)
        return Absent(self.exists(name), authentic, self.ttl_seconds)

    async def mx(self, name: str) -> Answer[MxRecord] | Absent | Unknown:
        return self.look_up(name, "MX")

    async def ipv4(self, name: str) -> Answer[str] | Absent | Unknown:
        return self.look_up(name, "A")

    async def ipv6(self, name: str) -> Answer[str] | Absent | Unknown:
        return self.look_up(name, "AAAA")

    async def txt(self, name: str) -> Answer[str] | Absent | Unknown:
        return self.look_up(name, "TXT")

    async def ptr(self, ip: str) -> Answer[str] | Absent | Unknown:
        return self.look_up(reverse_name(ip) or ip, "PTR")

    async def tlsa(self, name: str) -> Answer[TlsaRecord] | Absent | Unknown:
        return self.look_up(name, "TLSA")

    def _add(self, name: str, rdtype: str, records: Iterable[object]) -> Zone:
        self.records.setdefault((name.lower(), rdtype), []).extend(records)
        return self
