"""DNS as it is: signed zones served by NSD, validated by Unbound, asked by mailgate's own resolver."""

import smtplib
import socket
import time

import pytest
from support.daemon import Gateway
from support.ports import free_port, wait_until
from support.signed_dns import BIG_TEXTS, FINGERPRINT, SignedDns
from twisted.internet.defer import Deferred
from twisted.internet.selectreactor import SelectReactor

from mailgate.config.load import load_text
from mailgate.dns.backend import DnsOptions, DnsResolver, Server
from mailgate.dns.question import dns_query
from mailgate.dns.resolver import Absent, Answer, Bogus, MxRecord, TlsaRecord
from mailgate.mail.unknown import Unknown
from mailgate.service.build import resolver as configured_resolver

pytestmark = [pytest.mark.peer("nsd", "unbound", "ldnsutils")]


@pytest.fixture(scope="module")
def lab():
    """Both servers."""
    servers = SignedDns()
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()


@pytest.fixture(scope="module")
def reactor():
    """A reactor of our own, turned by hand: the one of the process is left alone."""
    return SelectReactor()


@pytest.fixture
def run(reactor):
    """Wait for a look-up."""

    def wait(coroutine, seconds=10):
        found = []
        Deferred.fromCoroutine(coroutine).addBoth(found.append)
        end = time.monotonic() + seconds
        while not found:
            assert time.monotonic() < end, "no answer"
            reactor.iterate(0.02)
        return found[0]

    return wait


@pytest.fixture
def ask(lab, reactor, run):
    """Ask Unbound, or the servers given."""

    def ask(question, *servers, **options):
        servers = servers or (Server("127.0.0.1", lab.port),)
        return run(question(DnsResolver(DnsOptions(servers, **options), reactor)))

    return ask


@pytest.fixture
def silent():
    """A server that takes questions and never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taker:
        taker.bind(("127.0.0.1", 0))
        yield Server("127.0.0.1", taker.getsockname()[1])


@pytest.mark.parametrize(
    "question, records",
    [
        (lambda r: r.ipv4("mx1.lab.example"), {"192.0.2.1", "192.0.2.2"}),
        (lambda r: r.ipv6("mx1.lab.example"), {"2001:db8::1"}),
        (lambda r: r.mx("lab.example"), {MxRecord(10, "mx1.lab.example"), MxRecord(20, "mx2.lab.example")}),
        (lambda r: r.mx("null.lab.example"), {MxRecord(0, "")}),
        (lambda r: r.txt("lab.example"), {"v=spf1 ip4:192.0.2.0/24 -all", "second"}),
        (lambda r: r.tlsa("_25._tcp.mx1.lab.example"), {TlsaRecord(3, 1, 1, FINGERPRINT)}),
    ],
)
@pytest.mark.spec("OUT-252")
def test_signed_records_are_secure(ask, question, records):
    found = ask(question)
    assert set(found.records) == records
    assert (found.authentic, found.indeterminate) == (True, False)
    assert 0 < found.ttl_seconds <= 60


def test_a_chain_of_cnames_is_followed_and_lives_as_long_as_its_shortest_part(ask):
    found = ask(lambda r: r.ipv4("alias.lab.example"))
    assert set(found.records) == {"192.0.2.1", "192.0.2.2"}
    assert found.authentic
    assert 0 < found.ttl_seconds <= 30


def test_a_delegation_without_ds_is_insecure(ask):
    found = ask(lambda r: r.ipv4("www.plain.lab.example"))
    assert found.records == ("192.0.2.7",)
    assert (found.authentic, found.indeterminate) == (False, False)


def test_the_names_of_an_address(ask):
    assert ask(lambda r: r.ptr("192.0.2.1")).records == ("mx1.lab.example",)
    assert ask(lambda r: r.ptr("192.0.2.99")).name_exists is False


@pytest.mark.parametrize(
    "name, exists",
    [
        ("nowhere.lab.example", False),
        ("astray.lab.example", False),
        ("mx2.lab.example", True),
        ("_tcp.mx1.lab.example", True),
    ],
)
def test_a_missing_name_is_told_from_a_missing_type(ask, name, exists):
    found = ask(lambda r: r.ipv6(name))
    assert isinstance(found, Absent)
    assert found.name_exists is exists
    assert found.authentic
    # What the SOA record says: 30 seconds.
    assert 0 < found.ttl_seconds <= 30


@pytest.mark.spec("OUT-255")
@pytest.mark.parametrize("question", [lambda r: r.mx("expired.example"), lambda r: r.ipv4("mx.expired.example")])
def test_signatures_that_ran_out_are_bogus(ask, question):
    found = ask(question)
    assert isinstance(found, Bogus)
    assert "bogus" in found.reason


def test_bogus_is_not_asked_of_a_server_that_does_not_validate(lab, ask):
    found = ask(
        lambda r: r.ipv4("mx.expired.example"),
        Server("127.0.0.1", lab.port),
        Server("127.0.0.1", lab.authority),
    )
    assert isinstance(found, Bogus)


@pytest.mark.parametrize("options", [{"trusted": ()}, {"trust_ad": False}])
def test_a_server_that_is_not_trusted_says_nothing_about_security(ask, options):
    found = ask(lambda r: r.ipv4("mx1.lab.example"), **options)
    assert (found.authentic, found.indeterminate) == (False, True)
    assert type(ask(lambda r: r.ipv4("mx.expired.example"), attempts=1, **options)) is Unknown


@pytest.mark.parametrize("options", [{}, {"edns": False}])
def test_what_is_too_big_for_a_datagram_comes_over_tcp(ask, options):
    assert set(ask(lambda r: r.txt("big.lab.example"), **options).records) == set(BIG_TEXTS)


def test_tcp_alone(lab, ask):
    found = ask(lambda r: r.ipv4("mx2.lab.example"), Server("127.0.0.1", lab.port, tcp=True))
    assert found.records == ("192.0.2.3",)


def test_where_one_server_is_down_the_next_is_asked(lab, ask):
    began = time.monotonic()
    found = ask(lambda r: r.ipv4("mx2.lab.example"), Server("127.0.0.1", free_port()), Server("127.0.0.1", lab.port))
    assert found.records == ("192.0.2.3",)
    assert time.monotonic() - began < 1


def test_where_one_server_is_silent_the_next_is_asked_and_from_then_on_first(lab, reactor, run, silent):
    options = DnsOptions((silent, Server("127.0.0.1", lab.port)), timeout_seconds=0.5)
    resolver = DnsResolver(options, reactor)
    took = []
    for _ in range(2):
        began = time.monotonic()
        assert run(resolver.ipv4("mx2.lab.example")).records == ("192.0.2.3",)
        took.append(time.monotonic() - began)
    assert took[0] >= 0.45
    assert took[1] < 0.4


@pytest.mark.parametrize("tcp_on_error", [False, True])
def test_a_server_that_never_answers_is_unknown_in_time(ask, silent, tcp_on_error):
    began = time.monotonic()
    found = ask(lambda r: r.mx("lab.example"), silent, timeout_seconds=0.3, attempts=2, try_tcp_on_error=tcp_on_error)
    assert type(found) is Unknown
    assert time.monotonic() - began < 3


def test_a_server_that_does_not_resolve_is_unknown(lab, ask):
    authority = Server("127.0.0.1", lab.authority)
    assert ask(lambda r: r.ipv4("mx2.lab.example"), authority).authentic is False
    found = ask(lambda r: r.ipv4("www.elsewhere.example"), authority, attempts=1)
    assert (type(found), "REFUSED" in found.reason) == (Unknown, True)


@pytest.mark.spec("OUT-252", "OUT-254")
def test_the_configured_resolver_trusts_loopback_and_nobody_else(lab, reactor, run):
    custom = f'[resolver]\ntype = "custom"\ncustom = ["127.0.0.1:{lab.port}"]\n'
    for more, secure in (
        ("", True),
        ('trusted = "192.0.2.1"\n', False),
        ('dnssec = "off"\n', False),
        ('trusted = ["127.0.0.1"]\n', True),
    ):
        settings = load_text(f"[server]\nhostname = 'mx.test'\n{custom}{more}", "t.toml", {}).settings
        resolver = configured_resolver(settings, reactor)
        assert run(resolver.ipv4("mx2.lab.example")) == run(resolver.ipv4("mx2.lab.example"))
        assert run(resolver.ipv4("mx2.lab.example")).authentic is secure


def test_rules_see_what_dns_says(lab, reactor, run):
    resolver = DnsResolver(DnsOptions((Server("127.0.0.1", lab.port),)), reactor)
    assert run(dns_query(resolver, "lab.example", "mx")) == ("mx1.lab.example", "mx2.lab.example")
    assert run(dns_query(resolver, "nowhere.lab.example", "ip")) == ()
    assert isinstance(run(dns_query(resolver, "expired.example", "txt")), Unknown)
    assert isinstance(run(resolver.ipv4("mx1.lab.example")), Answer)


@pytest.mark.spec("OUT-255")
def test_mail_for_a_bogus_domain_waits(tmp_path, authority, lab):
    config = f"""
[session.rcpt]
relay = true

[queue.strategy]
route = "'mx'"

[resolver]
type = "custom"
custom = ["127.0.0.1:{lab.port}"]
"""
    with Gateway(tmp_path, authority, changes=(config,)) as gateway:
        with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=20) as client:
            client.sendmail("a@client.test", ["jane@expired.example"], b"Subject: x\r\n\r\nhi\r\n")
        wait_until(lambda: [row for row in gateway.queue() if row.state == "temp_fail"], 20, "a delayed recipient")
        gateway.wait_log("bogus")
