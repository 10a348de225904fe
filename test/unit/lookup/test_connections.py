"""Connections on threads, with a reactor that is turned by hand and a clock of the test's own."""

import asyncio
import threading
from queue import Empty, SimpleQueue

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from mailgate.lookup.connections import Database, Limits, ThreadedConnections
from mailgate.lookup.store import StoreError
from mailgate.mail.unknown import Unknown

# Longer than any thread here takes; never waited for in full unless something is broken.
PATIENCE = 20


class Reactor(Clock):
    """What threads hand over is done when the test turns it."""

    def __init__(self):
        super().__init__()
        self._calls = SimpleQueue()

    def callFromThread(self, call, *arguments):
        self._calls.put((call, arguments))

    def turn(self):
        """Do the next thing a thread hands over."""
        call, arguments = self._calls.get(timeout=PATIENCE)
        call(*arguments)

    def nothing_came(self):
        try:
            self._calls.get_nowait()
        except Empty:
            return True
        return False


class Connection:
    """A connection as the test wants it."""

    def __init__(self, server):
        self.server = server
        self.thread = threading.get_ident()
        self.usable = True

    def get(self, key):
        assert threading.get_ident() == self.thread
        self.server.asked.append(key)
        return self.server.answer(key)

    def is_usable(self):
        return self.usable

    def close(self):
        assert threading.get_ident() == self.thread
        self.server.closed.append(self)


class Server:
    """Counts its connections; a key `slow` is answered when `gate` opens."""

    def __init__(self):
        self.made = []
        self.closed = []
        self.asked = []
        self.refuses = False
        self.gate = threading.Event()
        self.entered = SimpleQueue()

    def connect(self):
        if self.refuses:
            raise StoreError("connection refused")
        self.made.append(Connection(self))
        return self.made[-1]

    def answer(self, key):
        if key == "slow":
            self.entered.put(None)
            assert self.gate.wait(PATIENCE)
        if key == "lost":
            raise StoreError("connection lost")
        if key == "broken":
            raise ZeroDivisionError
        return f"value of {key}"


@pytest.fixture
def server():
    made = Server()
    yield made
    made.gate.set()


@pytest.fixture
def reactor():
    return Reactor()


@pytest.fixture
def connections(server, reactor):
    def make(most=2, wait=5.0, answer=10.0, keep=PATIENCE):
        return ThreadedConnections("s", server.connect, Limits(most, wait, answer, keep), reactor)

    return make


def ask(connections, key):
    found = []
    deferred = connections.use(lambda connection: connection.get(key))
    deferred.addBoth(found.append)
    return deferred, found


def test_an_answer_comes_on_the_reactors_thread(connections, reactor, server):
    _, found = ask(connections(), "a")
    assert not found
    reactor.turn()
    assert found == ["value of a"]
    assert server.made[0].thread != threading.get_ident()
    assert not reactor.getDelayedCalls()


def test_a_connection_is_kept_for_the_next_question(connections, reactor, server):
    pool = connections()
    for key in ("a", "b", "c"):
        _, found = ask(pool, key)
        reactor.turn()
        assert found == [f"value of {key}"]
    assert len(server.made) == 1


def test_never_more_connections_than_allowed_and_answers_in_order(connections, reactor, server):
    pool = connections(most=1)
    _, first = ask(pool, "slow")
    server.entered.get(timeout=PATIENCE)
    others = [ask(pool, str(number))[1] for number in range(5)]
    server.gate.set()
    for _ in range(6):
        reactor.turn()
    assert first == ["value of slow"]
    assert others == [[f"value of {number}"] for number in range(5)]
    assert server.asked == ["slow", *map(str, range(5))]
    assert len(server.made) == 1


def test_several_connections_at_a_time(connections, reactor, server):
    pool = connections(most=3)
    asked = [ask(pool, "slow")[1] for _ in range(3)]
    for _ in range(3):
        server.entered.get(timeout=PATIENCE)
    assert len(server.made) == 3
    server.gate.set()
    for _ in range(3):
        reactor.turn()
    assert asked == [["value of slow"]] * 3


def test_no_free_connection_in_time_is_unknown(connections, reactor, server):
    pool = connections(most=1, wait=5.0, answer=60.0)
    _, first = ask(pool, "slow")
    server.entered.get(timeout=PATIENCE)
    _, second = ask(pool, "b")
    reactor.advance(5)
    assert second == [Unknown("store s", "no connection was free within 5 s")]
    assert not first
    server.gate.set()
    reactor.turn()
    assert first == ["value of slow"]
    assert server.asked == ["slow"]
    assert not reactor.getDelayedCalls()


def test_no_answer_in_time_is_unknown_and_what_comes_later_is_left(connections, reactor, server):
    pool = connections(most=1)
    _, found = ask(pool, "slow")
    server.entered.get(timeout=PATIENCE)
    reactor.advance(10)
    assert found == [Unknown("store s", "no answer within 10 s")]
    server.gate.set()
    reactor.turn()
    assert len(found) == 1
    _, again = ask(pool, "b")
    reactor.turn()
    assert again == ["value of b"]


def test_a_store_that_refuses_is_unknown_until_it_does_not(connections, reactor, server):
    pool = connections()
    server.refuses = True
    for _ in range(3):
        _, found = ask(pool, "a")
        reactor.turn()
        assert found == [Unknown("store s", "connection refused")]
    server.refuses = False
    _, found = ask(pool, "a")
    reactor.turn()
    assert found == ["value of a"]


def test_after_an_error_a_connection_is_not_used_again(connections, reactor, server):
    pool = connections()
    _, found = ask(pool, "lost")
    reactor.turn()
    assert found == [Unknown("store s", "connection lost")]
    _, found = ask(pool, "a")
    reactor.turn()
    assert found == ["value of a"]
    assert server.closed == server.made[:1]


def test_a_connection_the_other_side_has_closed_is_replaced(connections, reactor, server):
    pool = connections()
    ask(pool, "a")
    reactor.turn()
    server.made[0].usable = False
    _, found = ask(pool, "b")
    reactor.turn()
    assert found == ["value of b"]
    assert len(server.made) == 2
    assert server.closed == server.made[:1]


def test_what_is_broken_is_raised_and_not_unknown(connections, reactor, server):
    pool = connections()
    _, found = ask(pool, "broken")
    reactor.turn()
    assert found[0].check(ZeroDivisionError)
    _, found = ask(pool, "a")
    reactor.turn()
    assert found == ["value of a"]


def test_a_question_nobody_waits_for_is_not_asked(connections, reactor, server):
    pool = connections(most=1)
    ask(pool, "slow")
    server.entered.get(timeout=PATIENCE)
    deferred, found = ask(pool, "b")
    deferred.cancel()
    assert found[0].check(CancelledError)
    server.gate.set()
    reactor.turn()
    _, after = ask(pool, "c")
    reactor.turn()
    assert after == ["value of c"]
    assert server.asked == ["slow", "c"]
    assert not reactor.getDelayedCalls()


def test_a_thread_without_work_ends_and_closes_its_connection(connections, reactor, server):
    pool = connections(keep=0.001)
    for key in ("a", "b"):
        before = {thread for thread in threading.enumerate() if thread.name == "store s"}
        _, found = ask(pool, key)
        reactor.turn()
        assert found == [f"value of {key}"]
        for thread in {thread for thread in threading.enumerate() if thread.name == "store s"} - before:
            thread.join(PATIENCE)
            assert not thread.is_alive()
    assert server.closed == server.made


def test_keys_and_statements_ask_by_connections():
    class Echo:
        async def use(self, work):
            return work(self)

        def __getattr__(self, name):
            return lambda *given: (name, *given)

    asked = Database(Echo())
    answers = (asked.get("a"), asked.set("a", "b"), asked.counter("c"), asked.increase("c", 2), asked.query("?", (1,)))
    assert [asyncio.run(answer) for answer in answers] == [
        ("get", "a"),
        ("set", "a", "b"),
        ("counter", "c"),
        ("increase", "c", 2),
        ("query", "?", (1,)),
    ]
