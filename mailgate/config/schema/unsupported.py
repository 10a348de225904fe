"""Keys that mailgate knows and this version does not act on.

Each is refused by its name, so that no rule is ever read and left out. A value
that switches the feature off says what this version does anyway: where one is
listed it is accepted.
"""

from __future__ import annotations

from typing import NamedTuple

from mailgate.config.schema.pattern import Pattern

REFUSAL = "known, not supported by this version"


class Unsupported(NamedTuple):
    """Keys under one pattern; `off` are the values, texts in lower case, that ask for nothing."""

    pattern: Pattern
    off: tuple[object, ...] = ()
    advice: str = ""

    def is_off(self, value: object) -> bool:
        """Whether the value asks for nothing but what happens without the key."""
        wanted = value.strip().strip("'").lower() if isinstance(value, str) else value
        return any(wanted == off and isinstance(wanted, bool) == isinstance(off, bool) for off in self.off)


_FALSE = (False,)
_EMPTY: tuple[object, ...] = ("", False, [])
_VERIFY = (False, "disable", "disabled", "never", "none", "false")
_DISABLED = (False, "disable", "disabled", "none")
_RATE_OFF = (False, "none", "unlimited")
_CONTENTS = (
    "contents of messages are kept with the queue: leave the key out; storage.data names the store of the queue, "
    'of type "sqlite"'
)


def _keys(off: tuple[object, ...], *patterns: str, advice: str = "") -> tuple[Unsupported, ...]:
    return tuple(Unsupported(Pattern.of(pattern), off, advice) for pattern in patterns)


UNSUPPORTED = (
    # The server as a whole.
    *_keys(_EMPTY, "server.blocked-ip", "server.allowed-ip"),
    *_keys(_EMPTY, "server.proxy.trusted-networks", "server.listener.*.proxy.trusted-networks"),
    *_keys(_RATE_OFF, "server.auto-ban.auth.rate", "server.auto-ban.abuse.rate"),
    *_keys(_RATE_OFF, "server.auto-ban.loiter.rate", "server.auto-ban.scan.rate"),
    *_keys((1, "1"), "workers", "server.workers"),
    *_keys((1, "1"), "cluster.node-id"),
    *_keys(_EMPTY, "cluster.coordinator"),
    *_keys(("disable", "disabled", "none", False), "asn.type"),
    *_keys((), "asn.expires", "asn.timeout", "asn.max-size", "asn.separator"),
    *_keys((), "asn.urls.asn", "asn.urls.geo", "asn.zone.ipv4", "asn.zone.ipv6"),
    *_keys((), "asn.index.asn", "asn.index.asn-name", "asn.index.country"),
    *_keys((), "management.http.**"),
    *_keys((), "metrics.**", "tracer.**", "tracing.**", "webhook.**", "cache.dns.mta-sts.size"),
    # Filters and scripts.
    *_keys(
        _EMPTY,
        "session.connect.script",
        "session.ehlo.script",
        "session.mail.script",
        "session.rcpt.script",
        "session.data.script",
    ),
    *_keys((), "session.milter.**", "session.hook.**"),
    *_keys((), "sieve.trusted.**", "sieve.untrusted.**"),
    *_keys(_FALSE, "session.data.spam-filter"),
    *_keys(_FALSE, "session.data.add-headers.received-spf", "session.data.add-headers.auth-results"),
    *_keys(_FALSE, "spam-filter.enable"),
    *_keys((*_EMPTY, "disable", "disabled", "never", 0), "spam-filter.grey-list.duration"),
    *_keys((), "spam-filter.grey-list.on-error", "spam-filter.on-error"),
    *_keys((), "spam-filter.score.**", "spam-filter.header.**", "spam-filter.list.**", "spam-filter.dnsbl.**"),
    *_keys((), "spam-filter.rule.**", "spam-filter.classifier.**", "spam-filter.bayes.**"),
    *_keys((), "spam-filter.reputation.**", "spam-filter.resource", "spam-filter.auto-update"),
    *_keys(_FALSE, "spam-filter.pyzor.enable", "spam-filter.llm.enable", "spam-filter.card-is-ham"),
    *_keys(_FALSE, "spam-filter.card-is-ham.enable", "spam-filter.card-is-ham.learn"),
    *_keys(_FALSE, "spam-filter.trusted-reply.enable", "spam-filter.trusted-reply.learn"),
    *_keys((), "spam-filter.pyzor.**", "spam-filter.llm.**"),
    # Authentication of messages.
    *_keys(
        _VERIFY,
        "auth.iprev.verify",
        "auth.spf.verify.ehlo",
        "auth.spf.verify.mail-from",
        "auth.dkim.verify",
        "auth.arc.verify",
        "auth.dmarc.verify",
    ),
    *_keys(_EMPTY, "auth.dkim.sign", "auth.arc.seal"),
    *_keys((), "auth.dkim.strict", "signature.**"),
    # Lists and stores.
    *_keys((), "storage.blob", "storage.fts", advice=_CONTENTS),
    *_keys((), "http-lookup.**"),
    *_keys((), "store.*.purge.frequency", "store.*.query.**"),
    *_keys((), "store.*.user", "store.*.password", advice="write them into the address, redis://user:password@host"),
    *_keys((), "store.*.retry.**", "store.*.read-from-replicas", "store.*.protocol-version"),
    *_keys((), "directory.*.cache.**", "directory.*.pool.**"),
    # The queue.
    *_keys((), "queue.limiter.**", "queue.suspend.**", "queue.tenant"),
    *_keys(_FALSE, "queue.destination.adaptive", "queue.soft-bounce"),
    *_keys((), "queue.destination.initial", "queue.destination.limit", "queue.destination.failures"),
    *_keys((), "queue.destination.pause", "queue.maildrop", "queue.stall"),
    *_keys((), "queue.journal"),
    *_keys((), "queue.route.*.junk-folder", advice="nothing marks mail as spam: leave the key out"),
    *_keys(_DISABLED, "queue.tls.*.dane", "queue.tls.*.mta-sts"),
    *_keys((), "queue.tls.*.timeout.mta-sts"),
    *_keys((), "resolver.https.port", "resolver.https.trust-file"),
    *_keys((), "resolver.preserve-intermediates"),
    # Reports.
    *_keys(_EMPTY, "report.dsn.sign"),
    *_keys(_EMPTY, "report.dkim.send", "report.spf.send", "report.dmarc.send"),
    *_keys((*_EMPTY, "never", "disable"), "report.dmarc.aggregate.send", "report.tls.aggregate.send"),
    *_keys((), "report.dkim.**", "report.spf.**", "report.dmarc.**", "report.tls.**"),
    *_keys(_EMPTY, "report.analysis.addresses"),
    *_keys((), "report.analysis.forward", "report.analysis.store", "report.analysis.max-size"),
)
"""The first that matches counts."""

WITHOUT_EFFECT = tuple(map(Pattern.of, ("session.auth.allow-plain-text", "store.*.pool.workers")))
"""Keys that are accepted, with a warning, and do nothing."""

STORE_TYPES = {
    "mysql": (REFUSAL, 'write "sqlite", "postgresql", "redis" or "memory"'),
    "rocksdb": ("there is no such store here", 'contents live with the queue: write "sqlite"'),
    "foundationdb": ("there is no such store here", 'contents live with the queue: write "sqlite"'),
    "fs": ("there is no such store here", 'contents live with the queue: write "sqlite"'),
    "s3": ("there is no such store here", 'contents live with the queue: write "sqlite"'),
    "azure": ("there is no such store here", 'contents live with the queue: write "sqlite"'),
}
DIRECTORY_TYPES = dict.fromkeys(
    ("sql", "ldap", "smtp", "lmtp", "imap", "oidc", "internal"), (REFUSAL, 'write "memory"')
)
RESOLVER_TYPES = ("cloudflare", "cloudflare-tls", "quad9", "quad9-tls", "google")
MECHANISMS = ("xoauth2", "oauthbearer", "scram_sha_256", "scram_sha_256_plus")
