"""A certificate authority that lives as long as a test run."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Certificate(NamedTuple):
    """A leaf certificate with its chain, and its key, as PEM files."""

    cert: Path
    key: Path


class Authority:
    """Issues certificates into one directory; `trust` is its own certificate."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mailgate test CA")])
        self._cert = self._build(
            self._name,
            self._key.public_key(),
            [
                (x509.BasicConstraints(ca=True, path_length=0), True),
                (
                    x509.KeyUsage(False, False, False, False, False, True, True, False, False),
                    True,
                ),
                (x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), False),
            ],
        )
        self.trust = directory / "ca.pem"
        self.trust.write_bytes(self._cert.public_bytes(serialization.Encoding.PEM))

    def _build(self, subject: x509.Name, public_key, extensions) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self._key, hashes.SHA256())

    def issue(self, *names: str) -> Certificate:
        """A server certificate for host names and addresses; the first names the files."""
        key = ec.generate_private_key(ec.SECP256R1())
        subjects: list[x509.GeneralName] = []
        for name in names:
            try:
                subjects.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                subjects.append(x509.DNSName(name))
        cert = self._build(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]),
            key.public_key(),
            [
                (x509.BasicConstraints(ca=False, path_length=None), True),
                (x509.SubjectAlternativeName(subjects), False),
                (x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False),
            ],
        )
        cert_path = self.directory / f"{names[0]}.pem"
        key_path = self.directory / f"{names[0]}.key"
        pem = serialization.Encoding.PEM
        cert_path.write_bytes(cert.public_bytes(pem) + self._cert.public_bytes(pem))
        key_path.write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        )
        key_path.chmod(0o600)
        return Certificate(cert_path, key_path)

    def client_context(self) -> ssl.SSLContext:
        """A client's context that trusts this authority alone."""
        return ssl.create_default_context(cafile=str(self.trust))


def server_context(certificate: Certificate) -> ssl.SSLContext:
    """A server's context that shows `certificate`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert, certificate.key)
    return context
