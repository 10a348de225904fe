r"""The form of a drop: one message in the maildrop, its envelope in front of it.

    mailgate-drop 1 CONTENT ENVELOPE BITS\n     two sizes in octets with leading zeros, and 7 or 8
    {"sender": "a@b.test", "recipients": [...]}\n
    content, lines ended by CR LF

The sizes are written last, into the room that was left for them: a file whose
writing was cut short says so itself. What is read here was written by any user
of the host, so every value is looked at, and what is wrong raises `NotADrop`.
No Twisted, and little else: `sendmail` has to start at once.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

HEAD_OCTETS = 50
ENVELOPE_OCTETS = 4 * 1024 * 1024
"""The longest envelope; room for some 50,000 recipients."""

_HEAD = re.compile(rb"mailgate-drop 1 ([0-9]{20}) ([0-9]{10}) ([78])\n")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NOTIFY = frozenset({"SUCCESS", "FAILURE", "DELAY"})
_PRINTABLE = re.compile(r"[!-~]+")
# RFC 5321 4.5.3.1, RFC 3461 4.4 and 4.2: what the limits of the session leave anyway, and then some.
_ADDRESS_OCTETS = 1000


class NotADrop(Exception):
    """A file in the maildrop that is no message of `sendmail`; the text says why."""


class DropRecipient(NamedTuple):
    """One recipient of a drop."""

    address: str
    """`local@domain`, or a local part alone."""
    notify: str = ""
    """The words of NOTIFY, or empty where they were not given."""
    orcpt: str = ""
    """ORCPT without `rfc822;`, decoded."""


class DropEnvelope(NamedTuple):
    """What `sendmail` was told beside the message."""

    sender: str
    """As an address of a recipient; empty for the null sender."""
    recipients: tuple[DropRecipient, ...]
    ret: str = ""
    """FULL, HDRS, or empty."""
    envid: str = ""
    """ENVID, decoded."""
    smtputf8: bool = False

    @property
    def octets(self) -> bytes:
        """As it stands in the file, its newline included."""
        document: dict[str, object] = {"sender": self.sender}
        document["recipients"] = [
            recipient.address if recipient[1:] == ("", "") else recipient._asdict() for recipient in self.recipients
        ]
        for name, value in (("ret", self.ret), ("envid", self.envid), ("smtputf8", self.smtputf8)):
            if value:
                document[name] = value
        return json.dumps(document, separators=(",", ":")).encode("ascii") + b"\n"


class DropHead(NamedTuple):
    """The first line of a drop."""

    content_octets: int
    envelope_octets: int
    eight_bit: bool

    @property
    def octets(self) -> bytes:
        """As it stands in the file."""
        bits = 8 if self.eight_bit else 7
        return b"mailgate-drop 1 %020d %010d %d\n" % (self.content_octets, self.envelope_octets, bits)

    @classmethod
    def of(cls, octets: bytes, size_octets: int) -> DropHead:
        """Read it; `size_octets` is the whole file's. Raises `NotADrop`."""
        found = _HEAD.fullmatch(octets)
        if found is None:
            raise NotADrop("the file was not finished" if octets.startswith(UNFINISHED[:16]) else "no drop of sendmail")
        head = cls(int(found[1]), int(found[2]), found[3] == b"8")
        if head.envelope_octets > ENVELOPE_OCTETS:
            raise NotADrop(f"the envelope is longer than {ENVELOPE_OCTETS} octets")
        if HEAD_OCTETS + head.envelope_octets + head.content_octets != size_octets:
            raise NotADrop("the file does not have the size it names")
        return head


UNFINISHED = b"mailgate-drop 1 " + b"-" * 20 + b" " + b"-" * 10 + b" -\n"
"""What stands in the place of the first line while the file is being written."""


def read_envelope(octets: bytes) -> DropEnvelope:
    """Read an envelope. Raises `NotADrop` for anything that `sendmail` would not have written."""
    try:
        document = json.loads(octets)
    except (ValueError, RecursionError):
        raise NotADrop("the envelope is no JSON") from None
    if not isinstance(document, dict):
        raise NotADrop("the envelope is no JSON object")
    recipients = document.get("recipients")
    if not isinstance(recipients, list) or not recipients:
        raise NotADrop("the envelope has no recipients")
    ret, envid = _text(document, "ret"), _text(document, "envid")
    if ret not in ("", "FULL", "HDRS"):
        raise NotADrop("the envelope's ret is neither FULL nor HDRS")
    if envid and (len(envid) > 100 or not _PRINTABLE.fullmatch(envid)):
        raise NotADrop("the envelope's envid is not printable, or longer than 100 octets")
    return DropEnvelope(
        _address(document.get("sender"), may_be_null=True),
        tuple(_recipient(each) for each in recipients),
        ret,
        envid,
        document.get("smtputf8") is True,
    )


def notify_words(text: str) -> str:
    """NOTIFY as the envelope has it: `NEVER`, or words of SUCCESS, FAILURE, DELAY. Raises `ValueError`."""
    words = [word.strip() for word in text.upper().split(",")]
    if words != ["NEVER"] and (not _NOTIFY.issuperset(words) or len(set(words)) != len(words)):
        raise ValueError("write never, or some of success,failure,delay")
    return ",".join(words)


def _recipient(given: object) -> DropRecipient:
    if isinstance(given, str):
        return DropRecipient(_address(given))
    if not isinstance(given, dict):
        raise NotADrop("a recipient of the envelope is neither a text nor an object")
    notify, orcpt = _text(given, "notify"), _text(given, "orcpt")
    try:
        notify = notify_words(notify) if notify else ""
    except ValueError:
        raise NotADrop("a recipient's notify has other words than those of NOTIFY") from None
    return DropRecipient(_address(given.get("address")), notify, orcpt)


def _text(document: dict[str, object], name: str) -> str:
    value = document.get(name, "")
    if not isinstance(value, str) or len(value) > _ADDRESS_OCTETS or _CONTROL.search(value):
        raise NotADrop(f"the envelope's {name} is no text of one line")
    return value


def _address(value: object, *, may_be_null: bool = False) -> str:
    if value == "" and may_be_null:
        return ""
    if not isinstance(value, str) or not value or _CONTROL.search(value):
        raise NotADrop("an address of the envelope is no text of one line")
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise NotADrop("an address of the envelope is no UTF-8") from None
    if length > _ADDRESS_OCTETS:
        raise NotADrop(f"an address of the envelope is longer than {_ADDRESS_OCTETS} octets")
    return value
