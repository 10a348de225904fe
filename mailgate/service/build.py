"""Settings to object graph, here and nowhere else.

Nothing is opened or started: a `Program` is everything of one generation of
the configuration, wired up. `gateway.py` starts and stops it; tests build one
with a clock and a store of their own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from ipaddress import ip_address
from typing import TypeVar

from twisted.internet.interfaces import IReactorCore, IReactorSocket, IReactorTCP, IReactorThreads, IReactorTime, IReactorUDP
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from mailgate.config.schema.server import ListenerSettings
from mailgate.config.schema.settings import Settings
from mailgate.decisions.ring import Ring
from mailgate.deliver.plan import build_plan, schedule_table
from mailgate.deliver.wake import Wake
from mailgate.dns.backend import DnsOptions, DnsResolver, Server, system_servers
from mailgate.dns.cache import CachingResolver
from mailgate.dns.question import dns_query
from mailgate.dns.resolver import Resolver
from mailgate.expr.choice import Choice
from mailgate.listen.factory import ESMTPFactory, ListenerFactory, LMTPFactory
from mailgate.lookup.configured import directories, lists
from mailgate.lookup.outside import Answers
from mailgate.lookup.recipient import AddressRules
from mailgate.mail.unknown import Unknown
from mailgate.net.tls import ServerCertificate, ServerTls, load_certificates, server_tls
from mailgate.queue.enqueue import Schedules
from mailgate.queue.sqlite import SqliteStore
from mailgate.queue.store import QueueStore
from mailgate.session.accept import Acceptance
from mailgate.session.ports import Ports
from mailgate.session.site import Site

_log = Logger(namespace="mailgate.service")

T = TypeVar("T")


class Reactor(IReactorTime, IReactorTCP, IReactorUDP, IReactorSocket, IReactorThreads, IReactorCore):
    """What mailgate needs of a reactor."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all listeners of a generation have in common."""

    ports: Ports
    store: QueueStore
    acceptance: Acceptance
    ring: Ring | None
    clock: IReactorTime
    wall: Callable[[], float]


def specialised(settings: T, known: dict[str, str]) -> T:
    """The settings with every rule that depends on nothing but `known` variables worked out once.

    A listener's id and protocol never change: most defaults (`listener =
    'smtp'`) are constants of their listener, and cost nothing in a session.
    """
    changed: dict[str, object] = {}
    if not is_dataclass(settings) or isinstance(settings, type):
        return settings
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Choice):
            changed[field.name] = value.specialise(known)
        elif is_dataclass(value) and not isinstance(value, type):
            changed[field.name] = specialised(value, known)
    return replace(settings, **changed)


def resolver(settings: Settings, reactor: Reactor) -> Resolver:
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
