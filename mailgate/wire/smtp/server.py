"""The server's side of an SMTP or LMTP dialogue, without I/O (RFC 5321, RFC 2033).

`receive` takes octets, `next_event` gives what they mean, `reply` gives the
octets of an answer. An event owes an answer (but for `DataChunk` and `Bdat`),
and until it is given nothing further is interpreted: pipelined commands are
answered in order however long a decision takes (RFC 2920 3.2).

What a client sends never raises: it becomes an event, at worst `Rejected`.
Whether a command is in order is not judged here.

States and what moves between them::

    COMMAND  --line-->    OWED, OWED_DATA, OWED_SASL, OWED_TLS, OWED_LAST, or CHUNK
    OWED     --reply-->   COMMAND
    OWED_DATA             354: DATA       else COMMAND
    OWED_SASL             334: RESPONSE   else COMMAND
    OWED_TLS              220: TLS        else COMMAND
    OWED_LAST             any: CLOSED     (QUIT, a bare newline)
    DATA     --end mark-->           OWED
    CHUNK    --its last octet-->     OWED
    RESPONSE --line-->    OWED_SASL
    TLS      --tls_started()-->      COMMAND
    any      --discard_input()-->    CLOSED

Memory: what waits to be interpreted is at most one line (4096 octets) or two
octets of message text, and what a single `receive` brought. A shell that
stops reading while `Pending.PAUSED` holds may still hand over one read.
"""

from __future__ import annotations

from enum import Enum

from mailgate.mail import replies
from mailgate.mail.envelope import Body
from mailgate.mail.reply import Reply
from mailgate.wire.smtp.chunk import ChunkReader
from mailgate.wire.smtp.command import (
    Auth,
    AuthResponse,
    Bdat,
    ChunkEnd,
    Data,
    DataChunk,
    DataEnd,
    Ehlo,
    Event,
    Mail,
    Pending,
    Quit,
    Rejected,
    Rset,
    StartTls,
)
from mailgate.wire.smtp.data import BareNewline, DataReader
from mailgate.wire.smtp.error import LocalError
from mailgate.wire.smtp.line import Fault, LineBuffer
from mailgate.wire.smtp.parse import parse

__all__ = ["BareNewline", "Pending", "ServerConnection", "State"]


class State(Enum):
    """What the octets to come are, or whose turn it is."""

    # Members are looked up in tables at every step; Enum hashes their names in Python.
    __hash__ = object.__hash__

    COMMAND = "command"
    """A command line is next."""
    RESPONSE = "response"
    """A line of a SASL exchange is next."""
    DATA = "data"
    """Message text up to its end mark is next."""
    CHUNK = "chunk"
    """A counted number of octets is next."""
    TLS = "tls"
    """The handshake is next; octets are dropped until it is done."""
    OWED = "owed"
    OWED_DATA = "owed-data"
    OWED_SASL = "owed-sasl"
    OWED_TLS = "owed-tls"
    OWED_LAST = "owed-last"
    CLOSED = "closed"
    """Nothing is interpreted any more."""


# Looking a member up in its Enum costs more than the rest of a step.
_COMMAND = State.COMMAND
_RESPONSE = State.RESPONSE
_DATA = State.DATA
_CHUNK = State.CHUNK
_TLS = State.TLS
_OWED = State.OWED
_OWED_SASL = State.OWED_SASL
_OWED_LAST = State.OWED_LAST
_CLOSED = State.CLOSED
_NEED_DATA = Pending.NEED_DATA
_PAUSED = Pending.PAUSED

AFTER_EVENT: dict[type[Event], State] = {
    Auth: State.OWED_SASL,
    AuthResponse: State.OWED_SASL,
    Bdat: State.CHUNK,
    Data: State.OWED_DATA,
    Quit: State.OWED_LAST,
    StartTls: State.OWED_TLS,
}
"""Where an event that a line became leads; what is not listed leads to OWED."""

AFTER_REPLY: dict[State, tuple[int | None, State, State]] = {
    State.OWED: (None, State.COMMAND, State.COMMAND),
    State.OWED_DATA: (354, State.DATA, State.COMMAND),
    State.OWED_SASL: (334, State.RESPONSE, State.COMMAND),
    State.OWED_TLS: (220, State.TLS, State.COMMAND),
    State.OWED_LAST: (None, State.CLOSED, State.CLOSED),
}
"""The code that leads on, where to, and where any other leads."""

_TRANSACTION_BEGINS = (Mail, Rset, Ehlo)
_MESSAGE_ENDS = (DataEnd, ChunkEnd)

_BARE = Rejected(replies.BARE_NEWLINE_IN_COMMAND, close=True)
_TOO_LONG = Rejected(replies.LINE_TOO_LONG)
_RESPONSE_TOO_LONG = AuthResponse(b"", too_long=True)


class ServerConnection:
    """One connection, from its first command to its last reply.

    `bare_newline` may be set whenever no message is being read; it holds from
    the next DATA, or from the next transaction's first BDAT. `binary_body`
    says that chunks carry BODY=BINARYMIME; a positive reply to MAIL sets it
    from its parameters.
    """

    __slots__ = (
        "_buffer",
        "_chunks",
        "_last",
        "_left",
        "_lmtp",
        "_owed",
        "_text",
        "bare_newline",
        "binary_body",
        "state",
    )

    def __init__(self, *, lmtp: bool = False) -> None:
        self.bare_newline = BareNewline.REJECT
        self.binary_body = False
        self.state = State.COMMAND
        self._lmtp = lmtp
        self._buffer = LineBuffer()
        self._owed: Event | None = None
        """The event that waits for its answer."""
        self._text: DataReader | None = None
        self._chunks: ChunkReader | None = None
        self._left = 0
        """Octets of the present chunk still to come."""
        self._last = False
        """The present chunk is the last of its message."""

    def receive(self, octets: bytes) -> None:
        """Take what the transport read; what will never be interpreted is dropped at once."""
        state = self.state
        if state is not _TLS and state is not _OWED_LAST and state is not _CLOSED:
            self._buffer.receive(octets)

    def next_event(self) -> Event | Pending:
        """What comes next, as far as octets and owed replies allow.

        `NEED_DATA` also before TLS is on and after the end.
        """
        state = self.state
        if state is _COMMAND:
            return self._command()
        if state is _DATA:
            return self._data()
        if state is _CHUNK:
            return self._chunk()
        if state is _RESPONSE:
            return self._response()
        if state is _CLOSED or state is _TLS:
            return _NEED_DATA
        return _PAUSED

    def reply(self, *replies: Reply, trace_id: str = "") -> bytes:
        """Answer the event that waits and give the octets to send.

        Several replies answer one event where LMTP owes one per recipient
        (RFC 2033 4.2) or where a farewell follows; the last one counts. With
        nothing owed only a greeting, a farewell or a refusal (220, 221, 4xx,
        5xx) may be said. Raises `LocalError` for anything else.
        """
        if not replies:
            raise LocalError("no reply to send")
        code = replies[-1].code
        owed = self._owed
        if owed is None:
            if code < 400 and code not in (220, 221):
                raise LocalError(f"{code} answers nothing")
        else:
            self._answered(owed, code, len(replies))
        if len(replies) == 1:
            return replies[0].wire(trace_id)
        return b"".join([each.wire(trace_id) for each in replies])

    def _answered(self, owed: Event, code: int, count: int) -> None:
        """Leave an OWED state as `AFTER_REPLY` says."""
        state = self.state
        if state is not _CLOSED:
            leads_on, there, elsewhere = AFTER_REPLY[state]
            if code == leads_on:
                state = there
            elif code in (334, 354):
                raise LocalError(f"{code} does not answer {type(owed).__name__}")
            else:
                state = elsewhere
            if count > 1 and not self._lmtp and type(owed) in _MESSAGE_ENDS:
                raise LocalError("one message, one reply, but on LMTP")
            self.state = state
            if state is not _COMMAND:
                self._enter(state)
            elif code < 300 and type(owed) in _TRANSACTION_BEGINS:
                self._chunks = None
                self.binary_body = isinstance(owed, Mail) and owed.parameters.body is Body.BINARY
        self._owed = None

    def _enter(self, state: State) -> None:
        """Prepare for what follows a reply that leads on."""
        if state is _DATA:
            self._text = DataReader(self.bare_newline)
        elif state is _TLS or state is _CLOSED:
            # RFC 3207 4.2 and 5: what came in clear after STARTTLS is never interpreted.
            self._buffer.clear()

    def tls_started(self) -> None:
        """Begin anew inside TLS: plaintext that was waiting is dropped (RFC 3207 4.2).

        Raises `LocalError` while a reply is owed or a message is being read.
        """
        if self.state is not _TLS and self.state is not _COMMAND:
            raise LocalError(f"TLS cannot start in state {self.state.value}")
        self._buffer.clear()
        self.transaction_ended()
        self.state = _COMMAND

    def transaction_ended(self) -> None:
        """Forget the chunks so far: what follows belongs to another message.

        Needed only where chunks were dropped without RSET or a new MAIL; the
        octets of a chunk that is being read are still consumed to the last.
        """
        self.binary_body = False
        self._chunks = ChunkReader(self.bare_newline, False) if self.state is _CHUNK else None

    def discard_input(self) -> None:
        """Interpret nothing any more; a reply that is owed may still be given."""
        self.state = _CLOSED
        self._buffer.clear()
        self._text = self._chunks = None

    # --- what the octets are, state by state --------------------------------------

    def _command(self) -> Event | Pending:
        buffer = self._buffer
        if buffer.at and buffer.at == len(buffer.octets):
            # Most clients wait for a reply before they go on.
            buffer.octets = b""
            buffer.at = 0
            return _NEED_DATA
        line = buffer.line()
        if line is None:
            return _NEED_DATA
        if isinstance(line, Fault):
            return self._faulty(line, _TOO_LONG)
        event = parse(line)
        self.state = state = AFTER_EVENT.get(type(event), _OWED)
        if state is _CHUNK:
            assert isinstance(event, Bdat)
            self._left = event.size
            self._last = event.last
            if self._chunks is None:
                self._chunks = ChunkReader(self.bare_newline, self.binary_body)
        else:
            self._owed = event
        return event

    def _response(self) -> Event | Pending:
        line = self._buffer.line()
        if line is None:
            return _NEED_DATA
        if isinstance(line, Fault):
            return self._faulty(line, _RESPONSE_TOO_LONG)
        self.state = _OWED_SASL
        self._owed = event = AuthResponse(line)
        return event

    def _faulty(self, fault: Fault, too_long: Event) -> Event:
        """A line that cannot be had; after a bare CR or LF nothing is interpreted (RFC 5321 2.3.8)."""
        if fault is Fault.BARE_NEWLINE:
            self._buffer.clear()
            self.state = _OWED_LAST
            self._owed = _BARE
            return _BARE
        self.state = AFTER_EVENT.get(type(too_long), _OWED)
        self._owed = too_long
        return too_long

    def _data(self) -> Event | Pending:
        reader = self._text
        assert reader is not None
        if not reader.ended:
            buffer = self._buffer
            text, buffer.at = reader.take(buffer.octets, buffer.at)
            if text:
                return DataChunk(text)
            if not reader.ended:
                buffer.compact()
                return _NEED_DATA
        self._text = None
        return self._owe(DataEnd(reader.bare_newline))

    def _chunk(self) -> Event | Pending:
        reader = self._chunks
        assert reader is not None
        if self._left:
            block = self._buffer.take(self._left)
            self._left -= len(block)
            text = reader.take(block)
            if text:
                return DataChunk(text)
            if self._left:
                self._buffer.compact()
                return _NEED_DATA
        if self._last:
            text = reader.finish()
            if text:
                return DataChunk(text)
            self._chunks = None
        return self._owe(ChunkEnd(self._last, reader.bare_newline))

    def _owe(self, event: Event) -> Event:
        self.state = _OWED
        self._owed = event
        return event
