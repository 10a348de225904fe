"""What became of one recipient in one attempt, as a DSN will tell it (RFC 3464).

`deliver/attempt.py` makes these, the queue stores them, `reports/dsn.py`
prints them without asking back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ErrorKind(Enum):
    """The `last_error` word of a failed attempt."""

    NONE = "none"
    DNS = "dns"
    UNEXPECTED_REPLY = "unexpected-reply"
    CONNECTION = "connection"
    TLS = "tls"
    DANE = "dane"
    MTA_STS = "mta-sts"
    RATE = "rate"
    CONCURRENCY = "concurrency"
    SUSPENDED = "suspended"
    DEPENDENCY = "dependency"
    IO = "io"


# They occur only in temporary failures, never become permanent by counting
# and leave the number of retries alone.
DEFERRALS = frozenset({ErrorKind.RATE, ErrorKind.CONCURRENCY, ErrorKind.SUSPENDED, ErrorKind.DEPENDENCY})


@dataclass(frozen=True, slots=True)
class RemoteReply:
    """A reply of a next hop: code, enhanced code (`0.0.0` if it gave none), text."""

    code: int
    enhanced: str
    text: str

    def __str__(self) -> str:
        return f"Code: {self.code}, Enhanced code: {self.enhanced}, Message: {self.text}"


@dataclass(frozen=True, slots=True)
class RecipientStatus:
    """Who is to blame and what was said.

    `entity` is the MX host name, the recipient domain, or `localhost`;
    `command` the command that was answered (only with a reply), `detail` the
    text of an error that is no reply. `relayed` is of a delivery to a host that
    cannot keep what the sender asked for: nobody will be told more.
    """

    entity: str
    kind: ErrorKind = ErrorKind.NONE
    detail: str = ""
    command: str = ""
    reply: RemoteReply | None = None
    relayed: bool = False


@dataclass(frozen=True, slots=True)
class Delivered:
    """The next hop, or the Maildir, has taken the message for this recipient."""

    status: RecipientStatus


@dataclass(frozen=True, slots=True)
class Delayed:
    """Not now; the queue will try again."""

    status: RecipientStatus


@dataclass(frozen=True, slots=True)
class Failed:
    """Not ever."""

    status: RecipientStatus


Outcome = Delivered | Delayed | Failed
