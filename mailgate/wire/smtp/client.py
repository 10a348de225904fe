"""The client's side of an SMTP or LMTP dialogue, without I/O (RFC 5321, RFC 2033, RFC 2920, RFC 3030).

`ClientConnection` turns commands into octets and the server's octets into
`Answered` events, in the order of the commands, however many are on their way.
It knows which parameters a server takes, doubles dots, ends messages, counts
the replies LMTP owes. It does not decide: what an answer means for a message,
how long to wait, and where to go next belong to `deliver/`.

The order of a session:

1. `Answered(None, ...)` is the greeting.
2. `Ehlo`, perhaps `StartTls` and `tls_started()` and `Ehlo` again, perhaps `Auth`.
3. `Mail`, `Rcpt`..., then `Data` and, after 354, `content()` and `end_of_content()`; or `Bdat` and its octets.
4. 3 again, with `Rset` before it where no content was sent; at last `Quit`.
"""

from __future__ import annotations

import re
from collections import deque
from enum import Enum
from typing import NamedTuple

from mailgate.mail.envelope import Body, Notify
from mailgate.wire.smtp.answer import NO_EXTENSIONS, Answer, AnswerReader, Extensions, MalformedReply, read_extensions
from mailgate.wire.smtp.command import Auth, AuthResponse, Bdat, Data, Ehlo, Mail, Quit, Rcpt, Rset, StartTls
from mailgate.wire.smtp.error import LocalError

Command = Ehlo | StartTls | Auth | AuthResponse | Mail | Rcpt | Data | Bdat | Rset | Quit


class EndOfContent(Enum):
    """What the final reply to DATA answers, in place of a command."""

    DATA = "DATA"


class Answered(NamedTuple):
    """A reply and what it answers.

    `command` is None for the greeting and for replies nobody asked for
    (`place` is then -2); `line` is the command as written, without CRLF and
    without secrets. `place` counts the RCPTs of the transaction from 0 for
    answers to RCPT and for the final replies of LMTP; else it is -1.
    """

    command: Command | EndOfContent | None
    line: str
    answer: Answer
    place: int = -1


NO_PLACE = -1
UNASKED = -2


class Phase(Enum):
    """Where the dialogue stands."""

    GREETING = "greeting"
    """The server's first reply is due."""
    START = "start"
    """Connected, or in TLS: EHLO is due."""
    READY = "ready"
    LOGIN = "login"
    """334 was received: a response is due."""
    STARTING_TLS = "starting-tls"
    """220 to STARTTLS was received: nothing is read or written before the handshake is over."""
    TRANSACTION = "transaction"
    DATA = "data"
    """DATA was sent, 354 is due."""
    CONTENT = "content"
    """354 was received."""
    OVER = "over"
    """QUIT was sent, or the server said 421 or something that is no reply."""


_EHLO = frozenset({Phase.START, Phase.READY})
_READY = frozenset({Phase.READY})
_IN_TRANSACTION = frozenset({Phase.TRANSACTION})
_ALLOWED: dict[type[Command], frozenset[Phase]] = {
    Ehlo: _EHLO,
    StartTls: _READY,
    Auth: _READY,
    AuthResponse: frozenset({Phase.LOGIN}),
    Mail: _READY,
    Rcpt: _IN_TRANSACTION,
    Data: _IN_TRANSACTION,
    Bdat: _IN_TRANSACTION,
    Rset: frozenset({Phase.READY, Phase.TRANSACTION}),
    Quit: frozenset({Phase.START, Phase.READY, Phase.LOGIN, Phase.TRANSACTION}),
}

# RFC 2920 3.1: these may be followed by other commands before they are answered;
# so may the content (3.1) and a chunk (RFC 3030 4.2).
_LEADING = (Mail, Rcpt, Rset, Bdat, EndOfContent)


class ClientConnection:
    """One dialogue. Nothing the server sends raises anything but `MalformedReply` (I4)."""

    __slots__ = (
        "_accepted",
        "_after_break",
        "_due",
        "_reader",
        "_recipients",
        "_tail",
        "extensions",
        "lmtp",
        "phase",
    )

    def __init__(self, *, lmtp: bool = False) -> None:
        self.lmtp = lmtp
        self.phase = Phase.GREETING
        self.extensions: Extensions = NO_EXTENSIONS
        self._reader = AnswerReader()
        self._due: deque[tuple[Command | EndOfContent | None, str, int]] = deque([(None, "", NO_PLACE)])
        self._recipients = 0
        self._accepted: list[int] = []
        self._tail = b""
        self._after_break = True

    # --- what the server says -------------------------------------------------------

    def receive(self, octets: bytes) -> None:
        """Take what the transport read."""
        self._reader.receive(octets)

    @property
    def has_input(self) -> bool:
        """True while received octets have not become events yet."""
        return self._reader.has_input

    @property
    def replies_due(self) -> bool:
        """True while the server owes a reply."""
        return bool(self._due)

    def next_event(self) -> Answered | None:
        """The next reply with what it answers; None until more is received.

        Raises `MalformedReply`; then the dialogue is over.
        """
        if self.phase is Phase.STARTING_TLS:
            # RFC 3207 4.2: what stands here was not protected.
            return None
        try:
            answer = self._reader.next()
        except MalformedReply:
            self.phase = Phase.OVER
            raise
        if answer is None:
            return None
        if not self._due:
            self.phase = Phase.OVER
            return Answered(None, "", answer, UNASKED)
        command, line, place = self._due[0]
        if type(command) is EndOfContent or (type(command) is Bdat and command.last):
            place = self._final_reply()
        else:
            self._due.popleft()
            self._note(command, answer, place)
        if answer.code == 421:
            # RFC 5321 3.8: the server closes the connection.
            self.phase = Phase.OVER
        return Answered(command, line, answer, place)

    def _final_reply(self) -> int:
        """Which recipient a reply to the content is for; RFC 2033 4.2: LMTP answers for each accepted one."""
        if not self.lmtp or not self._accepted:
            self._due.popleft()
            return NO_PLACE
        place = self._accepted.pop(0)
        if not self._accepted:
            self._due.popleft()
        return place

    def _note(self, command: Command | EndOfContent | None, answer: Answer, place: int) -> None:
        """Move on by an answer; transaction commands have moved the phase when they were sent."""
        kind = type(command)
        if kind is Rcpt:
            if answer.is_positive:
                self._accepted.append(place)
        elif kind is Data:
            self.phase = Phase.CONTENT if answer.code == 354 else Phase.TRANSACTION
        elif kind is Ehlo:
            if answer.is_positive:
                self.phase = Phase.READY
                helo = isinstance(command, Ehlo) and command.verb == "HELO"
                self.extensions = NO_EXTENSIONS if helo else read_extensions(answer)
        elif kind is StartTls:
            if answer.code == 220:
                self.phase = Phase.STARTING_TLS
        elif kind is Auth or kind is AuthResponse:
            self.phase = Phase.LOGIN if answer.code == 334 else Phase.READY
        elif command is None:
            self.phase = Phase.START if answer.code == 220 else Phase.OVER

    # --- what we say --------------------------------------------------------------------

    def send(self, command: Command) -> bytes:
        """The octets of a command, CRLF included. Raises `LocalError`."""
        kind = type(command)
        if self.phase not in _ALLOWED[kind]:
            raise LocalError(f"{kind.__name__} in phase {self.phase.value}")
        if self._due:
            self._check_pipeline()
        place = NO_PLACE
        if isinstance(command, Rcpt):
            place = self._recipients
            self._recipients += 1
        elif isinstance(command, Mail):
            self.phase = Phase.TRANSACTION
            self._recipients = 0
            self._accepted = []
        elif isinstance(command, Data):
            self.phase = Phase.DATA
            self._tail = b""
            self._after_break = True
        elif isinstance(command, Rset) or (isinstance(command, Bdat) and command.last):
            self.phase = Phase.READY
        elif isinstance(command, Quit):
            self.phase = Phase.OVER
        line, shown = self._line(command)
        self._due.append((command, shown, place))
        return line.encode("utf-8", "replace") + b"\r\n"

    def _check_pipeline(self) -> None:
        if not self.extensions.pipelining:
            raise LocalError("a command before the answer to the last one, without PIPELINING")
        # Only the last of those under way can be one that must not be followed.
        if not isinstance(self._due[-1][0], _LEADING):
            raise LocalError("a command before an answer that must be waited for")

    def content(self, octets: bytes) -> bytes:
        """A block of the content as it goes on the wire after 354: dots doubled, nothing else changed.

        RFC 5321 4.5.2, widened: a dot is doubled after a bare CR or LF too, so
        that no server's idea of a line end finds the end of the message inside
        it. Blocks may be cut anywhere.
        """
        if self.phase is not Phase.CONTENT:
            raise LocalError("content before 354")
        if not octets:
            return b""
        stuffed = octets.replace(b"\n.", b"\n..").replace(b"\r.", b"\r..")
        if self._after_break and octets[0] == 46:
            stuffed = b"." + stuffed
        self._after_break = octets[-1] in b"\r\n"
        self._tail = octets[-2:] if len(octets) > 1 else (self._tail + octets)[-2:]
        return stuffed

    def end_of_content(self) -> bytes:
        """The final dot, on a line of its own; the reply that decides is then due."""
        if self.phase is not Phase.CONTENT:
            raise LocalError("end of content before 354")
        self.phase = Phase.READY
        self._due.append((EndOfContent.DATA, "DATA", NO_PLACE))
        return b".\r\n" if not self._tail or self._tail == b"\r\n" else b"\r\n.\r\n"

    def tls_started(self) -> None:
        """The handshake is over: forget what the server said before it (RFC 3207 4.2).

        Also called for a connection with TLS from the first octet; then the
        greeting is still due.
        """
        self._reader.drop()
        self.extensions = NO_EXTENSIONS
        if self.phase is Phase.STARTING_TLS:
            self.phase = Phase.START
        elif self.phase is not Phase.GREETING:
            raise LocalError(f"TLS in phase {self.phase.value}")

    def _line(self, command: Command) -> tuple[str, str]:
        """The line of a command, and the line to show where they differ."""
        if isinstance(command, Rcpt):
            line = _rcpt_line(command, self.extensions)
        elif isinstance(command, Mail):
            line = mail_line(command, self.extensions)
        elif isinstance(command, Data):
            return "DATA", "DATA"
        elif isinstance(command, Bdat):
            line = f"BDAT {command.size}{' LAST' if command.last else ''}"
        elif isinstance(command, Ehlo):
            line = f"{command.verb} {command.name}"
        elif isinstance(command, Auth):
            shown = f"AUTH {command.mechanism}"
            return (shown if command.initial is None else f"{shown} {command.initial.decode('ascii') or '='}"), shown
        elif isinstance(command, AuthResponse):
            return command.line.decode("ascii"), "AUTH"
        else:
            line = _PLAIN_LINES[type(command)]
        if "\n" in line or "\r" in line or "\0" in line:
            raise LocalError("a line end inside a command")
        return line, line


_PLAIN_LINES: dict[type[Command], str] = {StartTls: "STARTTLS", Rset: "RSET", Quit: "QUIT"}

_BODY = {Body.EIGHT_BIT: " BODY=8BITMIME", Body.BINARY: " BODY=BINARYMIME", Body.SEVEN_BIT: ""}


def mail_line(command: Mail, offered: Extensions) -> str:
    """MAIL FROM with those of its parameters the server takes."""
    parameters = command.parameters
    line = f"MAIL FROM:{command.path.wire}"
    if offered.size and parameters.size_octets is not None:
        line += f" SIZE={parameters.size_octets}"
    if parameters.body is not None and (offered.binarymime if parameters.body is Body.BINARY else offered.eight_bit):
        line += _BODY[parameters.body]
    if parameters.smtputf8 and offered.smtputf8:
        line += " SMTPUTF8"
    if parameters.requiretls and offered.requiretls:
        line += " REQUIRETLS"
    if offered.dsn:
        if parameters.ret is not None:
            line += f" RET={parameters.ret.value.upper()}"
        if parameters.envid:
            line += f" ENVID={xtext(parameters.envid)}"
    if offered.mt_priority and parameters.priority:
        line += f" MT-PRIORITY={parameters.priority}"
    if offered.deliver_by and parameters.deliver_by is not None:
        by = parameters.deliver_by
        line += f" BY={by.seconds};{by.mode}{'T' if by.trace else ''}"
    return line


_NOTIFY_WORDS = ((Notify.SUCCESS, "SUCCESS"), (Notify.DELAY, "DELAY"), (Notify.FAILURE, "FAILURE"))


def _notify_words(flags: Notify) -> str:
    if Notify.NEVER in flags:
        return "NEVER"
    return ",".join(word for flag, word in _NOTIFY_WORDS if flag in flags)


# Sixteen values at most: written once.
_NOTIFY = {flags.value: _notify_words(flags) for flags in map(Notify, range(16))}


def _rcpt_line(command: Rcpt, offered: Extensions) -> str:
    """RCPT TO with those of its parameters the server takes."""
    line = f"RCPT TO:{command.path.wire}"
    if offered.dsn:
        parameters = command.parameters
        if parameters.notify:
            line += f" NOTIFY={_NOTIFY[parameters.notify.value]}"
        if parameters.orcpt:
            line += f" ORCPT={_orcpt(parameters.orcpt)}"
    return line


_NOT_XCHAR = re.compile(rb"[^!-*,-<>-~]")
_NOT_QCHAR = re.compile(r"[^!-*,-<>-\[\]-~]")


def xtext(text: str) -> str:
    """Encode as xtext (RFC 3461 4)."""
    octets = text.encode("utf-8")
    return _NOT_XCHAR.sub(lambda found: b"+%02X" % ord(found[0]), octets).decode("ascii")


def _orcpt(address: str) -> str:
    if address.isascii():
        return f"rfc822;{xtext(address)}"
    # RFC 6533 3: utf-8-addr-xtext travels where SMTPUTF8 does not.
    return "utf-8;" + _NOT_QCHAR.sub(lambda found: f"\\x{{{ord(found[0]):02X}}}", address)
