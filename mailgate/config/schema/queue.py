"""`queue.*`: the message queue, when it is tried again, and where and how mail leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from mailgate.config.key import key, placed, rule, table, tables, variants
from mailgate.config.kind import (
    BOOLEAN,
    DURATION,
    DURATION_FROM_1S,
    FREE_SPACE,
    HOST,
    HOSTNAME,
    IP,
    NAME,
    PATH,
    SIZE,
    FreeSpace,
    at_least_one,
    integer,
    listed,
    word,
)
from mailgate.config.schema.names import ID, IP_ID, QUEUE_NAME
from mailgate.config.schema.template import MAILDIR, MaildirTemplate
from mailgate.config.system import DROP, SPOOL
from mailgate.expr.choice import Choice
from mailgate.expr.kind import BOOLEAN as TRUTH
from mailgate.expr.kind import NAME as NAME_OF
from mailgate.expr.scope import Context

_RETRY = ["2m", "5m", "10m", "15m", "30m", "1h", "2h"]
_NOTIFY = ["1d", "3d"]
_PORT = integer(1, 65535)


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategySettings:
    """Which of the named settings below a recipient gets."""

    route: Choice[str] = rule(
        NAME_OF("route").fallback("mx"),
        Context.RECIPIENT,
        default=[{"if": "is_local_domain('*', rcpt_domain)", "then": "'local'"}, {"else": "'mx'"}],
        doc="Route, chosen at the start of each attempt.",
    )
    schedule: Choice[str] = rule(
        NAME_OF("schedule").fallback("default"),
        Context.RECIPIENT,
        default=[
            {"if": "is_local_domain('*', rcpt_domain)", "then": "'local'"},
            {"if": "source == 'dsn'", "then": "'dsn'"},
            {"if": "source == 'report'", "then": "'report'"},
            {"else": "'remote'"},
        ],
        doc="Schedule, chosen when the message is queued and after every failed attempt.",
    )
    connection: Choice[str] = rule(
        NAME_OF("connection").fallback("default"),
        Context.HOST,
        default="'default'",
        doc="Connection strategy, chosen for each remote address.",
    )
    tls: Choice[str] = rule(
        NAME_OF("tls").fallback("default"),
        Context.HOST,
        default=[{"if": "retry_num > 0 && last_error == 'tls'", "then": "'invalid-tls'"}, {"else": "'default'"}],
        doc="TLS strategy, chosen for each remote host.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualQueueSettings:
    """A named share of the deliveries that run at the same time."""

    threads_per_node: int = key(integer(1, 100_000), doc="Delivery attempts of this queue at the same time.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSettings:
    """When a recipient is tried again, when its sender hears of a delay, when it expires.

    `expire` is None where `max_attempts` is given; one of the two always is.
    """

    queue_name: str = key(NAME, default="default", doc="Virtual queue the recipient waits in.")
    retry: tuple[timedelta, ...] = key(
        at_least_one(listed(DURATION_FROM_1S)),
        default=_RETRY,
        doc="Interval after each failed attempt; the last one repeats.",
    )
    notify: tuple[timedelta, ...] = key(
        listed(DURATION_FROM_1S), default=[], doc="Ages at which the sender is told of the delay."
    )
    expire: timedelta | None = key(
        DURATION_FROM_1S, default=None, doc="Age at which delivery is given up; `3d` unless `max-attempts` is set."
    )
    max_attempts: int | None = key(
        integer(1, 100_000), default=None, doc="Failed attempts after which delivery is given up; instead of `expire`."
    )
    expire_type: str | None = key(
        word("ttl", "attempts"), default=None, doc="May say which of the two is meant; it has to agree."
    )
    jitter: int = key(integer(0, 50), default=0, unit="percent", doc="Added to each interval at random, at most.")

    def __post_init__(self) -> None:
        if self.expire is None and self.max_attempts is None:
            object.__setattr__(self, "expire", timedelta(days=3))


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRouteSettings:
    """Delivery into Maildirs on this host."""

    maildir: MaildirTemplate | None = key(
        MAILDIR,
        default=None,
        doc="Absolute path of a recipient's Maildir, with `%{user}`, `%{detail}`, `%{local}`, `%{domain}`, "
        "`%{address}` or `%{hash}` in it. Required; only the built-in route has none and delays its mail.",
    )
    create: bool = key(BOOLEAN, default=True, doc="Make a Maildir that does not exist.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteLimitSettings:
    """How many hosts of a domain are tried in one attempt."""

    mx: int = key(integer(1, 100), default=5, doc="MX hosts.")
    multihomed: int = key(integer(1, 100), default=2, doc="Addresses of each host.")


@dataclass(frozen=True, slots=True, kw_only=True)
class MxRouteSettings:
    """Delivery to the mail exchangers of the recipient's domain."""

    limits: RouteLimitSettings = table(RouteLimitSettings)
    ip_lookup: str = key(
        word("ipv4_only", "ipv6_only", "ipv4_then_ipv6", "ipv6_then_ipv4"),
        default="ipv4_then_ipv6",
        doc="Families of addresses, and their order.",
    )
    port: int = key(_PORT, default=25, doc="Port of the hosts.")
    allow_loopback: bool = key(BOOLEAN, default=False, doc="Deliver to hosts with a loopback address.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayTlsSettings:
    """TLS towards a relay."""

    implicit: bool = key(
        BOOLEAN, default=True, doc="TLS from the first octet; when off, STARTTLS as the TLS strategy says."
    )
    allow_invalid_certs: bool = key(BOOLEAN, default=False, doc="Accept any certificate of the relay.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayAuthSettings:
    """The login at a relay: both keys or neither."""

    username: str | None = key(NAME, default=None, doc="Login name.")
    secret: str | None = key(NAME, default=None, secret=True, doc="Password, best as `%{env:...}%` or `%{file:...}%`.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayRouteSettings:
    """Delivery to one host, by SMTP or LMTP."""

    address: str = key(HOST, doc="The host.")
    port: int = key(_PORT, default=25, doc="Its port.")
    protocol: str = key(word("smtp", "lmtp"), default="smtp", doc="`smtp` or `lmtp`.")
    tls: RelayTlsSettings = table(RelayTlsSettings)
    auth: RelayAuthSettings = table(RelayAuthSettings)


RouteSettings = LocalRouteSettings | MxRouteSettings | RelayRouteSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionTimeoutSettings:
    """Time-outs of the steps of a delivery."""

    connect: timedelta = key(DURATION, default="5m", doc="Connecting.")
    greeting: timedelta = key(DURATION, default="5m", doc="Until the greeting.")
    ehlo: timedelta = key(DURATION, default="5m", doc="Reply to EHLO or LHLO.")
    mail_from: timedelta = key(DURATION, default="5m", doc="Reply to MAIL.")
    rcpt_to: timedelta = key(DURATION, default="5m", doc="Reply to each RCPT.")
    data: timedelta = key(DURATION, default="10m", doc="Reply to DATA, then the transfer, then the final reply: each.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseSettings:
    """How long a connection is used for further messages."""

    messages: int = key(integer(1, 1_000_000), default=100, doc="Messages on one connection.")
    idle: timedelta = key(DURATION, default="2s", doc="Time without work after which it is closed.")
    duration: timedelta = key(DURATION, default="5m", doc="Age after which no further message is begun.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """How we connect to a remote host."""

    ehlo_hostname: str | None = key(HOSTNAME, default=None, doc="Our name in EHLO; unset: `server.hostname`.")
    source_ips: tuple[str, ...] = key(
        listed(IP), default=[], doc="Our own addresses to connect from, one of the right family at random."
    )
    timeout: ConnectionTimeoutSettings = table(ConnectionTimeoutSettings)
    max_recipients: int = key(integer(1, 100_000), default=100, doc="Recipients of one transaction.")
    reuse: ReuseSettings = table(ReuseSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceIpSettings:
    """What belongs to one of our own addresses."""

    ehlo_hostname: str | None = key(HOSTNAME, default=None, doc="Our name in EHLO when connecting from this address.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsTimeoutSettings:
    """Time-outs of TLS."""

    tls: timedelta = key(DURATION, default="3m", doc="The handshake.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """What TLS a remote host must show."""

    starttls: str = key(
        word(
            "optional",
            "require",
            "disable",
            synonyms={
                "required": "require",
                "true": "require",
                "disabled": "disable",
                "none": "disable",
                "false": "disable",
            },
        ),
        default="optional",
        doc="STARTTLS: `optional` uses it where offered, `require` delivers with it only, `disable` never uses it.",
    )
    allow_invalid_certs: bool = key(BOOLEAN, default=False, doc="Accept any certificate.")
    timeout: TlsTimeoutSettings = table(TlsTimeoutSettings)
    trust_file: str | None = key(PATH, default=None, doc="PEM file with certificates to trust beside the system's.")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaSettings:
    """How much may be in the queue at one time; a message that would be too much is refused with 452.

    At least one of `messages` and `size` is set.
    """

    messages: int | None = key(integer(1, 2**53), default=None, doc="Messages in the queue.")
    size: int | None = key(SIZE, default=None, unit="bytes", doc="Sum of their sizes.")
    key_: tuple[str, ...] = key(
        listed(word("sender", "sender_domain", "rcpt", "rcpt_domain")),
        default=[],
        doc="What is counted apart: each value or combination of values has the whole quota; none: all mail together.",
    )
    match: Choice[bool] = rule(
        TRUTH, Context.HOST, default=True, doc="To which mail the quota applies; no host is known yet."
    )
    enable: bool = key(BOOLEAN, default=True, doc="Whether the quota is enforced.")
    place: str = placed()


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """The queue as a whole."""

    strategy: StrategySettings = table(StrategySettings)
    virtual: Mapping[str, VirtualQueueSettings] = tables(
        VirtualQueueSettings,
        id=QUEUE_NAME,
        builtin={
            "default": {"threads-per-node": 25},
            "local": {"threads-per-node": 25},
            "remote": {"threads-per-node": 50},
            "dsn": {"threads-per-node": 5},
            "report": {"threads-per-node": 5},
        },
    )
    schedule: Mapping[str, ScheduleSettings] = tables(
        ScheduleSettings,
        id=ID,
        builtin={
            "default": {"queue-name": "default", "retry": _RETRY, "notify": _NOTIFY, "expire": "5d"},
            "local": {"queue-name": "local", "retry": _RETRY, "notify": _NOTIFY, "expire": "3d"},
            "remote": {"queue-name": "remote", "retry": _RETRY, "notify": _NOTIFY, "expire": "3d"},
            "dsn": {"queue-name": "dsn", "retry": ["15m", "30m", "1h", "2h"], "max-attempts": 10},
            "report": {"queue-name": "report", "retry": ["30m", "1h", "2h"], "max-attempts": 8},
        },
    )
    route: Mapping[str, RouteSettings] = variants(
        {"local": LocalRouteSettings, "mx": MxRouteSettings, "relay": RelayRouteSettings},
        id=ID,
        builtin={"local": {"type": "local"}, "mx": {"type": "mx"}},
    )
    connection: Mapping[str, ConnectionSettings] = tables(ConnectionSettings, id=ID, builtin={"default": {}})
    tls: Mapping[str, TlsSettings] = tables(
        TlsSettings, id=ID, builtin={"default": {}, "invalid-tls": {"allow-invalid-certs": True}}
    )
    source_ip: Mapping[str, SourceIpSettings] = tables(SourceIpSettings, id=IP_ID)
    quota: Mapping[str, QuotaSettings] = tables(QuotaSettings, id=ID, listed=True)
    inline_size: int = key(
        SIZE,
        default=262144,
        unit="bytes",
        doc="Messages up to this size are kept in the database, larger ones in files.",
    )
    spool: str = key(PATH, default=SPOOL, doc="Directory of larger messages.")
    maildrop: str = key(PATH, default=DROP, doc="Directory that `sendmail` puts messages into.")
    min_free: FreeSpace = key(
        FREE_SPACE,
        default=268435456,
        unit="bytes or percent",
        doc="Free space below which new mail is refused for now, such as `5%`.",
    )
    lease: timedelta = key(
        DURATION, default="60s", doc="Time after which an attempt whose process died may be repeated."
    )
    poll: timedelta = key(DURATION, default="5s", doc="Longest time between two looks for due mail.")
    sweep: timedelta = key(DURATION, default="30s", doc="Interval at which expired mail is looked for.")
    stall: timedelta = key(
        DURATION,
        default="15m",
        doc="Time without progress after which an attempt counts as stuck and its mail may be tried again; longer than "
        "every time-out of `queue.connection` and `queue.tls`.",
    )
    journal: str = key(
        word("sync", "async"),
        default="sync",
        doc="Whether the note that a message is being handed over is synced to disk before its last octets are sent: "
        "`sync`, or `async`, which saves a sync for each message and forgets these notes in a power cut; mail that may "
        "have been delivered just then is repeated at once instead of after a minute, and nobody is told.",
    )
