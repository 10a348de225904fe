"""`resolver.*`: whom we ask for DNS, and how long."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from mailgate.config.key import key
from mailgate.config.kind import BOOLEAN, DNS_SERVER, DURATION, NETWORK, DnsServer, Network, integer, listed, word
from mailgate.config.schema.unsupported import REFUSAL, RESOLVER_TYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolverSettings:
    """DNS resolution. Nothing is validated here: the resolver's AD bit is what counts."""

    type: str = key(
        word("system", "custom", refused=dict.fromkeys(RESOLVER_TYPES, (REFUSAL, 'write "system" or "custom"'))),
        default="system",
        doc="`system` asks the servers of /etc/resolv.conf, `custom` those of `resolver.custom`.",
    )
    custom: tuple[DnsServer, ...] = key(
        listed(DNS_SERVER), default=[], doc="Servers such as `udp://127.0.0.1:53`; udp and port 53 may be left out."
    )
    timeout: timedelta = key(DURATION, default="5s", doc="Time a server has for its answer.")
    attempts: int = key(integer(1, 10), default=2, doc="Times each question is asked before it is given up.")
    concurrency: int = key(integer(1, 100_000), default=1000, doc="Questions under way at the same time.")
    edns: bool = key(BOOLEAN, default=True, doc="Use EDNS (RFC 6891).")
    try_tcp_on_error: bool = key(BOOLEAN, default=True, doc="Ask again over TCP when UDP gave an error.")
    dnssec: str = key(
        word("trust-ad", "off"),
        default="trust-ad",
        doc="Whether the AD bit of the servers in `resolver.trusted` is believed (`trust-ad`), or that of none.",
    )
    trusted: tuple[Network, ...] = key(
        listed(NETWORK),
        default=["127.0.0.0/8", "::1"],
        doc="Servers that validate DNSSEC and are reached by a way nobody else can write to.",
    )
