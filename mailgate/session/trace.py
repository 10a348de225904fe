"""The fields mailgate adds above a message: Received, Return-Path, Date, Message-ID (RFC 5321 4.4).

Pure text making: which of them are added is decided in `stages/data.py`.
"""

from __future__ import annotations

import re
import secrets
import time
from email.utils import formatdate

from mailgate.mail.path import Path
from mailgate.mail.session import Session

_PLAIN_NAME = re.compile(r"[A-Za-z0-9.\[\]:_-]+")
# What is no letter, digit or mark of a host name or address literal.
_ODD = re.compile(r"[^\w.\[\]:+-]")


class DateText:
    """RFC 5322 date-times, made once a second."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def at(self, epoch_seconds: float) -> str:
        """The date-time of a moment in the local zone, for example `Fri, 20 Nov 2026 11:00:00 +0100`."""
        second = int(epoch_seconds)
        if second != self._second:
            self._text = formatdate(second, localtime=True)
            self._second = second
        return self._text


def transmission_type(session: Session) -> str:
    """The WITH word of Received: SMTP after HELO, else ESMTP or LMTP with `S` for TLS and `A` for AUTH (RFC 3848)."""
    suffixes = ("S" if session.tls is not None else "") + ("A" if session.identity is not None else "")
    if session.is_lmtp:
        return "LMTP" + suffixes
    return "ESMTP" + suffixes if session.extended or suffixes else "SMTP"


def received(session: Session, queue_id: int, date: str) -> bytes:
    """The Received field of a message taken in this session (RFC 5321 4.4)."""
    helo = _name(session.helo) if session.helo else "unknown"
    tls = session.tls
    using = f"\r\n\t(using {tls.version} with cipher {tls.cipher})" if tls is not None else ""
    return (
        f"Received: from {helo} (unknown [{session.remote_ip}]){using}\r\n"
        f"\tby {session.hostname} (mailgate) with {transmission_type(session)} id {queue_id:016X};\r\n"
        f"\t{date}\r\n"
    ).encode("utf-8", "replace")


def _name(text: str) -> str:
    """The client's own words without what could end the field, or pass for another part of it."""
    return text if _PLAIN_NAME.fullmatch(text) else _ODD.sub("?", text)


def return_path(path: Path) -> bytes:
    """The Return-Path field: local part as given, domain in lower case, `<>` when null."""
    return b"Return-Path: %s\r\n" % Path(path.local, path.domain.lower()).wire.encode("utf-8", "replace")


def date_field(date: str) -> bytes:
    """A Date field for a message that has none."""
    return f"Date: {date}\r\n".encode("ascii")


def message_id(hostname: str) -> bytes:
    """A Message-ID field for a message that has none: random and time, unique for good."""
    return f"Message-ID: <{secrets.token_hex(12)}.{time.time_ns() // 1_000_000:x}@{hostname}>\r\n".encode(
        "utf-8", "replace"
    )
