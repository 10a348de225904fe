"""Clients that put mail in and remember what they were told of each message.

Each message has a Message-ID of its own, a body made from it and the body's hash in its header, so that
whoever finds a copy can say whether it is whole. `promised`: 250 was read. `unsure`: all octets were
sent, no reply or a temporary one was read: it may come, and only once, but need not. `never`: it must not come.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

_SUM = re.compile(rb"^X-Sum: (\S+)\r?\n", re.MULTILINE)


@dataclass(frozen=True)
class Mix:
    """What a load is made of; sizes in octets, with their weights."""

    sessions: int = 4
    messages: int = 40
    """Of all sessions together."""
    sizes: tuple[tuple[int, int], ...] = ((300, 6), (3_000, 6), (16_384, 1), (60_000, 2))
    recipients: tuple[int, ...] = (1, 1, 1, 2, 4)
    behaviours: tuple[tuple[str, int], ...] = (("ok", 12), ("later", 1), ("busy", 1), ("slow", 1), ("never", 1))
    domains: tuple[str, ...] = ("smtp.test", "smtp.test", "lmtp.test", "local.test")
    chunking: float = 0.3
    """The share of messages that are sent by BDAT."""
    notify: float = 0.2
    """The share of recipients with NOTIFY=SUCCESS,FAILURE,DELAY."""


@dataclass
class Told:
    """What clients were told."""

    promised: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Message-ID and accepted recipients of what was answered with 250."""
    unsure: dict[str, tuple[str, ...]] = field(default_factory=dict)
    refused: int = 0
    """Messages with a 4xx or 5xx."""

    def add(self, other: Told) -> None:
        """Take in what others were told."""
        self.promised |= other.promised
        self.unsure |= other.unsure
        self.refused += other.refused


def message(id_: str, sender: str, size: int, chance: random.Random) -> bytes:
    """A message of about `size` octets, with lines that begin with dots."""
    lines = []
    length = 0
    while length < size:
        line = b"." * chance.choice((0, 0, 0, 1, 2)) + chance.randbytes(24).hex().encode()
        lines.append(line)
        length += len(line) + 2
    body = b"\r\n".join(lines) + b"\r\n"
    digest = hashlib.sha256(body).hexdigest()
    head = f"Message-ID: {id_}\r\nFrom: <{sender}>\r\nSubject: crash\r\nX-Sum: {digest}\r\n\r\n"
    return head.encode() + body


def is_whole(octets: bytes) -> bool:
    """Whether a copy of a message is what was sent; line ends may be LF."""
    found = _SUM.search(octets)
    if found is None:
        return False
    octets = octets.replace(b"\r\n", b"\n")
    body = octets.partition(b"\n\n")[2].replace(b"\n", b"\r\n")
    return hashlib.sha256(body).hexdigest().encode() == found[1]


class Load:
    """One load on one port. `run` ends when all is sent, or the server is gone."""

    def __init__(
        self,
        port: int,
        mix: Mix,
        chance: random.Random,
        name: str,
        *,
        is_over: Callable[[], bool] = lambda: False,
        tls: ssl.SSLContext | None = None,
        lmtp: bool = False,
        patience: int | None = None,
    ) -> None:
        """`tls` is for a port with TLS from the first octet; a session ends after `patience` messages, if given."""
        self.told = Told()
        self._tls = tls
        self._lmtp = lmtp
        self._patience = patience
        self._port = port
        self._mix = mix
        self._chance = chance
        self._name = name
        self._left = mix.messages
        self._is_over = is_over

    def run(self) -> Told:
        """Send everything; what clients were told."""
        asyncio.run(self._run())
        return self.told

    async def _run(self) -> None:
        await asyncio.gather(*(self._session() for _ in range(self._mix.sessions)))

    async def _session(self) -> None:
        failures = 0
        while self._left > 0 and failures < 3 and not self._is_over():
            try:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", self._port, limit=1 << 20, ssl=self._tls, server_hostname=self._tls and "localhost"
                )
            except OSError:
                return
            try:
                await _reply(reader)
                writer.write(b"LHLO client.test\r\n" if self._lmtp else b"EHLO client.test\r\n")
                await _reply(reader)
                sent = 0
                while self._left > 0 and not self._is_over() and sent != self._patience:
                    self._left -= 1
                    sent += 1
                    await self._send(reader, writer, self._left)
                failures = 0
                if sent == self._patience:
                    writer.write(b"QUIT\r\n")
                    await _reply(reader)
            except (OSError, EOFError, asyncio.IncompleteReadError, ValueError):
                failures += 1
            finally:
                writer.transport.abort()

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        chance, mix = self._chance, self._mix
        word = f"{self._name}.{number}"
        id_ = f"<{word}@crash.test>"
        sender = f"ok-{word}@smtp.test"
        sizes = [size for size, _ in mix.sizes]
        size = chance.choices(sizes, [weight for _, weight in mix.sizes])[0]
        octets = message(id_, sender, size, chance)
        names = [name for name, _ in mix.behaviours]
        weights = [weight for _, weight in mix.behaviours]
        count = chance.choice(mix.recipients)
        domain = chance.choice(mix.domains)
        recipients = []
        for place in range(count):
            if chance.random() < 0.5:
                domain = chance.choice(mix.domains)
            behaviour = chance.choices(names, weights)[0] if domain != "local.test" else f"box{place}"
            recipients.append(
                f"{behaviour}-{word}.{place}@{domain}" if domain != "local.test" else f"{behaviour}@{domain}"
            )
        recipients = list(dict.fromkeys(recipients))
        lines = [f"MAIL FROM:<{sender}>"]
        for recipient in recipients:
            notify = " NOTIFY=SUCCESS,FAILURE,DELAY" if chance.random() < mix.notify else ""
            lines.append(f"RCPT TO:<{recipient}>{notify}")
        chunked = chance.random() < mix.chunking
        if chunked:
            cut = chance.randrange(len(octets))
            sent = f"BDAT {cut}\r\n".encode() + octets[:cut]
        else:
            lines.append("DATA")
            sent = b""
        writer.write("".join(f"{line}\r\n" for line in lines).encode() + sent)
        if not (await _reply(reader)).startswith("250"):
            raise ValueError("MAIL was refused")
        accepted = [recipient for recipient in recipients if (await _reply(reader)).startswith("250")]
        if not (await _reply(reader)).startswith("250" if chunked else "354"):
            self.told.refused += 1
            raise ValueError("the message was refused")
        if chunked:
            writer.write(b"BDAT %d LAST\r\n" % (len(octets) - cut) + octets[cut:])
        else:
            stuffed = octets.replace(b"\r\n.", b"\r\n..")
            half = chance.randrange(len(stuffed))
            writer.write(stuffed[:half])
            if chance.random() < 0.2:
                await asyncio.sleep(0.002)
            writer.write(stuffed[half:] + b".\r\n")
        self.told.unsure[id_] = tuple(accepted)
        # RFC 2033 4.2: one reply for each recipient that was accepted.
        answers = [await _reply(reader) for _ in (accepted if self._lmtp else (0,))]
        if all(answer.startswith("250") for answer in answers):
            self.told.promised[id_] = self.told.unsure.pop(id_)
        else:
            self.told.refused += 1


async def _reply(reader: asyncio.StreamReader) -> str:
    while True:
        line = (await asyncio.wait_for(reader.readuntil(b"\n"), 60)).decode("utf-8", "replace")
        if line[3:4] != "-":
            return line
