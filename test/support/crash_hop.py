"""Next hops that remember all they took, SMTP and LMTP, and do to a recipient what its address says.

The local part is BEHAVIOUR-ANYTHING:

ok      taken                             slow    the final reply comes late
later   450 to the first RCPT             never   550 to every RCPT
busy    450 to the first end of data      mute    450 to every RCPT
vanish  taken, but the first time the connection is closed instead of a reply
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

_MESSAGE_ID = re.compile(rb"^message-id:\s*(<[^>]*>)", re.IGNORECASE | re.MULTILINE)
_WORDS = re.compile(r"^(?:MAIL FROM|RCPT TO):\s*<([^>]*)>", re.IGNORECASE)


def message_id(octets: bytes) -> str:
    """The Message-ID of a message; of a notification its own."""
    found = _MESSAGE_ID.search(octets)
    assert found is not None, octets[:300]
    return found[1].decode()


@dataclass
class Taken:
    """What became of one message for one recipient."""

    digests: list[str] = field(default_factory=list)
    """One for each time it was taken."""
    octets: bytes = b""
    """As it was taken the first time."""


class Memory:
    """What all hops of one test have taken."""

    def __init__(self) -> None:
        self.taken: dict[tuple[str, str], Taken] = defaultdict(Taken)
        self.excused: Counter[tuple[str, str]] = Counter()
        """How often a hop itself made a repeat necessary: it took a message and did not say so."""
        self.refused: Counter[tuple[str, str]] = Counter()
        self.conversations = 0
        self.lock = threading.Lock()

    def take(self, octets: bytes, recipients: Sequence[str]) -> None:
        """A message has come in whole."""
        id_ = message_id(octets)
        digest = hashlib.sha256(octets).hexdigest()
        with self.lock:
            for recipient in recipients:
                entry = self.taken[id_, recipient]
                if not entry.digests:
                    entry.octets = octets
                entry.digests.append(digest)

    def forget(self) -> None:
        """Begin anew."""
        with self.lock:
            self.taken.clear()
            self.excused.clear()
            self.refused.clear()

    def is_first(self, id_: str, recipient: str, step: str) -> bool:
        """Whether this has not happened before."""
        with self.lock:
            self.refused[f"{step} {id_}", recipient] += 1
            return self.refused[f"{step} {id_}", recipient] == 1


class Hops:
    """An SMTP and an LMTP server in a thread of their own; `ports` by protocol."""

    def __init__(self, memory: Memory, slow_seconds: float = 0.2) -> None:
        self.memory = memory
        self.slow_seconds = slow_seconds
        self.ports: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        ready = threading.Event()
        self._loop.call_soon(lambda: asyncio.ensure_future(self._open(ready)))
        self._thread.start()
        assert ready.wait(10)

    def close(self) -> None:
        """End both."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        for server in self._servers:
            server.close()
        open_ = asyncio.all_tasks(self._loop)
        for task in open_:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*open_, return_exceptions=True))
        self._loop.close()

    async def _open(self, ready: threading.Event) -> None:
        for protocol in ("smtp", "lmtp"):
            is_lmtp = protocol == "lmtp"

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lmtp: bool = is_lmtp) -> None:
                try:
                    await _Conversation(self, reader, writer, lmtp).run()
                except (OSError, EOFError, asyncio.IncompleteReadError):
                    pass
                finally:
                    writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 22, backlog=512)
            self._servers.append(server)
            self.ports[protocol] = server.sockets[0].getsockname()[1]
        ready.set()


class _Conversation:
    def __init__(self, hops: Hops, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lmtp: bool) -> None:
        self._hops = hops
        self._memory = hops.memory
        self._reader = reader
        self._writer = writer
        self._lmtp = lmtp
        self._forget()

    def _forget(self) -> None:
        self._sender = ""
        self._recipients: list[str] = []
        self._chunks = b""

    def _say(self, text: str) -> None:
        self._writer.write(text.encode() + b"\r\n")

    async def run(self) -> None:
        self._say("220 hop.test ready")
        while True:
            line = (await self._reader.readuntil(b"\r\n"))[:-2].decode("utf-8", "replace")
            verb = line.partition(" ")[0].upper()
            if verb in ("EHLO", "LHLO"):
                self._forget()
                # Every other connection is offered BDAT.
                self._memory.conversations += 1
                chunking = "250-CHUNKING\r\n" if self._memory.conversations % 2 else ""
                self._say(f"250-hop.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n{chunking}250 SIZE 0")
            elif verb == "MAIL":
                self._sender = _address(line)
                self._say("250 2.1.0 OK")
            elif verb == "RCPT":
                self._say(self._rcpt(_address(line)))
            elif verb == "DATA":
                if not self._recipients:
                    self._say("503 5.5.1 no recipients")
                    continue
                self._say("354 go on")
                await self._data()
            elif verb == "BDAT":
                await self._bdat(line)
            elif verb == "QUIT":
                self._say("221 2.0.0 bye")
                return
            elif verb == "RSET":
                self._forget()
                self._say("250 2.0.0 OK")
            else:
                self._say("250 2.0.0 OK")

    def _rcpt(self, address: str) -> str:
        behaviour = address.partition("-")[0]
        if behaviour == "never":
            return "550 5.1.1 nobody"
        # At RCPT the message is not known yet: the address is unique to it.
        if behaviour == "mute" or (behaviour == "later" and self._memory.is_first("", address, "rcpt")):
            return "450 4.2.1 not now"
        self._recipients.append(address)
        return "250 2.1.5 OK"

    async def _bdat(self, line: str) -> None:
        words = line.split(" ")
        self._chunks += await self._reader.readexactly(int(words[1]))
        if not self._recipients:
            self._say("503 5.5.1 no recipients")
        elif words[2:]:
            await self._end(self._chunks)
        else:
            self._say("250 2.0.0 go on")

    async def _data(self) -> None:
        octets = b"\r\n"
        while not octets.endswith(b"\r\n.\r\n"):
            octets += await self._reader.readuntil(b".\r\n")
        await self._end(octets.replace(b"\r\n..", b"\r\n.")[2:-3])

    async def _end(self, octets: bytes) -> None:
        id_ = message_id(octets)
        recipients = self._recipients
        for group in [[each] for each in recipients] if self._lmtp else [recipients]:
            behaviours = {each.partition("-")[0]: each for each in group}
            if "busy" in behaviours and self._memory.is_first(id_, behaviours["busy"], "dot"):
                self._say("451 4.3.0 busy")
                continue
            self._memory.take(octets, group)
            if "slow" in behaviours:
                await self._writer.drain()
                await asyncio.sleep(self._hops.slow_seconds)
            if "vanish" in behaviours and self._memory.is_first(id_, behaviours["vanish"], "vanish"):
                # Who has not had its reply will come again; on LMTP those before have had theirs.
                for each in group:
                    self._memory.excused[id_, each] += 1
                self._writer.transport.abort()
                raise EOFError
            self._say("250 2.0.0 taken")
        self._forget()


def _address(line: str) -> str:
    found = _WORDS.match(line)
    return found[1] if found else ""
