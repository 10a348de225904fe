"""Keys of earlier releases: refused, with the key to write now. Nothing is mapped silently."""

from __future__ import annotations

from typing import NamedTuple

from mailgate.config.schema.pattern import Pattern


class Older(NamedTuple):
    """One key that is gone, and what took its place."""

    pattern: Pattern
    advice: str


def _older(pattern: str, advice: str) -> Older:
    return Older(Pattern.of(pattern), advice)


_SCHEDULE = "make one queue.schedule.<id> for each outcome and choose among them with queue.strategy.schedule"
_TLS = "use queue.tls.<id>.{0} and choose with queue.strategy.tls"
_TIMEOUT = "use queue.connection.<id>.timeout.{0} and choose with queue.strategy.connection"

# The first that matches counts.
OLDER = (
    _older("queue.schedule.retry", _SCHEDULE + " (retry is a list of durations there)"),
    _older("queue.schedule.notify", _SCHEDULE + " (notify is a list of durations there)"),
    _older("queue.schedule.expire", _SCHEDULE + " (expire is a duration there)"),
    _older("queue.outbound.next-hop", "use queue.strategy.route with the name of a queue.route.<id>; false meant 'mx'"),
    _older("queue.outbound.hostname", "use queue.connection.<id>.ehlo-hostname"),
    _older("queue.outbound.source-ip.**", "use queue.connection.<id>.source-ips, both families in one list"),
    _older("queue.outbound.ip-strategy", "use queue.route.<id>.ip-lookup"),
    _older("queue.outbound.limits.mx", "use queue.route.<id>.limits.mx"),
    _older("queue.outbound.limits.multihomed", "use queue.route.<id>.limits.multihomed"),
    _older("queue.outbound.tls.dane", _TLS.format("dane")),
    _older("queue.outbound.tls.mta-sts", _TLS.format("mta-sts")),
    _older("queue.outbound.tls.starttls", _TLS.format("starttls")),
    _older("queue.outbound.tls.allow-invalid-certs", _TLS.format("allow-invalid-certs")),
    _older("queue.outbound.timeouts.tls", "use queue.tls.<id>.timeout.tls"),
    _older("queue.outbound.timeouts.mta-sts", "use queue.tls.<id>.timeout.mta-sts"),
    _older("queue.outbound.timeouts.*", _TIMEOUT.format("{connect,greeting,ehlo,mail-from,rcpt-to,data}")),
    _older("queue.outbound.concurrency", "use queue.virtual.<id>.threads-per-node"),
    _older("queue.threads.remote", "use queue.virtual.<id>.threads-per-node, the queue remote has 50"),
    _older("queue.threads.local", "use queue.virtual.<id>.threads-per-node, the queue local has 25"),
    _older("queue.throttle.**", "use [[queue.limiter.outbound]]; its keys are spelt with _, such as rcpt_domain"),
    _older("session.throttle.**", "use [[queue.limiter.inbound]]; its keys are spelt with _, such as remote_ip"),
    _older("remote.*.address", 'use queue.route.<id>.address, with type = "relay"'),
    _older("remote.*.port", 'use queue.route.<id>.port, with type = "relay"'),
    _older("remote.*.protocol", 'use queue.route.<id>.protocol, with type = "relay"'),
    _older("remote.*.auth.*", 'use queue.route.<id>.auth.{username,secret}, with type = "relay"'),
    _older("remote.*.tls.*", 'use queue.route.<id>.tls.{implicit,allow-invalid-certs}, with type = "relay"'),
    _older("lookup.default.hostname", "use server.hostname"),
    _older("lookup.default.domain", "use report.domain"),
)
