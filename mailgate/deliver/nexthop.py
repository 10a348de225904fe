"""Where a group of recipients may be handed over, and under which conditions.

`hop.py` makes these from routes and DNS, `attempt.py` works through them in
order. Values only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Literal

from mailgate.mail.status import Delayed, Failed

LOOPS_BACK = "mail loops back to this host"
"""What is wrong with a host that is ourselves (RFC 5321 5.1)."""


class Need(Enum):
    """How much a TLS mechanism is wanted (`queue.tls.<id>.starttls`)."""

    OPTIONAL = "optional"
    REQUIRE = "require"
    DISABLE = "disable"


@dataclass(frozen=True, slots=True)
class TlsPolicy:
    """One hop's TLS strategy, with what its route adds.

    `implicit`: TLS from the first octet (relay routes). `allow_invalid_certs`
    is the strategy's flag or the route's. `trust_file` adds PEM trust anchors
    to those of the system. `timeout` bounds a handshake.
    """

    starttls: Need = Need.OPTIONAL
    implicit: bool = False
    allow_invalid_certs: bool = False
    trust_file: str | None = None
    timeout: timedelta = timedelta(minutes=3)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a relay route logs in with; the secret never shows in a text form."""

    username: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SourceAddress:
    """An address of ours to connect from, with the EHLO name that goes with it."""

    ip: str
    ehlo_name: str


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each step may take; `data` counts once for the transfer and once for its final reply."""

    connect: timedelta = timedelta(minutes=5)
    greeting: timedelta = timedelta(minutes=5)
    ehlo: timedelta = timedelta(minutes=5)
    mail_from: timedelta = timedelta(minutes=5)
    rcpt_to: timedelta = timedelta(minutes=5)
    data: timedelta = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class ReuseLimits:
    """How long one connection may serve: transactions, idle time, age; `messages` 1 closes after the first."""

    messages: int = 100
    idle: timedelta = timedelta(seconds=2)
    duration: timedelta = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class NextHop:
    """One host that may take the message, with its addresses in the order to try.

    `host` is the MX or relay host name (or IP literal) without a final dot:
    what DSNs blame, what SNI carries and certificates are matched with.
    `ehlo_name` is used where no source address of the destination's family is
    configured; a source address is picked at random per connection.
    `is_mx` is False for relays.
    """

    route: str
    host: str
    addresses: tuple[str, ...]
    port: int
    protocol: Literal["smtp", "lmtp"]
    ehlo_name: str
    is_mx: bool
    tls: TlsPolicy = TlsPolicy()
    credentials: Credentials | None = None
    sources: tuple[SourceAddress, ...] = ()
    timeouts: Timeouts = Timeouts()
    max_recipients: int = 100
    reuse: ReuseLimits = ReuseLimits()
    own_names: frozenset[str] = frozenset()
    """Names of our own, lower case: a host that answers EHLO with one of them is ourselves. None for relays."""


@dataclass(frozen=True, slots=True)
class HopFailure:
    """A host of the list that cannot be tried: no address, look-up failed, loopback.

    It stands in its place among the candidates and takes part in the
    aggregation: the group is delayed if any candidate failed for now only.
    """

    host: str
    outcome: Delayed | Failed


Candidate = NextHop | HopFailure
