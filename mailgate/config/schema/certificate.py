"""`certificate.<id>.*`: what listeners show in a TLS handshake."""

from __future__ import annotations

from dataclasses import dataclass

from mailgate.config.key import key
from mailgate.config.kind import BOOLEAN, NAME, TEXT, listed


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateSettings:
    """One certificate with its key, chosen by the name a client asks for."""

    cert: str = key(TEXT, doc="The full chain in PEM, usually `%{file:/path/fullchain.pem}%`.")
    private_key: str = key(
        TEXT,
        secret=True,
        doc="Its key in PEM (PKCS#1, PKCS#8 or SEC1, not encrypted), usually `%{file:/path/key.pem}%`.",
    )
    subjects: tuple[str, ...] = key(listed(NAME), default=[], doc="Further names this certificate answers for.")
    default: bool = key(BOOLEAN, default=False, doc="Use this certificate when the client names none.")
