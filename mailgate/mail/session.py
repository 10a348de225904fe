"""The facts of one connection, and the stages it passes.

A `Session` is frozen; only `session/driver.py` replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mailgate.mail.lean import lean


class Stage(Enum):
    """Where in a session a decision is made."""

    CONNECT = "connect"
    EHLO = "ehlo"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    VRFY = "vrfy"


@dataclass(frozen=True, slots=True)
class Tls:
    """What the TLS layer agreed on: for example `TLSv1.3`, `TLS_AES_256_GCM_SHA384`."""

    version: str
    cipher: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client proved to be: the login name and the account's addresses, lower case.

    An address that starts with `@` stands for its whole domain.
    """

    login: str
    addresses: tuple[str, ...] = ()

    @classmethod
    def of_user(cls, login: str, hostname: str) -> Identity:
        """A user of this host, whom the system knows: his address is his name at the host."""
        return cls(login, (f"{login}@{hostname}".lower(),))


@lean
@dataclass(frozen=True, slots=True)
class Session:
    """One connection as policies see it."""

    id: str
    """The session's trace id."""
    listener: str
    protocol: str
    """`smtp` or `lmtp`."""
    remote_ip: str
    remote_port: int
    local_ip: str
    local_port: int
    hostname: str
    """The name mailgate goes by in this session."""
    tls: Tls | None = None
    tls_offered: bool = False
    helo: str | None = None
    """The name of the last accepted EHLO, HELO or LHLO, as given."""
    extended: bool = False
    """The client said EHLO or LHLO, not HELO."""
    identity: Identity | None = None
    auth_errors: int = 0
    rcpt_errors: int = 0

    @property
    def is_lmtp(self) -> bool:
        """True on an LMTP listener."""
        return self.protocol == "lmtp"

    def greeted(self, helo: str, extended: bool) -> Session:
        """The session after an accepted EHLO, HELO or LHLO."""
        return Session(
            self.id,
            self.listener,
            self.protocol,
            self.remote_ip,
            self.remote_port,
            self.local_ip,
            self.local_port,
            self.hostname,
            self.tls,
            self.tls_offered,
            helo,
            extended,
            self.identity,
            self.auth_errors,
            self.rcpt_errors,
        )

    def secured(self, tls: Tls) -> Session:
        """The session after STARTTLS: what the client said of itself before is forgotten (RFC 3207 4.2)."""
        return Session(
            self.id,
            self.listener,
            self.protocol,
            self.remote_ip,
            self.remote_port,
            self.local_ip,
            self.local_port,
            self.hostname,
            tls,
            self.tls_offered,
            auth_errors=self.auth_errors,
            rcpt_errors=self.rcpt_errors,
        )
