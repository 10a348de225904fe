"""Functions over mail addresses and IP addresses."""

from __future__ import annotations

import ipaddress
import re

from mailgate.expr.functions.function import Function
from mailgate.expr.value import Type, Value, text

# A local part is a quoted string, or has neither quotes nor white space nor what delimits addresses in lists.
_EMAIL = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s"@<>,]+)@[^\s"@<>,.]+(?:\.[^\s"@<>,.]+)+', re.DOTALL)


def _is_email(s: Value) -> Value:
    return int(_EMAIL.fullmatch(text(s)) is not None)


def _email_part(s: Value, part: Value) -> Value:
    local, at, domain = text(s).rpartition("@")
    if not at:
        return ""
    wanted = text(part)
    return local.strip() if wanted == "local" else domain.strip() if wanted == "domain" else ""


def ip_version(s: str) -> int:
    """4 or 6, or 0 for a text that is no IP address. Zones (`fe80::1%eth0`) are none."""
    try:
        return 0 if "%" in s else ipaddress.ip_address(s).version
    except ValueError:
        return 0


def _is_ip_addr(s: Value) -> Value:
    return int(ip_version(text(s)) != 0)


def _is_ipv4_addr(s: Value) -> Value:
    return int(ip_version(text(s)) == 4)


def _is_ipv6_addr(s: Value) -> Value:
    return int(ip_version(text(s)) == 6)


def _ip_reverse_name(s: Value) -> Value:
    address = text(s)
    if not ip_version(address):
        return ""
    return ipaddress.ip_address(address).reverse_pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")


_S = ("s",)

FUNCTIONS = (
    Function("is_email", _S, Type.INTEGER, "1 when the text is a mail address whose domain has a dot.", _is_email),
    Function(
        "email_part",
        ("s", "part"),
        Type.STRING,
        "The `'local'` part or the `'domain'` of an address; empty without `@`.",
        _email_part,
        maps=True,
    ),
    Function("is_ip_addr", _S, Type.INTEGER, "1 when the text is an IP address.", _is_ip_addr),
    Function("is_ipv4_addr", _S, Type.INTEGER, "1 when the text is an IPv4 address.", _is_ipv4_addr),
    Function("is_ipv6_addr", _S, Type.INTEGER, "1 when the text is an IPv6 address.", _is_ipv6_addr),
    Function(
        "ip_reverse_name",
        _S,
        Type.STRING,
        "`1.2.0.192` for `192.0.2.1`, the nibbles of an IPv6 address; empty for another text.",
        _ip_reverse_name,
    ),
)
