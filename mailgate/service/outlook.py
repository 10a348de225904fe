"""What the next attempt at a recipient would do, by the generation of the configuration that serves now.

Asks what the attempt would ask, name servers included, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from mailgate.deliver.context import host_scope, message_facts, recipient_scope
from mailgate.deliver.maildir import LocalRoute
from mailgate.deliver.plan import MxRoute, Route
from mailgate.deliver.results import Generation
from mailgate.dns.resolver import Absent, Resolver
from mailgate.mail.unknown import Unknown
from mailgate.queue.item import QueuedRecipient, QueueItem

Outlook = Mapping[str, object]
"""`route`, `schedule`, `tls`: names, or what was not known; `hosts`: those of the route, by preference."""


async def outlook(
    generation: Generation, message: QueueItem, recipient: QueuedRecipient, route_override: str | None, now_ms: int
) -> Outlook:
    """Where the next attempt would go, and how."""
    plan = generation.plan
    scope = recipient_scope(message_facts(message), recipient, generation.outside, now_ms)
    name = route_override or await plan.route.name(scope)
    tls = await plan.tls.name(host_scope(scope, ""))
    facts: dict[str, object] = {"route": _told(name), "schedule": recipient.schedule, "tls": _told(tls)}
    if not isinstance(name, Unknown):
        facts["hosts"] = await _hosts(plan.route.entry(name), recipient.domain, generation.resolver)
    return facts


async def _hosts(route: Route, domain: str, resolver: Resolver) -> list[str]:
    if isinstance(route, LocalRoute):
        return ["Maildir"]
    if not isinstance(route, MxRoute):
        return [f"{route.address}:{route.port} ({route.protocol})"]
    answer = await resolver.mx(domain)
    if isinstance(answer, Unknown):
        return [_told(answer)]
    if isinstance(answer, Absent):
        return [f"{domain} itself: it has no MX record"]
    records = sorted(answer.records, key=lambda record: record.preference)
    if not any(record.host for record in records):
        return ["none: the domain takes no mail (null MX)"]
    return [f"{record.preference} {record.host}" for record in records if record.host][: route.mx_limit]


def _told(answer: str | Unknown) -> str:
    return f"not known, {answer.dependency}: {answer.reason}" if isinstance(answer, Unknown) else answer
