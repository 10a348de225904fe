"""Find recorded decisions and tell them to an operator.

Reads the segments of the ring as they are on disk (`ring.py`), newest first,
whether or not a daemon is writing them. There is no index: the ring is bounded,
and what is looked for is found in the raw octets before any line is parsed.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from mailgate.decisions.entry import Entry, Step
from mailgate.decisions.ring import segments

# Inbound trace ids: RFC 4648 base32 in lower case.
_TRACE = re.compile(r"[a-z2-7]{12}")
_QUEUE_ID = re.compile(r"[0-9a-f]{1,16}")


class BadQuestion(ValueError):
    """Something cannot be looked for: it has not the form of what it should be."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is looked for; everything given must hold."""

    id: str | None = None
    """A trace id (of a transaction or a session) or a queue id, in either case."""
    rcpt: str | None = None
    """Part of a recipient's address, in either case."""
    peer: str | None = None
    """The client's address, or a network such as `192.0.2.0/24`."""

    def __post_init__(self) -> None:
        """Raise `BadQuestion` for what can be no id or no address."""
        if self.id is not None and not (_TRACE.fullmatch(self.id.lower()) or _QUEUE_ID.fullmatch(self.id.lower())):
            raise BadQuestion(f'"{self.id}" is neither a trace id nor a queue id')
        if self.peer is not None:
            try:
                ipaddress.ip_network(self.peer)
            except ValueError:
                raise BadQuestion(f'"{self.peer}" is neither an IP address nor a network') from None


class _Search:
    """A question made ready: octets a line must hold, and the test that decides."""

    def __init__(self, question: Question) -> None:
        self._id = question.id.lower() if question.id is not None else None
        self._queue_id = f"{self._id:0>16}" if self._id is not None and _QUEUE_ID.fullmatch(self._id) else None
        self._rcpt = question.rcpt.lower() if question.rcpt is not None else None
        self._network = ipaddress.ip_network(question.peer) if question.peer is not None else None
        # The rarest first: an id is in one line, a peer may be in all of them. Lower case, as the lines are compared.
        self.needle = b""
        if self._id is not None:
            # A queue id may be given without its leading zeros, and a trace id may look like one.
            self.needle = self._id.encode()
        elif self._rcpt and self._rcpt.isascii():
            self.needle = json.dumps(self._rcpt)[1:-1].encode()
        elif self._network is not None and self._network.num_addresses == 1:
            self.needle = f'"{self._network.network_address}"'.encode()

    def holds(self, entry: Entry) -> bool:
        if self._id is not None and self._id not in (entry.trace, entry.session):
            if entry.queue_id is None or entry.queue_id != self._queue_id:
                return False
        if self._rcpt is not None and not any(self._rcpt in asked.address.lower() for asked in entry.recipients):
            return False
        return self._network is None or _is_in(entry.peer_ip, self._network)


def _is_in(ip: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        return ipaddress.ip_address(ip) in network
    except ValueError:
        return False


def find(folder: str, question: Question, limit: int) -> list[Entry]:
    """The newest `limit` entries that answer the question, newest first.

    Raises `OSError` when the ring cannot be read; a ring that is not there is empty.
    """
    search = _Search(question)
    found: list[Entry] = []
    # Segments of several processes overlap in time: one that was last written
    # before everything found so far cannot hold anything newer.
    for written, path in sorted(_dated(folder), reverse=True):
        if len(found) >= limit and written < found[limit - 1].ended_ms:
            break
        found.extend(_in_segment(path, search, limit))
        found.sort(key=lambda entry: entry.ended_ms, reverse=True)
        del found[limit:]
    return found


def _dated(folder: str) -> Iterator[tuple[int, str]]:
    for path in segments(folder):
        try:
            yield os.stat(path).st_mtime_ns // 1_000_000 + 1, path
        except FileNotFoundError:
            # The ring moved on while it was listed.
            continue


def _in_segment(path: str, search: _Search, limit: int) -> list[Entry]:
    try:
        with open(path, "rb") as file:
            octets = file.read()
    except FileNotFoundError:
        return []
    found: list[Entry] = []
    for line in _lines(octets, search.needle):
        entry = Entry.read(line)
        if entry is not None and search.holds(entry):
            found.append(entry)
            if len(found) >= limit:
                break
    return found


def _lines(octets: bytes, needle: bytes) -> Iterator[bytes]:
    """The lines that hold `needle` (lower case, "" for every line) in any case, last one first."""
    lowered = octets.lower() if needle else octets
    end = len(octets)
    while end > 0:
        at = lowered.rfind(needle, 0, end) if needle else end - 1
        if at < 0:
            return
        start = octets.rfind(b"\n", 0, at) + 1
        stop = octets.find(b"\n", at)
        # Without its line end the last line is torn, or being written.
        if stop >= 0:
            yield octets[start:stop]
        end = start


def printable(text: str) -> str:
    """Text of strangers, safe for a terminal: control characters are shown, not sent."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def timestamp(epoch_ms: int) -> str:
    """A moment for programs: UTC with milliseconds, as in RFC 3339 5.6."""
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{epoch_ms % 1000:03d}Z"


# --- told to people -------------------------------------------------------------


def _moment(epoch_ms: int) -> str:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.") + f"{epoch_ms % 1000:03d} UTC"


def _host(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _shown(value: object) -> str:
    if isinstance(value, dict) and "unknown" in value:
        return f"unknown ({value['unknown']}: {value.get('reason', '')})"
    return json.dumps(value, ensure_ascii=False)


def step_lines(step: Step) -> Iterator[str]:
    """One decision for people: rule, place, result and time, then each fact it read."""
    place = f" ({step.place})" if step.place else ""
    took = f"  [{step.micros} us]" if step.micros else ""
    yield f"    {step.stage:8}{step.rule}{place} -> {step.said}{took}"
    for name, value in step.reads:
        yield f"              {name} = {_shown(value)}"


def told(entry: Entry) -> str:
    """One entry for people, in lines, the last one ended too."""
    return "".join(f"{printable(line)}\n" for line in _told(entry))


def _told(entry: Entry) -> Iterator[str]:
    what = f"Transaction {entry.trace} of session" if entry.trace != entry.session else "Session"
    yield f"{what} {entry.session}, {_moment(entry.started_ms)}, {entry.ended_ms - entry.started_ms} ms"
    tls = f", {entry.tls}" if entry.tls else ", no TLS"
    peer, local = _host(entry.peer_ip, entry.peer_port), _host(entry.local_ip, entry.local_port)
    yield f"  client    {peer} to {local}, listener {entry.listener} ({entry.protocol}){tls}"
    if entry.helo is not None:
        yield f"  EHLO      {entry.helo}"
    if entry.login is not None:
        yield f"  login     {entry.login}"
    if entry.sender is not None:
        yield f"  sender    <{entry.sender}>"
    for asked in entry.recipients:
        yield f"  recipient <{asked.address}>: {asked.reply}"
    if entry.size_octets is not None:
        yield f"  size      {entry.size_octets} octets"
    if entry.queue_id is not None:
        yield f"  queue id  {entry.queue_id}"
    for reply in entry.replies:
        first, *rest = reply.splitlines() or [""]
        yield f"  reply     {first}"
        yield from (f"            {line}" for line in rest)
    if entry.reason:
        yield f"  reason    {entry.reason}"
    if (decisive := entry.decisive) is not None:
        place = f" ({decisive.place})" if decisive.place else ""
        yield f"  because   {decisive.rule}{place} -> {decisive.said}"
    if entry.steps:
        yield "  decided"
    asked_before = {recipient.steps: recipient.address for recipient in reversed(entry.recipients)}
    for number, step in enumerate(entry.steps, 1):
        yield from step_lines(step)
        if number in asked_before and not entry.left_out:
            yield f"            that was for <{asked_before[number]}>"
    if entry.left_out:
        yield f"    ({entry.left_out} decisions in the middle were not kept)"


# --- told to programs -------------------------------------------------------------


def as_json(entry: Entry) -> dict[str, object]:
    """One entry for programs; absent facts are left out."""
    facts: dict[str, object] = {
        "kind": entry.kind,
        "trace": entry.trace,
        "session": entry.session,
        "queue_id": entry.queue_id,
        "started": timestamp(entry.started_ms),
        "ended": timestamp(entry.ended_ms),
        "listener": entry.listener,
        "protocol": entry.protocol,
        "peer": {"ip": entry.peer_ip, "port": entry.peer_port},
        "local": {"ip": entry.local_ip, "port": entry.local_port},
        "tls": entry.tls,
        "helo": entry.helo,
        "login": entry.login,
        "sender": entry.sender,
        "size": entry.size_octets,
        "recipients": [
            {"address": asked.address, "reply": asked.reply, "steps": asked.steps} for asked in entry.recipients
        ],
        "replies": list(entry.replies),
        "reason": entry.reason or None,
        "decided_by": None if entry.decisive is None else _facts(entry.decisive),
        "micros": entry.micros,
        "steps": [_facts(step) for step in entry.steps],
        "left_out": entry.left_out or None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _facts(step: Step) -> dict[str, object]:
    return {
        "stage": step.stage,
        "rule": step.rule,
        "place": step.place,
        "reads": [{"name": name, "value": value} for name, value in step.reads],
        "said": step.said,
        "micros": step.micros,
    }
