"""The client dialogue over a stream: one connection that can take messages."""

from __future__ import annotations

from mailgate.deliver.security import Security
from mailgate.mail.status import Delayed, ErrorKind, Failed, RecipientStatus, RemoteReply
from mailgate.net.stream import Stream
from mailgate.wire.smtp.answer import Answer, MalformedReply
from mailgate.wire.smtp.client import Answered, ClientConnection, Command, Phase
from mailgate.wire.smtp.command import Quit

UNPARSEABLE = "Unparseable SMTP Reply"


class Broken(Exception):
    """The connection ended, or what came was no reply, or none was due; the connection is of no more use."""


class Conversation:
    """A stream, the dialogue on it, and what decides whether it may take another message."""

    __slots__ = ("core", "host", "is_reused", "needs_reset", "opened", "proven", "security", "stream", "transactions")

    def __init__(self, stream: Stream, host: str, security: Security, *, lmtp: bool) -> None:
        self.stream = stream
        self.core = ClientConnection(lmtp=lmtp)
        self.host = host
        self.security = security
        self.opened = stream.now()
        self.transactions = 0
        self.is_reused = False
        self.needs_reset = False
        """The last transaction ended without content: RSET before the next."""
        self.proven = False
        """The server has taken a message on this connection: it may get content before it answered the envelope."""

    async def reply(self, deadline: float) -> Answered:
        """The next reply. Raises `Broken` and `StreamTimeout`."""
        core = self.core
        try:
            event = core.next_event()
            while event is None:
                octets = await self.stream.read(deadline)
                if not octets:
                    raise Broken(self.stream.lost_text)
                core.receive(octets)
                event = core.next_event()
        except MalformedReply as error:
            raise Broken(error.reply.text) from error
        return event

    def send(self, command: Command) -> bytes:
        """The octets of a command. Raises `Broken` where the server has said what nobody asked for.

        That would be taken for the answer to the command, the answer for that to
        the next one, and a message for delivered that has not been judged yet.
        """
        if not self.is_in_step:
            raise Broken("a reply that nobody asked for")
        return self.core.send(command)

    @property
    def is_in_step(self) -> bool:
        """False where the server has said what nobody asked for."""
        core = self.core
        return core.replies_due or not (core.has_input or self.stream.has_input)

    def takes_leave(self) -> bool:
        """True where what it has said unasked is its good-bye (RFC 5321 3.8)."""
        try:
            event = self.core.next_event()
        except MalformedReply:
            return False
        return event is not None and event.answer.code == 421

    async def ask(self, command: Command, seconds: float) -> Answered:
        """Send a command and wait for its reply. Raises `Broken` and `StreamTimeout`."""
        self.stream.write(self.send(command))
        return await self.reply(self.stream.now() + seconds)

    @property
    def is_usable(self) -> bool:
        """True when another transaction may begin: nothing is owed, and nothing was said that nobody asked for."""
        core, stream = self.core, self.stream
        return (
            core.phase in (Phase.READY, Phase.TRANSACTION)
            and not core.replies_due
            and not core.has_input
            and not stream.has_input
            and stream.is_open
        )

    def leave(self) -> None:
        """Close: with QUIT where the dialogue has a place for it, in the background."""
        if self.core.phase in (Phase.START, Phase.READY, Phase.LOGIN, Phase.TRANSACTION) and not self.core.replies_due:
            self.stream.leave(self.core.send(Quit()))
        else:
            self.stream.leave(b"")


def remote_reply(answer: Answer) -> RemoteReply:
    """An answer as a status keeps it."""
    return RemoteReply(answer.code, answer.enhanced, answer.text)


def refused(host: str, line: str, answer: Answer) -> Delayed | Failed:
    """What an answer that is not the hoped-for one means: 5xx is for good, all else for now."""
    status = RecipientStatus(host, ErrorKind.UNEXPECTED_REPLY, command=line, reply=remote_reply(answer))
    return Failed(status) if answer.is_permanent else Delayed(status)


def broke_down(host: str, detail: str) -> Delayed:
    """The connection did not do what it should."""
    return Delayed(RecipientStatus(host, ErrorKind.CONNECTION, detail))
