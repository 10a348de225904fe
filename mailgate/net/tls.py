"""TLS contexts for both directions (RFC 8446, RFC 5246, RFC 3207, RFC 6125).

Server side: certificates from PEM text, chosen by SNI; one `SSL.Context` per
certificate, made once and used by every handshake. Client side: chain against
the system's roots (and a trust file), names by service-identity. TLS 1.2 and
1.3 only, forward secrecy and AEAD suites only.

What the objects here provide is what Twisted's `transport.startTLS` and
`TLSMemoryBIOFactory` take. No socket is touched here and nothing waits.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import service_identity
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL, _util
from service_identity.hazmat import DNS_ID
from service_identity.pyopenssl import verify_hostname, verify_ip_address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator
from zope.interface import implementer

from mailgate.mail.session import Tls

# Names as the configuration spells them (server.tls.disable-protocols).
PROTOCOLS: Mapping[str, int] = {
    "TLSv1.2": SSL.TLS1_2_VERSION,
    "0x0303": SSL.TLS1_2_VERSION,
    "TLSv1.3": SSL.TLS1_3_VERSION,
    "0x0304": SSL.TLS1_3_VERSION,
}

# Configured name to OpenSSL's, in our order of preference (server.tls.disable-ciphers).
SUITES_13: Mapping[str, str] = {
    "TLS13_AES_128_GCM_SHA256": "TLS_AES_128_GCM_SHA256",
    "TLS13_AES_256_GCM_SHA384": "TLS_AES_256_GCM_SHA384",
    "TLS13_CHACHA20_POLY1305_SHA256": "TLS_CHACHA20_POLY1305_SHA256",
}
SUITES_12: Mapping[str, str] = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
}
_GROUPS = b"X25519:P-256:P-384"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey


class TlsConfigError(Exception):
    """A certificate, suite, protocol or trust file that cannot be used; the text says why."""


class NameMismatch(Exception):
    """The peer's certificate is not for the host that was meant."""


# --- certificates of ours ------------------------------------------------------


class CertificateSettings(Protocol):
    """One `certificate.<id>` table: PEM texts of the full chain and of its key."""

    @property
    def cert(self) -> str:
        """The full chain, leaf first, as PEM text."""
        ...

    @property
    def private_key(self) -> str:
        """The key of the leaf as PEM text: PKCS#1, PKCS#8 or SEC1."""
        ...

    @property
    def subjects(self) -> Sequence[str]:
        """Extra names this certificate answers for."""
        ...

    @property
    def default(self) -> bool:
        """Whether it is used where the client sends no name, or one nobody has."""
        ...


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """A chain, leaf first, its key, and the names it answers for (lower case; `*.x` as written)."""

    chain: tuple[x509.Certificate, ...]
    key: PrivateKey
    names: tuple[str, ...]
    default: bool = False


def load_certificates(settings: Mapping[str, CertificateSettings], hostname: str) -> tuple[ServerCertificate, ...]:
    """Read every configured certificate; make a self-signed one for `hostname` when there is none.

    Raises `TlsConfigError` naming the certificate's id.
    """
    loaded = tuple(_load(name, one) for name, one in settings.items())
    return loaded or (self_signed(hostname),)


def _load(name: str, settings: CertificateSettings) -> ServerCertificate:
    try:
        chain = tuple(x509.load_pem_x509_certificates(settings.cert.encode("utf-8")))
    except ValueError as error:
        raise TlsConfigError(f"certificate.{name}.cert: no PEM certificate: {error}") from error
    try:
        key = serialization.load_pem_private_key(settings.private_key.encode("utf-8"), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # The text of the key must not reach the message.
        raise TlsConfigError(f"certificate.{name}.private-key: no usable PEM private key") from error
    if not isinstance(key, PrivateKey):
        raise TlsConfigError(f"certificate.{name}.private-key: keys of this kind are not supported")
    if key.public_key() != chain[0].public_key():
        raise TlsConfigError(f"certificate.{name}.private-key: the key does not belong to the first certificate")
    names = dict.fromkeys(_subjects(chain[0]))
    names.update(dict.fromkeys(subject.lower() for subject in settings.subjects))
    return ServerCertificate(chain, key, tuple(names), settings.default)


def _subjects(leaf: x509.Certificate) -> list[str]:
    """The DNS names a certificate is for; its common names where it has none."""
    try:
        alternative = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = alternative.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, ValueError):
        names = []
    if not names:
        names = [str(part.value) for part in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return [name.lower() for name in names]


def self_signed(hostname: str, days: int = 3650) -> ServerCertificate:
    """Make a certificate nobody vouches for: opportunistic TLS is better than none (RFC 7435)."""
    key = ec.generate_private_key(ec.SECP256R1())
    # RFC 5280 upper bound: a common name has at most 64 characters.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname[:64] or "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([_general_name(hostname)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return ServerCertificate((certificate,), key, (hostname.lower(),))


def _general_name(hostname: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(hostname.strip("[]")))
    except ValueError:
        return x509.DNSName(hostname if hostname.isascii() and hostname else "localhost")


def pem(certificate: ServerCertificate) -> tuple[bytes, bytes]:
    """The chain and the unencrypted PKCS#8 key as PEM."""
    chain = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificate.chain)
    key = certificate.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return chain, key


# --- contexts ----------------------------------------------------------------------


def _context(method: int, disable_protocols: Sequence[str] = (), disable_ciphers: Sequence[str] = ()) -> SSL.Context:
    """A context with our floor of protocols, suites and groups; raises `TlsConfigError`."""
    for name in disable_ciphers:
        if name not in SUITES_13 and name not in SUITES_12:
            raise TlsConfigError(f"unknown cipher suite {name!r}")
    versions = {SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION}
    try:
        left = versions - {PROTOCOLS[name] for name in disable_protocols}
    except KeyError as error:
        raise TlsConfigError(f"unknown protocol {error.args[0]!r}") from error
    suites_12 = [theirs for ours, theirs in SUITES_12.items() if ours not in disable_ciphers]
    suites_13 = [theirs for ours, theirs in SUITES_13.items() if ours not in disable_ciphers]
    # Disabling both protocols has no effect; a protocol without a suite is off.
    usable = (left or versions) & (
        ({SSL.TLS1_2_VERSION} if suites_12 else set()) | ({SSL.TLS1_3_VERSION} if suites_13 else set())
    )
    if not usable:
        raise TlsConfigError("every cipher suite of the enabled protocols is disabled")
    context = SSL.Context(method)
    context.set_min_proto_version(min(usable))
    context.set_max_proto_version(max(usable))
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_SINGLE_ECDH_USE)
    # An idle connection then holds no record buffers.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    if suites_12:
        context.set_cipher_list(":".join(suites_12).encode("ascii"))
    if suites_13:
        context.set_tls13_ciphersuites(":".join(suites_13).encode("ascii"))
    _limit_groups(context)
    return context


def _limit_groups(context: SSL.Context) -> None:
    """Offer X25519, P-256 and P-384.

    pyOpenSSL has no method for a list of groups (`set_tmp_ecdh` takes a single
    one), so its binding is called; where that is missing OpenSSL's own list stays.
    """
    choose = getattr(_util.lib, "SSL_CTX_set1_curves_list", None)
    if choose is not None:
        choose(context._context, _GROUPS)


def agreed(connection: SSL.Connection) -> Tls:
    """What a finished handshake agreed on."""
    return Tls(connection.get_protocol_version_name(), connection.get_cipher_name() or "")


# --- server side ---------------------------------------------------------------------


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls:
    """The server side of one listener, for `transport.startTLS(it)` and `TLSMemoryBIOFactory(it, False, factory)`.

    By SNI, first hit wins: exact name; parent domain of a wildcard
    certificate; the certificate marked default; the first one.
    """

    def __init__(self, contexts: Sequence[SSL.Context], certificates: Sequence[ServerCertificate]) -> None:
        self._exact: dict[str, SSL.Context] = {}
        self._wildcard: dict[str, SSL.Context] = {}
        self._default = contexts[0]
        for context, certificate in reversed(list(zip(contexts, certificates, strict=True))):
            for name in certificate.names:
                if name.startswith("*."):
                    self._wildcard[name[2:]] = context
                else:
                    self._exact[name] = context
        for context, certificate in zip(contexts, certificates, strict=True):
            if certificate.default:
                self._default = context
                break
        if len(contexts) > 1:
            # A single certificate needs no look at the name: that call-back is not free.
            self._default.set_tlsext_servername_callback(self._choose)

    def serverConnectionForTLS(self, protocol: object) -> SSL.Connection:
        """Make the connection of one handshake."""
        return SSL.Connection(self._default, None)

    def context_for(self, server_name: str) -> SSL.Context:
        """The context whose certificate answers for an SNI name; "" stands for none."""
        name = server_name.lower().rstrip(".")
        found = self._exact.get(name) or self._wildcard.get(name.partition(".")[2])
        return found or self._default

    def _choose(self, connection: SSL.Connection) -> None:
        name = connection.get_servername()
        if name:
            context = self.context_for(name.decode("ascii", "replace"))
            if context is not self._default:
                connection.set_context(context)


def server_tls(
    certificates: Sequence[ServerCertificate],
    *,
    disable_protocols: Sequence[str] = (),
    disable_ciphers: Sequence[str] = (),
    ignore_client_order: bool = True,
) -> ServerTls:
    """Make the TLS side of a listener from `load_certificates` and its `tls.*` keys.

    Raises `TlsConfigError` for unknown names, or when nothing is left to offer.
    """
    contexts = []
    for certificate in certificates:
        context = _context(SSL.TLS_SERVER_METHOD, disable_protocols, disable_ciphers)
        if ignore_client_order:
            context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
        # Tickets (the default) resume a session without any state of ours.
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_session_id(b"mailgate")
        context.use_certificate(certificate.chain[0])
        for issuer in certificate.chain[1:]:
            context.add_extra_chain_cert(issuer)
        context.use_privatekey(certificate.key)
        contexts.append(context)
    return ServerTls(contexts, certificates)


# --- client side ---------------------------------------------------------------------

# What OpenSSL found wrong with a chain, in words for a DSN.
_CHAIN_PROBLEMS = {
    SSL.X509VerificationCodes.ERR_CERT_NOT_YET_VALID: "the certificate is not valid yet",
    SSL.X509VerificationCodes.ERR_CERT_HAS_EXPIRED: "the certificate has expired",
    SSL.X509VerificationCodes.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: "the certificate is self-signed",
    SSL.X509VerificationCodes.ERR_SELF_SIGNED_CERT_IN_CHAIN: "the chain ends in a root that is not trusted",
    SSL.X509VerificationCodes.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "the issuer of the certificate is not known",
    SSL.X509VerificationCodes.ERR_UNABLE_TO_GET_ISSUER_CERT: "the issuer of the certificate is not known",
    SSL.X509VerificationCodes.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: "the issuer of the certificate is not known",
    SSL.X509VerificationCodes.ERR_CERT_REVOKED: "the certificate was revoked",
    SSL.X509VerificationCodes.ERR_INVALID_PURPOSE: "the certificate is not for servers",
}


@implementer(IOpenSSLClientConnectionCreator)
class ClientHandshake:
    """One handshake with one host: SNI before it, the check of the name after it.

    Whoever starts it calls `check` once the handshake is complete and before
    anything is sent over the connection.
    """

    def __init__(self, context: SSL.Context, host: str, verify: bool) -> None:
        self._context = context
        self._host = host
        self._verify = verify
        self._connection: SSL.Connection | None = None
        self.chain_problem = ""
        """Why the chain was not trusted, in words; empty while nothing is wrong with it."""

    def clientConnectionForTLS(self, protocol: object) -> SSL.Connection:
        """Make the connection, with SNI unless the host is an IP address (RFC 6066 3)."""
        connection = SSL.Connection(self._context, None)
        if not _is_ip(self._host):
            connection.set_tlsext_host_name(self._host.encode("ascii"))
        if self._verify:
            connection.set_verify(SSL.VERIFY_PEER, self._look_at)
        self._connection = connection
        return connection

    def _look_at(self, connection: SSL.Connection, certificate: object, error: int, depth: int, fine: int) -> bool:
        if not fine and not self.chain_problem:
            self.chain_problem = _CHAIN_PROBLEMS.get(error, f"certificate verification failed with code {error}")
        return bool(fine)

    def check(self) -> Tls:
        """Answer what was agreed on; raises `NameMismatch` when the certificate is for another host."""
        connection = self._connection
        if connection is None:
            raise NameMismatch("no handshake took place")
        if self._verify:
            try:
                if _is_ip(self._host):
                    verify_ip_address(connection, self._host)
                else:
                    verify_hostname(connection, self._host)
            except (service_identity.VerificationError, service_identity.CertificateError) as error:
                raise NameMismatch(f"the certificate is not for {self._host}") from error
        return agreed(connection)


class ClientTls:
    """Client contexts, made once per trust file; reading the system's roots is what costs."""

    def __init__(self) -> None:
        self._trusting: dict[str | None, SSL.Context] = {}
        self._blind: SSL.Context | None = None

    def handshake(self, host: str, *, verify: bool, trust_file: str | None = None) -> ClientHandshake:
        """Prepare a handshake with `host` (a name without final dot, or an IP address).

        Raises `ValueError` when the host cannot be a server's name and
        `TlsConfigError` when the trust file cannot be read.
        """
        if not _is_ip(host):
            DNS_ID(host)
            if not host.isascii():
                raise ValueError("the host name is not in A-label form")
        return ClientHandshake(self._verifying(trust_file) if verify else self._unverified(), host, verify)

    def forget(self) -> None:
        """Read trust files and the system's roots anew when they are needed next."""
        self._trusting.clear()

    def _verifying(self, trust_file: str | None) -> SSL.Context:
        context = self._trusting.get(trust_file)
        if context is None:
            context = _context(SSL.TLS_CLIENT_METHOD)
            context.set_default_verify_paths()
            if trust_file is not None:
                try:
                    context.load_verify_locations(trust_file)
                except SSL.Error as error:
                    raise TlsConfigError(f"no certificates can be read from {trust_file}") from error
            self._trusting[trust_file] = context
        return context

    def _unverified(self) -> SSL.Context:
        if self._blind is None:
            self._blind = _context(SSL.TLS_CLIENT_METHOD)
        return self._blind


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
