"""Which hosts a group may go to, in which order, and what a host that cannot be tried counts for."""

from __future__ import annotations

import random

import pytest
from support.delivery import World
from support.work_store import message, recipient
from twisted.internet.defer import Deferred

from mailgate.config.error import ConfigErrors
from mailgate.deliver.context import message_facts, recipient_scope
from mailgate.deliver.hop import candidates
from mailgate.deliver.nexthop import HopFailure, Need, NextHop
from mailgate.mail.status import Delayed, ErrorKind, Failed, RecipientStatus
from mailgate.mail.unknown import Unknown
from mailgate.queue.item import State


@pytest.fixture
def world():
    world = World()
    world.zone.records.clear()
    return world


def now(coroutine):
    found = []
    Deferred.fromCoroutine(coroutine).addBoth(found.append)
    return found[0]


def hops(world, address="jane@example.org", shuffle=lambda records: None, **facts):
    """The candidates for one recipient by the configured route."""
    item, _ = message(recipient(address, **facts))
    one = item.recipients[0]
    scope = recipient_scope(message_facts(item), one, world.outside, world.wall_ms())
    plan = world.generation.plan
    route = now(plan.route.select(scope))

    async def gather():
        return [
            hop async for hop in candidates(route, one.domain, scope, plan, world.zone, item.id_text, shuffle=shuffle)
        ]

    return now(gather())


def places(found):
    return [(hop.host, hop.addresses) for hop in found]


@pytest.mark.spec("OUT-067")
def test_hosts_come_by_preference(world):
    world.zone.mx_set("example.org", (20, "b.example"), (10, "a.example"), (30, "c.example"))
    for number, host in enumerate("abc"):
        world.zone.a(f"{host}.example", f"192.0.2.{number}")
    found = hops(world)
    assert places(found) == [
        ("a.example", ("192.0.2.0",)),
        ("b.example", ("192.0.2.1",)),
        ("c.example", ("192.0.2.2",)),
    ]
    assert all(hop.is_mx and hop.port == 25 and hop.protocol == "smtp" and hop.route == "mx" for hop in found)


@pytest.mark.spec("OUT-068")
def test_hosts_of_equal_preference_come_in_varying_order(world):
    world.zone.mx_set("example.org", (10, "a.example"), (10, "b.example"), (20, "c.example"))
    for host in "abc":
        world.zone.a(f"{host}.example", "192.0.2.1")
    chance = random.Random(1)
    orders = {tuple(hop.host for hop in hops(world, shuffle=chance.shuffle)) for _ in range(50)}
    assert orders == {("a.example", "b.example", "c.example"), ("b.example", "a.example", "c.example")}


@pytest.mark.spec("OUT-069")
def test_hosts_and_addresses_are_limited(world):
    world.configure('[queue.route.mx]\ntype = "mx"\nlimits = { mx = 2, multihomed = 3 }\n')
    world.zone.mx_set("example.org", *((10 + n, f"m{n}.example") for n in range(5)))
    for number in range(5):
        world.zone.a(f"m{number}.example", *(f"192.0.2.{n}" for n in range(9)))
    found = hops(world)
    assert [hop.host for hop in found] == ["m0.example", "m1.example"]
    assert all(hop.addresses == ("192.0.2.0", "192.0.2.1", "192.0.2.2") for hop in found)


def test_a_host_is_looked_up_only_when_its_turn_comes(world):
    world.zone.mx_set("example.org", (10, "a.example"), (20, "b.example")).a("a.example", "192.0.2.1")
    item, _ = message()
    scope = recipient_scope(message_facts(item), item.recipients[0], world.outside, 0)
    plan = world.generation.plan
    route = now(plan.route.select(scope))

    async def first():
        return await anext(candidates(route, "example.org", scope, plan, world.zone, "x"))

    assert now(first()).host == "a.example"
    assert not world.zone.asked["b.example", "A"]


@pytest.mark.spec("OUT-070")
def test_a_domain_without_mx_is_its_own_host(world):
    world.zone.a("example.org", "192.0.2.1")
    assert places(hops(world)) == [("example.org", ("192.0.2.1",))]


@pytest.mark.spec("OUT-071")
def test_null_mx_fails_without_looking_at_addresses(world):
    world.zone.mx_set("example.org", (0, "")).a("example.org", "192.0.2.1")
    with world:
        (failure,) = hops(world)
    assert isinstance(failure.outcome, Failed)
    assert failure.outcome.status == RecipientStatus(
        "example.org", ErrorKind.DNS, "Domain does not accept messages (null MX)"
    )
    assert not world.zone.asked["example.org", "A"]
    assert world.told("delivery.null-mx")[0]["queueId"] == "0000000000001234"


def test_a_dot_among_other_records_is_skipped(world):
    world.zone.mx_set("example.org", (0, ""), (10, "a.example")).a("a.example", "192.0.2.1")
    assert [hop.host for hop in hops(world)] == ["a.example"]


@pytest.mark.spec("OUT-072")
def test_a_domain_that_does_not_exist_fails_and_an_outage_delays(world):
    (failure,) = hops(world, "jane@nowhere.example")
    assert isinstance(failure.outcome, Failed)
    assert failure.outcome.status == RecipientStatus("nowhere.example", ErrorKind.DNS, "no MX record found.")
    world.zone.fail("nowhere.example")
    (failure,) = hops(world, "jane@nowhere.example")
    assert isinstance(failure.outcome, Delayed)
    assert failure.outcome.status.kind is ErrorKind.DNS


@pytest.mark.spec("OUT-073")
@pytest.mark.parametrize(
    "lookup, addresses",
    [
        ("ipv4_only", ("192.0.2.1", "192.0.2.2")),
        ("ipv6_only", ("2001:db8::1", "2001:db8::2")),
        ("ipv4_then_ipv6", ("192.0.2.1", "2001:db8::1")),
        ("ipv6_then_ipv4", ("2001:db8::1", "192.0.2.1")),
    ],
)
def test_families_and_their_order(world, lookup, addresses):
    world.configure(f'[queue.route.mx]\ntype = "mx"\nip-lookup = "{lookup}"\n')
    world.zone.a("example.org", "192.0.2.1", "192.0.2.2").aaaa("example.org", "2001:db8::1", "2001:db8::2")
    (hop,) = hops(world)
    assert hop.addresses == addresses


def test_one_slot_is_kept_for_the_second_family(world):
    world.configure('[queue.route.mx]\ntype = "mx"\nlimits.multihomed = 3\n')
    world.zone.a("example.org", "192.0.2.1", "192.0.2.2", "192.0.2.3").aaaa("example.org", "2001:db8::1")
    assert hops(world)[0].addresses == ("192.0.2.1", "192.0.2.2", "2001:db8::1")


def test_a_family_that_fails_is_tolerated_while_the_other_has_answers(world):
    world.zone.aaaa("example.org", "2001:db8::1").fail("example.org", "A")
    assert hops(world)[0].addresses == ("2001:db8::1",)
    world.zone.records.clear()
    world.zone.mx_set("example.org", (10, "a.example")).fail("a.example", "AAAA").heal("example.org", "A")
    (failure,) = hops(world)
    assert isinstance(failure.outcome, Delayed)
    assert failure.outcome.status.kind is ErrorKind.CONNECTION
    assert failure.outcome.status.detail.startswith("lookup error: ")


def test_a_listed_host_without_addresses_fails_in_its_place(world):
    world.zone.mx_set("example.org", (10, "gone.example"), (20, "b.example")).a("b.example", "192.0.2.1")
    first, second = hops(world)
    assert first == HopFailure(
        "gone.example", Failed(RecipientStatus("gone.example", ErrorKind.CONNECTION, "record not found for MX"))
    )
    assert isinstance(second, NextHop)


@pytest.mark.spec("OUT-074")
def test_loopback_is_not_reached_through_dns(world):
    world.zone.a("example.org", "127.0.0.1", "0.0.0.0").aaaa("example.org", "::1")
    (failure,) = hops(world)
    assert isinstance(failure.outcome, Failed)
    assert failure.outcome.status.detail == "host resolves loopback address"
    world.zone.a("mixed.example", "127.0.0.1", "192.0.2.1")
    world.zone.aaaa("mapped.example", "::ffff:127.0.0.1")
    assert hops(world, "x@mixed.example")[0].addresses == ("192.0.2.1",)
    assert isinstance(hops(world, "x@mapped.example")[0], HopFailure)
    world.configure('[queue.route.mx]\ntype = "mx"\nallow-loopback = true\n')
    assert hops(world)[0].addresses == ("127.0.0.1", "::1")


@pytest.mark.spec("OUT-075")
@pytest.mark.parametrize(
    "domain, address", [("[192.0.2.9]", "192.0.2.9"), ("[ipv6:2001:db8::9]", "2001:db8::9"), ("[127.0.0.1]", None)]
)
def test_an_address_literal_is_one_host_without_any_question(world, domain, address):
    (hop,) = hops(world, f"jane@{domain}")
    if address is None:
        assert isinstance(hop.outcome, Failed)
    else:
        assert (hop.host, hop.addresses) == (address, (address,))
    assert not world.zone.asked


@pytest.mark.parametrize(
    "records, left",
    [
        ([(10, "a.example"), (20, "MX.example.net"), (20, "c.example"), (30, "d.example")], ["a.example"]),
        ([(10, "mx.example.net"), (20, "b.example")], []),
    ],
)
def test_a_host_that_is_ourselves_ends_the_list(world, records, left):
    world.zone.mx_set("example.org", *records).a("a.example", "192.0.2.1")
    found = hops(world)
    if left:
        assert [hop.host for hop in found] == left
    else:
        assert isinstance(found[0].outcome, Failed)
        assert found[0].outcome.status.detail == "mail loops back to this host"


LISTENING = """
[server.listener.smtp]
bind = ["192.0.2.7:25", "192.0.2.8:2525", "[::]:25", "[2001:db8::7]:25"]
protocol = "smtp"
hostname = "In.example.net"
"""


@pytest.mark.parametrize("ours", ["192.0.2.7", "2001:db8::7"])
def test_mail_never_goes_to_a_listener_of_our_own_nor_to_a_worse_host(world, ours):
    world.configure(LISTENING)
    world.zone.mx_set("example.org", (10, "better.example"), (20, "ours.example"), (30, "worse.example"))
    world.zone.a("better.example", "192.0.2.1").a("worse.example", "192.0.2.2")
    (world.zone.aaaa if ":" in ours else world.zone.a)("ours.example", ours)
    better, failure = hops(world)
    assert better.host == "better.example"
    assert failure == HopFailure(
        "example.org",
        Failed(RecipientStatus("example.org", ErrorKind.CONNECTION, "mail loops back to this host")),
    )


def test_another_port_of_an_own_address_is_another_server(world):
    world.configure(LISTENING)
    world.zone.a("example.org", "192.0.2.8")
    assert places(hops(world)) == [("example.org", ("192.0.2.8",))]


def test_the_name_of_a_listener_is_ours_too(world):
    world.configure(LISTENING)
    world.zone.mx_set("example.org", (10, "in.example.net")).a("in.example.net", "192.0.2.99")
    (failure,) = hops(world)
    assert failure.outcome.status.detail == "mail loops back to this host"


def test_an_address_literal_of_our_own_loops(world):
    world.configure(LISTENING)
    (failure,) = hops(world, "jane@[192.0.2.7]")
    assert failure.outcome.status.detail == "mail loops back to this host"


RELAY = """
[queue.strategy]
route = "'relay'"
[queue.route.relay]
type = "relay"
address = "{}"
port = 2525
"""


@pytest.mark.spec("OUT-076")
def test_a_relay_ignores_mx_records(world):
    world.configure(RELAY.format("out.example.net"))
    world.zone.mx_set("example.org", (10, "a.example")).a("out.example.net", "127.0.0.1", "192.0.2.7")
    for address in ("jane@example.org", "bob@other.example", "x@[192.0.2.1]"):
        (hop,) = hops(world, address)
        assert (hop.host, hop.addresses, hop.port) == ("out.example.net", ("127.0.0.1", "192.0.2.7"), 2525)
        assert not hop.is_mx
    assert not world.zone.asked["example.org", "MX"]


@pytest.mark.spec("OUT-074")
def test_a_relay_given_as_address_asks_nothing(world):
    world.configure(RELAY.format("127.0.0.1"))
    (hop,) = hops(world)
    assert (hop.host, hop.addresses) == ("127.0.0.1", ("127.0.0.1",))
    assert not world.zone.asked


def test_a_relay_that_cannot_be_found_delays(world):
    world.configure(RELAY.format("out.example.net"))
    (absent,) = hops(world)
    world.zone.fail("out.example.net")
    (failed,) = hops(world)
    assert isinstance(absent.outcome, Delayed)
    assert isinstance(failed.outcome, Delayed)


@pytest.mark.spec("OUT-077")
def test_implicit_tls_is_the_default_of_relays(world):
    world.configure(RELAY.format("192.0.2.1"))
    assert hops(world)[0].tls.implicit
    world.configure(RELAY.format("192.0.2.1") + 'tls.implicit = false\n[queue.tls.default]\nstarttls = "require"\n')
    tls = hops(world)[0].tls
    assert not tls.implicit
    assert tls.starttls is Need.REQUIRE


def test_relay_settings_arrive(world):
    extra = 'protocol = "lmtp"\ntls = { implicit = false, allow-invalid-certs = true }\n'
    extra += 'auth = { username = "gw1", secret = "s3cret" }\n'
    world.configure(RELAY.format("192.0.2.1") + extra)
    (hop,) = hops(world)
    assert hop.protocol == "lmtp"
    assert hop.tls.allow_invalid_certs
    assert hop.credentials.username == "gw1"
    assert "s3cret" not in repr(hop)


@pytest.mark.spec("OUT-081")
def test_the_ehlo_name_is_that_of_the_source_else_of_the_connection_else_of_the_server(world):
    world.zone.a("example.org", "192.0.2.1")
    assert hops(world)[0].ehlo_name == "mx.example.net"
    world.configure('[queue.connection.default]\nehlo-hostname = "out.example.net"\n')
    assert hops(world)[0].ehlo_name == "out.example.net"
    world.configure(
        '[queue.connection.default]\nehlo-hostname = "out.example.net"\nsource-ips = ["192.0.2.50", "192.0.2.51"]\n'
        '[queue.source-ip."192.0.2.50"]\nehlo-hostname = "fifty.example.net"\n'
    )
    assert [(source.ip, source.ehlo_name) for source in hops(world)[0].sources] == [
        ("192.0.2.50", "fifty.example.net"),
        ("192.0.2.51", "out.example.net"),
    ]


@pytest.mark.spec("OUT-083")
def test_a_connection_strategy_is_chosen_by_the_sender(world):
    world.configure(
        "[queue.strategy]\n"
        "connection = [ { if = \"sender_domain == 'sender.example'\", then = \"'pool'\" }, { else = \"'default'\" } ]\n"
        '[queue.connection.pool]\nehlo-hostname = "pool.example.net"\nsource-ips = "192.0.2.60"\nmax-recipients = 7\n'
        'timeout.connect = "3s"\nreuse = { messages = 5, idle = "1s", duration = "9s" }\n'
    )
    world.zone.a("example.org", "192.0.2.1")
    (hop,) = hops(world)
    assert hop.ehlo_name == "pool.example.net"
    assert [source.ip for source in hop.sources] == ["192.0.2.60"]
    assert hop.max_recipients == 7
    assert hop.timeouts.connect.total_seconds() == 3
    assert (hop.reuse.messages, hop.reuse.idle.total_seconds(), hop.reuse.duration.total_seconds()) == (5, 1, 9)


def test_a_connection_strategy_can_tell_addresses_apart(world):
    world.configure(
        "[queue.strategy]\n"
        "connection = [ { if = \"remote_ip == '2001:db8::1'\", then = \"'six'\" }, { else = \"'default'\" } ]\n"
        '[queue.connection.six]\nehlo-hostname = "six.example.net"\n'
    )
    world.zone.a("example.org", "192.0.2.1").aaaa("example.org", "2001:db8::1")
    assert [(hop.addresses, hop.ehlo_name) for hop in hops(world)] == [
        (("192.0.2.1",), "mx.example.net"),
        (("2001:db8::1",), "six.example.net"),
    ]


def test_a_tls_failure_selects_the_ladders_next_step(world):
    world.zone.a("example.org", "192.0.2.1")
    assert not hops(world)[0].tls.allow_invalid_certs
    failure = RecipientStatus("mx.example.org", ErrorKind.TLS, "x")
    (hop,) = hops(world, state=State.TEMP_FAIL, status=failure, retry_num=1)
    assert hop.tls.allow_invalid_certs


def test_the_tls_strategy_sees_the_host(world):
    world.configure(
        "[queue.strategy]\n"
        "tls = [ { if = \"mx == 'a.example'\", then = \"'strict'\" }, { else = \"'default'\" } ]\n"
        '[queue.tls.strict]\nstarttls = "require"\ntimeout.tls = "7s"\n'
    )
    world.zone.mx_set("example.org", (1, "a.example"), (2, "b.example"))
    world.zone.a("a.example", "192.0.2.1").a("b.example", "192.0.2.2")
    first, second = hops(world)
    assert (first.tls.starttls, second.tls.starttls) == (Need.REQUIRE, Need.OPTIONAL)
    assert first.tls.timeout.total_seconds() == 7


@pytest.mark.parametrize("strategy", ["connection", "tls"])
def test_a_rule_that_cannot_be_evaluated_ends_the_list_with_its_dependency(world, strategy):
    world.configure(f"[queue.strategy]\n{strategy} = \"key_get('names', mx)\"\n[lookup]\nnames = []\n")
    world.outside.unknown["store"] = Unknown("store:names", "down")
    world.zone.a("example.org", "192.0.2.1")
    (failure,) = hops(world)
    assert failure.outcome == Delayed(RecipientStatus("store:names", ErrorKind.DEPENDENCY, "down"))


@pytest.mark.spec("OUT-006")
def test_a_computed_name_nothing_defines_falls_back_with_an_event(world):
    strategies = "route = \"'r-' + rcpt_domain\"\nconnection = \"key_get('names', mx)\"\n"
    world.configure(f"[queue.strategy]\n{strategies}[lookup]\nnames = []\n")
    world.zone.a("example.org", "192.0.2.1")
    with world:
        (hop,) = hops(world)
    assert hop.route == "mx"
    assert hop.is_mx
    # No value counts as the name `default`: no event for it.
    assert [event["id"] for event in world.told("smtp.id-not-found")] == ["r-example.org"]
    with pytest.raises(ConfigErrors):
        world.configure("[queue.strategy]\nroute = \"'nowhere'\"\n")
