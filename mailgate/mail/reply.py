"""SMTP replies and their wire form (RFC 5321 4.2, RFC 2034).

A `Reply` is what mailgate wants to say; `wire` puts it into octets and, for
4xx and 5xx, ends its last line with the trace id. The replies themselves are
named in `replies.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# RFC 5321 4.5.3.1.5: a reply line has at most 512 octets, CRLF included.
REPLY_LINE_OCTETS = 512


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply: three-digit `code`, RFC 3463 `enhanced` code or "", text lines.

    `bare` lines follow their code without an enhanced code (capability lists,
    VRFY answers). A text line never holds CR or LF.
    """

    code: int
    enhanced: str
    lines: tuple[str, ...]
    _plain: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_plain", self._render(""))

    @property
    def text(self) -> str:
        """The text lines joined by newlines, without codes."""
        return "\n".join(self.lines)

    @property
    def is_positive(self) -> bool:
        """True for 2xx and 3xx."""
        return self.code < 400

    @property
    def is_temporary(self) -> bool:
        """True for 4xx."""
        return 400 <= self.code < 500

    def wire(self, trace_id: str = "") -> bytes:
        """The octets to send, CRLF included; 4xx and 5xx end with `[trace_id]` when one is given."""
        if trace_id and self.code >= 400:
            return self._render(f" [{trace_id}]")
        return self._plain

    def _render(self, tail: str) -> bytes:
        last = len(self.lines) - 1
        prefix = f"{self.enhanced} " if self.enhanced else ""
        out = []
        for number, line in enumerate(self.lines):
            end = tail if number == last else ""
            head = f"{self.code}{' ' if number == last else '-'}{prefix}"
            room = REPLY_LINE_OCTETS - 2 - len(head) - len(end)
            octets = line.encode("utf-8", "replace")
            if len(octets) > room:
                # The text is cut, never the id; never in the middle of a character.
                octets = octets[:room].decode("utf-8", "ignore").encode("utf-8")
            out.append(head.encode("ascii") + octets + end.encode("ascii") + b"\r\n")
        return b"".join(out)


def reply(code: int, enhanced: str, text: str) -> Reply:
    """Make a one-line reply, or one of several lines where `text` holds newlines.

    CR is dropped and every other control character becomes a space, so that no
    text, wherever it came from, can end a reply line early.
    """
    lines = text.replace("\r", "").split("\n")
    return Reply(code, enhanced, tuple(line if line.isprintable() else _printable(line) for line in lines))


def _printable(line: str) -> str:
    return "".join(c if c >= " " and c != "\x7f" else " " for c in line)
