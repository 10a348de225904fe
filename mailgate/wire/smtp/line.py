"""Lines out of a stream of octets (RFC 5321 2.3.8): CRLF alone ends one.

A bare CR or LF is a fault the moment it is recognised: a client that ends its
lines with LF alone is told at once instead of waiting for a time-out. A line
over the limit is discarded up to its CRLF. Shared by commands and SASL
responses; message data is not read by line (`data.py`).
"""

from __future__ import annotations

from enum import Enum

# RFC 5321 4.5.3.1.4 asks for 512 octets at least, extensions add to that.
LINE_OCTETS = 4096

_CR = 13


class Fault(Enum):
    """Why a line cannot be had."""

    BARE_NEWLINE = "bare-newline"
    TOO_LONG = "too-long"


class LineBuffer:
    """Octets received and not yet understood, with a place in them.

    Unread octets never exceed one line and what one `receive` brought.
    `octets` and `at` are public for those who take blocks instead of lines.
    """

    __slots__ = ("_discarding", "at", "octets")

    def __init__(self) -> None:
        self.octets = b""
        self.at = 0
        self._discarding = False

    def receive(self, octets: bytes) -> None:
        """Append what was read."""
        at = self.at
        if at < len(self.octets):
            octets = self.octets[at:] + octets
        self.octets = octets
        self.at = 0

    def clear(self) -> None:
        """Drop everything."""
        self.octets = b""
        self.at = 0
        self._discarding = False

    def take(self, most: int) -> bytes:
        """Take a block of at most so many octets; empty when there are none."""
        at = self.at
        block = self.octets[at : at + most]
        self.at = at + len(block)
        return block

    def compact(self) -> None:
        """Let go of the memory of what has been taken."""
        self.octets = self.octets[self.at :]
        self.at = 0

    def line(self) -> bytes | Fault | None:
        """Take the next line without its CRLF; None until more arrives.

        A line of more than `LINE_OCTETS`, CRLF included, is discarded and
        reported once its end has come; until then only its last octet is
        kept. After `BARE_NEWLINE` the place is undefined: close the
        connection.
        """
        octets = self.octets
        at = self.at
        end = octets.find(b"\n", at)
        if end < 0:
            return self._unfinished()
        if end == at or octets[end - 1] != _CR:
            return Fault.BARE_NEWLINE
        self.at = end + 1
        line = octets[at : end - 1]
        if b"\r" in line:
            return Fault.BARE_NEWLINE
        if self._discarding or end + 1 - at > LINE_OCTETS:
            self._discarding = False
            return Fault.TOO_LONG
        return line

    def _unfinished(self) -> Fault | None:
        """Keep what may become a line: at most one, or its last octet when it is too long already."""
        rest = self.octets[self.at :] if self.at else self.octets
        carriage_return = rest.find(b"\r")
        if 0 <= carriage_return < len(rest) - 1:
            return Fault.BARE_NEWLINE
        if len(rest) >= LINE_OCTETS:
            self._discarding = True
        if self._discarding:
            # Only a CR at the very end can still matter.
            rest = b"\r" if carriage_return >= 0 else b""
        self.octets = rest
        self.at = 0
        return None
