"""AUTH on a whole listener: directories that are slow, silent or broken, and errors that count."""

import pytest
from support.baseline import baseline
from support.listener import ListenerInMemory
from twisted.internet.defer import Deferred

from mailgate.mail.unknown import Unknown

LISTENER = '[server.listener.smtp]\nbind = "127.0.0.1:2525"\nprotocol = "smtp"\n'
WRONG = b"AUTH PLAIN AGpvaG4Ad3Jvbmc=\r\n"
RIGHT = b"AUTH PLAIN AGpvaG4Ac2VjcmV0\r\n"


def connected(*changes):
    listener = ListenerInMemory(baseline("B2", LISTENER, *changes))
    connection = listener.connect()
    connection.send(b"EHLO client.test\r\n")
    connection.received()
    return listener, connection


def codes(connection):
    return [line[:9] for line in connection.received().split(b"\r\n") if line[3:4] == b" "]


def asking(listener, monkeypatch):
    """The questions to the directory, each answered when a test fires it."""
    asked = []
    directory = listener.factories["smtp"].site.ports.directories.find("local")

    async def authenticate(login, secret):
        asked.append(Deferred())
        return await asked[-1]

    monkeypatch.setattr(type(directory), "authenticate", lambda self, login, secret: authenticate(login, secret))
    return asked


def test_errors_wait_count_and_close():
    _, connection = connected('[session.auth]\nerrors.total = 2\nerrors.wait = "5s"\n')
    connection.send(WRONG)
    assert codes(connection) == []
    connection.advance(5)
    assert codes(connection) == [b"535 5.7.8"]
    connection.send(WRONG + b"NOOP\r\n")
    connection.advance(5)
    assert codes(connection) == [b"535 5.7.8", b"455 4.3.0"]
    assert connection.closed


def test_a_wait_ends_with_the_connection():
    listener, connection = connected('[session.auth]\nerrors.wait = "5s"\n')
    connection.send(WRONG)
    connection.leave()
    assert listener.clock.getDelayedCalls() == []


@pytest.mark.parametrize("broken", [False, True])
def test_what_the_directory_does_not_know_is_no_error_of_the_client(monkeypatch, broken):
    listener, connection = connected("[session.auth]\nerrors.total = 1\n")
    asked = asking(listener, monkeypatch)
    for _ in range(3):
        connection.send(RIGHT)
        assert codes(connection) == []
        if broken:
            asked.pop().errback(RuntimeError("a mistake of ours"))
        else:
            asked.pop().callback(Unknown("directory local", "down"))
        (code,) = codes(connection)
        assert code == (b"451 4.3.0" if broken else b"454 4.7.0")
    assert not connection.closed


def test_a_client_that_leaves_is_not_authenticated(monkeypatch):
    listener, connection = connected()
    asked = asking(listener, monkeypatch)
    connection.send(RIGHT)
    connection.leave()
    assert asked[0].called
    assert listener.clock.getDelayedCalls() == []
