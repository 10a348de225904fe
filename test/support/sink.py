"""A scripted next hop: an SMTP or LMTP server that answers as a test says and keeps what it got.

with NextHop(replies={"RCPT": ["250 2.1.5 OK", "450 4.2.0 later"]}) as hop:
    ... relay to hop.port ...
    hop.wait_messages(1)[0].octets

A step (`CONNECT`, `EHLO`, `LHLO`, `STARTTLS`, `MAIL`, `RCPT`, `DATA`, `BDAT`,
`DOT`, ...) takes its replies in order, the last one again and again; `DOT` is
the final reply, on LMTP one for each accepted recipient. `DROP` closes the
connection in place of a reply, `SILENCE` never answers, `HELD` gives the
usual reply once `release()` was called.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from support.ca import Certificate, server_context
from support.ports import wait_until

DROP = "DROP"
SILENCE = "SILENCE"

_NAIVE_END = re.compile(rb"(?:\r\n|\r|\n)\.(?:\r\n|\r(?=[^\n])|\n)")
HELD = "HELD"


@dataclass
class Received:
    """One message that came in whole, the final reply aside."""

    sender: str
    recipients: list[str]
    octets: bytes
    """As received, dots un-stuffed; with BDAT exactly the octets of the chunks."""
    tls: str | None
    """The TLS version, or None."""
    mail: str = ""
    """The MAIL command with its parameters."""


@dataclass
class Dialogue:
    """One connection: the commands that came, in order."""

    commands: list[str] = field(default_factory=list)
    tls: str | None = None


class _Gone(Exception):
    """The connection is over."""


class NextHop:
    """The server; every connection has a thread."""

    def __init__(
        self,
        *,
        lmtp: bool = False,
        replies: Mapping[str, Sequence[str]] | None = None,
        extensions: Sequence[str] = ("PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "SIZE 100000000"),
        certificate: Certificate | None = None,
        implicit_tls: bool = False,
        naive: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.lmtp = lmtp
        self.naive = naive
        self.extensions = tuple(extensions)
        self.messages: list[Received] = []
        self.dialogues: list[Dialogue] = []
        self._replies = {step: list(texts) for step, texts in (replies or {}).items()}
        self._context = server_context(certificate) if certificate else None
        self._implicit = implicit_tls
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((host, port), backlog=100)
        self.port: int = self._listener.getsockname()[1]
        self._closing = False
        self._released = threading.Event()
        self.held = threading.Semaphore(0)
        """Has one more for each reply that is held."""

    def __enter__(self) -> NextHop:
        """Begin to take connections."""
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the port and every connection."""
        self.close()

    def close(self) -> None:
        """Close the port and every connection; may be called twice."""
        self._closing = True
        self.release()
        # A blocked accept() sees the end only after a shutdown.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            still_open = list(self._open)
        for connection in still_open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def script(self, step: str, *replies: str) -> None:
        """Replace the replies of a step from now on."""
        with self._lock:
            self._replies[step] = list(replies)

    def wait_messages(self, count: int, seconds: float = 20) -> list[Received]:
        """Wait until `count` messages are in, and give all."""
        wait_until(lambda: len(self.messages) >= count, seconds, f"{count} messages at the next hop")
        return list(self.messages)

    def wait_dialogues(self, count: int, seconds: float = 20) -> list[Dialogue]:
        """Wait until `count` connections were made, and give all."""
        wait_until(lambda: len(self.dialogues) >= count, seconds, f"{count} connections at the next hop")
        return list(self.dialogues)

    # --- one connection ------------------------------------------------------------
    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open.add(connection)
        dialogue = Dialogue()
        self.dialogues.append(dialogue)
        try:
            if self._implicit:
                assert self._context is not None
                connection = self.wrap(connection)
                dialogue.tls = connection.version()
            _Conversation(self, connection, dialogue).run()
        except (_Gone, OSError):
            pass
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    # --- for the conversations -------------------------------------------------------
    @property
    def can_start_tls(self) -> bool:
        return self._context is not None and not self._implicit

    def wrap(self, connection: socket.socket) -> ssl.SSLSocket:
        assert self._context is not None
        with self._lock:
            self._open.discard(connection)
            wrapped = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            self._open.add(wrapped)
        wrapped.do_handshake()
        return wrapped

    def reply(self, step: str, usual: str) -> str:
        with self._lock:
            texts = self._replies.get(step)
            if not texts:
                return usual
            text = texts.pop(0) if len(texts) > 1 else texts[0]
        if text != HELD:
            return text
        self.held.release()
        self._released.wait(60)
        return usual

    def release(self) -> None:
        """Let every held reply go, and those to come."""
        self._released.set()


class _Conversation:
    """One connection's dialogue; ends with `_Gone` or an OSError."""

    def __init__(self, hop: NextHop, connection: socket.socket, dialogue: Dialogue) -> None:
        self._hop = hop
        self._connection = connection
        self._dialogue = dialogue
        self._buffer = b""
        self._forget()

    def _forget(self) -> None:
        self._mail = ""
        self._recipients: list[str] = []
        self._chunks: list[bytes] = []

    def run(self) -> None:
        self._answer("CONNECT", "220 hop.test ready")
        while True:
            line = self._until(b"\r\n").decode("utf-8", "replace")
            self._dialogue.commands.append(line)
            verb = line.split(" ")[0].upper()
            if verb in ("EHLO", "LHLO"):
                self._hello(verb)
            elif verb == "STARTTLS":
                self._starttls()
            elif verb == "MAIL":
                self._mail = line
                self._answer("MAIL", "250 2.1.0 OK")
            elif verb == "RCPT":
                if self._answer("RCPT", "250 2.1.5 OK").startswith("2"):
                    self._recipients.append(_path(line))
            elif verb == "DATA":
                self._data()
            elif verb == "BDAT":
                self._bdat(line)
            elif verb == "QUIT":
                self._answer("QUIT", "221 2.0.0 bye")
                raise _Gone
            else:
                if verb == "RSET":
                    self._forget()
                self._answer(verb, "250 2.0.0 OK")

    def _hello(self, verb: str) -> None:
        self._forget()
        lines = ["hop.test", *self._hop.extensions]
        if self._hop.can_start_tls and self._dialogue.tls is None:
            lines.append("STARTTLS")
        usual = "\r\n".join(f"250{'-' if n < len(lines) else ' '}{text}" for n, text in enumerate(lines, 1))
        self._answer(verb, usual)

    def _starttls(self) -> None:
        if self._answer("STARTTLS", "220 2.0.0 go ahead").startswith("220"):
            wrapped = self._hop.wrap(self._connection)
            self._connection = wrapped
            self._dialogue.tls = wrapped.version()
            self._buffer = b""

    def _data(self) -> None:
        if not self._recipients:
            self._send("503 5.5.1 no recipients")
        elif self._answer("DATA", "354 go on").startswith("354"):
            if self._hop.naive:
                self._finish(self._naively())
                return
            # The CRLF of the DATA line is the one before a dot that ends an empty message.
            data = self._until(b"\r\n.\r\n", before=b"\r\n")
            self._finish((data.replace(b"\r\n.", b"\r\n") + b"\r\n")[2:])

    def _naively(self) -> bytes:
        """Message text up to whatever looks like its end, as it came."""
        while (found := _NAIVE_END.search(b"\n" + self._buffer)) is None:
            self._more()
        data = self._buffer[: max(0, found.start() - 1)]
        self._buffer = self._buffer[found.end() - 1 :]
        return data

    def _bdat(self, line: str) -> None:
        words = line.split(" ")
        self._chunks.append(self._exactly(int(words[1])))
        if words[2:] and words[2].upper() == "LAST":
            self._finish(b"".join(self._chunks))
        else:
            self._answer("BDAT", "250 2.6.0 chunk")

    def _finish(self, octets: bytes) -> None:
        """Each final reply leaves before the next is thought about."""
        received = Received(_path(self._mail), self._recipients, octets, self._dialogue.tls, self._mail)
        is_kept = False
        for _ in range(len(self._recipients) if self._hop.lmtp else 1):
            text = self._hop.reply("DOT", "250 2.0.0 taken")
            if text.startswith("2") and not is_kept:
                is_kept = True
                self._hop.messages.append(received)
            self._send(text)
        self._forget()

    # --- octets ----------------------------------------------------------------
    def _answer(self, step: str, usual: str) -> str:
        text = self._hop.reply(step, usual)
        self._send(text)
        return text

    def _send(self, text: str) -> None:
        if text == DROP:
            raise _Gone
        if text == SILENCE:
            # Until the other side gives up.
            while self._connection.recv(65536):
                pass
            raise _Gone
        self._connection.sendall(text.encode() + b"\r\n")

    def _more(self) -> None:
        octets = self._connection.recv(262144)
        if not octets:
            raise _Gone
        self._buffer += octets

    def _until(self, end: bytes, before: bytes = b"") -> bytes:
        """What comes before `end`, with `before` put in front of what is read."""
        seen = bytearray(before)
        start = 0
        while True:
            seen += self._buffer
            self._buffer = b""
            at = seen.find(end, start)
            if at >= 0:
                self._buffer = bytes(seen[at + len(end) :])
                return bytes(seen[:at])
            start = max(0, len(seen) - len(end))
            self._more()

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._more()
        octets, self._buffer = self._buffer[:count], self._buffer[count:]
        return octets


def _path(line: str) -> str:
    """The address between the angle brackets of a MAIL or RCPT command."""
    return line[line.find("<") + 1 : line.find(">")]
