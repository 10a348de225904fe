"""A Twisted transport as an awaitable stream: one reader, back-pressure both ways, deadlines by an injected clock.

One coroutine at a time uses a stream: it reads, writes, waits for room. What
arrives while nobody reads is kept up to a limit, then the transport is paused.
A stream never hangs: each wait has a deadline, and a connection that is closed
politely is aborted when the peer does not take part.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IConsumer,
    IDelayedCall,
    IHandshakeListener,
    IPushProducer,
    IReactorTime,
    ITLSTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mailgate.mail.session import Tls
from mailgate.net.tls import ClientHandshake, NameMismatch

INPUT_OCTETS = 64 * 1024
"""Input beyond this pauses the transport until somebody reads."""

FAREWELL_SECONDS = 10.0
"""How long a connection may take to close before it is aborted."""


class StreamTimeout(Exception):
    """A deadline passed while waiting for the peer."""


class StreamLost(Exception):
    """The connection is gone; the text says how."""


class HandshakeFailed(Exception):
    """No TLS: `is_io` is True where the connection broke, False where the peers could not agree."""

    def __init__(self, text: str, is_io: bool) -> None:
        super().__init__(text)
        self.is_io = is_io


@implementer(IHandshakeListener, IPushProducer)
class Stream(Protocol):
    """One connection. Deadlines are moments of the clock (`now() + seconds`)."""

    def __init__(
        self, clock: IReactorTime, address: str = "", port: int = 0, connected: Callable[[], None] | None = None
    ) -> None:
        self.remote_ip = address
        self.remote_port = port
        self.tls: Tls | None = None
        self._clock = clock
        self._connected = connected
        self._tcp: ITLSTransport | None = None
        self._input: list[bytes] = []
        self._input_octets = 0
        self._reading_paused = False
        self._full = False
        self._lost: Failure | None = None
        self._leaving = False
        self._secured = False
        self._waiter: Deferred[None] | None = None
        self._watcher: Callable[[], None] | None = None
        self._timer: IDelayedCall | None = None
        self._deadline: float | None = None

    def now(self) -> float:
        """The clock's seconds."""
        return self._clock.seconds()

    # --- what the transport calls --------------------------------------------------------

    def connectionMade(self) -> None:
        """Take the transport; small writes are not held back (TCP_NODELAY)."""
        self._tcp = ITLSTransport(self.transport)
        self._tcp.setTcpNoDelay(True)
        IConsumer(self.transport).registerProducer(self, True)
        connected, self._connected = self._connected, None
        if connected is not None:
            connected()

    def dataReceived(self, data: bytes) -> None:
        """Keep the octets for the reader."""
        if self._leaving:
            # The answer to the farewell, or something nobody waits for any more.
            self._close()
            return
        self._input.append(data)
        self._input_octets += len(data)
        if self._input_octets > INPUT_OCTETS and not self._reading_paused:
            self._reading_paused = True
            IPushProducer(self._tcp).pauseProducing()
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Remember how it ended, and tell whoever waits."""
        self._lost = reason
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()

    def handshakeCompleted(self) -> None:
        """The TLS layer has agreed; nothing has been sent over it yet."""
        self._secured = True
        self._wake()

    def pauseProducing(self) -> None:
        """The transport holds enough unsent octets."""
        self._full = True

    def resumeProducing(self) -> None:
        """The transport has room again."""
        self._full = False
        self._wake()

    def stopProducing(self) -> None:
        """The transport takes nothing any more; `connectionLost` follows."""
        self._full = False

    # --- what the coroutine calls --------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """True while octets may be exchanged."""
        return self._lost is None and not self._leaving and self._tcp is not None

    @property
    def has_input(self) -> bool:
        """True while received octets wait to be read."""
        return bool(self._input)

    @property
    def lost_text(self) -> str:
        """How the connection ended, for an operator."""
        error = self._lost.value if self._lost is not None else None
        if error is None or isinstance(error, ConnectionDone):
            return "the peer closed the connection"
        return _text_of(error)

    async def read(self, deadline: float) -> bytes:
        """What has arrived, waiting for it if need be; empty when the connection is gone. Raises `StreamTimeout`."""
        while not self._input:
            if self._lost is not None:
                return b""
            await self._wait(deadline)
        octets = self._input[0] if len(self._input) == 1 else b"".join(self._input)
        self._input = []
        self._input_octets = 0
        if self._reading_paused and self._lost is None:
            self._reading_paused = False
            IPushProducer(self._tcp).resumeProducing()
        return octets

    async def arrival(self, deadline: float) -> None:
        """Wait until there is something to read, or nothing to wait for any more."""
        while not self._input and self._lost is None and self.now() < deadline:
            with suppress(StreamTimeout):
                await self._wait(deadline)

    def write(self, octets: bytes) -> None:
        """Give octets to the transport; they are dropped when the connection is gone."""
        if self._lost is None and self._tcp is not None:
            self._tcp.write(octets)

    async def drain(self, deadline: float) -> None:
        """Wait until the transport has room; return early when input arrives.

        Raises `StreamTimeout`, and `StreamLost` when the connection is gone and left no input.
        """
        while self._full and not self._input and self._lost is None:
            await self._wait(deadline)
        if self._lost is not None and not self._input:
            raise StreamLost(self.lost_text)

    async def start_tls(self, handshake: ClientHandshake, deadline: float) -> Tls:
        """Secure the connection, and check whose certificate it is before anything else is sent.

        Raises `HandshakeFailed` or `StreamTimeout`; the connection is aborted then.
        """
        if self._tcp is None or self._lost is not None:
            raise HandshakeFailed(self.lost_text, is_io=True)
        self._tcp.startTLS(handshake)
        try:
            while not self._secured and self._lost is None:
                await self._wait(deadline)
        except StreamTimeout:
            self.abort()
            raise
        if not self._secured:
            error = self._lost.value if self._lost is not None else None
            text = handshake.chain_problem or self.lost_text
            raise HandshakeFailed(text, is_io=not handshake.chain_problem and not _is_disagreement(error))
        try:
            self.tls = handshake.check()
        except NameMismatch as mismatch:
            self.abort()
            raise HandshakeFailed(str(mismatch), is_io=False) from mismatch
        return self.tls

    def watch(self, watcher: Callable[[], None] | None) -> None:
        """Call `watcher` once when something arrives or the connection ends while nobody waits; None stops that."""
        self._watcher = watcher

    def leave(self, farewell: bytes) -> None:
        """Say good-bye and close in the background: the answer is awaited for a short time, and not looked at."""
        if not self.is_open:
            return
        self._leaving = True
        self._watcher = None
        self._arm(self.now() + FAREWELL_SECONDS)
        if farewell:
            self.write(farewell)
        else:
            self._close()

    def abort(self) -> None:
        """Close at once; unsent octets are dropped."""
        if self._lost is None and self._tcp is not None:
            self._leaving = True
            self._watcher = None
            IConsumer(self._tcp).unregisterProducer()
            self._tcp.abortConnection()

    # --- waiting ---------------------------------------------------------------------------

    async def _wait(self, deadline: float) -> None:
        waiter: Deferred[None] = Deferred()
        self._waiter = waiter
        self._arm(deadline)
        try:
            await waiter
        finally:
            self._waiter = None
            self._deadline = None

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)
        elif self._watcher is not None:
            watcher, self._watcher = self._watcher, None
            watcher()

    def _arm(self, deadline: float) -> None:
        """Have `_tick` called at the deadline, or earlier: one timer serves many waits, most of which end early."""
        self._deadline = deadline
        if self._timer is not None:
            if self._timer.getTime() <= deadline:
                return
            self._timer.cancel()
        self._timer = self._clock.callLater(max(0.0, deadline - self.now()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self.now() < self._deadline:
            self._arm(self._deadline)
        elif self._leaving:
            self._deadline = None
            self.abort()
        elif self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            waiter.errback(StreamTimeout())

    def _close(self) -> None:
        """Close politely; the farewell's timer aborts a peer that does not take what is still to be sent."""
        if self._lost is None and self._tcp is not None:
            IConsumer(self._tcp).unregisterProducer()
            self._tcp.loseConnection()


def _is_disagreement(error: BaseException | None) -> bool:
    return (
        isinstance(error, SSL.Error) and not isinstance(error, SSL.SysCallError) and bool(error.args and error.args[0])
    )


def _text_of(error: BaseException) -> str:
    """An exception of the transport or of OpenSSL as one line."""
    if isinstance(error, SSL.Error) and error.args and isinstance(error.args[0], list):
        return "; ".join(str(entry[-1]) for entry in error.args[0]) or "TLS broke down"
    return str(error).rstrip(".") or type(error).__name__
