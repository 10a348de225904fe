r"""Dialogues: what a client sends and what it must be answered, played against a whole listener in memory.

A file in `test/wire/dialogues/` has a head, a line `---`, and a body. In the
head `# ...` is prose, and these words stand for themselves:

spec IN-213 IN-214       the acceptance rows the dialogue shows
base B1                  the configuration it starts from (B0)
listener submission      the listener's id (`smtp`); `lmtp` speaks LMTP
peer 127.0.0.9           where the client comes from (127.0.0.1)
drop session.ehlo        the baseline's key or table is left out
replay whole             not octet by octet as well
unknown x.test SERVFAIL  DNS has no answer for this name; every other name does not exist
store fails              the queue cannot be written; `store full`: it has no room

Every other line of the head is TOML that changes the configuration; the store `down` that rules may name refuses
connections. Body:

C: text                  the client sends a line; several in a row go out as one segment
C- text                  the same without CRLF; escapes: \r \n \t \\ \xNN
C* 5000 x                5000 times the octet
S: 250 2.1.0             the server's next line begins so
S+ 250                   a whole reply, of one line or several, whose last line begins so
has SIZE 1000            a line of that reply has this text after its code; `lacks TEXT`: none has
same                     the server's next line is the one before once more
id A                     the reply ends with a trace id: remembered as A, or the one A is
other-id A               it ends with another trace id than A
silence                  nothing more was said
wait 600ms               time passes
closed                   the server has closed the connection; `open`: it has not
leave                    the client goes away
queued 2                 so many messages are queued by now
sender a@client.test     of the message queued last; `sender` alone: the null one
recipients a@b.c d@e.f   of the message queued last, in the queue's order
stored text              the octets of the message queued last, as received, escapes as above
octets text              the octets of the message queued last as they will leave
holds text               the octets of the message queued last, with what was put above them, contain this
message priority 3       what the queue keeps beside the octets of the message queued last
row orcpt a@b.c          the same of its first recipient
queues local remote      of its recipients, in the queue's order; `expire 1h 2d`: the ages at which they expire
due 10s                  the first recipient is due so long after it was accepted
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum, Flag
from pathlib import Path
from typing import Protocol

from support.baseline import baseline
from support.lookup_stores import DEAD_STORE

from mailgate.queue.item import NewMessage

_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|(.))")
_SIMPLE = {"r": b"\r", "n": b"\n", "t": b"\t", "\\": b"\\"}
_TRACE_ID = re.compile(r" \[([0-9a-z]{12})\]$")
_LENGTH = re.compile(r"(\d+)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

# The waits of the baselines (`errors.wait`) pass by themselves.
_PATIENCE_SECONDS = 0.05
_STEP_SECONDS = 0.005


class Stored(Protocol):
    """A queued message as a dialogue looks at it."""

    sender: str
    recipients: list[str]
    content: bytes
    octets: bytes
    message: NewMessage


class Connection(Protocol):
    """One client's connection to a listener in memory."""

    def send(self, octets: bytes) -> None:
        """One segment from the client."""
        ...

    def received(self) -> bytes:
        """What the server has sent since the last call."""
        ...

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        ...

    def leave(self) -> None:
        """The client closes."""
        ...

    @property
    def closed(self) -> bool:
        """Whether the server has closed."""
        ...

    def queued(self) -> list[Stored]:
        """Messages queued so far."""
        ...


def octets_of(text: str) -> bytes:
    """The octets of a text with escapes."""
    out = b""
    end = 0
    for match in _ESCAPE.finditer(text):
        out += text[end : match.start()].encode()
        out += bytes.fromhex(match[1]) if match[1] else _SIMPLE[match[2]]
        end = match.end()
    return out + text[end:].encode()


def _said(value: object) -> str:
    """A value of the queue as a dialogue writes it."""
    if isinstance(value, Flag):
        return "+".join(str(flag.name) for flag in value)
    return str(value.value) if isinstance(value, Enum) else str(value)


def _seconds(text: str) -> float:
    match = _LENGTH.fullmatch(text)
    assert match, f"no time such as 600ms: {text}"
    return int(match[1]) * _SECONDS[match[2]]


@dataclass
class Dialogue:
    """One file, read."""

    name: str
    rows: list[str] = field(default_factory=list)
    base: str = "B0"
    listener: str = "smtp"
    peer: str = "127.0.0.1"
    replays: tuple[str, ...] = ("whole", "bytewise")
    drop: tuple[str, ...] = ()
    unknown: tuple[tuple[str, str], ...] = ()
    store: str = ""
    changes: str = ""
    body: list[tuple[int, str]] = field(default_factory=list)

    @property
    def config(self) -> str:
        """The configuration with a listener of the wanted id; its address is never bound."""
        protocol = "lmtp" if self.listener == "lmtp" else "smtp"
        listener = f'[server.listener."{self.listener}"]\nbind = "127.0.0.1:2525"\nprotocol = "{protocol}"\n'
        down = DEAD_STORE if "'down'" in self.changes else ""
        return baseline(self.base, listener, down, self.changes, drop=self.drop)


def read(path: Path) -> Dialogue:
    """Read a dialogue; raises `ValueError` for a file without `---`."""
    dialogue = Dialogue(path.stem)
    lines = path.read_text(encoding="utf-8").splitlines()
    if "---" not in lines:
        raise ValueError(f"{path}: no line --- between head and body")
    rule = lines.index("---")
    changes = []
    for line in lines[:rule]:
        word, _, rest = line.partition(" ")
        if line.startswith("#") or not line.strip():
            continue
        if word == "spec":
            dialogue.rows += rest.split()
        elif word == "base":
            dialogue.base = rest.strip()
        elif word == "listener":
            dialogue.listener = rest.strip()
        elif word == "peer":
            dialogue.peer = rest.strip()
        elif word == "drop":
            dialogue.drop += tuple(rest.split())
        elif word == "replay":
            dialogue.replays = tuple(rest.split())
        elif word == "unknown":
            name, _, reason = rest.partition(" ")
            dialogue.unknown += ((name, reason or "SERVFAIL"),)
        elif word == "store":
            dialogue.store = rest.strip()
        else:
            changes.append(line)
    dialogue.changes = "\n".join(changes)
    dialogue.body = [
        (number, line)
        for number, line in enumerate(lines[rule + 1 :], rule + 2)
        if line.strip() and not line.startswith("#")
    ]
    return dialogue


class Player:
    """Plays one dialogue on one connection."""

    def __init__(self, connection: Connection, bytewise: bool) -> None:
        self._connection = connection
        self._bytewise = bytewise
        self._to_send = b""
        self._said = b""
        self._reply: list[str] = []
        self._transcript: list[str] = []
        self._ids: dict[str, str] = {}

    def play(self, dialogue: Dialogue) -> None:
        """Play every line; an AssertionError names the line that did not hold, with what was said before."""
        for number, line in dialogue.body:
            try:
                self._line(line)
            except AssertionError as error:
                said = "\n".join(self._transcript[-20:])
                raise AssertionError(f"{dialogue.name}.txt:{number}: {line}\n{error}\n{said}") from None
        self._flush()
        left = self._pending()
        assert not left, f"{dialogue.name}.txt: at the end the server still said {left!r}"

    def _line(self, line: str) -> None:
        mark, _, rest = line.partition(" ")
        if mark in ("C:", "C-", "C*"):
            self._client(mark, rest)
            return
        self._flush()
        if mark == "S:":
            said = self._next_line()
            self._reply = [said]
            assert said.startswith(rest), f"the server said {said!r}"
        elif mark == "S+":
            self._reply = [self._next_line()]
            while self._reply[-1][3:4] == "-":
                self._reply.append(self._next_line())
            assert self._reply[-1].startswith(rest), f"the server said {self._reply}"
        elif mark == "has":
            assert rest in [line[4:] for line in self._reply], f"not in {self._reply}"
        elif mark == "lacks":
            assert not any(line[4:].startswith(rest) for line in self._reply), f"in {self._reply}"
        elif mark == "same":
            before = self._reply[-1]
            self._reply = [self._next_line()]
            assert self._reply == [before], f"{self._reply}, not {before!r}"
        elif mark == "id":
            found = self._trace_id()
            assert found == self._ids.setdefault(rest, found), f"{found}, not {self._ids[rest]}"
        elif mark == "other-id":
            assert self._trace_id() != self._ids[rest], "the same id"
        elif mark == "silence":
            left = self._pending()
            assert not left, f"the server said {left!r}"
        elif mark == "wait":
            self._connection.advance(_seconds(rest))
        elif mark == "closed":
            assert self._connection.closed, "the connection is open"
        elif mark == "open":
            assert not self._connection.closed, "the connection is closed"
        elif mark == "leave":
            self._connection.leave()
        else:
            self._queue(mark, rest)

    def _queue(self, mark: str, rest: str) -> None:
        queued = self._connection.queued()
        if mark == "queued":
            assert len(queued) == int(rest), f"{len(queued)} messages are queued"
            return
        assert queued, "nothing is queued"
        last = queued[-1]
        if mark == "sender":
            assert last.sender == rest, last.sender
        elif mark == "recipients":
            assert last.recipients == rest.split(), last.recipients
        elif mark == "stored":
            assert last.content == octets_of(rest), last.content
        elif mark == "octets":
            assert last.octets == octets_of(rest), last.octets
        elif mark == "holds":
            assert octets_of(rest) in last.octets, last.octets
        elif mark in ("message", "row"):
            name, _, wanted = rest.partition(" ")
            value = getattr(last.message if mark == "message" else last.message.recipients[0], name)
            assert _said(value) == wanted, value
        elif mark == "queues":
            assert [one.queue for one in last.message.recipients] == rest.split()
        elif mark == "expire":
            ages_ms = [one.expiry.value for one in last.message.recipients]
            assert ages_ms == [_seconds(age) * 1000 for age in rest.split()], ages_ms
        elif mark == "due":
            due_ms = last.message.recipients[0].retry_due_ms
            assert due_ms is not None
            assert due_ms - last.message.created_ms == _seconds(rest) * 1000, due_ms
        else:
            raise AssertionError(f"no such mark: {mark}")

    def _client(self, mark: str, rest: str) -> None:
        if mark == "C*":
            count, _, octet = rest.partition(" ")
            octets = octets_of(octet) * int(count)
        else:
            octets = octets_of(rest) + (b"\r\n" if mark == "C:" else b"")
        self._transcript.append(f"  C {octets[:200]!r}")
        self._to_send += octets

    def _flush(self) -> None:
        octets, self._to_send = self._to_send, b""
        if self._bytewise:
            for at in range(len(octets)):
                self._connection.send(octets[at : at + 1])
        elif octets:
            self._connection.send(octets)

    def _pending(self) -> bytes:
        self._said += self._connection.received()
        return self._said

    def _trace_id(self) -> str:
        found = _TRACE_ID.search(self._reply[-1])
        assert found, f"no trace id in {self._reply[-1]!r}"
        return found[1]

    def _next_line(self) -> str:
        waited = 0.0
        while b"\r\n" not in self._pending() and waited < _PATIENCE_SECONDS:
            self._connection.advance(_STEP_SECONDS)
            waited += _STEP_SECONDS
        line, end, rest = self._said.partition(b"\r\n")
        assert end, f"no line from the server, only {self._said!r}"
        self._said = rest
        text = line.decode("utf-8", "replace")
        self._transcript.append(f"  S {text}")
        if text[3:4] == " ":
            # Whatever the dialogue is about: refusals end with the trace id, other replies never do.
            assert bool(_TRACE_ID.search(text)) == (text[:1] in "45"), f"trace id: {text!r}"
        return text
