"""A whole listener in memory: configuration to octets, without a socket, a reactor or a disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from support.lookup_stores import in_place
from support.memory_store import MemoryStore, StoredMessage
from support.zone import Zone
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from mailgate.config.load import load_text
from mailgate.deliver.plan import schedule_table
from mailgate.dns.budget import Budget, BudgetedResolver
from mailgate.dns.question import dns_query
from mailgate.listen.factory import ListenerFactory
from mailgate.lookup.configured import directories, lists
from mailgate.lookup.opening import stores
from mailgate.lookup.outside import Answers
from mailgate.lookup.recipient import AddressRules
from mailgate.queue.enqueue import Schedules
from mailgate.queue.quota import Quotas
from mailgate.service.build import Shared, factories
from mailgate.session.accept import Acceptance
from mailgate.session.ports import Ports
from mailgate.session.site import Record

# 2026-01-01T00:00:00Z: where the wall clock of a test begins.
_EPOCH = 1_767_225_600.0

SMTP_AND_LMTP = """
[server.listener.smtp]
bind = "127.0.0.1:2525"
protocol = "smtp"
[server.listener.lmtp]
bind = "127.0.0.1:2424"
protocol = "lmtp"
"""
"""A listener of each kind."""


class _Transport(StringTransport):
    """Counts as closed once nothing more can reach the client."""

    def abortConnection(self) -> None:
        super().abortConnection()
        self.disconnected = True


class ListenerInMemory:
    """The listeners of a configuration, and the queue behind them."""

    def __init__(
        self,
        config: str,
        zone: Zone | None = None,
        store: MemoryStore | None = None,
        queued: Callable[[], None] = lambda: None,
        ring: Record | None = None,
    ) -> None:
        """`queued` is called after each commit; `ring` keeps the decisions.

        Raises what `mailgate.config.load` raises for a configuration with errors.
        """
        self.settings = load_text(config).settings
        self.clock = Clock()
        self.store = store if store is not None else MemoryStore()
        settings = self.settings
        found = directories(settings, _at_once)
        addresses = AddressRules(settings.session.rcpt.sub_addressing, settings.session.rcpt.catch_all)
        found_lists = lists(settings)
        resolver = zone or Zone()
        self.stores = stores(settings, in_place)

        def metered(budget: Budget | None) -> Answers:
            asked = partial(dns_query, resolver if budget is None else BudgetedResolver(resolver, budget))
            return Answers(found, found_lists, asked, addresses, self.stores)

        outside = metered(None)
        schedules = Schedules(settings.queue.strategy.schedule, schedule_table(settings.queue.schedule), outside)
        quotas = Quotas(settings.queue.quota, outside)
        shared = Shared(
            ports=Ports(outside, found, addresses, metered),
            store=self.store,
            acceptance=Acceptance(self.store, schedules, quotas, self.wall, queued),
            ring=ring,
            clock=self.clock,
            wall=self.wall,
        )
        self.shared, self.schedules, self.quotas = shared, schedules, quotas
        self.factories: dict[str, ListenerFactory] = {
            factory.listener_id: factory for factory in factories(settings, shared)
        }

    def wall(self) -> float:
        """Seconds since the epoch by the test's clock."""
        return _EPOCH + self.clock.seconds()

    def connect(self, listener: str = "smtp", peer: str = "127.0.0.1") -> ConnectionInMemory | None:
        """A client's connection; None when the listener takes no more."""
        protocol = self.factories[listener].buildProtocol(IPv4Address("TCP", peer, 40000))
        if protocol is None:
            return None
        transport = _Transport(
            hostAddress=IPv4Address("TCP", "127.0.0.1", 2525), peerAddress=IPv4Address("TCP", peer, 40000)
        )
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return ConnectionInMemory(self, protocol, transport)


class ConnectionInMemory:
    """One client, as a dialogue uses it."""

    def __init__(self, listener: ListenerInMemory, protocol: object, transport: _Transport) -> None:
        self._listener = listener
        self.protocol = protocol
        self.transport = transport

    def send(self, octets: bytes) -> None:
        """One segment from the client; nothing arrives once the server has closed."""
        if not self.closed:
            self.protocol.dataReceived(octets)

    def received(self) -> bytes:
        """What the server has sent since the last call."""
        octets = self.transport.value()
        self.transport.clear()
        return octets

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._listener.clock.advance(seconds)

    def leave(self) -> None:
        """The client closes."""
        self.transport.disconnected = True
        self.protocol.connectionLost(Failure(ConnectionDone()))

    @property
    def closed(self) -> bool:
        """Whether the server has closed."""
        return self.transport.disconnecting or self.transport.disconnected

    def queued(self) -> list[StoredMessage]:
        """Messages queued so far."""
        return list(self._listener.store.messages)


def _at_once(work: Callable[..., object], *arguments: object) -> Deferred[object]:
    """Blocking work, done in place."""
    return maybeDeferred(work, *arguments)
