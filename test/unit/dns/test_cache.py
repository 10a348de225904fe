"""The resolver's memory: TTLs, bounds, merged questions."""

from __future__ import annotations

import pytest
from support.zone import Zone
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mailgate.dns.cache import CacheSizes, CachingResolver
from mailgate.dns.resolver import Absent, Answer
from mailgate.mail.unknown import Unknown


def run(coroutine):
    found = []
    Deferred.fromCoroutine(coroutine).addBoth(found.append)
    return found[0]


class Slow(Zone):
    """Answers MX questions when told to."""

    def __init__(self):
        super().__init__()
        self.pending = []

    async def mx(self, name):
        waiting = Deferred()
        self.pending.append(waiting)
        return await waiting


def test_an_answer_is_kept_for_its_ttl():
    clock, zone = Clock(), Zone(ttl_seconds=60).a("a.example", "192.0.2.1")
    resolver = CachingResolver(zone, clock)
    for seconds in (0, 59):
        clock.advance(seconds)
        assert run(resolver.ipv4("A.example")).records == ("192.0.2.1",)
    assert zone.asked["a.example", "A"] == 1
    clock.advance(1)
    run(resolver.ipv4("a.example"))
    assert zone.asked["a.example", "A"] == 2


def test_absence_is_kept_for_its_ttl_too():
    clock, zone = Clock(), Zone(ttl_seconds=60)
    resolver = CachingResolver(zone, clock)
    assert run(resolver.txt("a.example")) == Absent(False, ttl_seconds=60)
    run(resolver.txt("a.example"))
    assert zone.asked["a.example", "TXT"] == 1
    clock.advance(61)
    run(resolver.txt("a.example"))
    assert zone.asked["a.example", "TXT"] == 2


def test_an_outage_is_never_kept():
    zone = Zone().a("a.example", "192.0.2.1").fail("a.example")
    resolver = CachingResolver(zone, Clock())
    assert isinstance(run(resolver.ipv4("a.example")), Unknown)
    zone.heal("a.example")
    assert isinstance(run(resolver.ipv4("a.example")), Answer)


def test_ttl_zero_is_not_kept():
    zone = Zone(ttl_seconds=0).a("a.example", "192.0.2.1")
    resolver = CachingResolver(zone, Clock())
    run(resolver.ipv4("a.example"))
    run(resolver.ipv4("a.example"))
    assert zone.asked["a.example", "A"] == 2


def test_a_ttl_of_years_ends_after_a_day():
    clock, zone = Clock(), Zone(ttl_seconds=2**31 - 1).a("a.example", "192.0.2.1")
    resolver = CachingResolver(zone, clock)
    run(resolver.ipv4("a.example"))
    clock.advance(86401)
    run(resolver.ipv4("a.example"))
    assert zone.asked["a.example", "A"] == 2


def test_absence_of_a_day_ends_after_three_hours():
    clock, zone = Clock(), Zone(ttl_seconds=86400)
    resolver = CachingResolver(zone, clock)
    run(resolver.tlsa("_25._tcp.a.example"))
    clock.advance(10800)
    run(resolver.tlsa("_25._tcp.a.example"))
    assert zone.asked["_25._tcp.a.example", "TLSA"] == 2


def test_the_size_is_bounded_and_the_least_used_goes_first():
    zone = Zone()
    for number in range(10):
        zone.a(f"d{number}.example", "192.0.2.1")
    resolver = CachingResolver(zone, Clock(), CacheSizes(ipv4=3 * 550))
    for number in (0, 1, 2, 0, 3):
        run(resolver.ipv4(f"d{number}.example"))
    run(resolver.ipv4("d0.example"))
    assert zone.asked["d0.example", "A"] == 1
    run(resolver.ipv4("d1.example"))
    assert zone.asked["d1.example", "A"] == 2


def test_size_zero_keeps_nothing():
    zone = Zone().a("a.example", "192.0.2.1")
    resolver = CachingResolver(zone, Clock(), CacheSizes(ipv4=0))
    run(resolver.ipv4("a.example"))
    assert isinstance(run(resolver.ipv4("a.example")), Answer)
    assert zone.asked["a.example", "A"] == 2


def test_equal_questions_at_once_are_asked_once():
    slow = Slow()
    resolver = CachingResolver(slow, Clock())
    found = []
    for _ in range(3):
        Deferred.fromCoroutine(resolver.mx("example.org")).addCallback(found.append)
    assert len(slow.pending) == 1
    slow.pending[0].callback(Absent(True))
    assert found == [Absent(True)] * 3


def test_who_gives_up_does_not_end_the_question_for_others():
    slow = Slow()
    resolver = CachingResolver(slow, Clock())
    found, given_up = [], []
    first = Deferred.fromCoroutine(resolver.mx("example.org")).addErrback(given_up.append)
    Deferred.fromCoroutine(resolver.mx("example.org")).addCallback(found.append)
    first.cancel()
    assert len(given_up) == 1
    slow.pending[0].callback(Absent(True))
    assert found == [Absent(True)]


def test_a_fault_of_ours_reaches_all_who_wait_and_is_not_kept():
    slow = Slow()
    resolver = CachingResolver(slow, Clock())
    faults = []
    for _ in range(2):
        Deferred.fromCoroutine(resolver.mx("example.org")).addErrback(faults.append)
    slow.pending[0].errback(ZeroDivisionError())
    assert len(faults) == 2
    found = []
    Deferred.fromCoroutine(resolver.mx("example.org")).addCallback(found.append)
    slow.pending[1].callback(Absent(True))
    assert found == [Absent(True)]


@pytest.mark.parametrize(
    "method, argument", [("ptr", "192.0.2.1"), ("txt", "a.example"), ("ipv6", "a.example"), ("tlsa", "a.example")]
)
def test_every_question_passes_through(method, argument):
    zone = Zone().pointer("192.0.2.1", "a.example").text("a.example", "x").aaaa("a.example", "2001:db8::1")
    zone.tlsa_set("a.example", (3, 1, 1, b""))
    resolver = CachingResolver(zone, Clock())
    assert isinstance(run(getattr(resolver, method)(argument)), Answer)
