from __future__ import annotations

import pytest

from mailgate.dns.name import address_literal, ascii_name, reverse_name


@pytest.mark.parametrize(
    "name, expected",
    [
        ("Example.ORG.", "example.org"),
        ("_dmarc.example.org", "_dmarc.example.org"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("日本.example", "xn--wgv71a.example"),
        ("", None),
        (".", None),
        ("a..b", None),
        ("a b", None),
        ("-a.example", None),
        ("[192.0.2.1]", None),
        ("\ud800.example", None),
        ("a" * 63 + ".b", "a" * 63 + ".b"),
        ("a" * 64 + ".b", None),
        (".".join(["a" * 49] * 5) + ".bcd", ".".join(["a" * 49] * 5) + ".bcd"),
        (".".join(["a" * 49] * 5) + ".bcde", None),
    ],
)
def test_ascii_name(name, expected):
    assert ascii_name(name) == expected


def test_reverse_name():
    assert reverse_name("192.0.2.1") == "1.2.0.192.in-addr.arpa"
    assert reverse_name("2001:db8::1").endswith(".8.b.d.0.1.0.0.2.ip6.arpa")
    assert reverse_name("x") is None


@pytest.mark.parametrize(
    "domain, ip",
    [
        ("[192.0.2.1]", "192.0.2.1"),
        ("[IPv6:2001:db8::1]", "2001:db8::1"),
        ("[ipv6:2001:DB8:0::1]", "2001:db8::1"),
        ("[2001:db8::1]", None),
        ("[IPv6:192.0.2.1]", None),
        ("[x]", None),
        ("192.0.2.1", None),
        ("example.org", None),
    ],
)
def test_address_literal(domain, ip):
    assert address_literal(domain) == ip
