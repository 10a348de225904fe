"""Invariant: each line has one reply, in order; a session ends with a word; what is queued was promised.

Whole sessions against a whole listener in memory. Every session is spoken
three times: in step, waiting for each reply; in one write; and cut anywhere,
at times octet by octet. All three must hear the same, trace ids aside.

Seeded: `PYTHONPATH=.:test python test/fuzz/fuzz_session.py [seconds] [seed]`
plays sessions for so long (60 seconds if not told) and prints the seed and,
should the invariant break, the tape the session was read from and what was
said. Where atheris is importable and no seconds are given, it drives instead
and takes its own arguments.
"""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Sequence

from fuzz.drive import drive
from support.baseline import baseline
from support.listener import ConnectionInMemory, ListenerInMemory
from twisted.logger import LogLevel, globalLogPublisher

_LISTENERS = """
[server.listener.smtp]
bind = "127.0.0.1:2525"
protocol = "smtp"
tls.enable = false

[server.listener.lmtp]
bind = "127.0.0.1:2526"
protocol = "lmtp"
tls.enable = false

[session.auth]
errors.total = 2

[session.rcpt]
errors.total = 3
max-recipients = 4

[session.extensions]
dsn = true
vrfy = true
expn = true
"""

_STRICT = """
[session]
bare-newline = "'reject'"
"""

_LENIENT = """
[session]
bare-newline = "'normalize'"

[session.data.limits]
size = 300
messages = 2

[session.ehlo]
require = false
"""

_VERBS = (b"EHLO", b"LHLO", b"HELO", b"NOOP", b"RSET", b"HELP", b"VRFY", b"EXPN", b"ETRN", b"STARTTLS", b"FOO", b"")
_NAMES = (b"client.test", b"[192.0.2.1]", b"[IPv6:::1]", b"localhost", b"a b", "bücher.test".encode(), b"", b"x" * 256)
_PATHS = (
    *(
        b"<a@client.test>",
        b"<>",
        b"<john@foobar.org>",
        b"<jane@foobar.org>",
        b"<JOHN@foobar.org>",
        b"<sales@foobar.org>",
    ),
    *(b"<postmaster>", b"<nobody@foobar.org>", b"<b@relay.test>", b'<"a b"@foobar.org>', b"<@x,@y:john@foobar.org>"),
    *(b"<a@@b>", b"<a@b", b"<a@[192.0.2.1]>", "<jörg@bücher.test>".encode(), b"<a\xff@b>", b"<a\0@b>", b"a@b", b"< >"),
    b"<" + b"a" * 260 + b"@b>",
)
_MAIL_WORDS = (
    *(b" SIZE=100", b" SIZE=1000000000", b" SIZE=x", b" BODY=8BITMIME", b" BODY=BINARYMIME", b" BODY=BINARYMIME"),
    *(
        b" SMTPUTF8",
        b" SMTPUTF8=1",
        b" REQUIRETLS",
        b" RET=HDRS",
        b" ENVID=a+2Bb",
        b" ENVID=+",
        b" BY=10;R",
        b" AUTH=<>",
    ),
    *(b" HOLDFOR=10", b" MT-PRIORITY=3", b" FROB", b" =", b" SOLICIT=a", b" TRANSID=<a>", b" MTRK=a:1", b" "),
)
_RCPT_WORDS = (
    b" NOTIFY=NEVER",
    b" NOTIFY=SUCCESS,DELAY",
    b" NOTIFY=NEVER,DELAY",
    b" ORCPT=rfc822;a@b",
    b" CONNEG",
    b" X=1",
)
_LOGINS = (b"AGpvaG4Ac2VjcmV0", b"AGpvaG4AYmFk", b"=", b"*", b"???", b"am9obg==", b"", b"c2VjcmV0", b"A" * 5000)
_TEXTS = (
    *(
        b"Subject: x\r\n",
        b"\r\n",
        b"body\r\n",
        b".\r\n",
        b"..\r\n",
        b".",
        b"\r\n.\r\n",
        b"\n.\n",
        b"\n.\r\n",
        b"\r\n.\n",
    ),
    *(
        b"\r.\r",
        b"\r.\r\n",
        b"\r\n.\r",
        b"\n",
        b"\r",
        b"\0",
        b"\xff\xfe",
        b"MAIL FROM:<evil@client.test>\r\n",
        b"DATA\r\n",
    ),
    *(b"x" * 70 + b"\r\n", b"y" * 1200, b"RSET\r\nQUIT\r\n", b"Received: by x; now\r\n" * 3),
)
_NOISE = (b"\r", b"\n", b"\0", b" ", b"\t", b"\xc3", b"<", b">", b"@", b":", b"=", b"\\", b'"', b"z" * 5000)

_CHUNK = re.compile(rb"(?i:BDAT) +([0-9]{1,20})( +(?i:LAST))? *")
_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])([ -])[^\r\n]*")
_TRACE_ID = re.compile(rb" \[[0-9a-z]{12}\]$")
# What differs from session to session: a queue id, and the time of day in what EHLO offers.
_PASSING = re.compile(rb"(queued with id |FUTURERELEASE [0-9]+ )[0-9A-Za-z]+")
_PATIENCE_SECONDS = 1.0


class Tape:
    """Octets as a row of choices; where it ends, every choice is the first."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._at = 0

    @property
    def left(self) -> bool:
        return self._at < len(self._octets)

    def number(self, below: int) -> int:
        """A number from 0."""
        value = 0
        for _ in range(1 if below <= 256 else 2):
            value = value * 256 + (self._octets[self._at] if self._at < len(self._octets) else 0)
            self._at += 1
        return value % below

    def one_of(self, choices: Sequence[bytes]) -> bytes:
        """One of several."""
        return choices[self.number(len(choices))]

    def some_of(self, choices: Sequence[bytes], most: int) -> bytes:
        """Up to so many of them, joined."""
        return b"".join(self.one_of(choices) for _ in range(self.number(most + 1)))


def line(tape: Tape) -> bytes:
    """A command line with its CRLF, as a client could send it, at times damaged."""
    match tape.number(16):
        case 0 | 1 | 2:
            text = b"MAIL FROM:" + tape.one_of(_PATHS) + tape.some_of(_MAIL_WORDS, 2)
        case 3 | 4 | 5 | 6:
            text = b"RCPT TO:" + tape.one_of(_PATHS) + tape.some_of(_RCPT_WORDS, 1)
        case 7 | 8:
            text = b"DATA"
        case 9 | 10:
            size = b"%d" % tape.number(400)
            text = b"BDAT " + tape.one_of((size, size, size, b"0", b"-1", b"x", b"1" * 21))
            text += tape.one_of((b"", b" LAST", b" last", b" FIRST"))
        case 11 | 12:
            text = tape.one_of(_VERBS[:2]) + b" " + tape.one_of(_NAMES)
        case 13:
            text = b"AUTH " + tape.one_of((b"PLAIN", b"LOGIN", b"PLAIN ", b"LOGIN ", b"FOO", b"", b"PLAIN a b"))
            text += tape.one_of((b"", *_LOGINS)) if text.endswith(b" ") else b""
        case 14:
            text = b"QUIT" if tape.number(4) == 3 else b"RSET"
        case _:
            text = tape.one_of(_VERBS) + tape.one_of((b"", b" ", b" john@foobar.org", b" <x>", b"_"))
    while tape.number(8) == 7:
        at = tape.number(len(text) + 1)
        text = text[:at] + tape.one_of(_NOISE) + text[at + tape.number(3) :]
    return text.replace(b"\r\n", b"\r") + b"\r\n"


def envelope(tape: Tape) -> list[bytes]:
    """The commands of a transaction that has a chance."""
    paths = _PATHS[2:6]
    mail = b"MAIL FROM:" + tape.one_of(_PATHS[:3]) + tape.one_of((b"", b"", b" BODY=8BITMIME", b" BODY=BINARYMIME"))
    lines = [b"RSET", mail, *[b"RCPT TO:" + tape.one_of(paths) for _ in range(1 + tape.number(3))]]
    if tape.number(2):
        lines += [b"BDAT %d" % tape.number(200) for _ in range(tape.number(3))]
        lines.append(b"BDAT %d LAST" % tape.number(200))
    else:
        lines.append(b"DATA")
    return [text + b"\r\n" for text in lines]


def content(tape: Tape) -> bytes:
    """Message text and the end of data, which may come earlier than meant."""
    text = b"" if tape.number(8) == 7 else b"Subject: x\r\n\r\n"
    return text + tape.some_of(_TEXTS, 8) + b"\r\n.\r\n"


def what_is_meant(octets: bytes) -> tuple[bytes, bytes]:
    """By the letter of RFC 5321: the text up to the first true end of data, and what follows that."""
    rows = octets.split(b"\r\n")
    end = rows.index(b".")
    text = b"".join((row[1:] if row.startswith(b".") else row) + b"\r\n" for row in rows[:end])
    return text, b"\r\n".join(rows[end + 1 :])


class Listeners:
    """The listeners all sessions share, and what their log says is wrong."""

    def __init__(self) -> None:
        self.wrong: list[object] = []
        self.strict = ListenerInMemory(baseline("B2", _LISTENERS, _STRICT))
        self.lenient = ListenerInMemory(baseline("B2", _LISTENERS, _LENIENT))

    def __enter__(self) -> Listeners:
        """Begin to watch the log."""
        globalLogPublisher.addObserver(self._watch)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        globalLogPublisher.removeObserver(self._watch)

    def _watch(self, event: dict) -> None:
        level = event.get("log_level")
        if level is not None and level >= LogLevel.error:
            self.wrong.append(event.get("log_failure") or event.get("event") or event.get("log_format"))


class Speaker:
    """One connection; time passes until every answer that can come has come."""

    def __init__(self, listener: ListenerInMemory, name: str) -> None:
        self.listener = listener
        connection = listener.connect(name)
        assert connection is not None
        self.connection: ConnectionInMemory = connection
        self.said = b""
        self.greeting = self.replies()

    def send(self, octets: bytes) -> None:
        self.connection.send(octets)
        clock = self.listener.clock
        while any(call.getTime() < clock.seconds() + _PATIENCE_SECONDS for call in clock.getDelayedCalls()):
            if self.connection.closed:
                break
            clock.advance(0.005)

    def replies(self) -> list[list[bytes]]:
        """Whole replies since the last call, each as its lines."""
        octets = self.connection.received()
        self.said += octets
        assert octets.endswith(b"\r\n") or not octets, f"half a line: {octets[-80:]!r}"
        found: list[list[bytes]] = []
        lines: list[bytes] = []
        for text in octets.split(b"\r\n")[:-1]:
            assert _REPLY_LINE.fullmatch(text), f"no reply: {text!r}"
            assert len(text) <= 510, "a reply line over 512 octets"
            assert not lines or lines[0][:3] == text[:3], f"two codes in one reply: {lines} {text!r}"
            lines.append(text)
            if text[3:4] == b" ":
                assert (_TRACE_ID.search(text) is not None) == (text[:1] in b"45"), f"trace id: {text!r}"
                found.append(lines)
                lines = []
        assert not lines, f"a reply without end: {lines}"
        return found

    def heard(self) -> list[bytes]:
        """Everything the server said, with what differs from session to session taken out."""
        self.replies()
        lines = [_TRACE_ID.sub(b"", text) for text in self.said.split(b"\r\n")]
        return [_PASSING.sub(rb"\1", text) for text in lines]

    def leave(self) -> None:
        self.connection.leave()
        clock = self.listener.clock
        clock.advance(0)
        assert not clock.getDelayedCalls(), "a timer was forgotten"


class InStep:
    """A client that waits for each reply, and knows how many it must get."""

    def __init__(self, speaker: Speaker, lmtp: bool, normalizes: bool) -> None:
        self.speaker = speaker
        self.lmtp = lmtp
        self.normalizes = normalizes
        self.endless = False
        """A chunk was announced that will never be whole."""
        self.sent: list[bytes] = []
        self.accepted = 0
        self.promised = 0
        """Messages the server has taken."""
        self.chunks = b""
        assert len(speaker.greeting) == 1
        assert speaker.greeting[0][0].startswith(b"220")

    @property
    def over(self) -> bool:
        return self.speaker.connection.closed

    def say(self, octets: bytes) -> list[list[bytes]]:
        self.sent.append(octets)
        self.speaker.send(octets)
        return self.speaker.replies()

    def one(self, octets: bytes) -> int:
        """Say a line; the code of its one reply."""
        replies = self.say(octets)
        if self.over and len(replies) == 2:
            # Too many bad logins: the reply to the last, and the farewell.
            assert replies.pop()[0].startswith(b"455 4.3.0"), replies
        assert len(replies) == 1, f"{len(replies)} replies to {octets[:200]!r}: {replies}"
        return int(replies[0][0][:3])

    def play(self, tape: Tape) -> None:
        """Speak until the tape or the session ends."""
        hello = b"LHLO client.test\r\n" if self.lmtp else b"EHLO client.test\r\n"
        if tape.number(8) != 7:
            assert self.one(hello) == 250
        while tape.left and not self.over and not self.endless:
            lines = envelope(tape) if tape.number(4) == 3 else [line(tape)]
            for text in lines:
                if not self.over and not self.endless:
                    self.line(text, tape)

    def line(self, text: bytes, tape: Tape) -> None:
        """One line, and what belongs to it."""
        chunk = _CHUNK.fullmatch(text[:-2])
        if chunk is not None and len(text) <= 4096:
            self.chunk(text, int(chunk[1]), chunk[2] is not None, tape)
        else:
            self.command(text, tape)

    def command(self, text: bytes, tape: Tape) -> None:
        """One line that is no BDAT, and what it leads to."""
        code = self.one(text)
        if is_bare(text):
            assert code == 500, "a line with a bare newline"
            assert self.over, "open after a bare newline"
            return
        verb = text[:4].upper()
        if code == 334:
            self.login(tape)
        elif code == 354:
            self.message(content(tape))
        elif verb == b"RCPT" and code == 250:
            self.accepted += 1
        elif code == 250 and verb in (b"MAIL", b"RSET", b"EHLO", b"LHLO", b"HELO"):
            self.accepted = 0
            self.chunks = b""
        elif verb == b"QUIT" and code == 221:
            assert self.over, "open after QUIT"

    def login(self, tape: Tape) -> None:
        """Answer challenges until the exchange is over."""
        for _ in range(3):
            if self.one(tape.one_of(_LOGINS) + b"\r\n") != 334:
                return
        raise AssertionError("a login without end")

    def message(self, octets: bytes) -> None:
        """The content after 354, as far as it is one, and its final replies."""
        text, rest = what_is_meant(octets)
        self.finished(self.say(octets[: len(octets) - len(rest)]), text, is_bare(text), False)

    def chunk(self, text: bytes, size: int, last: bool, tape: Tape) -> None:
        """A BDAT that is understood, and its octets."""
        replies = self.say(text)
        assert not (size and replies), f"a reply before the chunk has come: {replies}"
        if size > 1000:
            self.endless = True
            assert self.say(tape.some_of(_TEXTS, 3) + b"QUIT\r\n") == []
            return
        octets = (b"" if self.chunks else b"Subject: x\r\n\r\n") + tape.some_of(_TEXTS, 8)
        octets = (octets + b"z" * size)[:size]
        if size:
            replies = self.say(octets)
        whole = self.chunks + octets
        self.chunks = b"" if last else whole
        if not last or not self.accepted:
            assert len(replies) == 1, f"{len(replies)} replies to a chunk: {replies}"
            assert last <= (replies[0][0][:1] == b"5"), f"a message for nobody: {replies}"
        else:
            self.finished(replies, whole, is_bare(whole), True)

    def finished(self, replies: list[list[bytes]], text: bytes, bare: bool, chunked: bool) -> None:
        """The end of a message: as many replies as owed; a promise is in the queue, and nothing else."""
        owed = self.accepted if self.lmtp else 1
        assert len(replies) == owed, f"{len(replies)} final replies, not {owed}: {replies}"
        assert all(reply == replies[0] for reply in replies), replies
        code = int(replies[0][0][:3])
        self.promised += code == 250
        stored = self.speaker.listener.store.messages
        assert len(stored) == self.promised, f"{len(stored)} queued, {self.promised} promised"
        if code == 250:
            kept = stored[-1].content
            if self.normalizes:
                assert lines_of(kept) == lines_of(text), "other lines than were sent"
                assert chunked or not is_bare(kept), "kept a bare newline"
            else:
                assert kept == text, "other octets than were sent"
                assert not is_bare(text.partition(b"\r\n\r\n")[0] if chunked else text), "kept a bare newline"
        if code not in (452, 502, 503):
            self.accepted = 0


def is_bare(octets: bytes) -> bool:
    """Whether a CR or LF stands alone."""
    rest = octets.replace(b"\r\n", b"")
    return b"\r" in rest or b"\n" in rest


def lines_of(octets: bytes) -> list[bytes]:
    """The lines, whatever ends them."""
    return octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")


def cut(octets: bytes, tape: Tape) -> list[bytes]:
    """The octets in pieces, at times of one each."""
    if len(octets) < 1500 and tape.number(4) == 3:
        return [octets[at : at + 1] for at in range(len(octets))]
    places = sorted(tape.number(65536) % (len(octets) + 1) for _ in range(1 + tape.number(6)))
    return [octets[a:b] for a, b in zip([0, *places], [*places, len(octets)], strict=True)]


def check(octets: bytes, listeners: Listeners) -> None:
    """Play one tape, three times; raises when the invariant is broken."""
    # The places of the cuts come first, so that they are there however long the session is.
    places, tape = Tape(octets[:16]), Tape(octets[16:])
    name = "lmtp" if tape.number(3) == 2 else "smtp"
    listener = listeners.lenient if tape.number(2) else listeners.strict
    first = Speaker(listener, name)
    client = InStep(first, name == "lmtp", listener is listeners.lenient)
    try:
        client.play(tape)
        said, spoken, queued = first.heard(), b"".join(client.sent), len(listener.store.messages)
        ended = first.connection.closed
        first.leave()
        for pieces in ([spoken], cut(spoken, places)):
            listener.store.messages.clear()
            again = Speaker(listener, name)
            for piece in pieces:
                again.send(piece)
            assert again.heard() == said, f"otherwise spoken, otherwise answered: {again.said!r}"
            assert again.connection.closed == ended
            assert len(listener.store.messages) == queued
            again.leave()
        open_spools = [spool for spool in listener.store.spools if not spool.discarded and not spool.finished]
        assert not open_spools, "a spool was forgotten"
        assert not listeners.wrong, listeners.wrong
    except AssertionError:
        print(f"sent {client.sent}\nheard {first.said!r}", file=sys.stderr)
        raise
    finally:
        listener.store.messages.clear()
        listener.store.spools.clear()


def run(seconds: float, seed: int) -> int:
    """Play for so long; the number of sessions."""
    choose = random.Random(seed)
    end = time.monotonic() + seconds
    count = 0
    with Listeners() as listeners:
        while time.monotonic() < end:
            octets = choose.randbytes(choose.randint(17, 200))
            try:
                check(octets, listeners)
            except Exception:
                print(f"broken by seed {seed}, session {count}:\n{octets!r}", file=sys.stderr)
                raise
            count += 1
    return count


if __name__ == "__main__":
    with Listeners() as everything:
        drive(run, lambda octets: check(octets, everything), (random.Random(n).randbytes(150) for n in range(20)))
