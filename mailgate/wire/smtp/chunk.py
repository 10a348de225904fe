"""The chunks of BDAT (RFC 3030): exactly so many octets, no dots, no end mark.

All chunks of a transaction form one text: a CRLF may be split over two of
them, and a bare CR or LF anywhere counts when the last one ends. A CR that
ends a block therefore waits for what follows, at most one octet.
"""

from __future__ import annotations

from mailgate.wire.smtp.data import BareNewline, has_bare_newline, normalized


class ChunkReader:
    """The text of all chunks of one transaction: blocks in, octets to store out.

    `binary`: with BODY=BINARYMIME the body is no sequence of lines and passes
    octet for octet; bare CR and LF matter up to the empty line that ends the
    header. `bare_newline` tells that the text so far is to be refused; never
    set where bare newlines are normalised.
    """

    __slots__ = ("_binary", "_held", "_line_start", "_lines", "_normalize", "bare_newline")

    def __init__(self, mode: BareNewline, binary: bool) -> None:
        self._normalize = mode is BareNewline.NORMALIZE
        self._binary = binary
        self._lines = True
        """What comes next is made of lines."""
        self._line_start = True
        """The text so far is empty or ends with CRLF; kept for binary text only."""
        self._held = b""
        self.bare_newline = False

    def take(self, text: bytes) -> bytes:
        """Read a block and give what is to be stored now; a CR at its end comes later."""
        if not self._lines:
            return text
        if self._held:
            text = self._held + text
        if text.endswith(b"\r"):
            self._held = b"\r"
            text = text[:-1]
        else:
            self._held = b""
        return self._checked(text) if text else b""

    def finish(self) -> bytes:
        """End the last chunk: a CR that waited stands alone after all. Gives what is still to be stored."""
        held, self._held = self._held, b""
        if not held or self._normalize:
            return b"\r\n" if held else b""
        self.bare_newline = True
        return held

    def _checked(self, text: bytes) -> bytes:
        """Text without a CR at its end, looked at for bare newlines as far as it is made of lines."""
        body = b""
        if self._binary:
            end = self._header_end(text)
            if end >= 0:
                self._lines = False
                # The CR that waits belongs to the body.
                text, body, self._held = text[:end], text[end:] + self._held, b""
        if not self.bare_newline and has_bare_newline(text):
            if self._normalize:
                text = normalized(text)
            else:
                self.bare_newline = True
        return text + body if body else text

    def _header_end(self, text: bytes) -> int:
        """The place after the empty line that ends the header, or -1."""
        if self._line_start and text.startswith(b"\r\n"):
            return 2
        end = text.find(b"\r\n\r\n")
        self._line_start = text.endswith(b"\r\n")
        return end + 4 if end >= 0 else -1
