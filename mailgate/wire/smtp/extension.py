"""The capability list a server gives in its reply to EHLO or LHLO (RFC 5321 4.1.1.1).

What a peer offers to us is read in `answer.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from mailgate.mail.reply import Reply, reply


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What is offered in one session; SMTPUTF8, SIZE, ENHANCEDSTATUSCODES and 8BITMIME always are."""

    size: int = 0
    """The largest message in octets; 0 tells of no fixed limit (RFC 1870 4)."""
    vrfy: bool = False
    expn: bool = False
    starttls: bool = False
    requiretls: bool = False
    pipelining: bool = False
    no_soliciting: str | None = None
    """Keywords of RFC 3865; empty offers the bare keyword, None nothing."""
    mt_priority: str | None = None
    """The priority policy's name (RFC 6710): `mixer`, `stanag4406` or `nsep`."""
    future_release: timedelta | None = None
    """The longest hold (RFC 4865)."""
    dsn: bool = False
    deliver_by: timedelta | None = None
    """The longest time of BY (RFC 2852)."""
    chunking: bool = False
    """BDAT; offers BINARYMIME with it."""
    auth: tuple[str, ...] = ()
    """SASL mechanisms in the order they are listed."""

    def lines(self, now_epoch_seconds: int) -> list[str]:
        """The keyword lines in their fixed order; FUTURERELEASE tells its limit as seconds and as a moment."""
        lines = []
        if self.vrfy:
            lines.append("VRFY")
        if self.expn:
            lines.append("EXPN")
        if self.starttls:
            lines.append("STARTTLS")
        lines += ("SMTPUTF8", f"SIZE {self.size}")
        if self.requiretls:
            lines.append("REQUIRETLS")
        if self.pipelining:
            lines.append("PIPELINING")
        if self.no_soliciting is not None:
            lines.append(f"NO-SOLICITING {self.no_soliciting}".rstrip())
        if self.mt_priority is not None:
            lines.append(f"MT-PRIORITY {self.mt_priority.upper()}")
        if self.future_release is not None:
            seconds = int(self.future_release.total_seconds())
            lines.append(f"FUTURERELEASE {seconds} {now_epoch_seconds + seconds}")
        lines.append("ENHANCEDSTATUSCODES")
        if self.dsn:
            lines.append("DSN")
        if self.deliver_by is not None:
            lines.append(f"DELIVERBY {int(self.deliver_by.total_seconds())}")
        if self.chunking:
            lines += ("CHUNKING", "BINARYMIME")
        if self.auth:
            lines.append(f"AUTH {' '.join(self.auth)}")
        lines.append("8BITMIME")
        return lines


def ehlo_reply(hostname: str, capabilities: Capabilities, now_epoch_seconds: int) -> Reply:
    """The 250 to EHLO or LHLO: our name, then a line per capability."""
    return reply(250, "", "\n".join([f"{hostname} at your service", *capabilities.lines(now_epoch_seconds)]))


def helo_reply(hostname: str) -> Reply:
    """The 250 to HELO: one line, no capabilities (RFC 5321 3.2)."""
    return reply(250, "", f"{hostname} at your service")
