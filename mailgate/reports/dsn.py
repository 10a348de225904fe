"""Delivery status notifications: who is told what, and the message that tells it.

RFC 3461 (when), RFC 3464 (the machine-readable part), RFC 6522 (multipart/report),
RFC 6533 (addresses outside ASCII). One DSN tells everything one evaluation found:
successes, delays and failures, in this order. A DSN goes to the return path from
the null sender and asks for no notification itself, so it can never answer one.

Pure: what the caller has read goes in, octets come out. `submit.py` makes a queue
entry of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.header import Header
from email.utils import format_datetime
from enum import Enum
from quopri import encodestring

from mailgate.mail.envelope import Notify
from mailgate.mail.path import Path
from mailgate.mail.status import ErrorKind
from mailgate.queue.item import ExpiresBy, QueuedRecipient, QueueItem, State
from mailgate.reports.wording import dsn_line, one_line, remote_host

# How much of the original's header block a DSN carries back.
HEADER_OCTETS = 4096
# RFC 5322 2.1.1.
_LINE_OCTETS = 998


class Kind(Enum):
    """What a recipient is notified of; the value is the word of `Action` (RFC 3464 2.3.3)."""

    SUCCESS = "delivered"
    DELAY = "delayed"
    FAILURE = "failed"


# RFC 3464 2.3.3: in place of `delivered`, where the next host cannot keep what the sender asked for.
_RELAYED = "relayed"
_FLAGS = {Kind.SUCCESS: Notify.SUCCESS, Kind.DELAY: Notify.DELAY, Kind.FAILURE: Notify.FAILURE}


def kind_due(recipient: QueuedRecipient, now_ms: int) -> Kind | None:
    """What there is to tell of this recipient now, whether or not somebody wants to know."""
    if recipient.dsn_sent:
        return None
    if recipient.state is State.COMPLETED:
        return Kind.SUCCESS
    if recipient.state is State.PERM_FAIL:
        return Kind.FAILURE
    # Who is held waits for an operator: nothing is being tried.
    if recipient.notify_due_ms is not None and recipient.notify_due_ms <= now_ms and not recipient.held:
        return Kind.DELAY
    return None


def is_wanted(recipient: QueuedRecipient, kind: Kind) -> bool:
    """Whether the recipient's NOTIFY flags ask for this kind (RFC 3461 4.1)."""
    return bool(recipient.notify & _FLAGS[kind]) and not recipient.notify & Notify.NEVER


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who reports: `report.submitter`, `report.dsn.from-name`, `report.dsn.from-address`."""

    submitter: str
    from_name: str
    from_address: str


@dataclass(frozen=True, slots=True)
class Dsn:
    """A finished DSN: its octets, and how they must travel."""

    octets: bytes
    eight_bit: bool
    smtputf8: bool


def header_block(octets: bytes) -> bytes:
    """The header of a message up to and including its blank line, at most 4096 octets.

    A longer one is cut at the end of a line, so that no character and no line end is cut in two.
    """
    end = octets.find(b"\r\n\r\n")
    if 0 <= end <= HEADER_OCTETS - 4:
        return octets[: end + 4]
    if len(octets) <= HEADER_OCTETS:
        return octets
    cut = octets[:HEADER_OCTETS]
    line_end = cut.rfind(b"\r\n")
    return cut[: line_end + 2] if line_end >= 0 else cut.rstrip(b"\r")


def compose(
    item: QueueItem,
    told: Sequence[tuple[QueuedRecipient, Kind]],
    original: bytes,
    reporter: Reporter,
    queue_id: str,
    now_ms: int,
    is_whole: bool = False,
) -> Dsn:
    """Build the DSN about `told` (at least one), in the order of the message's recipients.

    `original` is the third part as it is: the header block, the whole message
    (`is_whole`), or empty. `queue_id` is the DSN's own, of which its Message-ID is made.
    """
    # RFC 6533 4: the UTF-8 forms go to who spoke SMTPUTF8, and only where they are needed.
    texts = [item.return_path, *(recipient.address for recipient, _ in told)]
    smtputf8 = item.smtputf8 and not (all(text.isascii() for text in texts) and header_block(original).isascii())
    parts = [
        _part("text/plain; charset=utf-8", *_text_encoding(_text(item, told))),
        _part(
            "message/global-delivery-status" if smtputf8 else "message/delivery-status",
            _status_part(item, told, reporter, now_ms, smtputf8),
        ),
        _part(_third_type(smtputf8, is_whole), original),
    ]
    boundary = f"mailgate-{queue_id}"
    while any(boundary.encode() in part for part in parts):
        boundary += "x"
    eight_bit = not all(part.isascii() for part in parts)
    body = b"".join(b"--%b\r\n%b\r\n" % (boundary.encode(), part) for part in parts)
    header = _header(item, told, reporter, queue_id, now_ms, boundary, eight_bit)
    head = header.encode("utf-8", "replace")
    note = b"This is a report in the format of RFC 3464.\r\n\r\n"
    octets = b"%b\r\n%b%b--%b--\r\n" % (head, note, body, boundary.encode())
    return Dsn(octets, eight_bit or not head.isascii(), smtputf8)


def _third_type(smtputf8: bool, is_whole: bool) -> str:
    # RFC 6533 4.2, 4.3.
    if smtputf8:
        return "message/global" if is_whole else "message/global-headers"
    return "message/rfc822"


def _header(
    item: QueueItem,
    told: Sequence[tuple[QueuedRecipient, Kind]],
    reporter: Reporter,
    queue_id: str,
    now_ms: int,
    boundary: str,
    eight_bit: bool,
) -> str:
    fields = [
        ("From", f"{_phrase(reporter.from_name)} {Path.parse(one_line(reporter.from_address)).wire}"),
        ("To", Path.parse(one_line(item.return_path)).wire[1:-1]),
        ("Subject", _subject({kind for _, kind in told})),
        ("Auto-Submitted", "auto-generated"),
        ("Date", _date(now_ms)),
        ("Message-ID", f"<{queue_id}.{now_ms:x}@{one_line(reporter.submitter)}>"),
        ("MIME-Version", "1.0"),
        ("Content-Type", f'multipart/report; report-type="delivery-status";\r\n\tboundary="{boundary}"'),
    ]
    if eight_bit:
        fields.append(("Content-Transfer-Encoding", "8bit"))
    return "".join(f"{name}: {value}\r\n" for name, value in fields)


def _phrase(name: str) -> str:
    """A display name as RFC 5322 and RFC 2047 want it."""
    name = one_line(name)
    if not name.isascii():
        return Header(name, "utf-8", maxlinelen=75, header_name="From").encode(linesep="\r\n")
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _subject(kinds: set[Kind]) -> str:
    if kinds == {Kind.SUCCESS}:
        return "Successfully delivered message"
    if kinds == {Kind.DELAY}:
        return "Warning: Delay in message delivery"
    if kinds == {Kind.FAILURE}:
        return "Failed to deliver message"
    if Kind.SUCCESS in kinds:
        return "Partially delivered message"
    return "Warning: Temporary and permanent failures during message delivery"


_ONLY = {
    Kind.SUCCESS: "Your message has been delivered to the following recipients:",
    Kind.DELAY: "There was a temporary problem delivering your message to the following\r\n"
    "recipients. Delivery is still being tried; there is nothing you need to do.",
    Kind.FAILURE: "Your message could not be delivered to the following recipients.\r\nIt will not be tried again:",
}
_PARTLY = "Your message has been delivered to some of its recipients only."
_NOT_REACHED = "Your message has not reached the following recipients."
_TITLES = {
    Kind.SUCCESS: "Delivered to:",
    Kind.DELAY: "Delayed, still being tried:",
    Kind.FAILURE: "Failed, will not be tried again:",
}


def _text(item: QueueItem, told: Sequence[tuple[QueuedRecipient, Kind]]) -> str:
    kinds = [kind for kind in Kind if any(of is kind for _, of in told)]
    lines = []
    if len(kinds) == 1:
        lines += [_ONLY[kinds[0]], ""]
    else:
        lines += [_PARTLY if Kind.SUCCESS in kinds else _NOT_REACHED, ""]
    for kind in kinds:
        if len(kinds) > 1:
            lines += [_TITLES[kind], ""]
        lines += [dsn_line(recipient) for recipient, of in told if of is kind]
        lines.append("")
    lines.append(f"The queue id of the message is {item.id_text}.")
    return "\r\n".join(lines) + "\r\n"


def _text_encoding(text: str) -> tuple[bytes, str]:
    """The octets of a text and their transfer encoding: quoted-printable where 7bit will not do."""
    octets = text.encode("utf-8", "replace")
    if octets.isascii() and max(map(len, octets.split(b"\r\n"))) <= _LINE_OCTETS:
        return octets, "7bit"
    return encodestring(octets.replace(b"\r\n", b"\n")).replace(b"\n", b"\r\n"), "quoted-printable"


def _part(content_type: str, octets: bytes, encoding: str = "") -> bytes:
    encoding = encoding or ("7bit" if octets.isascii() else "8bit")
    head = f"Content-Type: {content_type}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    return head.encode("ascii") + octets


def _status_part(
    item: QueueItem, told: Sequence[tuple[QueuedRecipient, Kind]], reporter: Reporter, now_ms: int, utf8: bool
) -> bytes:
    message = [f"Reporting-MTA: dns;{reporter.submitter}", f"Arrival-Date: {_date(item.created_ms)}"]
    if item.env_id is not None:
        message.append(f"Original-Envelope-Id: {item.env_id}")
    message.append(f"X-Mailgate-Queue-ID: {item.id_text}")
    blocks = [message, *(_recipient_fields(item, recipient, kind, now_ms, utf8) for recipient, kind in told)]
    text = "\r\n".join("".join(_field(line) for line in block) for block in blocks)
    return text.encode("utf-8", "replace") if utf8 else text.encode("ascii", "replace")


def _field(line: str) -> str:
    octets = one_line(line).encode("utf-8", "replace")
    # Only a diagnostic can be this long; its beginning says enough.
    return octets[:_LINE_OCTETS].decode("utf-8", "ignore") + "\r\n"


def _recipient_fields(item: QueueItem, recipient: QueuedRecipient, kind: Kind, now_ms: int, utf8: bool) -> list[str]:
    status = recipient.status
    fields = []
    if recipient.orcpt is not None:
        fields.append(f"Original-Recipient: {_typed_address(recipient.orcpt, utf8)}")
    fields.append(f"Final-Recipient: {_typed_address(recipient.address, utf8)}")
    fields.append(f"Action: {_RELAYED if status is not None and status.relayed else kind.value}")
    fields.append(f"Status: {_status_code(recipient, kind)}")
    if status is not None and status.kind is ErrorKind.UNEXPECTED_REPLY and status.reply is not None:
        fields.append(f"Diagnostic-Code: smtp;{status.reply.code} {status.reply.text}")
    host = remote_host(recipient)
    if host:
        fields.append(f"Remote-MTA: dns;{host}")
    expiry = recipient.expiry
    if kind is Kind.DELAY and expiry.by is ExpiresBy.TTL and item.created_ms + expiry.value > now_ms:
        fields.append(f"Will-Retry-Until: {_date(item.created_ms + expiry.value)}")
    return fields


def _status_code(recipient: QueuedRecipient, kind: Kind) -> str:
    reply = recipient.status.reply if recipient.status is not None else None
    if reply is not None:
        return reply.enhanced if reply.enhanced not in ("", "0.0.0") else ".".join(str(reply.code))
    return {Kind.SUCCESS: "2.0.0", Kind.DELAY: "4.0.0", Kind.FAILURE: "5.0.0"}[kind]


def _typed_address(address: str, utf8: bool) -> str:
    if address.isascii():
        return f"rfc822;{address}"
    if utf8:
        return f"utf-8;{address}"
    # RFC 6533 3: utf-8-addr-xtext, for where octets above ASCII cannot go.
    return "utf-8;" + re.sub(r"[^!-\[\]-~]|[\\+=]", lambda found: f"\\x{{{ord(found[0]):02X}}}", address)


def _date(ms: int) -> str:
    return format_datetime(datetime.fromtimestamp(ms // 1000, UTC))
