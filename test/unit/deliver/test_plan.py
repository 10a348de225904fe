"""The four strategies with nothing configured, and with entries of the operator's own."""

from __future__ import annotations

from datetime import timedelta

import pytest
from support.delivery import World
from support.work_store import message, recipient
from twisted.internet.defer import Deferred

from mailgate.deliver.context import failed_scope, host_scope, message_facts, recipient_scope
from mailgate.deliver.maildir import LocalRoute
from mailgate.deliver.plan import MxRoute
from mailgate.expr.scope import Context, available
from mailgate.mail.status import ErrorKind, RecipientStatus
from mailgate.mail.unknown import Unknown
from mailgate.queue.item import Source


def now(coroutine):
    found = []
    Deferred.fromCoroutine(coroutine).addBoth(found.append)
    return found[0]


def scope(world, address="jane@example.org", source=Source.UNAUTHENTICATED, **facts):
    item, _ = message(recipient(address), source=source, **facts)
    return recipient_scope(message_facts(item), item.recipients[0], world.outside, world.wall_ms())


@pytest.fixture
def world():
    return World(local=["here.example"])


@pytest.mark.spec("OUT-002")
def test_local_domains_get_the_local_schedule_and_route(world):
    plan = world.generation.plan
    of = scope(world, "Jane@HERE.example")
    schedule = now(plan.schedules.choose(of))
    assert (schedule.name, schedule.queue, schedule.expire) == ("local", "local", timedelta(days=3))
    assert now(plan.route.select(of)) == LocalRoute("local")


def test_other_domains_get_the_remote_schedule_and_mx(world):
    plan = world.generation.plan
    schedule = now(plan.schedules.choose(scope(world)))
    assert (schedule.name, schedule.queue) == ("remote", "remote")
    assert now(plan.route.select(scope(world))) == MxRoute()


@pytest.mark.spec("OUT-003")
@pytest.mark.parametrize("source, name, attempts", [(Source.DSN, "dsn", 10), (Source.REPORT, "report", 8)])
def test_our_own_mail_gets_its_own_schedules(world, source, name, attempts):
    schedule = now(world.generation.plan.schedules.choose(scope(world, source=source)))
    assert (schedule.name, schedule.queue, schedule.max_attempts, schedule.notify) == (name, name, attempts, ())


@pytest.mark.spec("OUT-004")
def test_an_entry_of_the_same_name_replaces_the_built_in_one(world):
    world.configure('[queue.schedule.remote]\nretry = "7m"\nmax-attempts = 3\njitter = 5\n')
    schedule = now(world.generation.plan.schedules.choose(scope(world)))
    assert schedule.queue == "default"
    assert (schedule.retry, schedule.notify) == ((timedelta(minutes=7),), ())
    assert (schedule.max_attempts, schedule.jitter) == (3, 5)


def test_slots_of_the_built_in_queues(world):
    assert world.generation.plan.threads == {"default": 25, "local": 25, "remote": 50, "dsn": 5, "report": 5}


def test_an_unknown_answer_is_passed_on(world):
    world.outside.unknown["directory"] = Unknown("directory:main", "down")
    assert now(world.generation.plan.route.select(scope(world))) == Unknown("directory:main", "down")


def test_scopes_have_every_variable_of_their_context(world):
    of = scope(world, return_path="Joe@Sender.example", from_ip="192.0.2.1", via_port=25)
    for name in available(Context.RECIPIENT):
        getattr(of, name)
    host = host_scope(of, "mx.example.org", "192.0.2.9")
    for name in available(Context.HOST):
        getattr(host, name)
    assert (host.mx, host.remote_ip, host.local_ip) == ("mx.example.org", "192.0.2.9", "0.0.0.0")
    assert (host.rcpt, host.sender, host.sender_domain) == (of.rcpt, "joe@sender.example", "sender.example")


def test_a_failed_recipient_is_seen_with_its_failure_and_the_old_count(world):
    item, _ = message(recipient(retry_num=2))
    status = RecipientStatus("mx.example.org", ErrorKind.TLS, "no")
    of = failed_scope(message_facts(item), item.recipients[0], status, world.outside, 0)
    assert (of.last_error, of.retry_num) == ("tls", 2)
    assert of.last_status == "Temporary Failure for mx.example.org: TLS error: no"


def test_the_last_status_names_the_dependency(world):
    item, _ = message(recipient())
    status = RecipientStatus("store:names", ErrorKind.DEPENDENCY, "connection refused")
    of = failed_scope(message_facts(item), item.recipients[0], status, world.outside, 0)
    assert of.last_error == "dependency"
    assert of.last_status == (
        "Temporary Failure for store:names: Dependency unavailable: store:names: connection refused"
    )
