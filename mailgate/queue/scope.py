"""A recipient of a queued message as expressions see it: the recipient context of the language.

One scope serves acceptance (which schedule?) and delivery (which route, which
schedule next?): the variables mean the same on both sides of the queue. So does
that of a host, of which nothing is known before delivery.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mailgate.expr.outside import Outside
from mailgate.mail.lean import lean
from mailgate.mail.status import ErrorKind, RecipientStatus
from mailgate.queue.item import ExpiresBy, Expiry, Source, State

Note = Callable[[str, str, tuple[tuple[str, object], ...], object], None]


def ignore_note(key: str, place: str, reads: tuple[tuple[str, object], ...], result: object) -> None:
    """Record nothing."""


def status_text(state: State, status: RecipientStatus | None) -> str:
    """`last_status`: what became of a recipient, in one line."""
    if status is None or state is State.SCHEDULED:
        return "Scheduled"
    if state is State.COMPLETED:
        return f"Delivered: {status.reply}" if status.reply is not None else "Delivered"
    head = "Temporary" if state is State.TEMP_FAIL else "Permanent"
    return f"{head} Failure for {status.entity}: {error_text(status)}"


def error_text(status: RecipientStatus) -> str:
    """The text of an error, by its kind."""
    if status.kind is ErrorKind.UNEXPECTED_REPLY and status.reply is not None:
        return f"Unexpected response for {status.command or 'transaction'}: {status.reply}"
    shape = _ERROR_TEXT.get(status.kind)
    return shape.format(status.detail, status.entity) if shape is not None else status.detail


_ERROR_TEXT = {
    ErrorKind.DNS: "DNS lookup failed: {}",
    ErrorKind.CONNECTION: "Connection failed: {}",
    ErrorKind.TLS: "TLS error: {}",
    ErrorKind.DANE: "DANE authentication failure: {}",
    ErrorKind.MTA_STS: "MTA-STS auth failed: {}",
    ErrorKind.RATE: "Rate limited",
    ErrorKind.CONCURRENCY: "Too many concurrent connections to remote server",
    ErrorKind.SUSPENDED: "Suspended: {}",
    ErrorKind.DEPENDENCY: "Dependency unavailable: {1}: {0}",
    ErrorKind.IO: "Queue error: {}",
}


@lean
@dataclass(frozen=True, slots=True)
class MessageFacts:
    """What is the same for all recipients of a message."""

    created_ms: int
    return_path: str
    addresses: tuple[str, ...]
    priority: int
    from_ip: str
    via_port: int
    source: Source
    size_octets: int


@lean
@dataclass(frozen=True, slots=True)
class RecipientScope:
    """The scope of one recipient at one moment."""

    message: MessageFacts
    address: str
    outside: Outside
    now_ms: int
    state: State = State.SCHEDULED
    status: RecipientStatus | None = None
    retry_num: int = 0
    notify_num: int = 0
    queue_name: str = ""
    expiry: Expiry | None = None
    notes: Note = ignore_note

    def note(self, choice_key: str, place: str, reads: tuple[tuple[str, object], ...], result: object) -> None:
        """Record the evaluation of one expression."""
        self.notes(choice_key, place, reads, result)

    @property
    def rcpt(self) -> str:
        """The recipient, lower case."""
        return self.address.lower()

    @property
    def rcpt_domain(self) -> str:
        """The recipient's domain, lower case."""
        return self.address.rpartition("@")[2].lower()

    @property
    def recipients(self) -> tuple[str, ...]:
        """All recipients of the message."""
        return self.message.addresses

    @property
    def sender(self) -> str:
        """The return path, lower case; empty for the null sender."""
        return self.message.return_path.lower()

    @property
    def sender_domain(self) -> str:
        """The domain of the return path; empty for the null sender."""
        return self.message.return_path.rpartition("@")[2].lower()

    @property
    def priority(self) -> str:
        """MT-PRIORITY as text."""
        return str(self.message.priority)

    @property
    def last_status(self) -> str:
        """What became of the last attempt."""
        return status_text(self.state, self.status)

    @property
    def last_error(self) -> str:
        """The kind of the last failure; `none` before one."""
        return (self.status.kind if self.status is not None else ErrorKind.NONE).value

    @property
    def expires_in(self) -> int:
        """Seconds left, or attempts left; 0 before a schedule was chosen."""
        if self.expiry is None:
            return 0
        if self.expiry.by is ExpiresBy.ATTEMPTS:
            return max(0, self.expiry.value - self.retry_num)
        return max(0, (self.message.created_ms + self.expiry.value - self.now_ms) // 1000)

    @property
    def queue_age(self) -> int:
        """Seconds since the message was accepted."""
        return max(0, (self.now_ms - self.message.created_ms) // 1000)

    @property
    def received_from_ip(self) -> str:
        """The address the message came from."""
        return self.message.from_ip

    @property
    def received_via_port(self) -> int:
        """The local port the message came through."""
        return self.message.via_port

    @property
    def source(self) -> str:
        """Where the message came from, in a word."""
        return self.message.source.value

    @property
    def size(self) -> int:
        """Size of the stored octets."""
        return self.message.size_octets


@dataclass(frozen=True, slots=True)
class HostScope(RecipientScope):
    """The scope of one host: the first recipient of the group, and the host."""

    mx: str = ""
    """The host being tried, without its final dot; empty before one is known."""
    remote_ip: str = "0.0.0.0"
    local_ip: str = "0.0.0.0"
