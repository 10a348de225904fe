"""The questions one message may ask."""

from __future__ import annotations

import pytest
from support.zone import Zone
from twisted.internet.defer import Deferred

from mailgate.dns.budget import QUESTIONS, QUESTIONS_PER_RECIPIENT, Budget, BudgetedResolver
from mailgate.dns.resolver import Answer
from mailgate.mail.unknown import Unknown


def run(coroutine):
    found = []
    Deferred.fromCoroutine(coroutine).addBoth(found.append)
    return found[0]


def zone():
    made = Zone().mx_set("a.example", (1, "a.example")).a("a.example", "192.0.2.1").aaaa("a.example", "2001:db8::1")
    return made.text("a.example", "x").pointer("192.0.2.1", "a.example").tlsa_set("a.example", (3, 1, 1, b""))


@pytest.mark.parametrize("method", ["mx", "ipv4", "ipv6", "txt", "ptr", "tlsa"])
def test_what_is_asked_beyond_the_budget_is_unknown_and_not_asked(method):
    asked = zone()
    budget = Budget()
    question = getattr(BudgetedResolver(asked, budget), method)
    argument = "192.0.2.1" if method == "ptr" else "a.example"
    for _ in range(QUESTIONS):
        assert isinstance(run(question(argument)), Answer)
    for _ in range(3):
        assert run(question(argument)) == Unknown("dns", "too many questions for one message")
    assert sum(asked.asked.values()) == QUESTIONS


def test_each_recipient_makes_room_and_each_message_begins_anew():
    budget = Budget()
    budget.add_recipient()
    assert all(budget.spend() for _ in range(QUESTIONS + QUESTIONS_PER_RECIPIENT))
    assert not budget.spend()
    budget.renew()
    assert all(budget.spend() for _ in range(QUESTIONS))
    assert not budget.spend()
