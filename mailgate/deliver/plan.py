"""The four strategies: which schedule, route, connection and TLS entry applies to a recipient or host.

One `Plan` holds everything delivery takes from one generation of the
configuration; an attempt uses one plan from start to end. An expression gives a
name; a computed name nothing defines falls back to the built-in entry with an
event, and an expression that cannot be evaluated is an `Unknown` that delays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_address
from typing import Generic, Literal, TypeVar

from twisted.logger import Logger

from mailgate.config.schema.queue import (
    ConnectionSettings,
    LocalRouteSettings,
    MxRouteSettings,
    QueueSettings,
    RouteSettings,
    ScheduleSettings,
    TlsSettings,
)
from mailgate.config.schema.settings import Settings
from mailgate.deliver.maildir import LocalRoute
from mailgate.deliver.nexthop import Credentials, Need, ReuseLimits, SourceAddress, Timeouts, TlsPolicy
from mailgate.expr.choice import Choice
from mailgate.expr.scope import Scope
from mailgate.mail.unknown import Unknown
from mailgate.queue.enqueue import Schedules
from mailgate.queue.schedule import EXPIRE_DEFAULT, Schedule

T = TypeVar("T")

_log = Logger(namespace="mailgate.deliver")

# Slots of a virtual queue that a reload took away while mail is still in it.
THREADS_OF_A_LOST_QUEUE = 25


class IpLookup(Enum):
    """Which address families of a host are used, in which order (`queue.route.<id>.ip-lookup`)."""

    IPV4_ONLY = "ipv4_only"
    IPV6_ONLY = "ipv6_only"
    IPV4_THEN_IPV6 = "ipv4_then_ipv6"
    IPV6_THEN_IPV4 = "ipv6_then_ipv4"


@dataclass(frozen=True, slots=True)
class MxRoute:
    """A route of type `mx`: to the hosts DNS names for the recipient's domain."""

    name: str = "mx"
    mx_limit: int = 5
    multihomed_limit: int = 2
    ip_lookup: IpLookup = IpLookup.IPV4_THEN_IPV6
    port: int = 25
    allow_loopback: bool = False


@dataclass(frozen=True, slots=True)
class RelayRoute:
    """A route of type `relay`: everything to one host, whatever DNS says."""

    name: str
    address: str
    port: int = 25
    protocol: Literal["smtp", "lmtp"] = "smtp"
    implicit_tls: bool = True
    allow_invalid_certs: bool = False
    credentials: Credentials | None = None


Route = LocalRoute | MxRoute | RelayRoute


@dataclass(frozen=True, slots=True)
class Connection:
    """One `queue.connection.<id>`; `sources` carry the EHLO name that goes with each address."""

    ehlo_name: str
    sources: tuple[SourceAddress, ...] = ()
    timeouts: Timeouts = field(default_factory=Timeouts)
    max_recipients: int = 100
    reuse: ReuseLimits = field(default_factory=ReuseLimits)


class Strategy(Generic[T]):
    """One `queue.strategy.<key>`: an expression and the entries its names stand for."""

    def __init__(self, names: Choice[str], entries: Mapping[str, T], fallback: T) -> None:
        self._names = names
        self._entries = entries
        self._fallback = fallback

    @property
    def is_constant(self) -> bool:
        """Whether every scope gets the same entry."""
        return self._names.is_constant

    async def name(self, scope: Scope) -> str | Unknown:
        """The name the rule gives for this scope; `default` for none."""
        name = await self._names.value(scope)
        return name if isinstance(name, Unknown) else name or "default"

    def entry(self, name: str) -> T:
        """What a name stands for; the built-in entry where nothing defines it."""
        return self._entries.get(name, self._fallback)

    async def select(self, scope: Scope) -> T | Unknown:
        """The entry for this scope; the built-in one, with an event, for a name that nothing defines."""
        name = await self._names.value(scope)
        if isinstance(name, Unknown):
            return name
        return self.named(name)

    def named(self, name: str | None) -> T:
        """The entry of this name; the built-in one, with an event, for a name that nothing defines."""
        entry = self._entries.get(name or "default")
        if entry is not None:
            return entry
        if name and name != "default":
            _log.warn("{event}", event="smtp.id-not-found", key=self._names.key, id=name)
        return self._fallback


@dataclass(frozen=True, slots=True)
class Plan:
    """Delivery's part of one generation of the configuration."""

    schedules: Schedules
    route: Strategy[Route]
    connection: Strategy[Connection]
    tls: Strategy[TlsPolicy]
    """`implicit` is the route's to say, never the strategy's."""
    threads: Mapping[str, int]
    """Attempts at once, by virtual queue."""
    own_names: frozenset[str] = frozenset()
    """Host names of this node, lower case: an MX that is ourselves is not tried."""
    own_addresses: frozenset[tuple[str, int]] = frozenset()
    """Addresses and ports of the listeners, as far as the configuration spells them out: likewise."""


def build_plan(settings: Settings, schedules: Schedules) -> Plan:
    """Make the plan of a generation; `schedules` is shared with those who put mail into the queue."""
    queue = settings.queue
    hostname = settings.server.hostname
    routes = {name: _route(name, route) for name, route in queue.route.items()}
    connections = {name: _connection(entry, queue, hostname) for name, entry in queue.connection.items()}
    policies = {name: _tls(entry) for name, entry in queue.tls.items()}
    return Plan(
        schedules=schedules,
        route=Strategy(queue.strategy.route, routes, MxRoute()),
        connection=Strategy(queue.strategy.connection, connections, Connection(hostname)),
        tls=Strategy(queue.strategy.tls, policies, TlsPolicy()),
        threads={name: entry.threads_per_node for name, entry in queue.virtual.items()},
        own_names=frozenset(
            name.lower()
            for name in (hostname, *(listener.hostname for listener in settings.server.listener.values()))
            if name
        ),
        own_addresses=frozenset(
            (address.host, address.port)
            for listener in settings.server.listener.values()
            for address in listener.bind
            if not ip_address(address.host).is_unspecified
        ),
    )


def schedule_table(settings: Mapping[str, ScheduleSettings]) -> dict[str, Schedule]:
    """Every `queue.schedule.<id>` as the arithmetic takes it."""
    return {
        name: Schedule(
            name=name,
            queue=entry.queue_name,
            retry=entry.retry,
            notify=entry.notify,
            expire=entry.expire or EXPIRE_DEFAULT,
            max_attempts=entry.max_attempts,
            jitter=entry.jitter,
        )
        for name, entry in settings.items()
    }


def _route(name: str, route: RouteSettings) -> Route:
    if isinstance(route, LocalRouteSettings):
        return LocalRoute(name, route.maildir, route.create)
    if isinstance(route, MxRouteSettings):
        return MxRoute(
            name,
            route.limits.mx,
            route.limits.multihomed,
            IpLookup(route.ip_lookup),
            route.port,
            route.allow_loopback,
        )
    auth = route.auth
    return RelayRoute(
        name,
        route.address,
        route.port,
        "lmtp" if route.protocol == "lmtp" else "smtp",
        route.tls.implicit,
        route.tls.allow_invalid_certs,
        Credentials(auth.username, auth.secret) if auth.username and auth.secret else None,
    )


def _connection(entry: ConnectionSettings, queue: QueueSettings, hostname: str) -> Connection:
    ehlo_name = entry.ehlo_hostname or hostname
    sources = []
    for ip in entry.source_ips:
        of_address = queue.source_ip.get(ip)
        sources.append(SourceAddress(ip, (of_address and of_address.ehlo_hostname) or ehlo_name))
    timeout = entry.timeout
    return Connection(
        ehlo_name,
        tuple(sources),
        Timeouts(
            connect=timeout.connect,
            greeting=timeout.greeting,
            ehlo=timeout.ehlo,
            mail_from=timeout.mail_from,
            rcpt_to=timeout.rcpt_to,
            data=timeout.data,
        ),
        entry.max_recipients,
        ReuseLimits(entry.reuse.messages, entry.reuse.idle, entry.reuse.duration),
    )


def _tls(entry: TlsSettings) -> TlsPolicy:
    return TlsPolicy(
        starttls=Need(entry.starttls),
        allow_invalid_certs=entry.allow_invalid_certs,
        trust_file=entry.trust_file,
        timeout=entry.timeout.tls,
    )
