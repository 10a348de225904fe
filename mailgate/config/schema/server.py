"""`server.*`: who we are, where we listen, TLS and sockets of the listeners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from mailgate.config.key import key, table, tables
from mailgate.config.kind import (
    BOOLEAN,
    DURATION,
    HOSTNAME,
    LINE,
    SOCKET_ADDRESS,
    SocketAddress,
    at_least_one,
    integer,
    listed,
    optional,
    word,
)
from mailgate.config.schema.names import ID
from mailgate.config.system import SYSTEM_HOSTNAME

PROTOCOLS = ("smtp", "lmtp")
HANDED_IN = "sendmail"
"""The listener that mail handed in by the program `sendmail` comes from; no other has this id."""
FOREIGN_PROTOCOLS = ("imap", "pop3", "http", "managesieve")
"""Recognised, so that a file shared with a mail store loads: such listeners are left out, with a warning."""

TLS_VERSIONS = ("TLSv1.2", "TLSv1.3")
CIPHERS = (
    "TLS13_AES_256_GCM_SHA384",
    "TLS13_AES_128_GCM_SHA256",
    "TLS13_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
)

_TLS_VERSION = word(
    *TLS_VERSIONS,
    synonyms={"0x0303": "TLSv1.2", "0x0304": "TLSv1.3"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerTlsSettings:
    """TLS of a listener; under `server.tls` what holds for every listener that does not say otherwise."""

    enable: bool = key(BOOLEAN, default=True, doc="Offer STARTTLS. When off, STARTTLS is refused with 502.")
    implicit: bool = key(BOOLEAN, default=False, doc="Do the TLS handshake before the greeting (port 465).")
    timeout: timedelta = key(
        DURATION, default="1m", doc="Limit for a handshake; when it passes the connection is closed without a word."
    )
    disable_protocols: tuple[str, ...] = key(
        listed(_TLS_VERSION), default=[], doc="TLS versions not spoken. Switching both off has no effect."
    )
    disable_ciphers: tuple[str, ...] = key(
        listed(word(*CIPHERS, name="cipher suite")),
        default=[],
        doc="Cipher suites not offered, of " + ", ".join(f"`{suite}`" for suite in CIPHERS) + ".",
    )
    ignore_client_order: bool = key(BOOLEAN, default=True, doc="Prefer our own order of cipher suites.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketSettings:
    """Options of the sockets; under `server.socket` for every listener that does not say otherwise."""

    reuse_addr: bool = key(BOOLEAN, default=True, doc="Set SO_REUSEADDR.")
    reuse_port: bool = key(BOOLEAN, default=False, doc="Set SO_REUSEPORT.")
    backlog: int = key(integer(1, 65535), default=1024, doc="Connections that may wait to be accepted.")
    ttl: int | None = key(integer(1, 255), default=None, doc="Set IP_TTL.")
    tos: int | None = key(integer(0, 255), default=None, doc="Set IP_TOS.")
    send_buffer_size: int | None = key(integer(1, 2**30), default=None, unit="bytes", doc="Set SO_SNDBUF.")
    recv_buffer_size: int | None = key(integer(1, 2**30), default=None, unit="bytes", doc="Set SO_RCVBUF.")
    linger: timedelta | None = key(
        optional(DURATION),
        default=None,
        doc="How long the kernel keeps a connection that is closed here and not yet by the client: set TCP_LINGER2.",
    )
    nodelay: bool = key(BOOLEAN, default=True, doc="Set TCP_NODELAY.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSettings:
    """One listener. The defaults of many keys look at its id: `smtp` is the one for other servers' mail."""

    bind: tuple[SocketAddress, ...] = key(
        at_least_one(listed(SOCKET_ADDRESS)),
        doc="Addresses to listen on, such as `[::]:25`. An address alone gets port 25, with LMTP 24.",
    )
    protocol: str = key(
        word(*PROTOCOLS, *FOREIGN_PROTOCOLS, name=" or ".join(f"`{word}`" for word in PROTOCOLS)),
        doc="`smtp` or `lmtp`. Listeners of `imap`, `pop3`, `http` and `managesieve` are left out with a warning.",
    )
    greeting: str | None = key(
        LINE, default=None, doc="Text after `220` in place of `session.connect.greeting`; no expression."
    )
    hostname: str | None = key(
        LINE, default=None, doc="Our name on this listener in place of `session.connect.hostname`; no expression."
    )
    max_connections: int = key(
        integer(1, 1_000_000),
        default=8192,
        inherits="server.max-connections",
        doc="Simultaneous connections; one more is closed without a word.",
    )
    tls: ListenerTlsSettings = table(ListenerTlsSettings, inherits="server.tls")
    socket: SocketSettings = table(SocketSettings, inherits="server.socket")

    def __post_init__(self) -> None:
        port = 24 if self.protocol == "lmtp" else 25
        object.__setattr__(self, "bind", tuple(SocketAddress(host, given or port) for host, given in self.bind))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The server as a whole."""

    hostname: str = key(
        HOSTNAME,
        default=SYSTEM_HOSTNAME,
        doc="Our name in replies, trace fields and EHLO.",
    )
    max_connections: int = key(
        integer(1, 1_000_000), default=8192, doc="Simultaneous connections of a listener that does not say otherwise."
    )
    shutdown_grace: timedelta = key(
        DURATION, default="30s", doc="Time that running sessions and delivery attempts get at shutdown."
    )
    tls: ListenerTlsSettings = table(ListenerTlsSettings)
    socket: SocketSettings = table(SocketSettings)
    listener: Mapping[str, ListenerSettings] = tables(ListenerSettings, id=ID)


def handed_in() -> ListenerSettings:
    """The listener `sendmail`: no address, no TLS, nothing to configure."""
    return ListenerSettings(
        bind=(SocketAddress("127.0.0.1", 0),),
        protocol="smtp",
        tls=ListenerTlsSettings(enable=False),
        socket=SocketSettings(),
    )
