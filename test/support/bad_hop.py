"""Next hops that fail in one place each, until they are healed: a table of steps and faults.

hops = BadHops(certificate)              a port for every `Cell` of `cells()`
hops.ports[cell]                         where the one listens that fails in this way
hops.heal()                              from now on all of them do what they should
hops.kept[cell]                          [recipients] of each message that was taken, in order
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import defaultdict
from typing import NamedTuple

from support.ca import Certificate, server_context

FAULTS = ("4xx", "5xx", "421", "garbage", "overlong", "silence", "close", "half", "early")
"""A refusal for now or for good, a farewell, no reply at all in various ways, and more than was asked for."""

SMTP_STEPS = ("greeting", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "content", "final", "bdat")
PIPELINED_STEPS = ("mail", "rcpt", "data", "final")
LMTP_STEPS = ("lhlo", "first", "second")

_TEXT = {"4xx": "450 4.2.0 later", "5xx": "550 5.1.1 never", "421": "421 4.3.2 going away"}
_USUAL = {"data": "354 go ahead", "starttls": "220 go ahead", "greeting": "220 hop.test ready", "auth": "235 2.7.0 ok"}


class Cell(NamedTuple):
    """One step that goes wrong in one way; `kind` is `smtp`, `pipelined` or `lmtp`."""

    kind: str
    step: str
    fault: str

    @property
    def name(self) -> str:
        """A label that names it."""
        return f"{self.kind}-{self.step}-{self.fault}"


def cells() -> list[Cell]:
    """The whole table."""
    steps = {"smtp": SMTP_STEPS, "pipelined": PIPELINED_STEPS, "lmtp": LMTP_STEPS}
    return [Cell(kind, step, fault) for kind, names in steps.items() for step in names for fault in FAULTS]


class _Gone(Exception):
    """The dialogue is over."""


class BadHops:
    """All of them, in one thread."""

    def __init__(self, certificate: Certificate) -> None:
        self.kept: dict[Cell, list[list[str]]] = defaultdict(list)
        self.ports: dict[Cell, int] = {}
        self.dialogues: dict[Cell, int] = defaultdict(int)
        self._tls = server_context(certificate)
        self._healed = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> BadHops:
        """Listen."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(20)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def heal(self) -> None:
        """Let all of them do what they should."""
        self._healed.set()

    @property
    def healed(self) -> bool:
        """Whether they do."""
        return self._healed.is_set()

    async def _listen(self) -> None:
        for cell in cells():
            server = await asyncio.start_server(lambda r, w, cell=cell: self._serve(cell, r, w), "127.0.0.1", 0)
            self.ports[cell] = server.sockets[0].getsockname()[1]

    async def _serve(self, cell: Cell, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.dialogues[cell] += 1
        with contextlib.suppress(_Gone, OSError, asyncio.IncompleteReadError):
            await _Dialogue(self, cell, reader, writer).run()
        with contextlib.suppress(Exception):
            writer.close()

    @property
    def tls(self):
        """For STARTTLS."""
        return self._tls


class _Dialogue:
    """One connection."""

    def __init__(self, hops: BadHops, cell: Cell, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hops = hops
        self.cell = cell
        self.reader = reader
        self.writer = writer
        self.recipients: list[str] = []
        self.tls = False

    async def run(self) -> None:
        """Answer until the client leaves."""
        await self.answer("greeting")
        while line := await self.reader.readline():
            verb = line.split(b" ")[0].strip().upper().decode()
            await self.command(verb, line.decode().strip())

    async def command(self, verb: str, line: str) -> None:
        """Answer one command."""
        if verb in ("EHLO", "HELO", "LHLO"):
            await self.answer("lhlo" if verb == "LHLO" else "ehlo", self.hello())
        elif verb == "STARTTLS":
            if await self.answer("starttls"):
                await self.writer.start_tls(self.hops.tls)
                self.tls = True
        elif verb == "AUTH":
            await self.answer("auth")
        elif verb == "MAIL":
            self.recipients = []
            await self.answer("mail")
        elif verb == "RCPT":
            # Only one recipient goes wrong: the other's answer must not depend on it.
            if "<b@" not in line:
                await self.send("250 2.1.5 ok")
                self.recipients.append(line)
            elif await self.answer("rcpt"):
                self.recipients.append(line)
        elif verb == "DATA":
            if not self.recipients:
                await self.send("503 5.5.1 nobody to send it to")
            elif await self.answer("data"):
                await self.answer("content", None)
                await self.content()
                await self.finish("final")
        elif verb == "BDAT":
            await self.reader.readexactly(int(line.split()[1]))
            await self.finish("bdat")
        elif verb == "QUIT":
            await self.send("221 2.0.0 bye")
            raise _Gone
        else:
            await self.send("250 2.0.0 ok")

    def hello(self) -> str:
        """The reply to EHLO: what the cell needs to be reached."""
        offers = ["8BITMIME", "ENHANCEDSTATUSCODES"]
        if self.cell.kind == "pipelined":
            offers.append("PIPELINING")
        if self.cell.step == "bdat":
            offers.append("CHUNKING")
        if self.cell.step == "auth":
            offers.append("AUTH PLAIN")
        if self.cell.step == "starttls" and not self.tls:
            offers.append("STARTTLS")
        return "\r\n".join(["250-hop.test", *(f"250-{offer}" for offer in offers[:-1]), f"250 {offers[-1]}"])

    async def content(self) -> None:
        """Read up to the final dot."""
        while (line := await self.reader.readline()) != b".\r\n":
            if not line:
                raise _Gone

    async def finish(self, step: str) -> None:
        """The final reply; on LMTP one for each recipient."""
        if self.cell.kind != "lmtp":
            if await self.answer(step):
                self.hops.kept[self.cell].append(self.recipients)
            return
        for recipient in self.recipients:
            if await self.answer("second" if "<b@" in recipient else "first"):
                self.hops.kept[self.cell].append([recipient])

    async def send(self, text: str, end: str = "\r\n") -> None:
        """Say it."""
        self.writer.write(f"{text}{end}".encode())
        await self.writer.drain()

    async def answer(self, step: str, usual: str | None = "250 2.0.0 ok") -> bool:
        """Reply to a step; True when that was the usual reply. Where `usual` is None there is none."""
        if usual == "250 2.0.0 ok":
            usual = _USUAL.get(step, usual)
        if step != self.cell.step or self.hops.healed:
            if usual is not None:
                await self.send(usual)
            return True
        fault = self.cell.fault
        if fault in _TEXT:
            await self.send(_TEXT[fault])
            if fault == "421":
                raise _Gone
        elif fault == "garbage":
            await self.send("\x00\xff*** what? ***")
        elif fault == "overlong":
            await self.send("250 " + "x" * 100_000)
        elif fault == "silence":
            await self.reader.read()
            raise _Gone
        elif fault == "close":
            raise _Gone
        elif fault == "half":
            await self.send((usual or "250 2.0.0 ok")[:5], end="")
            raise _Gone
        else:
            await self.send(f"{usual or '250 2.0.0 taken'}\r\n250 2.0.0 and more")
            return usual is not None
        return False
