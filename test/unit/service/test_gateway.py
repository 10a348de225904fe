"""Start and stop of the program, with parts that answer when a test says so."""

import signal
from types import SimpleNamespace

import pytest
from support.baseline import baseline
from support.listener import ListenerInMemory
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mailgate.config.load import load_text
from mailgate.listen.sockets import CannotListen
from mailgate.queue.store import StoreFailed
from mailgate.service import gateway as module
from mailgate.service.gateway import Gateway
from mailgate.service.listeners import Listeners

CONFIG = baseline(
    "B0",
    '[server]\nshutdown-grace = "5s"\n'
    '[server.listener.smtp]\nbind = "127.0.0.1:2525"\nprotocol = "smtp"\n'
    '[server.listener.lmtp]\nbind = "127.0.0.1:2424"\nprotocol = "lmtp"\n',
)


class Reactor(Clock):
    def __init__(self):
        super().__init__()
        self.stops = 0

    def stop(self):
        self.stops += 1

    def callWhenRunning(self, call):
        call()


class Part:
    """One thing that is started and stopped; its name goes into the list when it is."""

    def __init__(self, name, did, fails=None):
        self.name, self.did, self.fails = name, did, fails

    def start(self):
        self.did.append(f"{self.name} starts")
        if self.fails is not None:
            raise self.fails

    async def stop(self, grace=None):
        self.did.append(f"{self.name} stops")

    def close(self):
        self.did.append(f"{self.name} stops")


class Store(Part):
    def __init__(self, did):
        super().__init__("store", did)
        self.starting = Deferred()

    async def start(self):
        await self.starting
        self.did.append("store starts")


class Pickup(Part):
    async def start(self):
        super().start()


class Quiet:
    async def start(self):
        """Leave no trace."""


class Idle(Part):
    def stop(self):
        self.did.append("idle stops")


class Sockets(Part):
    factories = ()

    def open(self, factories):
        self.did.append("sockets open")
        if self.fails is not None:
            raise self.fails

    def serve(self):
        self.did.append("sockets serve")


@pytest.fixture
def running(monkeypatch):
    """A gateway of parts, what they did, and the status the process would end with."""
    statuses = []
    before = signal.getsignal(signal.SIGHUP)
    monkeypatch.setattr(module, "settle_memory", lambda: None)
    monkeypatch.setattr(module.atexit, "register", lambda call, status: statuses.append(status))

    def make(sockets_fail=None, control_fails=None, wake_fails=None):
        did = []
        program = SimpleNamespace(
            reactor=Reactor(),
            store=Store(did),
            ring=Part("ring", did),
            wake=Part("wake", did, wake_fails),
            sweeper=Part("sweeper", did),
            pickup=Pickup("pickup", did),
            idle=Idle("idle", did),
            poller=Part("poller", did),
            client_tls=None,
            factories=(),
        )
        gateway = Gateway(program, load_text(CONFIG), "/etc/mailgate/mailgate.toml")
        gateway._control = Part("control", did, control_fails)
        gateway._queue_commands = Quiet()
        gateway.listeners = Sockets("sockets", did, sockets_fail)
        return SimpleNamespace(gateway=gateway, program=program, did=did, statuses=statuses)

    yield make
    signal.signal(signal.SIGHUP, before)


def test_start_and_stop_have_their_order(running):
    it = running()
    it.gateway.privilegedStartService()
    it.gateway.startService()
    assert it.did == ["sockets open"]
    it.program.store.starting.callback(None)
    starts = ["store", "control", "ring", "wake", "sweeper", "pickup"]
    assert it.did[1:] == [*(f"{name} starts" for name in starts), "sockets serve"]
    it.did.clear()
    stopped = it.gateway.stopService()
    stops = ["pickup", "sockets", "wake", "sweeper", "idle", "store", "ring", "poller", "control"]
    assert it.did == [f"{name} stops" for name in stops]
    assert stopped.called
    assert it.program.reactor.stops == 0
    assert it.statuses == []


def test_an_address_that_cannot_be_opened_ends_with_69_and_twistd_cleans_up(running, capsys):
    it = running(sockets_fail=CannotListen("no address"))
    with pytest.raises(SystemExit) as ended:
        it.gateway.privilegedStartService()
    assert ended.value.code == 69
    # twistd removes its pid file, and tells its parent, for an Exception only.
    assert isinstance(ended.value, Exception)


def test_a_queue_that_cannot_be_opened_ends_with_75(running):
    it = running()
    it.gateway.privilegedStartService()
    it.gateway.startService()
    it.program.store.starting.errback(StoreFailed("locked"))
    assert it.statuses == [75]
    assert it.program.reactor.stops == 1
    assert "sockets stops" in it.did
    assert "sockets serve" not in it.did
    assert it.gateway.stopService().called


@pytest.mark.parametrize("late", ["control_fails", "wake_fails"])
def test_what_was_started_before_a_failure_is_stopped(running, late):
    it = running(**{late: RuntimeError("a mistake of ours")})
    it.gateway.privilegedStartService()
    it.gateway.startService()
    it.program.store.starting.callback(None)
    assert it.did.index("store starts") < it.did.index("store stops")
    assert it.statuses == [75]
    assert it.program.reactor.stops == 1


def test_a_stop_waits_for_the_start(running):
    it = running()
    it.gateway.privilegedStartService()
    it.gateway.startService()
    stopped = it.gateway.stopService()
    assert not stopped.called
    it.program.store.starting.callback(None)
    assert stopped.called
    assert it.did[-1] == "control stops"
    assert it.did.count("store stops") == 1


def test_a_start_that_fails_during_a_stop_does_not_stop_twice(running):
    it = running()
    it.gateway.privilegedStartService()
    it.gateway.startService()
    stopped = it.gateway.stopService()
    it.program.store.starting.errback(StoreFailed("locked"))
    assert stopped.called
    assert it.program.reactor.stops == 0


def test_a_stop_without_a_start(running):
    it = running()
    assert it.gateway.stopService().called


def test_all_clients_are_told_at_once_and_have_one_grace_together():
    listener = ListenerInMemory(CONFIG)
    connections = [listener.connect("smtp"), listener.connect("lmtp")]
    for connection in connections:
        connection.received()
    listeners = Listeners(listener.clock, listener.clock)
    listeners._factories = tuple(listener.factories.values())
    stopped = Deferred.fromCoroutine(listeners.stop(5))
    assert all(connection.received().startswith(b"421 4.3.0") for connection in connections)
    listener.clock.advance(5)
    assert stopped.called
