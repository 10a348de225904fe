"""`sendmail -bs`: SMTP on standard input and output, each message into the maildrop.

The protocol core of the listeners, and no policy: what is taken here is judged
when the daemon takes it from the maildrop, like everything `sendmail` hands in,
and works while the daemon is down. 250 after the end of data means that the
message is on disk for good. A client whose first line ends with LF alone speaks
that way to the end, and every LF of it is a line end; for any other client only
CR LF is one, and what it sends in a message cannot become commands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from mailgate.admin.sendmail.text import BLOCK_OCTETS
from mailgate.mail import replies
from mailgate.mail.envelope import Notify
from mailgate.mail.path import Path
from mailgate.mail.reply import Reply, reply
from mailgate.queue.drop import ENVELOPE_OCTETS, DropEnvelope, DropRecipient
from mailgate.queue.handin import HandIn, NotNow
from mailgate.wire.smtp.command import (
    Auth,
    Bdat,
    ChunkEnd,
    Data,
    DataChunk,
    DataEnd,
    Ehlo,
    Event,
    Expn,
    Help,
    Mail,
    Noop,
    Pending,
    Quit,
    Rcpt,
    Rejected,
    Rset,
    StartTls,
    Vrfy,
)
from mailgate.wire.smtp.server import BareNewline, ServerConnection

_CAPABILITIES = ("SMTPUTF8", "PIPELINING", "ENHANCEDSTATUSCODES", "DSN", "8BITMIME")
_NOT_KEPT = replies.QUEUE_FAILED
_TOO_MANY = 10_000
"""Recipients of one message."""
_NOT_OFFERED = (Auth, StartTls, Expn)


class Dialogue:
    """One client on standard input."""

    def __init__(self, maildrop: str, hostname: str) -> None:
        self._maildrop = maildrop
        self._hostname = hostname
        self._core = ServerConnection()
        self._core.bare_newline = BareNewline.NORMALIZE
        self._mail: Mail | None = None
        self._recipients: list[DropRecipient] = []
        self._drop: HandIn | None = None
        self._failed = False
        """The message that is coming in cannot be kept."""
        self._lf_only: bool | None = None
        """Lines end with LF alone; None before the first one."""
        self._half = b""

    def greeting(self) -> bytes:
        """What the client is told first."""
        return replies.greeting(f"{self._hostname} mailgate ESMTP").wire()

    def receive(self, octets: bytes) -> tuple[bytes, bool]:
        """Take what was read; what is to be written, and whether that was all."""
        self._core.receive(self._lines(octets))
        out = b""
        while not isinstance(event := self._core.next_event(), Pending):
            if type(event) is DataChunk:
                self._chunk(event.octets)
                continue
            if type(event) is Bdat:
                continue
            answer = self._answer(event)
            out += self._core.reply(answer)
            if isinstance(event, Quit) or (isinstance(event, Rejected) and event.close):
                return out, True
        return out, False

    def end(self) -> None:
        """The client is gone: what it has not finished is not kept."""
        self._forget()

    def _lines(self, octets: bytes) -> bytes:
        if self._lf_only is None:
            octets = self._half + octets
            end = octets.find(b"\n")
            if end < 0 and len(octets) < BLOCK_OCTETS:
                self._half = octets
                return b""
            self._half = b""
            self._lf_only = end >= 0 and octets[end - 1 : end] != b"\r"
        return octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") if self._lf_only else octets

    def _answer(self, event: Event) -> Reply:
        if isinstance(event, Ehlo):
            return self._ehlo(event)
        if isinstance(event, Mail):
            return self._mail_from(event)
        if isinstance(event, Rcpt):
            return self._rcpt(event)
        if isinstance(event, Data):
            return self._data()
        if isinstance(event, DataEnd):
            return self._data_end()
        if isinstance(event, Rset):
            self._forget()
            return replies.RSET_OK
        if isinstance(event, Quit):
            return replies.BYE
        if isinstance(event, Rejected):
            return event.reply
        if isinstance(event, (*_NOT_OFFERED, ChunkEnd)):
            return replies.NOT_OFFERED
        return _FIXED.get(type(event), replies.NOT_OFFERED)

    def _ehlo(self, event: Ehlo) -> Reply:
        if event.verb == "LHLO":
            return replies.NOT_LMTP_HERE
        self._forget()
        greeting = f"{self._hostname} at your service"
        return reply(250, "", greeting if event.verb == "HELO" else "\n".join((greeting, *_CAPABILITIES)))

    def _mail_from(self, event: Mail) -> Reply:
        if self._mail is not None:
            return replies.TRANSACTION_OPEN
        asked = event.parameters
        if asked.requiretls or asked.deliver_by or asked.hold_seconds is not None or asked.hold_until or asked.priority:
            return replies.PARAMETER_NOT_OFFERED
        self._mail = event
        return replies.SENDER_OK

    def _rcpt(self, event: Rcpt) -> Reply:
        if self._mail is None:
            return replies.MAIL_FIRST
        if len(self._recipients) >= _TOO_MANY:
            return replies.TOO_MANY_RECIPIENTS
        notify = event.parameters.notify
        words = "" if notify is None else ",".join(word for word, flag in _WORDS if notify & flag)
        self._recipients.append(DropRecipient(_address(event.path), words, event.parameters.orcpt or ""))
        return replies.RECIPIENT_OK

    def _data(self) -> Reply:
        if self._mail is None or not self._recipients:
            return replies.RCPT_FIRST
        parameters = self._mail.parameters
        envelope = DropEnvelope(
            _address(self._mail.path),
            tuple(self._recipients),
            parameters.ret.value.upper() if parameters.ret is not None else "",
            parameters.envid or "",
            parameters.smtputf8,
        )
        if len(envelope.octets) > ENVELOPE_OCTETS:
            return replies.TOO_MANY_RECIPIENTS
        self._drop = HandIn(self._maildrop)
        try:
            self._drop.begin(envelope)
        except NotNow as failure:
            return self._cannot(failure)
        return replies.START_DATA

    def _chunk(self, octets: bytes) -> None:
        if self._drop is None or self._failed:
            return
        try:
            self._drop.write(octets)
        except NotNow as failure:
            self._cannot(failure)

    def _cannot(self, failure: NotNow) -> Reply:
        print(f"sendmail: {failure}", file=sys.stderr, flush=True)
        self._failed = True
        return _NOT_KEPT

    def _data_end(self) -> Reply:
        drop, failed = self._drop, self._failed
        answer = _NOT_KEPT
        if drop is not None and not failed:
            try:
                answer = reply(250, "2.0.0", f"Message kept as {drop.finish()}.")
            except NotNow as failure:
                self._cannot(failure)
        self._forget()
        return answer

    def _forget(self) -> None:
        if self._drop is not None:
            self._drop.discard()
        self._drop = None
        self._mail = None
        self._recipients = []
        self._failed = False


_WORDS = (("NEVER", Notify.NEVER), ("SUCCESS", Notify.SUCCESS), ("FAILURE", Notify.FAILURE), ("DELAY", Notify.DELAY))
_FIXED: dict[type[object], Reply] = {Noop: replies.NOOP_OK, Help: replies.HELP, Vrfy: replies.VRFY_DISABLED}


def _address(path: Path) -> str:
    return path.text if path.domain else path.local


def main(arguments: Sequence[str] | None = None, read: Callable[[int, int], bytes] = os.read) -> int:
    """Speak with whoever is on standard input: the maildrop and the host's name are the arguments."""
    maildrop, hostname = sys.argv[1:3] if arguments is None else arguments
    dialogue = Dialogue(maildrop, hostname)
    try:
        _say(dialogue.greeting())
        while octets := read(0, BLOCK_OCTETS):
            out, ended = dialogue.receive(octets)
            _say(out)
            if ended:
                break
    except OSError:
        # Nobody reads the answers any more.
        return 0
    finally:
        dialogue.end()
    return 0


def _say(octets: bytes) -> None:
    view = memoryview(octets)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    sys.exit(main())
