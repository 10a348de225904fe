"""The replies of an SMTP or LMTP server, read (RFC 5321 4.2, RFC 2034, RFC 1869).

Lenient where replies are concerned: a bare LF ends a line, a missing text is
an empty one. Strict in size: a reply has at most 512 lines and 64 KiB.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mailgate.mail.reply import reply
from mailgate.wire.smtp.error import RemoteError

REPLY_LINES = 512
REPLY_OCTETS = 64 * 1024

NO_ENHANCED_CODE = "0.0.0"

# RFC 2034 4: class "." subject "." detail, then a space or the line's end.
_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: +|$)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class MalformedReply(RemoteError):
    """The peer sent something that is no SMTP reply; nothing after it can be trusted."""

    def __init__(self, problem: str) -> None:
        super().__init__(reply(451, "4.5.0", problem))


class Answer(NamedTuple):
    """One reply: code, enhanced code (`0.0.0` if it gave none), lines without either."""

    code: int
    enhanced: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The lines joined by newlines."""
        return "\n".join(self.lines)

    @property
    def is_positive(self) -> bool:
        """True for 2xx."""
        return 200 <= self.code < 300

    @property
    def is_last(self) -> bool:
        """True where the server goes on to the next command: not for 421, nor for what asks for more, nor for no code.

        RFC 5321 4.2.1: 2xx, 4xx and 5xx end a command; 3.8: after 421 the server closes.
        """
        return self.is_positive or (400 <= self.code < 600 and self.code != 421)

    @property
    def is_permanent(self) -> bool:
        """True for 5xx; everything else that was not asked for counts as temporary."""
        return 500 <= self.code < 600


class AnswerReader:
    """Cuts a stream of octets into replies; holds at most one unfinished reply."""

    __slots__ = ("_at", "_buffer", "_lines", "_octets")

    def __init__(self) -> None:
        self._buffer = b""
        self._at = 0
        self._lines: list[bytes] = []
        self._octets = 0

    def receive(self, octets: bytes) -> None:
        """Take what the transport read."""
        if self._at < len(self._buffer):
            self._buffer = self._buffer[self._at :] + octets
        else:
            self._buffer = octets
        self._at = 0

    @property
    def has_input(self) -> bool:
        """True while octets, whole replies or not, wait to be read."""
        return self._at < len(self._buffer) or bool(self._lines)

    def drop(self) -> None:
        """Forget everything received so far."""
        self._buffer = b""
        self._at = self._octets = 0
        self._lines = []

    def next(self) -> Answer | None:
        """The next whole reply, or None until more arrives. Raises `MalformedReply`."""
        buffer, at = self._buffer, self._at
        while True:
            end = buffer.find(b"\n", at)
            if end < 0:
                self._at = at
                if self._octets + len(buffer) - at > REPLY_OCTETS:
                    raise MalformedReply(f"a reply of more than {REPLY_OCTETS} octets")
                return None
            line = buffer[at : end - 1] if end > at and buffer[end - 1] == 13 else buffer[at:end]
            self._octets += end + 1 - at
            at = end + 1
            code = line[:3]
            # isdigit of bytes knows ASCII digits only.
            if len(code) != 3 or not code.isdigit() or line[3:4] not in (b" ", b"-", b""):
                raise MalformedReply("a line that is no reply")
            if self._octets > REPLY_OCTETS or len(self._lines) >= REPLY_LINES:
                raise MalformedReply(f"a reply of more than {REPLY_OCTETS} octets or {REPLY_LINES} lines")
            if line[3:4] == b"-":
                self._lines.append(line)
                continue
            self._at = at
            self._octets = 0
            if not self._lines:
                text, enhanced = _without_enhanced(_text(line))
                return Answer(int(code), enhanced, (text,))
            lines, self._lines = [*self._lines, line], []
            return _several(int(code), lines)


def _text(line: bytes) -> str:
    text = line[4:].decode("utf-8", "replace")
    return text if text.isprintable() else _CONTROL.sub(" ", text)


def _without_enhanced(text: str) -> tuple[str, str]:
    # Most texts begin with one; the test spares the others the pattern.
    if text[1:2] == ".":
        found = _ENHANCED.match(text)
        if found is not None:
            return text[found.end() :], found[1]
    return text, NO_ENHANCED_CODE


def _several(code: int, lines: Sequence[bytes]) -> Answer:
    """A reply of several lines: the last one's codes count."""
    texts = []
    enhanced = NO_ENHANCED_CODE
    for line in lines:
        text, enhanced = _without_enhanced(_text(line))
        texts.append(text)
    return Answer(code, enhanced, tuple(texts))


@dataclass(frozen=True, slots=True)
class Extensions:
    """What a server offered in its answer to EHLO or LHLO; all False after HELO."""

    starttls: bool = False
    auth: tuple[str, ...] = ()
    """Mechanisms, upper case."""
    size: bool = False
    size_limit_octets: int = 0
    """0: no limit was told."""
    chunking: bool = False
    binarymime: bool = False
    eight_bit: bool = False
    smtputf8: bool = False
    dsn: bool = False
    requiretls: bool = False
    mt_priority: bool = False
    deliver_by: bool = False
    pipelining: bool = False


NO_EXTENSIONS = Extensions()

_FLAGS = {
    "STARTTLS": "starttls",
    "CHUNKING": "chunking",
    "BINARYMIME": "binarymime",
    "8BITMIME": "eight_bit",
    "SMTPUTF8": "smtputf8",
    "DSN": "dsn",
    "REQUIRETLS": "requiretls",
    "MT-PRIORITY": "mt_priority",
    "DELIVERBY": "deliver_by",
    "PIPELINING": "pipelining",
}


def read_extensions(answer: Answer) -> Extensions:
    """Understand the lines of a positive answer to EHLO; the first names the server. Unknown keywords are skipped."""
    flags: dict[str, bool] = {}
    mechanisms: dict[str, None] = {}
    size, limit = False, 0
    for line in answer.lines[1:]:
        keyword, *parameters = line.upper().split()[:64] or [""]
        if keyword in _FLAGS:
            flags[_FLAGS[keyword]] = True
        elif keyword == "SIZE":
            size = True
            # RFC 1870 4: at most 20 digits; no number or 0 means no fixed limit.
            if parameters and len(parameters[0]) <= 20 and parameters[0].isascii() and parameters[0].isdigit():
                limit = int(parameters[0])
        elif keyword == "AUTH":
            mechanisms.update(dict.fromkeys(parameters))
        elif keyword.startswith("AUTH="):
            # The spelling of servers older than RFC 2554.
            mechanisms.update(dict.fromkeys([keyword[5:], *parameters]))
    return Extensions(size=size, size_limit_octets=limit, auth=tuple(name for name in mechanisms if name), **flags)
