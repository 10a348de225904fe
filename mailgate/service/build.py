"""Settings to object graph, here and nowhere else.

Nothing is opened or started: a `Program` is everything of one generation of
the configuration, wired up. `gateway.py` starts and stops it; tests build one
with a clock and a store of their own.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from mailgate.config.schema.server import ListenerSettings
from mailgate.config.schema.settings import Settings
from mailgate.decisions.ring import Ring
from mailgate.deliver.attempt import Attempt
from mailgate.deliver.events import log as log_event
from mailgate.deliver.maildir import LocalDelivery
from mailgate.deliver.opening import Opener
from mailgate.deliver.plan import THREADS_OF_A_LOST_QUEUE, build_plan, schedule_table
from mailgate.deliver.reuse import IdleConnections
from mailgate.deliver.unit import Generation, Surroundings
from mailgate.deliver.wake import Pace, Wake
from mailgate.dns.backend import DnsOptions, DnsResolver, Server, system_servers
from mailgate.dns.cache import CachingResolver
from mailgate.dns.question import dns_query
from mailgate.dns.resolver import Resolver
from mailgate.listen.factory import ESMTPFactory, ListenerFactory, LMTPFactory
from mailgate.lookup.configured import directories, lists
from mailgate.lookup.outside import Answers
from mailgate.lookup.recipient import AddressRules
from mailgate.net.connect import Connector
from mailgate.net.tls import ClientTls, ServerCertificate, ServerTls, load_certificates, server_tls
from mailgate.queue.enqueue import Schedules
from mailgate.queue.sqlite import SqliteStore
from mailgate.queue.store import QueueStore
from mailgate.reports.submit import DsnRules, Notifier
from mailgate.session.accept import Acceptance
from mailgate.session.ports import Ports
from mailgate.session.prepared import prepare, specialised
from mailgate.session.site import Site

_log = Logger(namespace="mailgate.service")

T = TypeVar("T")


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
    )
    return CachingResolver(DnsResolver(options, reactor), reactor)


def _read_resolv_conf() -> str:
    try:
        with open("/etc/resolv.conf", encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def factories(settings: Settings, shared: Shared) -> tuple[ListenerFactory, ...]:
    """One factory per listener, in the order of the configuration."""
    certificates = load_certificates(settings.certificate, settings.server.hostname)
    made: list[ListenerFactory] = []
    for name, listener in settings.server.listener.items():
        offers_tls = listener.tls.enable or listener.tls.implicit
        site = Site(
            listener_id=name,
            listener=listener,
            rules=specialised(settings.session, {"listener": name, "protocol": listener.protocol}),
            in_clear=prepare(settings.session, name, listener.protocol, is_tls=False),
            in_tls=prepare(settings.session, name, listener.protocol, is_tls=True),
            ports=shared.ports,
            store=shared.store,
            acceptance=shared.acceptance,
            ring=shared.ring,
            clock=shared.clock,
            wall=shared.wall,
            default_domain=settings.report.domain,
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
    """Everything of one generation, wired up and not yet started."""

    reactor: PosixReactorBase
    store: SqliteStore
    ring: Ring | None
    wake: Wake
    idle: IdleConnections
    factories: tuple[ListenerFactory, ...]


def build(settings: Settings, reactor: PosixReactorBase, secrets: Collection[str] = ()) -> Program:
    """Wire up a program: nothing is opened, nothing started. `secrets` are kept out of the record of decisions."""

    def run_blocking(work: Callable[..., T], *arguments: object) -> Deferred[T]:
        return deferToThreadPool(reactor, reactor.getThreadPool(), work, *arguments)

    hostname = settings.server.hostname
    dns = resolver(settings, reactor)
    found_directories = directories(settings, run_blocking)
    rules = settings.session.rcpt
    addresses = AddressRules(rules.sub_addressing, rules.catch_all)
    outside = Answers(found_directories, lists(settings), partial(dns_query, dns), addresses)
    schedules = Schedules(settings.queue.strategy.schedule, schedule_table(settings.queue.schedule), outside)
    queue_file = settings.queue_file
    store = SqliteStore(
        queue_file,
        settings.queue.spool,
        reactor=reactor,
        run_blocking=run_blocking,
        inline_octets=settings.queue.inline_size,
        min_free_octets=settings.queue.min_free.octets_of(_disk_octets(queue_file)),
        lease=settings.queue.lease,
    )
    threads = {name: each.threads_per_node for name, each in settings.queue.virtual.items()}
    idle = IdleConnections(reactor, lambda queue: threads.get(queue, THREADS_OF_A_LOST_QUEUE))
    remote = Attempt(
        store,
        Opener(Connector(reactor, reactor), ClientTls(), log_event),
        idle,
        _wall_ms,
        random.Random(),
        log_event,
    )
    around = Surroundings(
        store=store,
        resolver=dns,
        remote=remote,
        notifier=Notifier(store, _wall_ms),
        wall_ms=_wall_ms,
        chance=random.random,
        pause=partial(deferLater, reactor),
    )
    local = LocalDelivery(
        store,
        run_blocking,
        partial(addresses.split, outside=outside.plain),
        hostname,
        settings.session.data.add_headers.delivered_to,
    )
    dsn = settings.report.dsn
    generation = Generation(
        plan=build_plan(settings, schedules),
        local=local,
        dsn=DsnRules(settings.report.submitter, dsn.from_name, dsn.from_address, dsn.max_size),
        outside=outside,
    )
    queue = settings.queue
    pace = Pace(queue.poll.total_seconds(), queue.lease.total_seconds(), queue.sweep.total_seconds())
    wake = Wake(around, generation, reactor, pace)
    ring = _ring(settings, secrets)
    shared = Shared(
        ports=Ports(outside, found_directories, addresses),
        store=store,
        acceptance=Acceptance(store, schedules, time.time, wake.nudge),
        ring=ring,
        clock=reactor,
        wall=time.time,
    )
    return Program(reactor, store, ring, wake, idle, factories(settings, shared))


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
