"""What TLS a next hop must show, and where each outcome of STARTTLS leads (RFC 3207, RFC 8689).

Opportunistic by default: TLS when it is offered, with the certificate checked;
a failed handshake delays, it never falls back to plaintext within an attempt.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mailgate.deliver.nexthop import Need, TlsPolicy
from mailgate.mail.status import Delayed, ErrorKind, Failed, RecipientStatus


class Verify(Enum):
    """How the server's certificate is judged."""

    NONE = "none"
    PKI = "pki"
    """Chain to the system's roots and the trust file, name of the host."""


@dataclass(frozen=True, slots=True)
class Security:
    """The requirement for one connection; connections are shared only between equal ones.

    `strict`: without TLS nothing is sent.
    """

    strict: bool
    verify: Verify
    starttls: Need
    implicit: bool
    trust_file: str | None


def required(tls: TlsPolicy, requiretls: bool) -> Security:
    """What a hop with this policy must show for a message, which may itself demand TLS (RFC 8689 4.2.1)."""
    return Security(
        strict=requiretls or tls.starttls is Need.REQUIRE,
        verify=Verify.NONE if tls.allow_invalid_certs and not requiretls else Verify.PKI,
        starttls=tls.starttls,
        implicit=tls.implicit,
        trust_file=tls.trust_file,
    )


class Step(Enum):
    """What to do after EHLO on a connection in plaintext."""

    UPGRADE = "upgrade"
    PLAINTEXT = "plaintext"


def after_ehlo(security: Security, host: str, offered: bool) -> Step | Failed:
    """Whether to say STARTTLS; `Failed` is the host's status, the next host may do better."""
    if security.starttls is Need.DISABLE:
        # Never plaintext for a message that demands TLS, whatever the strategy says.
        return (
            _refused(host, "TLS is required, but disabled by the TLS strategy.") if security.strict else Step.PLAINTEXT
        )
    if offered:
        return Step.UPGRADE
    return _refused(host, "STARTTLS not advertised by host.") if security.strict else Step.PLAINTEXT


def _refused(host: str, detail: str) -> Failed:
    return Failed(RecipientStatus(host, ErrorKind.TLS, detail))


def handshake_failed(host: str, text: str, is_io: bool) -> Delayed:
    """The peers could not agree, or the connection broke while they tried."""
    return Delayed(RecipientStatus(host, ErrorKind.TLS, f"{'I/O error' if is_io else 'Handshake failed'}: {text}"))


def handshake_timeout(host: str) -> Delayed:
    """`queue.tls.<id>.timeout.tls` passed."""
    return Delayed(RecipientStatus(host, ErrorKind.TLS, "TLS handshake timed out"))


def invalid_name(security: Security, host: str) -> Delayed | Failed:
    """The host's name cannot stand in a certificate."""
    status = RecipientStatus(host, ErrorKind.TLS, "Invalid hostname")
    return Failed(status) if security.strict else Delayed(status)
