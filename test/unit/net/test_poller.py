"""Connections behind one descriptor: events, changes of mind, ends, and what one does wrong."""

import os
import socket
from types import SimpleNamespace

import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock

from mailgate.net.poller import Poller


class Around(Clock):
    """The reactor it lives in."""

    def __init__(self):
        super().__init__()
        self.readers = []

    def addReader(self, reader):
        self.readers.append(reader)

    def removeReader(self, reader):
        if reader in self.readers:
            self.readers.remove(reader)

    def turn(self, seconds=0.0):
        """One turn: what is asked for in it comes in the next."""
        self.rightNow += seconds
        due = [call for call in self.calls if call.getTime() <= self.seconds()]
        self.calls = [call for call in self.calls if call not in due]
        for call in due:
            call.called = 1
            call.func(*call.args, **call.kw)


class Connection:
    """One end of a pair of sockets, registered; what happens to it goes into `did`."""

    def __init__(self, poller):
        self.poller = poller
        self.socket, self.peer = socket.socketpair()
        self.socket.setblocking(False)
        self.did = []
        self.answer = {}

    def fileno(self):
        return self.socket.fileno()

    def doRead(self):
        octets = self.socket.recv(1000)
        self.did.append(octets)
        return self.act("read") if octets else ConnectionDone()

    def doWrite(self):
        self.did.append("written")
        self.poller.removeWriter(self)
        return self.act("written")

    def act(self, what):
        answer = self.answer.get(what)
        return answer() if callable(answer) else answer

    def connectionLost(self, reason):
        self.did.append(reason.type)
        self.socket.close()
        self.act("lost")


@pytest.fixture
def it():
    around = Around()
    poller = Poller(around)
    made = []

    def connection():
        made.append(Connection(poller))
        return made[-1]

    yield SimpleNamespace(around=around, poller=poller, connection=connection)
    poller.close()
    for each in made:
        each.socket.close()
        each.peer.close()


def test_the_reactor_hears_of_it_with_the_first_descriptor_only(it):
    assert it.around.readers == []
    it.poller.addReader(it.connection())
    it.poller.addReader(it.connection())
    assert it.around.readers == [it.poller]


def test_who_has_something_to_read_is_served_and_nobody_else(it):
    speaks, silent = it.connection(), it.connection()
    it.poller.addReader(speaks)
    it.poller.addReader(silent)
    speaks.peer.send(b"EHLO")
    it.poller.doRead()
    assert (speaks.did, silent.did) == ([b"EHLO"], [])
    assert it.poller.getReaders() == [speaks, silent]


def test_room_to_write_is_told_once_asked_for(it):
    one = it.connection()
    it.poller.addReader(one)
    it.poller.addWriter(one)
    it.poller.addWriter(one)
    assert it.poller.getWriters() == [one]
    one.peer.send(b"x")
    it.poller.doRead()
    assert one.did == [b"x", "written"]
    it.poller.doRead()
    assert one.did == [b"x", "written"]
    assert (it.poller.getReaders(), it.poller.getWriters()) == ([one], [])


def test_who_stops_reading_is_left_alone(it):
    one = it.connection()
    it.poller.addReader(one)
    it.poller.removeReader(one)
    it.poller.removeReader(one)
    one.peer.send(b"x")
    it.poller.doRead()
    assert one.did == []
    assert it.poller.removeAll() == []


def test_a_peer_that_closes_ends_its_connection(it):
    one = it.connection()
    it.poller.addReader(one)
    one.peer.close()
    it.poller.doRead()
    assert one.did == [b"", ConnectionDone]
    assert it.poller.getReaders() == []


def test_a_peer_that_closes_under_a_writer_is_a_lost_connection(it):
    one = it.connection()
    it.poller.addWriter(one)
    it.poller.removeWriter(one)
    it.poller.addReader(one)
    it.poller.removeReader(one)
    it.poller.addWriter(one)
    one.peer.close()
    it.poller.doRead()
    assert one.did[-1] in ("written", ConnectionLost)


def breaks():
    raise RuntimeError("a mistake of ours")


def test_what_one_does_wrong_ends_it_alone(it):
    bad, good = it.connection(), it.connection()
    bad.answer["read"] = breaks
    for each in (bad, good):
        it.poller.addReader(each)
        each.peer.send(b"x")
    it.poller.doRead()
    assert bad.did == [b"x", RuntimeError]
    assert good.did == [b"x"]


@pytest.mark.parametrize("after", ["a read", "a write"])
def test_what_one_does_wrong_when_it_is_told_of_its_end_ends_it_alone(it, after):
    bad, good = it.connection(), it.connection()
    bad.answer.update(written=ConnectionDone(), lost=breaks)
    for each in (bad, good):
        it.poller.addReader(each)
    if after == "a read":
        bad.peer.close()
    else:
        it.poller.addWriter(bad)
    good.peer.send(b"x")
    it.poller.doRead()
    assert bad.did[-1] is ConnectionDone
    assert good.did == [b"x"]
    assert it.poller.getReaders() == [good]


def test_one_that_was_closed_by_another_in_the_same_round_is_not_touched(it):
    first, second = it.connection(), it.connection()

    def closes(other):
        it.poller.removeReader(other)
        other.socket.close()

    first.answer["read"] = lambda: closes(second)
    second.answer["read"] = lambda: closes(first)
    for each in (first, second):
        it.poller.addReader(each)
        each.peer.send(b"x")
    it.poller.doRead()
    assert sorted([first.did, second.did]) == [[], [b"x"]]


def take_number(it, of):
    """Close a descriptor, and have another one that waits to read get its number."""
    it.poller.removeReader(of)
    it.poller.removeWriter(of)
    number = of.socket.detach()
    got = it.connection()
    os.dup2(got.fileno(), number)
    got.socket.close()
    got.socket = socket.socket(fileno=number)
    it.poller.addReader(got)
    return got


def test_what_happened_to_one_is_not_taken_for_the_one_that_got_its_number_in_the_same_round(it):
    # Both wait to write to a peer that has gone; who is served first closes the other.
    first, second = it.connection(), it.connection()
    got = []
    for one, other in ((first, second), (second, first)):
        one.connectionLost = lambda reason, other=other: got.append(take_number(it, other))
        it.poller.addWriter(one)
        one.peer.close()
    it.poller.doRead()
    assert len(got) == 1
    assert got[0].did == []
    got[0].peer.send(b"EHLO")
    it.poller.doRead()
    assert got[0].did == [b"EHLO"]


def test_one_that_has_closed_is_not_written_to_because_of_the_one_that_got_its_number(it):
    one = it.connection()
    it.poller.addReader(one)
    it.poller.addWriter(one)
    one.answer["read"] = lambda: it.poller.addWriter(take_number(it, one))
    one.peer.send(b"QUIT")
    it.poller.doRead()
    assert one.did == [b"QUIT"]


def test_one_that_gets_something_to_do_meanwhile_is_served_in_the_same_turn(it):
    first, second = it.connection(), it.connection()
    it.poller.addReader(first)
    it.poller.addReader(second)
    first.answer["read"] = lambda: second.peer.send(b"RSET") and None
    first.peer.send(b"NOOP")
    it.poller.doRead()
    assert second.did == [b"RSET"]


def test_one_that_is_always_ready_leaves_the_reactor_its_turn(it):
    busy = it.connection()
    it.poller.addReader(busy)
    busy.answer["read"] = lambda: busy.peer.send(b"NOOP") and None
    busy.peer.send(b"NOOP")
    it.poller.doRead()
    # Served more than once, and left alone while its next command is there already.
    assert busy.did == [b"NOOP"] * 16


def test_after_the_end_nothing_is_served(it):
    ends = it.connection()
    it.poller.addReader(ends)
    ends.answer["read"] = it.poller.close
    ends.peer.send(b"QUIT")
    it.poller.doRead()
    assert ends.did == [b"QUIT", ConnectionLost]


def test_a_socket_that_was_closed_first_can_still_be_removed(it):
    one = it.connection()
    it.poller.addReader(one)
    one.socket.close()
    it.poller.removeReader(one)
    assert it.poller.getReaders() == []


def test_the_end_ends_every_connection(it):
    one = it.connection()
    it.poller.addReader(one)
    it.poller.close()
    assert one.did == [ConnectionLost]
    assert it.around.readers == []
    assert it.poller.fileno() == -1
    it.poller.close()


def test_what_one_does_wrong_at_the_end_does_not_keep_the_others(it):
    bad, good = it.connection(), it.connection()
    bad.answer["lost"] = breaks
    it.poller.addReader(bad)
    it.poller.addReader(good)
    it.poller.close()
    assert (bad.did, good.did) == ([ConnectionLost], [ConnectionLost])
    assert it.poller.fileno() == -1


def test_what_waits_for_an_idle_moment_comes_after_a_turn_without_an_event(it):
    connection = it.connection()
    it.poller.addReader(connection)
    called = []
    connection.answer["read"] = lambda: it.poller.when_idle(lambda: called.append("first"))
    connection.peer.send(b"one")
    it.poller.doRead()
    connection.answer.clear()
    it.poller.when_idle(lambda: called.append("second"))
    it.around.turn()
    assert called == []
    connection.peer.send(b"two")
    it.poller.doRead()
    it.around.turn()
    assert called == []
    it.around.turn()
    assert called == ["first", "second"]
    it.around.turn()
    assert called == ["first", "second"]


def test_nothing_waits_long_for_an_idle_moment(it):
    connection = it.connection()
    it.poller.addReader(connection)
    called = []
    it.poller.when_idle(lambda: called.append(it.around.seconds()))
    while not called:
        connection.peer.send(b"busy")
        it.poller.doRead()
        it.around.turn(0.0005)
    assert 0.002 <= called[0] < 0.003
    it.poller.when_idle(lambda: called.append("again"))
    it.around.turn()
    assert called[1:] == ["again"]


def test_a_call_that_fails_in_an_idle_moment_costs_the_others_nothing(it):
    called = []

    def fails():
        called.append("fails")
        it.poller.when_idle(lambda: called.append("asked for inside"))
        raise ValueError("no")

    it.poller.when_idle(fails)
    it.poller.when_idle(lambda: called.append("next"))
    it.around.turn()
    assert called == ["fails", "next"]
    # What is asked for in such a moment comes in the next one, in its order.
    it.poller.when_idle(lambda: called.append("last"))
    it.around.turn()
    it.around.turn()
    assert called == ["fails", "next", "asked for inside", "last"]
