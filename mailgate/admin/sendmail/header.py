"""The header of a message as a user hands it in, and as it is kept (RFC 5322 3.6, RFC 6409 8).

Found in what comes first: an `mbox` line is left out, and text that is no
header field begins the body. Bcc and Return-Path are taken out; From, Date and
Message-ID are added where they are missing. Every other field keeps its octets.
"""

from __future__ import annotations

import os
import re
import time
from base64 import b64encode
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mailgate.mail.address_list import BadAddress, addresses

HEADER_OCTETS = 1024 * 1024
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:")
_MBOX = re.compile(rb">?From ")
_RECIPIENTS = (b"to", b"cc", b"bcc")
_RESENT = tuple(b"resent-" + name for name in _RECIPIENTS)
_NOT_KEPT = (b"bcc", b"resent-bcc", b"return-path")
# RFC 5322 3.2.3 and 3.2.4.
_PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]+")
_ENCODED_OCTETS = 45
"""What of a name goes into one encoded word: it has 75 characters at most (RFC 2047 2)."""
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class HeaderTooLong(Exception):
    """The header does not end within `HEADER_OCTETS`."""


class Author(NamedTuple):
    """Who a message is from when it does not say so itself."""

    name: str
    address: str
    hostname: str
    """What Message-ID ends with."""


class Header:
    """The fields of one message, their folding and their octets kept."""

    def __init__(self, fields: Iterable[bytes]) -> None:
        """Each field ends with CR LF."""
        self._fields = [(_name(field), field) for field in fields]

    def recipients(self) -> list[str]:
        """The addresses of To, Cc and Bcc; of a message that is sent again, of the Resent fields alone.

        Raises `BadAddress`.
        """
        names = {name for name, _ in self._fields}
        wanted = _RESENT if names.intersection(_RESENT) else _RECIPIENTS
        found: list[str] = []
        for name, field in self._fields:
            if name in wanted:
                value = field.partition(b":")[2]
                try:
                    found += addresses(value.decode("utf-8"))
                except UnicodeDecodeError:
                    raise BadAddress(f"{name.decode().capitalize()} is no UTF-8 text") from None
        return found

    def kept(self, author: Author, now: float) -> bytes:
        """The header as it is kept, without the empty line at its end."""
        names = {name for name, _ in self._fields}
        octets = b"".join(field for name, field in self._fields if name not in _NOT_KEPT)
        if b"date" not in names:
            octets += f"Date: {date_time(now)}\r\n".encode("ascii")
        if b"from" not in names:
            octets += from_field(author)
        if b"message-id" not in names:
            unique = f"{int(now * 1000):x}.{os.urandom(12).hex()}"
            octets += f"Message-ID: <{unique}@{author.hostname}>\r\n".encode("utf-8", "replace")
        return octets


def split(blocks: Iterator[bytes]) -> tuple[Header, bytes]:
    """Read the header; what of the body came with it is the second value, the rest is still to be read.

    Raises `HeaderTooLong`.
    """
    text = b""
    for block in blocks:
        text += block
        found = _split(text)
        if found is not None:
            return found
        if len(text) > HEADER_OCTETS:
            raise HeaderTooLong(f"the header does not end within {HEADER_OCTETS} octets")
    return _split(text, whole=True) or (Header(()), text)


def _split(text: bytes, *, whole: bool = False) -> tuple[Header, bytes] | None:
    """The fields at the start of a text and what follows them; None when more has to come before that is known."""
    fields: list[bytes] = []
    at = 0
    while (end := text.find(b"\r\n", at)) >= 0:
        line = text[at : end + 2]
        if line == b"\r\n":
            return Header(fields), text[end + 2 :]
        if line[:1] in (b" ", b"\t") and fields:
            fields[-1] += line
        elif _FIELD.match(line) is not None:
            fields.append(line)
        elif at or _MBOX.match(line) is None:
            return Header(fields), text[at:]
        at = end + 2
    return (Header(fields), text[at:]) if whole else None


def _name(field: bytes) -> bytes:
    found = _FIELD.match(field)
    return found[1].lower() if found is not None else b""


def from_field(author: Author) -> bytes:
    """A From field: the name as it may stand in one, and the address."""
    local, at, domain = author.address.rpartition("@")
    if not at:
        local, domain = domain, ""
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\u0080-\U0010ffff-]+", local) or ".." in f".{local}.":
        local = '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'
    address = f"{local}@{domain}" if at else local
    name = " ".join("".join(c if c.isprintable() else " " for c in author.name).split())
    field = f"From: {_phrase(name)} <{address}>" if name else f"From: {address}"
    return field.encode("utf-8", "replace") + b"\r\n"


def _phrase(name: str) -> str:
    if not name.isascii():
        return "\r\n ".join(_encoded_words(name))
    return name if _PHRASE.fullmatch(name) else '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _encoded_words(text: str) -> Iterator[str]:
    part = b""
    for character in text:
        octets = character.encode("utf-8", "replace")
        if len(part) + len(octets) > _ENCODED_OCTETS:
            yield f"=?utf-8?b?{b64encode(part).decode('ascii')}?="
            part = b""
        part += octets
    yield f"=?utf-8?b?{b64encode(part).decode('ascii')}?="


def date_time(epoch_seconds: float) -> str:
    """A date-time of RFC 5322 3.3 in the local zone; the names are English whatever the locale is."""
    at = time.localtime(epoch_seconds)
    minutes = (at.tm_gmtoff or 0) // 60
    sign, (hours, minutes) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
    return (
        f"{_DAYS[at.tm_wday]}, {at.tm_mday:02d} {_MONTHS[at.tm_mon - 1]} {at.tm_year:04d} "
        f"{at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d} {sign}{hours:02d}{minutes:02d}"
    )
