"""The SMTP envelope: sender, recipients, and what MAIL and RCPT asked for.

Values only; the wire syntax of the parameters is in `wire/smtp/parameter.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, Flag

from mailgate.mail.lean import lean
from mailgate.mail.path import NULL_PATH, Path


class Body(Enum):
    """BODY= of MAIL (RFC 6152, RFC 3030)."""

    SEVEN_BIT = "7bit"
    EIGHT_BIT = "8bitmime"
    BINARY = "binarymime"


class Ret(Enum):
    """RET= of MAIL (RFC 3461 4.3)."""

    FULL = "full"
    HDRS = "hdrs"


class Notify(Flag):
    """NOTIFY= of RCPT (RFC 3461 4.1). NEVER stands alone."""

    NONE = 0
    SUCCESS = 1
    FAILURE = 2
    DELAY = 4
    NEVER = 8


# Without NOTIFY the queue records FAILURE and DELAY.
NOTIFY_DEFAULT = Notify.FAILURE | Notify.DELAY


@dataclass(frozen=True, slots=True)
class DeliverBy:
    """BY= of MAIL (RFC 2852 4): `seconds` may be negative in mode N."""

    seconds: int
    mode: str
    """`R` (return) or `N` (notify)."""
    trace: bool = False


@dataclass(frozen=True, slots=True)
class HoldUntil:
    """HOLDUNTIL= of MAIL (RFC 4865): an absolute moment, seconds since the epoch."""

    epoch_seconds: float


@dataclass(frozen=True, slots=True)
class MailParameters:
    """The parameters of one MAIL command; None or False where not given."""

    size_octets: int | None = None
    body: Body | None = None
    smtputf8: bool = False
    requiretls: bool = False
    conperm: bool = False
    ret: Ret | None = None
    envid: str | None = None
    deliver_by: DeliverBy | None = None
    hold_seconds: int | None = None
    hold_until: HoldUntil | None = None
    priority: int | None = None
    solicit: str | None = None
    transid: str | None = None
    mtrk: str | None = None
    auth: str | None = None


NO_MAIL_PARAMETERS = MailParameters()


@dataclass(frozen=True, slots=True)
class RcptParameters:
    """The parameters of one RCPT command; None or False where not given."""

    notify: Notify | None = None
    orcpt: str | None = None
    """ORCPT without `rfc822;`, xtext decoded."""
    rrvs: str | None = None
    conneg: bool = False


NO_RCPT_PARAMETERS = RcptParameters()


@lean
@dataclass(frozen=True, slots=True)
class Recipient:
    """One accepted recipient of a transaction."""

    path: Path
    notify: Notify = NOTIFY_DEFAULT
    orcpt: str | None = None


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the queue is told about a message besides its octets."""

    reverse_path: Path = NULL_PATH
    recipients: tuple[Recipient, ...] = ()
    parameters: MailParameters = field(default=NO_MAIL_PARAMETERS)
