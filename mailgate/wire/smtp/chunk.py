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

    __slots__ = ("_held", "_line_start", "_lines", "_normalize", "bare_newline", "left")

    def __init__(self, mode: BareNewline, binary: bool) -> None:
        self._normalize = mode is BareNewline.NORMALIZE
        self._lines = True
        """Whether what comes next is made of lines."""
        self._line_start: bool | None = True if binary else None
        """Binary only: the text so far is empty or ends with CRLF."""
        self._held = b""
        self.bare_newline = False
        self.left = 0
        """Octets of the present chunk still to come."""

    def begin(self, size: int) -> None:
        """Begin a chunk of `size` octets."""
        self.left = size

    def take(self, octets: bytes, at: int) -> tuple[bytes, int]:
        """Read a block from `at`; give what is to be stored and the place of the first octet not used."""
        used = min(len(octets), at + self.left)
        self.left -= used - at
        text = octets[at:used]
        if not self._lines:
            return text, used
        if self._held:
            text = self._held + text
        if text.endswith(b"\r"):
            self._held = b"\r"
            text = text[:-1]
        else:
            self._held = b""
        return (self._checked(text) if text else b""), used

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
        if self._line_start is not None:
            end = self._header_end(text)
            if end >= 0:
                self._lines = False
                # The CR that waits belongs to the body.
                text, body, self._held = text[:end], text[end:] + self._held, b""
        if has_bare_newline(text):
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
