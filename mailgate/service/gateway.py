"""The running program: what is started in which order, and stopped in which.

Start: sockets (while there may still be privileges for them), then the queue
with its recovery, the control socket, the record of decisions, delivery, and
only then are connections taken. Stop is the reverse, so that whatever was
answered with 250 is on disk and nothing is taken that could not be kept.
SIGHUP reads the configuration again, as `mailgate reload` does.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from types import FrameType

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailgate.admin.control_socket import CannotControl, ControlSocket
from mailgate.config.load import Loaded
from mailgate.crash.point import ARMED, passed
from mailgate.listen.factory import ListenerFactory
from mailgate.listen.sockets import CannotListen, allow_many_files
from mailgate.queue.store import StoreFailed
from mailgate.service.build import Program, blocking
from mailgate.service.commands import Commands
from mailgate.service.listeners import Listeners
from mailgate.service.queue_commands import QueueCommands
from mailgate.service.reload import Refused, Reloader, settle_memory
from mailgate.service.supervisor import Supervisor

_log = Logger(namespace="mailgate.service")

# sysexits.h
EX_UNAVAILABLE = 69
EX_TEMPFAIL = 75

_CLOSING_SECONDS = 30.0


def _end_with(status: int) -> None:
    """Leave with a status, everything written."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def _tell(problem: str) -> None:
    """Say why mailgate does not start: in the log, and to whoever started it while there is still somebody."""
    _log.error("{event}", event="server.cannot-start", reason=problem)
    # sys.stderr is the log's by now.
    if sys.__stderr__ is not None:
        print(f"mailgate: {problem}", file=sys.__stderr__, flush=True)


class CannotStart(SystemExit, Exception):
    """Ends the program with a status; an `Exception`, for twistd then removes its pid file and tells its parent."""


def _is_on_a_terminal() -> bool:
    """Whether somebody started this by hand and watches: closing that terminal (SIGHUP) ends the program."""
    try:
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


class Gateway(Service):
    """mailgate as a Twisted service."""

    name = "mailgate"

    def __init__(self, program: Program, loaded: Loaded, file: str, supervisor: Supervisor | None = None) -> None:
        """`file` is where the configuration is read again, `loaded` what it said now."""
        self.program = program
        self._supervisor = supervisor or Supervisor()
        self.listeners = Listeners(program.poller, program.reactor)
        self.reloader = Reloader(program, self.listeners, loaded, file, supervisor=self._supervisor)
        commands = Commands(self.reloader, self.listeners, program.wake)
        self._queue_commands = QueueCommands(
            program.store,
            program.wake,
            lambda: self.reloader.in_use.settings,
            commands.right_daemon,
            blocking(program.reactor),
            lambda: time.time_ns() // 1_000_000,
        )
        table = {**commands.table(), **self._queue_commands.table()}
        self._control = ControlSocket(loaded.settings.management.socket, table, program.reactor)
        self._wants_reload = False
        self._is_started = False
        self._starting: Deferred[None] | None = None
        self._is_stopping = False

    @property
    def factories(self) -> tuple[ListenerFactory, ...]:
        """One factory per listener, in the order of the configuration."""
        return self.program.factories if not self._is_started else self.listeners.factories

    def privilegedStartService(self) -> None:
        """Open every listening socket; ends the program with 69 when one cannot be."""
        super().privilegedStartService()
        allow_many_files()
        try:
            self.listeners.open(self.program.factories)
        except CannotListen as problem:
            self._supervisor.failed(str(problem))
            _tell(str(problem))
            raise CannotStart(EX_UNAVAILABLE) from problem

    def startService(self) -> None:
        """Open the queue, then take connections."""
        super().startService()
        for warning in self.reloader.in_use.warnings:
            _log.warn("{event}", event="config.warning", warning=warning)
        if not _is_on_a_terminal():
            # It stays to the end: a reload that is asked for while mailgate stops must not kill it.
            signal.signal(signal.SIGHUP, self._hung_up)
        self._starting = Deferred.fromCoroutine(self._start_or_end())

    async def _start_or_end(self) -> None:
        try:
            await self._start()
        except Exception:
            self._cannot_start(Failure())
            await self._undo()

    async def _start(self) -> None:
        program = self.program
        await program.store.start()
        await self._queue_commands.start()
        self._control.start()
        if program.ring is not None:
            program.ring.start()
        program.wake.start()
        program.sweeper.start()
        await program.pickup.start()
        self.listeners.serve()
        _log.info("{event}", event="server.started", hostname=self.reloader.in_use.settings.server.hostname)
        settle_memory()
        self._is_started = True
        self._supervisor.ready(self.reloader.status)
        if self._wants_reload:
            self._reload()

    async def _undo(self) -> None:
        """Stop what was started, and with it the reactor."""
        try:
            await self._end(0)
        except Exception:
            _log.failure("{event}", event="server.not-stopped")
        if not self._is_stopping:
            self.program.reactor.callWhenRunning(self.program.reactor.stop)

    def _cannot_start(self, failure: Failure) -> None:
        status = EX_TEMPFAIL
        if failure.check(StoreFailed, CannotControl):
            self._supervisor.failed(failure.getErrorMessage())
            _tell(failure.getErrorMessage())
            status = EX_TEMPFAIL if failure.check(StoreFailed) else EX_UNAVAILABLE
        else:
            _log.failure("{event}", failure=failure, event="server.cannot-start")
        # twistd ends with 0 whatever happens: the status is set when all else is done, its pid file gone too.
        atexit.register(_end_with, status)

    # --- another generation -----------------------------------------------------------

    def _hung_up(self, number: int, frame: FrameType | None) -> None:
        """SIGHUP: Python calls this between any two steps of the program, so nothing is done here."""
        self.program.reactor.callFromThread(self._reload)

    def _reload(self) -> None:
        if not self._is_started:
            self._wants_reload = True
            return
        Deferred.fromCoroutine(self.reloader.reload("SIGHUP")).addErrback(self._not_reloaded)

    def _not_reloaded(self, failure: Failure) -> None:
        if not failure.check(Refused):
            _log.failure("{event}", failure=failure, event="config.reload-failed")

    # --- stop ---------------------------------------------------------------------------

    def stopService(self) -> Deferred[None]:
        """Take no more connections, say goodbye to clients, finish what is being committed and attempted."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._is_stopping = True
        self.reloader.close()
        grace = self.reloader.in_use.settings.server.shutdown_grace.total_seconds()
        # Clients and attempts get the grace one after the other; the queue is closed after that.
        self._supervisor.stopping(2 * grace + _CLOSING_SECONDS)
        if self._starting is not None:
            # What is half open cannot be closed: the queue may be at its recovery.
            await self._starting
        if not self._is_started:
            self.listeners.close()
            return
        _log.info("{event}", event="server.stopping")
        if ARMED:
            passed("X1")
        await self._end(grace)
        _log.info("{event}", event="server.stopped")

    async def _end(self, grace: float) -> None:
        program = self.program
        # At the same time: nothing new is attempted while clients take their leave.
        handing_in = Deferred.fromCoroutine(program.pickup.stop())
        leaving = Deferred.fromCoroutine(self.listeners.stop(grace))
        await program.wake.stop(grace)
        await program.sweeper.stop()
        await leaving
        await handing_in
        program.idle.stop()
        await program.store.stop()
        if program.ring is not None:
            program.ring.close()
        program.poller.close()
        await self._control.stop()
