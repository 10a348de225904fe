"""The inward shell: bytes from a Twisted transport to the core, steps of the driver back.

It knows about time, octets and TLS and nothing about mail. What it bounds
(I4): the octets and the time of a session, how much a client that does not
read its replies may have sent to it, how much is read while a decision is
pending, how long a handshake and a farewell may take.
"""

from __future__ import annotations

from typing import Protocol

from OpenSSL.SSL import Connection
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailgate.crash.point import ARMED, passed
from mailgate.mail import replies
from mailgate.mail.reply import Reply
from mailgate.mail.session import Session
from mailgate.mail.verdict import Reason
from mailgate.net.tls import ServerTls, agreed
from mailgate.session.driver import Driver
from mailgate.session.site import Site
from mailgate.session.step import Step, Then
from mailgate.wire.smtp.server import Pending, ServerConnection

_log = Logger(namespace="mailgate.listen")

# A farewell that is not read must not keep the connection.
_FAREWELL_SECONDS = 10.0
# Commands of one client that are answered before other clients have their turn.
_EVENTS_AT_ONCE = 250
# How the reply to a message begins that is on disk.
_KEPT = b"250 2.0.0 Message queued"


class Endpoint(Protocol):
    """One side of a TCP connection."""

    @property
    def host(self) -> str:
        """The IP address."""
        ...

    @property
    def port(self) -> int:
        """The port."""
        ...


class ClientTransport(Protocol):
    """What the shell needs of a Twisted TCP transport."""

    def write(self, data: bytes) -> None:
        """As `ITransport.write`."""

    def loseConnection(self) -> None:
        """As `ITransport.loseConnection`."""

    def abortConnection(self) -> None:
        """As `ITCPTransport.abortConnection`."""

    def getPeer(self) -> Endpoint:
        """The client's side."""
        ...

    def getHost(self) -> Endpoint:
        """The side of this host."""
        ...

    def getHandle(self) -> object:
        """The socket; inside TLS the TLS connection."""

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """As `IConsumer.registerProducer`."""

    def unregisterProducer(self) -> None:
        """As `IConsumer.unregisterProducer`."""

    def pauseProducing(self) -> None:
        """Read no more."""

    def resumeProducing(self) -> None:
        """Read on."""

    def startTLS(self, contextFactory: object, normal: bool = True) -> None:
        """As `ITLSTransport.startTLS`."""


class Connections(Protocol):
    """Who wants to know which connections there are."""

    def gone(self, shell: SmtpShell) -> None:
        """The connection has ended."""
        ...


@implementer(IHandshakeListener, IPushProducer)
class SmtpShell(TwistedProtocol):
    """One connection of an SMTP, submission or LMTP listener."""

    _client: ClientTransport

    def __init__(self, site: Site, tls: ServerTls | None, connections: Connections) -> None:
        self._site = site
        self._tls = tls
        self._connections = connections
        self._clock: IReactorTime = site.clock
        self._core = ServerConnection(lmtp=site.listener.protocol == "lmtp")
        self._driver: Driver | None = None
        self._waiting: Deferred[Step] | None = None
        """The event that is being decided."""
        self._spooling = False
        """The disk is behind: no event is taken before it has caught up."""
        self._handshaking = False
        self._closing = False
        self._lost = False
        self._held_back = False
        """Nothing more is read before what is pending is done."""
        self._parting: tuple[Reply, Reason] | None = None
        """What is said, and the connection closed, once the pending event has its answer."""
        self._unread = False
        """The client does not read its replies: nothing more is read from it."""
        self._began = 0.0
        self._heard = 0.0
        self._octets = 0
        self._timer: IDelayedCall | None = None

    # --- the transport's calls ----------------------------------------------------

    def connectionMade(self) -> None:
        """A client is there: greet it, or begin TLS where that is implicit."""
        # Twisted declares less than every TCP transport has; asking each one would cost more than greeting it.
        transport: ClientTransport = vars(self)["transport"]
        self._client = transport
        try:
            self._begin(transport)
        except Exception:
            # Twisted would leave the connection open, and it would count for good.
            _log.failure("{event}", event="smtp.unexpected")
            self._abort()

    def _begin(self, transport: ClientTransport) -> None:
        listener = self._site.listener
        self._began = self._heard = self._clock.seconds()
        peer, host = transport.getPeer(), transport.getHost()
        session = Session(
            id=self._site.trace_ids.new(),
            listener=self._site.listener_id,
            protocol=listener.protocol,
            remote_ip=_plain_ip(peer.host),
            remote_port=peer.port,
            local_ip=_plain_ip(host.host),
            local_port=host.port,
            hostname=self._site.hostname,
            tls_offered=self._tls is not None,
        )
        self._driver = Driver(self._site, self._core, session)
        if listener.tls.implicit:
            self._begin_tls()
            return
        transport.registerProducer(self, True)
        self._open(self._driver)

    def dataReceived(self, data: bytes) -> None:
        """Octets came: count them, hand them to the core, answer what they hold."""
        if self._closing:
            return
        now = self._clock.seconds()
        self._heard = now
        self._octets += len(data)
        driver = self._driver
        assert driver is not None
        parameters = driver.parameters
        if parameters is not None:
            if self._octets > parameters.transfer_limit:
                self._part(replies.TRANSFER_LIMIT, Reason.TRANSFER_LIMIT)
                return
            if now - self._began > parameters.duration.total_seconds():
                self._part(replies.SESSION_TOO_LONG, Reason.TIME_LIMIT)
                return
        self._core.receive(data)
        if self._waiting is None and not self._spooling:
            self._pump()
        else:
            # One read more than a pending decision may come in, and no further.
            self._hold_back()

    def _hold_back(self) -> None:
        if not self._held_back:
            self._held_back = True
            self._client.pauseProducing()

    def handshakeCompleted(self) -> None:
        """TLS is agreed: greet now (implicit), or wait for the client's EHLO (STARTTLS)."""
        driver = self._driver
        if driver is None or not self._handshaking:
            return
        self._handshaking = False
        self._disarm()
        connection = self._client.getHandle()
        assert isinstance(connection, Connection)
        tls = agreed(connection)
        self._client.registerProducer(self, True)
        self._heard = self._clock.seconds()
        if self._site.listener.tls.implicit:
            driver.secured(tls)
            self._open(driver)
        else:
            step = driver.tls_started(tls)
            self._arm(self._site_timeout())
            self._settle(step)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client is gone: nothing unfinished stays behind."""
        self._lost = True
        self._closing = True
        self._disarm()
        try:
            self._give_up()
            if self._driver is not None:
                self._driver.lost()
        finally:
            self._connections.gone(self)

    def _give_up(self) -> None:
        """Nobody will be answered any more: stop deciding, unless a message is on its way into the queue."""
        driver, waiting = self._driver, self._waiting
        if waiting is not None and driver is not None and not driver.committing:
            driver.give_up()
            waiting.cancel()

    # --- the producer's side: the client's reading ----------------------------------

    def pauseProducing(self) -> None:
        """The client does not read: what is to be sent to it stays bounded."""
        self._unread = True
        self._client.pauseProducing()

    def resumeProducing(self) -> None:
        """The client reads again."""
        self._unread = False
        if not self._held_back:
            self._client.resumeProducing()
        if self._waiting is None and not self._spooling and not self._closing:
            self._pump()

    def stopProducing(self) -> None:
        """The transport is closing."""

    def _open(self, driver: Driver) -> None:
        """Greet the client; only the rules of the greeting say how long it may be silent."""
        step = driver.open()
        if isinstance(step, Deferred):
            self._arm(self._site_timeout())
            step.addCallback(self._opened)
            self._settle(step)
            return
        self._arm(self._site_timeout())
        self._settle(step)

    def _opened(self, step: Step) -> Step:
        if not self._closing:
            self._disarm()
            self._arm(self._site_timeout())
        return step

    # --- events and steps -------------------------------------------------------------

    def _pump(self) -> None:
        """Answer every event the core has; all replies leave in one write."""
        driver = self._driver
        assert driver is not None
        next_event = self._core.next_event
        out: list[bytes] = []
        for _ in range(_EVENTS_AT_ONCE):
            if self._unread:
                break
            event = next_event()
            if isinstance(event, Pending):
                break
            step = driver.take(event)
            if not isinstance(step, Step):
                self._flush(out)
                self._wait(step)
                return
            if step.octets:
                out.append(step.octets)
            if step.wait is not None:
                self._flush(out)
                self._catch_up(step.wait)
                return
            if step.then is not Then.GO_ON:
                self._flush(out)
                self._finish(step.then)
                return
        else:
            # Others want to be served as well.
            self._flush(out)
            self._catch_up(deferLater(self._clock, 0))
            return
        self._flush(out)

    def _flush(self, out: list[bytes]) -> None:
        if out and not self._lost:
            self._client.write(out[0] if len(out) == 1 else b"".join(out))

    def _settle(self, step: Step | Deferred[Step]) -> None:
        """Act on a step, now or when it is there."""
        if isinstance(step, Deferred):
            self._wait(step)
            return
        self._act(step)
        if not self._closing and not self._handshaking:
            self._pump()

    def _act(self, step: Step) -> None:
        if step.octets and not self._lost:
            self._client.write(step.octets)
        if step.then is not Then.GO_ON:
            self._finish(step.then)

    def _wait(self, step: Deferred[Step]) -> None:
        self._waiting = step
        step.addCallback(self._decided)
        step.addErrback(self._broken)

    def _decided(self, step: Step) -> None:
        self._waiting = None
        if self._closing:
            return
        self._heard = self._clock.seconds()
        self._act(step)
        if ARMED and step.octets.startswith(_KEPT):
            passed("A5")
        if self._parting is not None and not self._closing:
            self._part(*self._parting)
            return
        self._go_on()

    def _broken(self, failure: Failure) -> None:
        """A decision ended without an answer: cancelled with its connection, or a mistake of ours."""
        self._waiting = None
        if not failure.check(CancelledError):
            _log.failure("{event}", failure=failure, event="smtp.unexpected")
        if not self._closing:
            self._abort()

    def _catch_up(self, wait: Deferred[None]) -> None:
        self._spooling = True
        wait.addBoth(self._caught_up)
        wait.addErrback(self._broken)

    def _caught_up(self, _: object) -> None:
        self._spooling = False
        self._heard = self._clock.seconds()
        self._go_on()

    def _go_on(self) -> None:
        """Take up what came in meanwhile."""
        if self._closing or self._handshaking:
            return
        self._pump()
        if self._held_back and self._waiting is None and not self._spooling and not self._closing:
            self._held_back = False
            if not self._unread:
                self._client.resumeProducing()

    def _finish(self, then: Then) -> None:
        if then is Then.START_TLS:
            self._begin_tls()
        else:
            self._end(b"")

    # --- TLS ----------------------------------------------------------------------------

    def _begin_tls(self) -> None:
        """Hand the transport over to TLS; the handshake has its own time limit."""
        assert self._tls is not None
        self._handshaking = True
        self._disarm()
        transport = self._client
        if not self._site.listener.tls.implicit:
            transport.unregisterProducer()
            self._read_on()
        transport.startTLS(self._tls)
        # RFC 3207 4.2: what was sent in clear before TLS is not part of the session.
        self._core.tls_started()
        self._timer = self._clock.callLater(self._site.listener.tls.timeout.total_seconds(), self._abort)

    # --- time -------------------------------------------------------------------------------

    def _site_timeout(self) -> float:
        parameters = self._driver.parameters if self._driver is not None else None
        return parameters.timeout.total_seconds() if parameters is not None else 300.0

    def _arm(self, seconds: float) -> None:
        self._timer = self._clock.callLater(seconds, self._look_at_the_clock)

    def _disarm(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            try:
                timer.cancel()
            except (AlreadyCalled, AlreadyCancelled):
                pass

    def _look_at_the_clock(self) -> None:
        """One timer per connection, set again for the rest of the time: reading costs no timer."""
        self._timer = None
        driver = self._driver
        if driver is None or self._closing:
            return
        now = self._clock.seconds()
        limit = self._site_timeout()
        silent = now - self._heard
        busy = self._waiting is not None or self._spooling
        if driver.parameters is not None and now - self._began > driver.parameters.duration.total_seconds():
            if not busy:
                self._part(replies.SESSION_TOO_LONG, Reason.TIME_LIMIT)
                return
            self._arm(1.0)
            return
        if silent >= limit and not busy:
            self._part(replies.inactive(driver.session.hostname), Reason.INACTIVE)
            return
        rest = limit if busy else limit - silent
        if driver.parameters is not None:
            rest = min(rest, driver.parameters.duration.total_seconds() - (now - self._began) + 0.001)
        self._arm(max(rest, 0.001))

    # --- the end ------------------------------------------------------------------------------

    def shut_down(self) -> None:
        """The server stops: say so and close, after the message that is being committed has its answer."""
        driver = self._driver
        if self._closing or driver is None:
            return
        if self._handshaking:
            self._abort()
        elif self._waiting is None or driver.committing:
            self._part(replies.SHUTTING_DOWN, Reason.SHUTTING_DOWN)
        else:
            # What is being decided is answered with this.
            self._end(driver.farewell(replies.SHUTTING_DOWN, Reason.SHUTTING_DOWN))

    def _part(self, reply: Reply, reason: Reason) -> None:
        """Say `reply` and close, in order: after the event that is being decided has its answer (I2)."""
        if self._waiting is not None:
            if self._parting is None:
                self._parting = (reply, reason)
                self._hold_back()
            return
        driver = self._driver
        assert driver is not None
        self._end(driver.farewell(reply, reason))

    def _end(self, farewell: bytes) -> None:
        """Close after everything written has been sent; a client that does not read is cut off."""
        if self._closing:
            return
        self._closing = True
        self._disarm()
        self._give_up()
        transport = self._client
        if farewell:
            self._client.write(farewell)
        # A producer that stays registered would keep the connection from closing.
        transport.unregisterProducer()
        self._read_on()
        transport.loseConnection()
        if not self._lost:
            self._timer = self._clock.callLater(_FAREWELL_SECONDS, self._abort)

    def _read_on(self) -> None:
        if self._held_back or self._unread:
            self._held_back = self._unread = False
            self._client.resumeProducing()

    def _abort(self) -> None:
        self._closing = True
        self._disarm()
        self._client.abortConnection()


def _plain_ip(host: str) -> str:
    """An address as operators write it: IPv4-mapped IPv6 becomes plain IPv4."""
    return host[7:] if host.startswith("::ffff:") and "." in host else host.partition("%")[0]
