"""Connecting: the address, the source address, and the system's words for what goes wrong."""

import errno

import pytest
from support.pipe import End, Network
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import (
    ConnectBindError,
    ConnectError,
    ConnectionRefusedError,
    TCPTimedOutError,
    TimeoutError,
)
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from mailgate.net.connect import ConnectFailed, Connector


def begin(reactor, **more):
    more = {"source_ip": None, "seconds": 30.0, **more}
    results = []
    deferred = Deferred.fromCoroutine(Connector(reactor, reactor).connect("192.0.2.1", 25, **more))
    deferred.addCallbacks(results.append, lambda failure: results.append(failure.value))
    return deferred, results


@pytest.mark.parametrize("source", [None, "192.0.2.77"])
def test_the_reactor_is_asked_for_the_address_from_the_source_in_time(source):
    reactor = MemoryReactorClock()
    _, results = begin(reactor, source_ip=source, seconds=7.0)
    host, port, factory, timeout, bind = reactor.tcpClients[0]
    assert (host, port, timeout) == ("192.0.2.1", 25, 7.0)
    assert bind == ((source, 0) if source else None)
    stream = factory.buildProtocol(None)
    assert results == []
    stream.makeConnection(End(Network(), True))
    assert results == [stream]
    assert (stream.remote_ip, stream.remote_port) == ("192.0.2.1", 25)
    assert not factory.noisy


@pytest.mark.parametrize(
    "error, text",
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), "Connection refused"),
        (TimeoutError(), "Connection timeout"),
        (TCPTimedOutError(errno.ETIMEDOUT, "x"), "Connection timed out"),
        (ConnectError(errno.EHOSTUNREACH, "x"), "No route to host"),
        (ConnectError(string="strange"), "strange"),
        (
            ConnectBindError(errno.EADDRNOTAVAIL, "x"),
            "cannot use source address 192.0.2.77: Cannot assign requested address",
        ),
    ],
)
def test_failures_are_told_in_the_systems_words(error, text):
    reactor = MemoryReactorClock()
    _, results = begin(reactor, source_ip="192.0.2.77")
    reactor.tcpClients[0][2].clientConnectionFailed(None, Failure(error))
    assert isinstance(results[0], ConnectFailed)
    assert str(results[0]) == text


def test_cancelling_stops_connecting():
    reactor = MemoryReactorClock()
    deferred, results = begin(reactor)
    deferred.cancel()
    assert isinstance(results[0], CancelledError)
    assert reactor.connectors[0].stoppedConnecting
    # What the reactor says then is of no interest to anybody.
    reactor.tcpClients[0][2].clientConnectionFailed(None, Failure(TimeoutError()))
