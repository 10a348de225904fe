"""The daemon's side of the control socket: who may ask, how much, and for how long.

The file has mode 0660: the daemon's user and group may ask, nobody else. What
they send is bounded in size and time; a request is carried out even when who
asked does not wait for the answer.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailgate.admin.control import MAX_REQUEST_OCTETS, Answer, BadMessage, Request
from mailgate.admin.failure import Failed, Status

MODE = 0o660
MAX_CONNECTIONS = 32
# A full backlog fails at once for a client with a time limit: room for more than may be served.
_BACKLOG = 4 * MAX_CONNECTIONS
REQUEST_SECONDS = 10.0
"""Until the request is there; and again until the answer is taken."""

_CREDENTIALS = struct.Struct("=iII")
_PROBE_SECONDS = 2.0

_log = Logger(namespace="mailgate.admin")


class Caller(NamedTuple):
    """Who asks; -1 where the system does not tell."""

    uid: int
    pid: int


Command = Callable[[Request, Caller], Awaitable[Answer]]


class CannotControl(Exception):
    """The control socket could not be opened; the text says why."""


class ControlSocket:
    """The control socket of one daemon."""

    def __init__(self, path: str, commands: Mapping[str, Command], reactor: PosixReactorBase) -> None:
        self._path = path
        self._reactor = reactor
        self._control = Control(commands, reactor)
        self._port: _Port | None = None
        self._file: tuple[int, int] | None = None

    def start(self) -> None:
        """Open it, in place of one that a dead daemon left; make its directory. Raises `CannotControl`."""
        try:
            os.makedirs(os.path.dirname(self._path) or ".", 0o750, exist_ok=True)
            _make_room(self._path)
            port = _Port(os.fsencode(self._path), self._control, _BACKLOG, MODE, self._reactor)
            port.startListening()
            found = os.stat(self._path)
        except OSError as failure:
            raise CannotControl(_cannot(self._path, failure.strerror or str(failure))) from failure
        except CannotListenError as failure:
            cause = failure.socketError
            raise CannotControl(_cannot(self._path, getattr(cause, "strerror", None) or str(cause))) from failure
        self._port = port
        self._file = (found.st_dev, found.st_ino)

    async def stop(self) -> None:
        """Close it and take its file away."""
        port, self._port = self._port, None
        if port is None:
            return
        try:
            found = os.stat(self._path)
            if (found.st_dev, found.st_ino) == self._file:
                os.unlink(self._path)
        except OSError:
            # Somebody was quicker; it is not ours any more.
            pass
        await maybeDeferred(port.stopListening)
        self._control.close()


class _Port(unix.Port):
    """Twisted's own, which breaks when its file is gone before it is closed."""

    def connectionLost(self, reason: Failure) -> None:
        tcp.Port.connectionLost(self, reason)


def _cannot(path: str, reason: str) -> str:
    return f"management.socket: cannot open {path}: {reason}; make its directory, or name another place"


def _make_room(path: str) -> None:
    """Take away the socket of a dead daemon. Raises `CannotControl` for a live one's, and for what is no socket."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise CannotControl(_cannot(path, "there is a file of this name that is no socket"))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(path)
        except FileNotFoundError:
            # That daemon was about to end.
            return
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                os.unlink(path)
            return
        except (TimeoutError, BlockingIOError):
            pass
    raise CannotControl(_cannot(path, "another daemon serves it"))


class Control(ServerFactory):
    """Makes the connections of the control socket."""

    noisy = False

    def __init__(self, commands: Mapping[str, Command], clock: IReactorTime) -> None:
        self.commands = commands
        self.clock = clock
        self.open: set[Exchange] = set()

    def buildProtocol(self, addr: IAddress | None) -> Exchange | None:
        """Take a connection; None when there are too many."""
        if len(self.open) >= MAX_CONNECTIONS:
            return None
        return Exchange(self)

    def close(self) -> None:
        """End every connection."""
        for exchange in tuple(self.open):
            exchange.abort()


class Exchange(TwistedProtocol):
    """One connection: a request, its answer, the end."""

    def __init__(self, factory: Control) -> None:
        self._control = factory
        self._octets = bytearray()
        self._caller = Caller(-1, -1)
        self._is_answering = False
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Somebody wants to ask."""
        self._control.open.add(self)
        self._caller = _caller(self.transport)
        self._arm()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """What was asked for goes on."""
        self._control.open.discard(self)
        self._disarm()

    def dataReceived(self, data: bytes) -> None:
        """Take octets up to the first line end; what follows it is not looked at."""
        if self._is_answering:
            return
        # Only the new octets are searched: many small pieces cost no more than one.
        before = len(self._octets)
        self._octets += data
        end = self._octets.find(b"\n", before)
        if end < 0 and len(self._octets) <= MAX_REQUEST_OCTETS:
            return
        self._is_answering = True
        self._disarm()
        if end < 0 or end > MAX_REQUEST_OCTETS:
            self._send(Answer(Status.USAGE, f"a request has at most {MAX_REQUEST_OCTETS} octets"))
            return
        line = bytes(self._octets[:end])
        self._octets.clear()
        try:
            request = Request.of(line)
        except BadMessage as bad:
            self._send(Answer(Status.USAGE, f"bad request: {bad}"))
            return
        command = self._control.commands.get(request.command)
        if command is None:
            self._send(Answer(Status.USAGE, "this daemon has no such command"))
            return
        answering = Deferred.fromCoroutine(_answered(command, request, self._caller))
        answering.addErrback(self._broken, request)
        answering.addCallback(self._answer, request)

    def _broken(self, failure: Failure, request: Request) -> Answer:
        """A mistake of ours must not stop the daemon."""
        _log.failure("{event}", failure=failure, event="control.failed", command=request.command)
        return Answer(Status.SOFTWARE, "mailgate is broken here: the log has the traceback")

    def _answer(self, answer: Answer, request: Request) -> None:
        _log.info(
            "{event}",
            event="control.command",
            command=request.command,
            uid=self._caller.uid,
            pid=self._caller.pid,
            status=int(answer.status),
        )
        self._send(answer)

    def _send(self, answer: Answer) -> None:
        if self not in self._control.open or self.transport is None:
            return
        self._arm()
        self.transport.write(answer.octets())
        self.transport.loseConnection()

    def _arm(self) -> None:
        self._timer = self._control.clock.callLater(REQUEST_SECONDS, self.abort)

    def _disarm(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def abort(self) -> None:
        """End it now."""
        abort = getattr(self.transport, "abortConnection", None)
        if abort is not None:
            abort()


async def _answered(command: Command, request: Request, caller: Caller) -> Answer:
    try:
        return await command(request, caller)
    except Failed as failed:
        return Answer(failed.status, failed.message)


def _caller(transport: object) -> Caller:
    """Who is at the other end, by the system's word."""
    handle = getattr(transport, "getHandle", lambda: None)()
    if not isinstance(handle, socket.socket):
        return Caller(-1, -1)
    try:
        pid, uid, _ = _CREDENTIALS.unpack(handle.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    except OSError:
        return Caller(-1, -1)
    return Caller(uid, pid)
