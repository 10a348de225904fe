"""What expressions see of a recipient while it is delivered."""

from dataclasses import replace

import pytest
from support.delivery import World, no_connection, refused
from support.work_store import message, recipient

from mailgate.queue.item import ExpiresBy, Expiry, State

HOUR_MS = 3_600_000


def seen(world):
    """The names that the route rule came to: what it saw."""
    return [event["id"] for event in world.told("smtp.id-not-found") if event["key"] == "queue.strategy.route"]


def rule(expression):
    """A configuration whose route is named by what an expression comes to; nothing defines such a route."""
    return f'[queue.strategy]\nroute = "{expression}"\nschedule = "\'remote\'"\n'


@pytest.mark.spec("OUT-019", "OUT-020")
def test_age_time_left_and_queue_of_a_recipient():
    with World(rule("'ttl-' + expires_in + '-' + queue_age + '-' + queue_name")) as world:
        world.remote.default = no_connection()
        world.attempt(world.store.add(message(recipient(expiry=Expiry(ExpiresBy.TTL, HOUR_MS)))))
        world.again(600)
        world.again(600)
        assert seen(world) == ["ttl-3600-0-remote", "ttl-3000-600-remote", "ttl-2400-1200-remote"]


@pytest.mark.spec("OUT-019")
def test_attempts_left_are_counted():
    with World(rule("'attempts-' + expires_in") + "[queue.schedule.remote]\nmax-attempts = 4\n") as world:
        world.remote.default = no_connection()
        world.attempt(world.store.add(message(recipient(expiry=Expiry(ExpiresBy.ATTEMPTS, 4)))))
        for _ in range(3):
            world.again(7200)
        assert seen(world) == ["attempts-4", "attempts-3", "attempts-2", "attempts-1"]


@pytest.mark.spec("OUT-020")
def test_queue_name_is_the_present_one():
    with World(rule("'in-' + queue_name")) as world:
        world.remote.default = no_connection()
        world.attempt(world.store.add(message(recipient(queue="local"))))
        world.again(7200, queue="remote")
        assert seen(world) == ["in-local", "in-remote"]


@pytest.mark.spec("OUT-022")
def test_where_a_message_came_from():
    with World(rule("'from-' + received_from_ip + '-' + received_via_port")) as world:
        world.remote.default = refused()
        world.attempt(world.store.add(message(from_ip="192.0.2.9", via_port=587)))
        (report,) = world.store.dsns
        world.clock.advance(1)
        world.attempt(world.store.items[report.id])
        assert seen(world) == ["from-192.0.2.9-587", "from-127.0.0.1-0"]


@pytest.mark.spec("OUT-295")
@pytest.mark.parametrize(
    ("retry", "jitter", "waits"),
    [("4m", 50, [240, 300, 359]), ("1h", 50, [3600, 3750, 3899]), ("1h", 0, [3600, 3600, 3600])],
)
def test_jitter_is_added_to_each_interval(retry, jitter, waits):
    world = World(
        f'[queue.strategy]\nschedule = "\'remote\'"\n[queue.schedule.remote]\nretry = "{retry}"\njitter = {jitter}\n'
    )
    chances = iter((0.0, 0.5, 0.999))
    world.around = replace(world.around, chance=lambda: next(chances))
    world.remote.default = no_connection()
    item = world.store.add(message(*(recipient(f"{name}@example.org") for name in "abc")))
    world.attempt(item)
    assert [world.one(index).state for index in range(3)] == [State.TEMP_FAIL] * 3
    assert [world.one(index).retry_due_ms // 1000 for index in range(3)] == waits
