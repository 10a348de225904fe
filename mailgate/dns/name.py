"""Domain names before they are asked about: A-labels (RFC 5890), lengths, reverse names.

Whatever a client wrote after an `@` may come here; nothing raises.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

import idna

# RFC 1035 2.3.4: 63 octets a label, 253 characters a name without its final dot.
NAME_LENGTH = 253
# RFC 2181 11 allows any octet; what mail asks about is letters, digits, hyphens, and the underscore of RFC 8552.
_LABELS = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")


def ascii_name(name: str) -> str | None:
    """`name` as lower-case A-labels without a final dot; None when it cannot be a domain name."""
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            return None
    name = name.lower().removesuffix(".")
    return name if len(name) <= NAME_LENGTH and _LABELS.fullmatch(name) else None


def reverse_name(ip: str) -> str | None:
    """The name under `in-addr.arpa` or `ip6.arpa` (RFC 1035 3.5, RFC 3596 2.5); None when `ip` is no address."""
    try:
        return ip_address(ip).reverse_pointer
    except ValueError:
        return None


def address_literal(domain: str) -> str | None:
    """The address in `[192.0.2.1]` or `[IPv6:2001:db8::1]` (RFC 5321 4.1.3); None for anything else."""
    if not (domain.startswith("[") and domain.endswith("]")):
        return None
    text = domain[1:-1]
    six = text[:5].lower() == "ipv6:"
    try:
        address = ip_address(text[5:] if six else text)
    except ValueError:
        return None
    return str(address) if (address.version == 6) is six else None
