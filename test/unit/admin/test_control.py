"""The control protocol: what is said both ways, and what garbage does."""

import json
import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport

from mailgate.admin import control
from mailgate.admin.control import MAX_ANSWER_OCTETS, MAX_REQUEST_OCTETS, Answer, BadMessage, Request, ask
from mailgate.admin.control_socket import MAX_CONNECTIONS, REQUEST_SECONDS, Caller, Control, ControlSocket
from mailgate.admin.failure import Failed, Status

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class Transport(StringTransport):
    def __init__(self, handle=None):
        super().__init__()
        self.handle = handle

    def getHandle(self):
        return self.handle

    def abortConnection(self):
        self.disconnected = True


class Daemon:
    """The daemon's side, with two commands."""

    def __init__(self):
        self.clock = Clock()
        self.requests = []
        self.later = Deferred()
        self.control = Control(
            {"echo": self.echo, "wait": self.wait, "fail": self.fail, "break": self.broken}, self.clock
        )

    async def echo(self, request, caller):
        self.requests.append((request, caller))
        return Answer(Status.OK, "done", {"got": dict(request.arguments)})

    async def wait(self, request, caller):
        return await self.later

    async def fail(self, request, caller):
        raise Failed(Status.NOT_NOW, "not now")

    async def broken(self, request, caller):
        raise ZeroDivisionError

    def connect(self, handle=None):
        exchange = self.control.buildProtocol(None)
        if exchange is None:
            return None
        transport = Transport(handle)
        exchange.makeConnection(transport)
        return exchange, transport

    def ask(self, *pieces):
        """The one answer; the connection is closing after it."""
        exchange, transport = self.connect()
        for piece in pieces:
            exchange.dataReceived(piece)
        assert transport.disconnecting
        assert transport.value().count(b"\n") == 1
        return Answer.of(transport.value()[:-1])


@pytest.fixture
def daemon():
    return Daemon()


# --- the lines -------------------------------------------------------------------
@given(st.text(), st.dictionaries(st.text(), JSON, max_size=4))
def test_a_request_comes_back_as_it_was(command, arguments):
    octets = Request(command, arguments).octets()
    assert octets.count(b"\n") == 1
    assert Request.of(octets[:-1]) == Request(command, arguments)


@given(st.sampled_from(Status), st.text(), st.dictionaries(st.text(), JSON, max_size=4))
def test_an_answer_comes_back_as_it_was(status, text, result):
    octets = Answer(status, text, result).octets()
    assert octets.count(b"\n") == 1
    assert Answer.of(octets[:-1]) == Answer(status, text, result)


@pytest.mark.parametrize("character", ["x", "\n", "\0", "é", "\U0001f4e7"])
def test_an_endless_report_is_cut(character):
    octets = Answer(Status.CONFIG, character * MAX_ANSWER_OCTETS, {"all": ["x"] * 10}).octets()
    assert len(octets) <= MAX_ANSWER_OCTETS
    assert Answer.of(octets[:-1]).text.endswith("(cut here: the log has all of it)")


@given(st.binary() | JSON.map(lambda document: json.dumps(document).encode()))
def test_garbage_is_no_request_and_no_answer(octets):
    for kind in (Request, Answer):
        try:
            kind.of(octets)
        except BadMessage:
            continue
        raise AssertionError(octets)


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5, True])
def test_another_version_is_refused(version):
    with pytest.raises(BadMessage, match="version 1"):
        Request.of(json.dumps({"version": version, "command": "status"}).encode())


def test_a_status_is_one_of_ours():
    for status in (3, 0.0, "0", True, None):
        with pytest.raises(BadMessage):
            Answer.of(json.dumps({"version": 1, "status": status}).encode())


# --- the daemon's side -----------------------------------------------------------
def test_one_request_has_one_answer(daemon):
    assert daemon.ask(Request("echo", {"a": 1}).octets()) == Answer(Status.OK, "done", {"got": {"a": 1}})
    assert daemon.requests == [(Request("echo", {"a": 1}), Caller(-1, -1))]


def test_octet_by_octet_is_the_same(daemon):
    octets = Request("echo", {"a": 1}).octets()
    assert daemon.ask(*(octets[at : at + 1] for at in range(len(octets)))).text == "done"


def test_what_follows_a_request_is_not_looked_at(daemon):
    octets = Request("echo").octets()
    assert daemon.ask(octets + octets, octets).status is Status.OK
    assert len(daemon.requests) == 1


def test_an_unknown_command_a_failed_one_and_a_broken_one(daemon):
    assert daemon.ask(Request("nosuch").octets()).status is Status.USAGE
    assert daemon.ask(Request("fail").octets()) == Answer(Status.NOT_NOW, "not now")
    assert daemon.ask(Request("break").octets()).status is Status.SOFTWARE


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=20))
def test_garbage_gets_a_refusal_or_silence(pieces):
    daemon = Daemon()
    exchange, transport = daemon.connect()
    for piece in pieces:
        exchange.dataReceived(piece)
    if b"\n" in b"".join(pieces):
        assert Answer.of(transport.value()[:-1]).status is Status.USAGE
        assert transport.disconnecting
    else:
        assert not transport.value()
    daemon.clock.advance(REQUEST_SECONDS)
    assert transport.disconnected
    assert not daemon.requests


def test_a_request_has_a_largest_size(daemon):
    assert daemon.ask(*[b"x" * 1000] * (MAX_REQUEST_OCTETS // 1000 + 1)).status is Status.USAGE
    assert daemon.ask(b"x" * MAX_REQUEST_OCTETS + b"x\n").status is Status.USAGE
    exchange, transport = daemon.connect()
    exchange.dataReceived(b"x" * MAX_REQUEST_OCTETS)
    assert not transport.value()


def test_who_says_nothing_is_let_go(daemon):
    exchange, transport = daemon.connect()
    exchange.dataReceived(b'{"version"')
    daemon.clock.advance(REQUEST_SECONDS - 0.1)
    assert not transport.disconnected
    daemon.clock.advance(0.1)
    assert transport.disconnected


def test_a_long_command_is_waited_for_and_done_though_nobody_waits(daemon):
    exchange, transport = daemon.connect()
    exchange.dataReceived(Request("wait").octets())
    daemon.clock.advance(REQUEST_SECONDS * 10)
    assert not transport.disconnected
    exchange.connectionLost()
    daemon.later.callback(Answer(Status.OK))
    assert not transport.value()
    assert not daemon.clock.getDelayedCalls()


def test_there_are_so_many_connections_and_no_more(daemon):
    taken = [daemon.connect() for _ in range(MAX_CONNECTIONS)]
    assert daemon.connect() is None
    taken[0][0].connectionLost()
    assert daemon.connect() is not None
    daemon.control.close()
    assert all(transport.disconnected for _, transport in taken[1:])


def test_the_caller_is_who_the_system_says(daemon):
    class Handle(socket.socket):
        def getsockopt(self, level, option, size):
            assert (level, option) == (socket.SOL_SOCKET, socket.SO_PEERCRED)
            return struct.pack("=iII", 77, 1001, 1002)

    with Handle(socket.AF_UNIX) as handle:
        exchange, _ = daemon.connect(handle)
        exchange.dataReceived(Request("echo").octets())
    assert daemon.requests[0][1] == Caller(uid=1001, pid=77)


@pytest.mark.parametrize("call", ["lstat", "unlink"])
def test_a_socket_that_goes_while_it_is_looked_at_is_no_obstacle(tmp_path, monkeypatch, call):
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(path)
    real, unlink = getattr(os, call), os.unlink

    def slower(name, **given):
        # The daemon that had it takes it away: after the look, or before this one can.
        if call == "lstat":
            found = real(name, **given)
            unlink(name)
            return found
        unlink(name)
        return real(name, **given)

    opened = ControlSocket(path, {}, MemoryReactorClock())
    with monkeypatch.context() as patched:
        patched.setattr(os, call, slower)
        opened.start()
    assert os.path.exists(path)
    Deferred.fromCoroutine(opened.stop())
    assert not os.path.exists(path)


# --- the operator's side ---------------------------------------------------------
class Peer:
    """What is behind the path, in place of a socket."""

    answer = b""
    fault = None

    def __init__(self, *_):
        self.left = [self.answer[at : at + 7] for at in range(0, len(self.answer), 7)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def settimeout(self, seconds):
        pass

    def connect(self, path):
        if self.fault is not None:
            raise self.fault

    def sendall(self, octets):
        assert Request.of(octets[:-1]).command == "status"

    def recv(self, size):
        return self.left.pop(0) if self.left else b""


@pytest.fixture
def peer(monkeypatch):
    kind = type("Behind", (Peer,), {})
    monkeypatch.setattr(control.socket, "socket", kind)
    return kind


def test_an_answer_in_pieces(peer):
    peer.answer = Answer(Status.OK, "x" * 100).octets()
    assert ask("/s", Request("status")).text == "x" * 100


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (FileNotFoundError(2, "No such file or directory"), Status.UNREACHABLE),
        (ConnectionRefusedError(111, "Connection refused"), Status.UNREACHABLE),
        (TimeoutError("timed out"), Status.UNREACHABLE),
        (OSError("AF_UNIX path too long"), Status.UNREACHABLE),
        (PermissionError(13, "Permission denied"), Status.PERMISSION),
    ],
)
def test_who_cannot_be_asked(peer, fault, status):
    peer.fault = fault
    with pytest.raises(Failed) as failed:
        ask("/s", Request("status"))
    assert failed.value.status is status
    assert "/s" in failed.value.message


@pytest.mark.parametrize("octets", [b"", b"{", b"220 mx.test ESMTP\r\n", b'{"version":2,"status":0}\n'])
def test_what_is_no_mailgate(peer, octets):
    peer.answer = octets
    with pytest.raises(Failed) as failed:
        ask("/s", Request("status"))
    assert failed.value.status is Status.UNREACHABLE
