"""What is remembered of one transaction, or of one refusal outside a transaction.

While a session runs, its driver keeps a `Trail`. When it is finished `ring.py`
makes one line of JSON of it (`LineWriter`), and `explain.py` reads such lines back
(`Entry.read`).

A line is a JSON array whose places are named by `FIELDS`; new places may be
added at the end. Queue ids are 16 hex digits, times integer milliseconds since
the UNIX epoch. Message content is never part of it, and secrets are not given
to a trail in the first place; the line leaves out those the configuration calls
secret should one have come in through a value.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from json.encoder import encode_basestring
from time import perf_counter_ns
from typing import NamedTuple

from mailgate.mail.reply import Reply
from mailgate.mail.session import Session
from mailgate.mail.unknown import Unknown

FIELDS = (
    "kind",
    "trace",
    "session",
    "queue_id",
    "started",
    "ended",
    "listener",
    "protocol",
    "peer_ip",
    "peer_port",
    "local_ip",
    "local_port",
    "tls",
    "helo",
    "login",
    "sender",
    "size",
    "recipients",
    "steps",
    "left_out",
    "replies",
    "reason",
)

# A transaction with more steps keeps its beginning and its end: what was
# decided last is what an operator asks about.
STEPS_KEPT_FIRST = 192
STEPS_KEPT_LAST = 64
_STEPS_AT_ONCE = 1024
_RECIPIENTS_KEPT = 1000
_ENDS_KEPT = 4096

# A value is evidence, not an archive.
_VALUE_CHARACTERS = 1024
_VALUE_ELEMENTS = 32

ALL_POLICIES = "all policies"
"""The rule of a chain that nothing in it has ended."""
QUEUED = "queued"
"""The reason of a message that was accepted."""

REDACTED = "[redacted]"


class Kind(Enum):
    """What an entry is about."""

    TRANSACTION = "transaction"
    SESSION = "session"


Reads = tuple[tuple[str, object], ...]
"""The facts a rule looked at, by the names an operator writes them with."""


class Trail:
    """The decisions of one transaction (or of the part of a session outside one) so far.

    Owned by the session's driver; nobody changes it after it went to
    `Ring.record`.
    """

    __slots__ = ("_marked_ns", "left_out", "recipients", "sender", "started_ms", "steps", "trace_id")

    def __init__(self, trace_id: str, started_ms: int) -> None:
        self.trace_id = trace_id
        self.started_ms = started_ms
        self.sender: str | None = None
        """The reverse-path as text, "" for the null one; None before MAIL."""
        self.recipients: list[tuple[str, str, int]] = []
        self.steps: list[tuple[str, str, str, Reads, str, int]] = []
        self.left_out = 0
        self._marked_ns = 0

    def resume(self) -> None:
        """A decision begins now: what it takes is counted from here."""
        self._marked_ns = perf_counter_ns()

    def decided(self, stage: str, rule: str, place: str, reads: Reads, said: str) -> None:
        """As `add`; it took the time since `resume`, or since the decision before."""
        now_ns = perf_counter_ns()
        began_ns = self._marked_ns
        self._marked_ns = now_ns
        steps = self.steps
        steps.append((stage, rule, place, reads, said, (now_ns - began_ns) // 1000 if began_ns else 0))
        if len(steps) >= _STEPS_AT_ONCE:
            self._thin()

    def add(self, stage: str, rule: str, place: str, reads: Reads, said: str, micros: int) -> None:
        """Remember one decision.

        `rule` is the key or check by its configured name, `place` is where it
        is written (`mailgate.toml:31`, `built-in`), `said` its result in words.
        """
        steps = self.steps
        steps.append((stage, rule, place, reads, said, micros))
        if len(steps) >= _STEPS_AT_ONCE:
            self._thin()

    def add_recipient(self, address: str, reply: str) -> None:
        """Remember a recipient that was asked for and the answer; its steps are those added since the last one."""
        if len(self.recipients) < _RECIPIENTS_KEPT:
            self.recipients.append((address, reply, len(self.steps) + self.left_out))

    def _thin(self) -> None:
        """Drop the middle, so that a client cannot make a trail grow without bound."""
        gone = len(self.steps) - STEPS_KEPT_FIRST - STEPS_KEPT_LAST
        if gone > 0:
            del self.steps[STEPS_KEPT_FIRST:-STEPS_KEPT_LAST]
            self.left_out += gone


class Finished(NamedTuple):
    """A trail with everything else that its line tells."""

    kind: Kind
    trail: Trail
    session: Session
    ended_ms: int
    replies: Sequence[Reply]
    reason: str
    queue_id: int | None
    size_octets: int | None


class Redactor:
    """Takes the secrets of a configuration out of what is written."""

    __slots__ = ("_escaped", "_secrets")

    def __init__(self, secrets: Collection[str] = ()) -> None:
        # The longest first: a secret may hold another one.
        self._secrets = tuple(sorted({secret for secret in secrets if secret}, key=len, reverse=True))
        self._escaped = tuple(_ENCODE(secret)[1:-1] for secret in self._secrets)

    def touches(self, line: str) -> bool:
        """Whether a secret is somewhere in a finished line."""
        return any(secret in line for secret in self._escaped)

    def clean(self, text: str) -> str:
        """The text without secrets."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, REDACTED)
        return text

    def clean_value(self, value: object) -> object:
        """A JSON value with every string in it cleaned."""
        if isinstance(value, str):
            return self.clean(value)
        if isinstance(value, (list, tuple)):
            return [self.clean_value(each) for each in value]
        if isinstance(value, dict):
            return {key: self.clean_value(each) for key, each in value.items()}
        return value


def plain(value: object) -> object:
    """What JSON can say of a value a rule has read; long ones are cut."""
    if isinstance(value, str):
        return value if len(value) <= _VALUE_CHARACTERS else value[:_VALUE_CHARACTERS] + "..."
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Unknown):
        return {"unknown": value.dependency, "reason": value.reason}
    if isinstance(value, bytes):
        return plain(value[: _VALUE_CHARACTERS + 1].decode("utf-8", "backslashreplace"))
    if isinstance(value, Sequence):
        few = [plain(each) for each in value[:_VALUE_ELEMENTS]]
        if len(value) > _VALUE_ELEMENTS:
            few.append(f"... {len(value) - _VALUE_ELEMENTS} more")
        return few
    if isinstance(value, (set, frozenset)):
        return plain(sorted(str(each) for each in value))
    return plain(str(value))


_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


def _text(value: str | None) -> str:
    return "null" if value is None else encode_basestring(value)


def _reads(reads: Reads) -> str:
    told = []
    for name, value in reads:
        if type(value) is str and len(value) <= _VALUE_CHARACTERS:
            told.append(f"[{encode_basestring(name)},{encode_basestring(value)}]")
        elif type(value) is int:
            told.append(f"[{encode_basestring(name)},{value}]")
        else:
            told.append(f"[{encode_basestring(name)},{_ENCODE(plain(value))}]")
    return ",".join(told)


class LineWriter:
    """Makes lines of finished trails.

    Put together by hand, and what the steps of one policy have in common is
    kept: a third of the time that encoding everything as a whole takes.
    """

    __slots__ = ("_ends", "_redactor")

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._ends: dict[tuple[str, str, str, str], tuple[str, str]] = {}

    def _step(self, ends: tuple[str, str, str, str]) -> tuple[str, str]:
        """A step's text before and after what it read."""
        if len(self._ends) >= _ENDS_KEPT:
            self._ends.clear()
        stage, rule, place, said = map(encode_basestring, ends)
        found = self._ends[ends] = (f"[{stage},{rule},{place},[", f"],{said},")
        return found

    def line(self, finished: Finished) -> bytes:
        """One finished trail as a line of JSON, newline included."""
        kind, trail, session, ended_ms, replies, reason, queue_id, size_octets = finished
        if len(trail.steps) > STEPS_KEPT_FIRST + STEPS_KEPT_LAST:
            trail._thin()
        quoted = encode_basestring
        kept = self._ends
        steps = []
        for stage, rule, place, reads, said, micros in trail.steps:
            ends = stage, rule, place, said
            before, after = kept.get(ends) or self._step(ends)
            steps.append(f"{before}{_reads(reads) if reads else ''}{after}{micros}]")
        recipients = [f"[{quoted(address)},{quoted(reply)},{count}]" for address, reply, count in trail.recipients]
        told = [quoted(f"{reply.code} {reply.enhanced} {reply.text}") for reply in replies]
        queued = "null" if queue_id is None else f'"{queue_id:016x}"'
        tls, identity = session.tls, session.identity
        text = (
            f'["{kind.value}","{trail.trace_id}","{session.id}",{queued},{trail.started_ms},{ended_ms},'
            f'{quoted(session.listener)},"{session.protocol}","{session.remote_ip}",{session.remote_port},'
            f'"{session.local_ip}",{session.local_port},{"null" if tls is None else quoted(tls.version)},'
            f"{_text(session.helo)},{'null' if identity is None else quoted(identity.login)},{_text(trail.sender)},"
            f"{'null' if size_octets is None else size_octets},[{','.join(recipients)}],[{','.join(steps)}],"
            f"{trail.left_out},[{','.join(told)}],{quoted(reason)}]\n"
        )
        if self._redactor.touches(text):
            fields = json.loads(text)
            # Ids are ours and must stay searchable.
            text = _ENCODE(fields[:4] + [self._redactor.clean_value(each) for each in fields[4:]]) + "\n"
        # A lone surrogate becomes its JSON escape.
        return text.encode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class Step:
    """One decision, read back."""

    stage: str
    rule: str
    place: str
    reads: tuple[tuple[str, object], ...]
    said: str
    micros: int

    @property
    def is_refusal(self) -> bool:
        """Whether a client was refused by it: `550 5.7.1 (sender-not-allowed)`."""
        return is_refusal(self.said)


def is_refusal(said: str) -> bool:
    """Whether the result of a decision is a refusal in words."""
    return said[:1] in ("4", "5") and said[-1:] == ")"


@dataclass(frozen=True, slots=True)
class AskedRecipient:
    """One RCPT, read back; `steps` is how many steps of the entry came before its answer."""

    address: str
    reply: str
    steps: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One transaction or refusal, read back."""

    kind: str
    trace: str
    session: str
    queue_id: str | None
    started_ms: int
    ended_ms: int
    listener: str
    protocol: str
    peer_ip: str
    peer_port: int
    local_ip: str
    local_port: int
    tls: str | None
    helo: str | None
    login: str | None
    sender: str | None
    size_octets: int | None
    recipients: tuple[AskedRecipient, ...]
    steps: tuple[Step, ...]
    left_out: int
    replies: tuple[str, ...]
    reason: str

    @property
    def decisive(self) -> Step | None:
        """The decision everything else follows from: the last refusal, or for a message that was queued the last chain.

        None where nothing was decided.
        """
        if self.reason == QUEUED:
            passed = [step for step in self.steps if step.rule == ALL_POLICIES]
            return passed[-1] if passed else None
        refused = [step for step in self.steps if step.is_refusal]
        return (refused or self.steps)[-1] if self.steps else None

    @property
    def micros(self) -> int:
        """The time its decisions took together."""
        return sum(step.micros for step in self.steps)

    @classmethod
    def read(cls, octets: bytes) -> Entry | None:
        """Read one line; None for one that is torn or not an entry."""
        try:
            fields = json.loads(octets)
        except ValueError:
            return None
        if not isinstance(fields, list) or len(fields) < len(FIELDS):
            return None
        values = dict(zip(FIELDS, fields, strict=False))
        try:
            return cls(
                kind=values["kind"],
                trace=values["trace"],
                session=values["session"],
                queue_id=values["queue_id"],
                started_ms=values["started"],
                ended_ms=values["ended"],
                listener=values["listener"],
                protocol=values["protocol"],
                peer_ip=values["peer_ip"],
                peer_port=values["peer_port"],
                local_ip=values["local_ip"],
                local_port=values["local_port"],
                tls=values["tls"],
                helo=values["helo"],
                login=values["login"],
                sender=values["sender"],
                size_octets=values["size"],
                recipients=tuple(AskedRecipient(*each) for each in values["recipients"]),
                steps=tuple(
                    Step(stage, rule, place, tuple((name, value) for name, value in reads), said, micros)
                    for stage, rule, place, reads, said, micros in values["steps"]
                ),
                left_out=values["left_out"],
                replies=tuple(values["replies"]),
                reason=values["reason"],
            )
        except (TypeError, ValueError):
            return None
