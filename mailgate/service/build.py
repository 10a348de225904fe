"""Settings to object graph, here and nowhere else.

Nothing is opened or started: a `Program` is everything, wired up; `gateway.py`
starts and stops it. A `Renewal` is the next generation of the configuration
over what lasts: store, record of decisions, idle connections, scheduler.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from mailgate.config.schema.server import HANDED_IN, ListenerSettings
from mailgate.config.schema.settings import Settings
from mailgate.decisions.ring import Ring
from mailgate.deliver.attempt import Attempt
from mailgate.deliver.events import log as log_event
from mailgate.deliver.maildir import LocalDelivery
from mailgate.deliver.opening import Opener
from mailgate.deliver.plan import build_plan, schedule_table
from mailgate.deliver.results import Generation
from mailgate.deliver.reuse import IdleConnections
from mailgate.deliver.sweep import Rounds, Sweeper
from mailgate.deliver.unit import Surroundings
from mailgate.deliver.wake import Pace, Wake
from mailgate.dns.backend import DnsOptions, DnsResolver, Server, system_servers
from mailgate.dns.budget import Budget, BudgetedResolver
from mailgate.dns.cache import CacheSizes, CachingResolver
from mailgate.dns.question import dns_query
from mailgate.dns.resolver import Resolver
from mailgate.listen.factory import ESMTPFactory, ListenerFactory, LMTPFactory
from mailgate.listen.handed_in import HandedInAcceptance
from mailgate.listen.knock import Knocker
from mailgate.listen.pickup import Pickup, PickupRules
from mailgate.lookup.accounts import BadDirectory
from mailgate.lookup.configured import directories, lists
from mailgate.lookup.connections import Limits, ThreadedConnections
from mailgate.lookup.lists import BadList
from mailgate.lookup.opening import OpenStore, stores
from mailgate.lookup.outside import Answers
from mailgate.lookup.recipient import AddressRules
from mailgate.lookup.store import KeyConnection
from mailgate.net.connect import Connector
from mailgate.net.poller import Poller
from mailgate.net.tls import ClientTls, ServerCertificate, ServerTls, TlsConfigError, load_certificates, server_tls
from mailgate.queue.enqueue import Schedules
from mailgate.queue.maildrop import Maildrop
from mailgate.queue.quota import Quotas
from mailgate.queue.sqlite import SqliteStore
from mailgate.queue.store import QueueStore
from mailgate.reports.refused import RefusalNotifier
from mailgate.reports.submit import DsnRules, Notifier
from mailgate.session.accept import Acceptance
from mailgate.session.ports import Ports
from mailgate.session.site import listener_site

_log = Logger(namespace="mailgate.service")

T = TypeVar("T")
C = TypeVar("C", bound=KeyConnection)


class RunBlocking(Protocol):
    """Runs a call that may block outside the reactor's thread."""

    def __call__(self, work: Callable[..., T], *arguments: object) -> Deferred[T]:
        """Fire with what `work(*arguments)` answers, or fail with what it raises."""
        ...


@dataclass(frozen=True, slots=True)
class Shared:
    """What all listeners of a generation have in common."""

    ports: Ports
    store: QueueStore
    acceptance: Acceptance
    ring: Ring | None
    clock: IReactorTime
    wall: Callable[[], float]


def resolver(settings: Settings, reactor: PosixReactorBase) -> Resolver:
    """The resolver that `resolver.*` describes, with its cache."""
    chosen = settings.resolver
    if chosen.type == "custom":
        servers = tuple(Server(each.host, each.port, tcp=each.scheme == "tcp") for each in chosen.custom)
    else:
        servers = system_servers(_read_resolv_conf())
    options = DnsOptions(
        servers,
        chosen.timeout.total_seconds(),
        chosen.attempts,
        chosen.concurrency,
        chosen.edns,
        chosen.try_tcp_on_error,
        chosen.dnssec == "trust-ad",
        chosen.trusted,
    )
    kept = settings.cache.dns
    sizes = CacheSizes(
        mx=kept.mx.size,
        ipv4=kept.ipv4.size,
        ipv6=kept.ipv6.size,
        txt=kept.txt.size,
        ptr=kept.ptr.size,
        tlsa=kept.tlsa.size,
    )
    return CachingResolver(DnsResolver(options, reactor), reactor, sizes)


def _read_resolv_conf() -> str:
    try:
        with open("/etc/resolv.conf", encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def factories(
    settings: Settings, shared: Shared, certificates: tuple[ServerCertificate, ...] | None = None
) -> tuple[ListenerFactory, ...]:
    """One factory per listener, in the order of the configuration. Raises `TlsConfigError`."""
    if certificates is None:
        certificates = load_certificates(settings.certificate, settings.server.hostname)
    made: list[ListenerFactory] = []
    for name, listener in settings.server.listener.items():
        offers_tls = listener.tls.enable or listener.tls.implicit
        site = listener_site(
            settings,
            name,
            ports=shared.ports,
            store=shared.store,
            acceptance=shared.acceptance,
            ring=shared.ring,
            clock=shared.clock,
            wall=shared.wall,
        )
        tls = _server_tls(listener, certificates) if offers_tls else None
        made.append((LMTPFactory if listener.protocol == "lmtp" else ESMTPFactory)(site, tls))
    return tuple(made)


def _server_tls(listener: ListenerSettings, certificates: tuple[ServerCertificate, ...]) -> ServerTls:
    return server_tls(
        certificates,
        disable_protocols=listener.tls.disable_protocols,
        disable_ciphers=listener.tls.disable_ciphers,
        ignore_client_order=listener.tls.ignore_client_order,
    )


@dataclass(slots=True)
class Program:
    """Everything wired up and not yet started: what lasts while the program runs, and its first generation."""

    reactor: PosixReactorBase
    poller: Poller
    """Where listeners and outgoing connections wait."""
    store: SqliteStore
    ring: Ring | None
    """None as long as no generation wanted decisions recorded."""
    wake: Wake
    sweeper: Sweeper
    pickup: Pickup
    idle: IdleConnections
    client_tls: ClientTls
    factories: tuple[ListenerFactory, ...]
    """The listeners as they were at the start."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """One generation made beside another that still serves; `reload.py` puts it in place."""

    factories: tuple[ListenerFactory, ...]
    delivery: Generation
    pickup: PickupRules
    pace: Pace
    rounds: Rounds
    ring: Ring | None
    """The record of decisions: the one there is, one that is not yet started, or None where there shall be none."""


class Unbuildable(Exception):
    """A configuration that loads and cannot be served: what is wrong with its directories, lists and certificates."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class _Parts:
    """What sessions and attempts of one generation share."""

    def __init__(self, settings: Settings, reactor: PosixReactorBase, store: SqliteStore) -> None:
        """Raises `Unbuildable`; reads the files of lists."""
        run_blocking = blocking(reactor)
        problems: list[str] = []
        try:
            self.directories = directories(settings, run_blocking)
        except BadDirectory as bad:
            problems += bad.problems
        try:
            found_lists = lists(settings)
        except BadList as bad:
            problems += bad.problems
        try:
            self.certificates = load_certificates(settings.certificate, settings.server.hostname)
        except TlsConfigError as bad:
            problems.append(str(bad))
        if problems:
            raise Unbuildable(problems)
        dns = resolver(settings, reactor)
        found_stores = stores(settings, threaded(reactor))
        rules = settings.session.rcpt
        self.addresses = AddressRules(rules.sub_addressing, rules.catch_all)

        def metered(budget: Budget | None) -> Answers:
            asked = partial(dns_query, dns if budget is None else BudgetedResolver(dns, budget))
            return Answers(self.directories, found_lists, asked, self.addresses, found_stores)

        self.metered = metered
        self.outside = metered(None)
        strategy = settings.queue.strategy.schedule
        self.schedules = Schedules(strategy, schedule_table(settings.queue.schedule), self.outside)
        self.quotas = Quotas(settings.queue.quota, self.outside)
        local = LocalDelivery(
            store,
            run_blocking,
            partial(self.addresses.split, outside=self.outside.plain),
            settings.server.hostname,
            settings.session.data.add_headers.delivered_to,
        )
        dsn = settings.report.dsn
        self.delivery = Generation(
            plan=build_plan(settings, self.schedules),
            local=local,
            dsn=DsnRules(settings.report.submitter, dsn.from_name, dsn.from_address, dsn.max_size),
            outside=self.outside,
            resolver=dns,
        )
        queue = settings.queue
        self.pace = Pace(queue.poll.total_seconds(), queue.lease.total_seconds())
        self.rounds = Rounds(queue.sweep.total_seconds(), queue.stall.total_seconds())

    def listeners(
        self, settings: Settings, reactor: PosixReactorBase, store: SqliteStore, ring: Ring | None, wake: Wake
    ) -> tuple[ListenerFactory, ...]:
        try:
            return factories(settings, self._shared(reactor, store, ring, wake), self.certificates)
        except TlsConfigError as bad:
            raise Unbuildable([str(bad)]) from None

    def pickup(
        self, settings: Settings, reactor: PosixReactorBase, store: SqliteStore, ring: Ring | None, wake: Wake
    ) -> PickupRules:
        """What holds for mail that `sendmail` hands in: the same rules, on a listener without a socket."""
        shared = self._shared(reactor, store, ring, wake)
        site = listener_site(
            settings,
            HANDED_IN,
            ports=shared.ports,
            store=store,
            acceptance=shared.acceptance,
            ring=ring,
            clock=reactor,
            wall=shared.wall,
        )
        return PickupRules(
            site,
            partial(HandedInAcceptance, store, self.schedules, self.quotas, time.time, wake.nudge),
            RefusalNotifier(store, self.delivery.dsn, self.schedules, _wall_ms),
            settings.server.hostname,
            settings.queue.poll.total_seconds(),
        )

    def _shared(self, reactor: PosixReactorBase, store: SqliteStore, ring: Ring | None, wake: Wake) -> Shared:
        return Shared(
            ports=Ports(self.outside, self.directories, self.addresses, self.metered),
            store=store,
            acceptance=Acceptance(store, self.schedules, self.quotas, time.time, wake.nudge),
            ring=ring,
            clock=reactor,
            wall=time.time,
        )


def build(settings: Settings, reactor: PosixReactorBase, secrets: Collection[str] = ()) -> Program:
    """Wire up a program: nothing is opened, nothing started. `secrets` are kept out of the record of decisions.

    Raises `Unbuildable`.
    """
    poller = Poller(reactor)
    store = SqliteStore(
        settings.queue_file,
        settings.queue.spool,
        reactor=reactor,
        run_blocking=blocking(reactor),
        inline_octets=settings.queue.inline_size,
        min_free_octets=min_free_octets(settings),
        lease=settings.queue.lease,
        journal_synced=settings.queue.journal == "sync",
        soon=poller.when_idle,
    )
    parts = _Parts(settings, reactor, store)
    client_tls = ClientTls()
    idle = IdleConnections(reactor, lambda queue: wake.slots(queue))
    remote = Attempt(
        store,
        Opener(Connector(poller, reactor), client_tls, log_event),
        idle,
        _wall_ms,
        random.Random(),
        log_event,
    )
    around = Surroundings(
        store=store,
        remote=remote,
        notifier=Notifier(store, _wall_ms),
        wall_ms=_wall_ms,
        chance=random.random,
        pause=partial(deferLater, reactor),
    )
    wake = Wake(around, parts.delivery, reactor, parts.pace)
    sweeper = Sweeper(around, parts.delivery, reactor, wake.nudge, parts.rounds)
    ring = _ring(settings, secrets)
    made = parts.listeners(settings, reactor, store, ring, wake)
    pickup = Pickup(
        Maildrop(settings.queue.maildrop),
        store,
        parts.pickup(settings, reactor, store, ring, wake),
        blocking(reactor),
        reactor,
        _wall_ms,
        wake.nudge,
        Knocker,
    )
    return Program(reactor, poller, store, ring, wake, sweeper, pickup, idle, client_tls, made)


def renew(program: Program, settings: Settings, secrets: Collection[str] = ()) -> Renewal:
    """Make another generation over what lasts; nothing of the program is touched. May run on any thread.

    Raises `Unbuildable`.
    """
    parts = _Parts(settings, program.reactor, program.store)
    ring = None
    if settings.decisions.enable:
        ring = program.ring or _ring(settings, secrets)
    made = parts.listeners(settings, program.reactor, program.store, ring, program.wake)
    pickup = parts.pickup(settings, program.reactor, program.store, ring, program.wake)
    return Renewal(made, parts.delivery, pickup, parts.pace, parts.rounds, ring)


def blocking(reactor: PosixReactorBase) -> RunBlocking:
    """What runs work that blocks on the threads of the reactor's pool."""

    def run_blocking(work: Callable[..., T], *arguments: object) -> Deferred[T]:
        return deferToThreadPool(reactor, reactor.getThreadPool(), work, *arguments)

    return run_blocking


def threaded(reactor: PosixReactorBase) -> OpenStore:
    """What connects to stores, on threads of theirs."""

    def opened(id: str, connect: Callable[[], C], limits: Limits) -> ThreadedConnections[C]:
        return ThreadedConnections(id, connect, limits, reactor)

    return opened


def min_free_octets(settings: Settings) -> int:
    """`queue.min-free` in octets, for the file system the queue is on."""
    return settings.queue.min_free.octets_of(_disk_octets(settings.queue_file))


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _ring(settings: Settings, secrets: Collection[str]) -> Ring | None:
    """The record of decisions, unless it is switched off."""
    kept = settings.decisions
    if not kept.enable:
        return None
    return Ring(kept.path, size_octets=kept.max_size, age=kept.max_age, secrets=secrets, on_failure=_ring_failed)


def _ring_failed(failure: OSError) -> None:
    _log.error("{event}", event="decisions.write-failed", reason=str(failure))


def _disk_octets(path: str) -> int:
    """The size of the file system the queue is on; 0 when it cannot be told."""
    folder = os.path.dirname(path) or "."
    try:
        return shutil.disk_usage(folder).total
    except OSError:
        return 0
