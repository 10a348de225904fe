"""The hosts a group of recipients may go to, in order: by MX and address records, or one relay.

RFC 5321 5.1 (MX and implicit MX), RFC 7505 (null MX). Nothing is remembered
between attempts but what the resolver keeps. A host that cannot be tried stands
in its place as a `HopFailure`, so that its fault counts with those of the
others. Hosts are worked out one by one, when the one before has failed.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from ipaddress import IPv6Address, ip_address
from itertools import groupby
from typing import Literal

from twisted.logger import Logger

from mailgate.deliver.context import host_scope
from mailgate.deliver.nexthop import LOOPS_BACK, Candidate, Credentials, HopFailure, NextHop
from mailgate.deliver.plan import Connection, IpLookup, MxRoute, Plan, RelayRoute
from mailgate.dns.name import address_literal
from mailgate.dns.resolver import Absent, Answer, MxRecord, Resolver
from mailgate.mail.status import Delayed, ErrorKind, Failed, RecipientStatus
from mailgate.mail.unknown import Unknown
from mailgate.queue.scope import RecipientScope

# A relay is the operator's own choice: its addresses are not rationed like a stranger's.
_RELAY_ADDRESSES = 10

_log = Logger(namespace="mailgate.deliver")

Shuffle = Callable[[list[MxRecord]], None]


async def candidates(
    route: MxRoute | RelayRoute,
    domain: str,
    scope: RecipientScope,
    plan: Plan,
    resolver: Resolver,
    queue_id: str,
    shuffle: Shuffle = random.shuffle,
) -> AsyncIterator[Candidate]:
    """Yield the hosts of a route in order, at least one.

    `scope` is that of the group's first recipient. Where a rule about a host
    cannot be evaluated the list ends with a failure that names the dependency.
    """
    if isinstance(route, RelayRoute):
        async for hop in _relay(route, scope, plan, resolver):
            yield hop
        return
    literal = address_literal(domain)
    if literal is not None:
        addresses = _reachable((literal,), route)
        if not addresses:
            yield _failure(literal, ErrorKind.CONNECTION, "host resolves loopback address")
            return
        if _is_ours(addresses, route, plan):
            yield _failure(domain, ErrorKind.CONNECTION, LOOPS_BACK)
            return
        async for hop in _hops(route, literal, addresses, scope, plan):
            yield hop
        return
    hosts = await _mail_hosts(route, domain, plan, resolver, queue_id, shuffle)
    if isinstance(hosts, HopFailure):
        yield hosts
        return
    for host, is_implicit in hosts:
        found = await _addresses(resolver, host, route.ip_lookup, route.multihomed_limit)
        if isinstance(found, Unknown):
            yield _delay(host, ErrorKind.CONNECTION, f"lookup error: {found.reason}", queue_id)
        elif isinstance(found, Absent):
            if is_implicit:
                yield _failure(domain, ErrorKind.DNS, "no MX record found.")
            else:
                yield _failure(host, ErrorKind.CONNECTION, "record not found for MX")
        elif not (addresses := _reachable(found, route)):
            yield _failure(host, ErrorKind.CONNECTION, "host resolves loopback address")
        elif _is_ours(addresses, route, plan):
            # RFC 5321 5.1: nor to any that is no better than ourselves: those are the rest of the list.
            yield _failure(domain, ErrorKind.CONNECTION, LOOPS_BACK)
            return
        else:
            async for hop in _hops(route, host, addresses, scope, plan):
                yield hop


async def _relay(route: RelayRoute, scope: RecipientScope, plan: Plan, resolver: Resolver) -> AsyncIterator[Candidate]:
    addresses: tuple[str, ...] | Absent | Unknown
    if _is_ip(route.address):
        addresses = (route.address,)
    else:
        addresses = await _addresses(resolver, route.address, IpLookup.IPV4_THEN_IPV6, _RELAY_ADDRESSES)
    if isinstance(addresses, Unknown):
        yield _delay(route.address, ErrorKind.CONNECTION, f"lookup error: {addresses.reason}")
    elif isinstance(addresses, Absent):
        # The operator named this host: a missing record is more likely a slip than a verdict on the mail.
        yield _delay(route.address, ErrorKind.DNS, f'No IP addresses found for "{route.address}".')
    else:
        async for hop in _hops(route, route.address, addresses, scope, plan):
            yield hop


async def _mail_hosts(
    route: MxRoute, domain: str, plan: Plan, resolver: Resolver, queue_id: str, shuffle: Shuffle
) -> list[tuple[str, bool]] | HopFailure:
    """The hosts by preference, each with whether it is the domain itself for want of MX records."""
    answer = await resolver.mx(domain)
    if isinstance(answer, Unknown):
        _log.info(
            "{event}",
            event="delivery.mx-lookup-failed",
            queueId=queue_id,
            domain=domain,
            details=answer.reason,
        )
        return HopFailure(domain, Delayed(RecipientStatus(domain, ErrorKind.DNS, answer.reason)))
    if isinstance(answer, Absent):
        # RFC 5321 5.1: without MX records the domain is its own mail host.
        return [(domain, True)]
    records = [record for record in answer.records if record.host]
    if not records:
        _log.info(
            "{event}",
            event="delivery.null-mx",
            queueId=queue_id,
            domain=domain,
        )
        return _failure(domain, ErrorKind.DNS, "Domain does not accept messages (null MX)")
    shuffle(records)
    records.sort(key=lambda record: record.preference)
    ours = [record.preference for record in records if record.host.lower() in plan.own_names]
    if ours:
        # RFC 5321 5.1: never to a host no better than ourselves.
        records = [record for record in records if record.preference < min(ours)]
    if not records:
        return _failure(domain, ErrorKind.CONNECTION, LOOPS_BACK)
    return [(record.host, False) for record in records[: route.mx_limit]]


async def _addresses(
    resolver: Resolver, host: str, families: IpLookup, limit: int
) -> tuple[str, ...] | Absent | Unknown:
    """The addresses of a host in the order of the families, at most `limit`, both families among them."""
    first: Answer[str] | Absent | Unknown
    second: Answer[str] | Absent | Unknown
    if families in (IpLookup.IPV4_ONLY, IpLookup.IPV4_THEN_IPV6):
        first = await resolver.ipv4(host)
    else:
        first = await resolver.ipv6(host)
    if families is IpLookup.IPV4_THEN_IPV6:
        second = await resolver.ipv6(host)
    elif families is IpLookup.IPV6_THEN_IPV4:
        second = await resolver.ipv4(host)
    else:
        second = Absent(name_exists=True)
    before = first.records if isinstance(first, Answer) else ()
    after = second.records if isinstance(second, Answer) else ()
    if not before and not after:
        if isinstance(first, Unknown):
            return first
        return second if isinstance(second, Unknown) else Absent(name_exists=True)
    if before and after and limit >= 2:
        before = before[: limit - 1]
    return (before + after)[:limit]


def _reachable(addresses: Sequence[str], route: MxRoute) -> tuple[str, ...]:
    """The addresses that may be tried: DNS of a stranger does not lead back into this host."""
    if route.allow_loopback:
        return tuple(addresses)
    return tuple(address for address in addresses if not _leads_back(address))


def _is_ours(addresses: Sequence[str], route: MxRoute, plan: Plan) -> bool:
    """Whether a listener of this daemon is at one of these addresses."""
    return any((address, route.port) in plan.own_addresses for address in addresses)


def _leads_back(text: str) -> bool:
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


async def _hops(
    route: MxRoute | RelayRoute, host: str, addresses: tuple[str, ...], scope: RecipientScope, plan: Plan
) -> AsyncIterator[Candidate]:
    """One hop, or several of the same host where the connection rule tells its addresses apart."""
    tls = await plan.tls.select(host_scope(scope, host, addresses[0]))
    if isinstance(tls, Unknown):
        yield _unanswered(tls)
        return
    protocol: Literal["smtp", "lmtp"] = "smtp"
    credentials: Credentials | None = None
    if isinstance(route, RelayRoute):
        protocol = route.protocol
        credentials = route.credentials
        if route.implicit_tls or route.allow_invalid_certs:
            invalid = tls.allow_invalid_certs or route.allow_invalid_certs
            tls = replace(tls, implicit=route.implicit_tls, allow_invalid_certs=invalid)
    chosen: list[tuple[Connection, str]] = []
    for address in addresses[:1] if plan.connection.is_constant else addresses:
        connection = await plan.connection.select(host_scope(scope, host, address))
        if isinstance(connection, Unknown):
            yield _unanswered(connection)
            return
        chosen.append((connection, address))
    if plan.connection.is_constant:
        groups = [(chosen[0][0], addresses)]
    else:
        groups = [
            (connection, tuple(address for _, address in members))
            for connection, members in groupby(chosen, key=lambda pair: pair[0])
        ]
    for connection, group in groups:
        yield NextHop(
            route=route.name,
            host=host,
            addresses=group,
            port=route.port,
            protocol=protocol,
            ehlo_name=connection.ehlo_name,
            is_mx=isinstance(route, MxRoute),
            tls=tls,
            credentials=credentials,
            sources=connection.sources,
            timeouts=connection.timeouts,
            max_recipients=connection.max_recipients,
            reuse=connection.reuse,
            own_names=plan.own_names if isinstance(route, MxRoute) else frozenset(),
        )


def _failure(entity: str, kind: ErrorKind, detail: str) -> HopFailure:
    return HopFailure(entity, Failed(RecipientStatus(entity, kind, detail)))


def _unanswered(why: Unknown) -> HopFailure:
    return HopFailure(why.dependency, Delayed(RecipientStatus(why.dependency, ErrorKind.DEPENDENCY, why.reason)))


def _delay(entity: str, kind: ErrorKind, detail: str, queue_id: str = "") -> HopFailure:
    if queue_id:
        _log.info(
            "{event}",
            event="delivery.ip-lookup-failed",
            queueId=queue_id,
            hostname=entity,
            details=detail,
        )
    return HopFailure(entity, Delayed(RecipientStatus(entity, kind, detail)))
