"""What a policy says: proceed, refuse, or discard.

A policy returns one of these and does nothing else: it never writes to the
transport, never changes the transaction, never raises to refuse. 4xx or 5xx
is a property of the reply.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mailgate.mail.change import Change
from mailgate.mail.reply import Reply


class Reason(Enum):
    """Why a verdict is not `Proceed`: the word the log and the trace use."""

    HELO_MISSING = "helo-missing"
    HELO_NOT_QUALIFIED = "helo-not-qualified"
    WRONG_PROTOCOL = "wrong-protocol"
    TRANSACTION_OPEN = "transaction-open"
    NO_TRANSACTION = "no-transaction"
    AUTH_REQUIRED = "auth-required"
    AUTH_NOT_AVAILABLE = "auth-not-available"
    AUTH_FAILED = "auth-failed"
    SENDER_NOT_ALLOWED = "sender-not-allowed"
    SENDER_NOT_YOURS = "sender-not-yours"
    PARAMETER_NOT_OFFERED = "parameter-not-offered"
    PARAMETER_OUT_OF_RANGE = "parameter-out-of-range"
    MESSAGE_TOO_BIG = "message-too-big"
    TOO_MANY_RECIPIENTS = "too-many-recipients"
    MAILBOX_UNKNOWN = "mailbox-unknown"
    RELAY_DENIED = "relay-denied"
    TOO_MANY_ERRORS = "too-many-errors"
    TOO_MANY_MESSAGES = "too-many-messages"
    NO_RECIPIENTS = "no-recipients"
    SEQUENCE = "sequence"
    SYNTAX = "syntax"
    UNKNOWN_COMMAND = "unknown-command"
    BARE_NEWLINE = "bare-newline"
    NO_HEADER = "no-header"
    MAIL_LOOP = "mail-loop"
    DUPLICATE = "duplicate"
    UNKNOWN_ANSWER = "unknown-answer"
    UNEXPECTED = "unexpected"
    TIME_LIMIT = "time-limit"
    INACTIVE = "inactive"
    TRANSFER_LIMIT = "transfer-limit"
    SHUTTING_DOWN = "shutting-down"
    QUEUE_FAILED = "queue-failed"
    QUEUE_FULL = "queue-full"
    QUOTA_EXCEEDED = "quota-exceeded"
    ON_ERROR = "on-error"


@dataclass(frozen=True, slots=True)
class Cause:
    """What a verdict rests on: a key of the configuration, where it is written, and the facts it saw."""

    rule: str
    place: str
    """`mailgate.toml:31`, or `built-in`."""
    reads: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class Proceed:
    """Nothing against it; `changes` are applied in order of arrival."""

    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with `reply`; `close` ends the connection after it.

    `detail` is for the log and the trace (which dependency, which value); it
    never reaches the client.
    """

    reply: Reply
    reason: Reason
    close: bool = False
    detail: str = ""
    cause: Cause | None = None
    """The key that decided; None where no key has a say in it."""


@dataclass(frozen=True, slots=True)
class Discard:
    """Answer as if all were well, and keep nothing."""

    reason: Reason
    reply: Reply | None = None
    detail: str = ""


Verdict = Proceed | Refuse | Discard

PROCEED = Proceed()
