"""Message text after DATA: its end, its dots, and bare CR or LF (RFC 5321 4.5.2, 2.3.8).

Only CR LF "." CR LF ends a message. Everything else that looks like it
(LF.LF, CR.CRLF and the rest of the smuggling family) is text, in both modes.
Blocks are taken as they come; between two of them at most two octets stay
behind: what may yet become an end mark or half a CRLF.
"""

from __future__ import annotations

from enum import Enum
from io import IncrementalNewlineDecoder

END_MARK = b"\r\n.\r\n"
_CR = 13


class BareNewline(Enum):
    """What becomes of a message with a bare CR or LF (`session.bare-newline`)."""

    REJECT = "reject"
    """It is read to its end and reported."""
    NORMALIZE = "normalize"
    """Each bare CR and each bare LF is stored as CRLF."""


def has_bare_newline(octets: bytes) -> bool:
    """Whether a CR or LF stands alone; a CR as last octet counts.

    The decoder of universal newlines keeps a list of the kinds it met and
    reads at memory speed; counting the three kinds costs four times as much.
    """
    kinds = IncrementalNewlineDecoder(None, translate=False)
    kinds.decode(octets.decode("latin-1"), final=True)
    return kinds.newlines not in (None, "\r\n")


def normalized(octets: bytes) -> bytes:
    """The octets with each CRLF, each bare CR and each bare LF as CRLF."""
    return octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


class DataReader:
    """One message after its 354: blocks in, octets to store out.

    `ended` tells that the end mark has been read; `bare_newline` that the
    text is to be refused, never set where bare newlines are normalised.
    """

    __slots__ = ("_line_start", "_normalize", "bare_newline", "ended")

    def __init__(self, mode: BareNewline) -> None:
        self._normalize = mode is BareNewline.NORMALIZE
        # The CRLF of the DATA line counts: RFC 5321 4.1.1.4 ends an empty message with ".CRLF" alone.
        self._line_start = True
        self.bare_newline = False
        self.ended = False

    def take(self, octets: bytes, at: int) -> tuple[bytes, int]:
        """Read a block from `at`; give what is to be stored and the place of the first octet not used.

        The octets from that place on must come again in front of the next
        block; once `ended`, they are no part of the message.
        """
        start = at
        if self._line_start and octets[at : at + 1] == b".":
            if octets[at : at + 3] == b".\r\n":
                self.ended = True
                return b"", at + 3
            if len(octets) - at < 2 or (len(octets) - at == 2 and octets[at + 1] == _CR):
                return b"", at
            start = at + 1
        # Searching backwards is several times faster, and mostly there is nothing to find but the end mark.
        dot = octets.rfind(b"\r\n.", start)
        if dot < 0:
            stop, used = self._unended(octets, start)
            text = octets[start:stop]
        elif octets.startswith(END_MARK, dot) and octets.rfind(b"\r\n.", start, dot) < 0:
            self.ended = True
            text, used = octets[start : dot + 2], dot + 5
        else:
            end = octets.find(END_MARK, start)
            if end < 0:
                stop, used = self._unended(octets, start)
            else:
                self.ended = True
                stop, used = end + 2, end + 5
            text = octets[start:stop].replace(b"\r\n.", b"\r\n")
        if not text:
            return b"", used
        if not self.bare_newline and has_bare_newline(text):
            if self._normalize:
                text = normalized(text)
            else:
                self.bare_newline = True
        return text, used

    def _unended(self, octets: bytes, start: int) -> tuple[int, int]:
        """Where the text of a block without an end mark stops: before half a CRLF or half an end mark."""
        stop = len(octets)
        if octets.endswith(b"\r\n.\r", start):
            stop -= 2
        elif octets.endswith((b"\r\n.", b"\r"), start):
            stop -= 1
        if stop > start:
            self._line_start = octets.endswith(b"\r\n", start, stop)
        return stop, stop
