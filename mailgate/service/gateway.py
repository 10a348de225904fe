"""The running program: what is started in which order, and stopped in which.

Start: sockets (while there may still be privileges for them), then the queue
with its recovery, then the record of decisions, then delivery, and only then
are connections taken. Stop is the reverse, so that whatever was answered with
250 is on disk and nothing is taken that could not be kept.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailgate.config.kind import SocketAddress
from mailgate.config.schema.settings import Settings
from mailgate.listen.factory import ListenerFactory
from mailgate.listen.sockets import CannotListen, listening_socket
from mailgate.queue.store import StoreFailed
from mailgate.service.build import Program

_log = Logger(namespace="mailgate.service")

# sysexits.h
EX_UNAVAILABLE = 69
EX_TEMPFAIL = 75


def _end_with(status: int) -> None:
    """Leave with a status, everything written."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


class Gateway(Service):
    """mailgate as a Twisted service."""

    name = "mailgate"

    def __init__(self, program: Program, settings: Settings, warnings: tuple[str, ...] = ()) -> None:
        self.program = program
        self._settings = settings
        self._warnings = warnings
        self._sockets: list[tuple[ListenerFactory, SocketAddress, socket.socket]] = []
        self._ports: list[IListeningPort] = []
        self._is_started = False
        self.started: Deferred[None] = Deferred()
        """Fires when connections are taken; fails when the queue cannot be opened."""

    @property
    def factories(self) -> tuple[ListenerFactory, ...]:
        """One factory per listener, in the order of the configuration."""
        return self.program.factories

    def privilegedStartService(self) -> None:
        """Open every listening socket; ends the program with 69 when one cannot be."""
        super().privilegedStartService()
        try:
            for factory in self.program.factories:
                listener = factory.site.listener
                for address in listener.bind:
                    opened = listening_socket(factory.listener_id, address, listener.socket)
                    self._sockets.append((factory, address, opened))
        except CannotListen as problem:
            self._close_sockets()
            print(problem, file=sys.stderr)
            raise SystemExit(EX_UNAVAILABLE) from problem

    def startService(self) -> None:
        """Open the queue, then take connections."""
        super().startService()
        for warning in self._warnings:
            _log.warn("{event}", event="config.warning", warning=warning)
        Deferred.fromCoroutine(self._start()).addErrback(self._cannot_start)

    async def _start(self) -> None:
        program = self.program
        await program.store.start()
        if program.ring is not None:
            program.ring.start()
        program.wake.start()
        for factory, address, opened in self._sockets:
            port = program.reactor.adoptStreamPort(opened.fileno(), opened.family, factory)
            # Twisted works on a duplicate of its own.
            opened.close()
            self._ports.append(port)
            _log.info(
                "{event}",
                event="listener.started",
                listener=factory.listener_id,
                protocol=factory.site.listener.protocol,
                address=str(address),
            )
        self._sockets = []
        _log.info("{event}", event="server.started", hostname=self._settings.server.hostname)
        self._is_started = True
        self.started.callback(None)

    def _cannot_start(self, failure: Failure) -> None:
        self._close_sockets()
        if failure.check(StoreFailed):
            _log.error("{event}", event="server.cannot-start", reason=failure.getErrorMessage())
            print(f"mailgate: {failure.getErrorMessage()}", file=sys.stderr)
        else:
            _log.failure("{event}", failure=failure, event="server.cannot-start")
        # twistd ends with 0 whatever happens: the status is set when all else is done, its pid file gone too.
        atexit.register(_end_with, EX_TEMPFAIL)
        self.program.reactor.stop()

    def _close_sockets(self) -> None:
        for _, _, opened in self._sockets:
            opened.close()
        self._sockets = []

    def stopService(self) -> Deferred[None]:
        """Take no more connections, say goodbye to clients, finish what is being committed and attempted."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        program = self.program
        if not self._is_started:
            return
        _log.info("{event}", event="server.stopping")
        self._close_sockets()
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        grace = self._settings.server.shutdown_grace.total_seconds()
        for factory in program.factories:
            ended = factory.shut_down()
            ended.addTimeout(grace, program.reactor, onTimeoutCancel=lambda result, timeout: None)
            await ended
        await program.wake.stop(grace)
        program.idle.stop()
        await program.store.stop()
        if program.ring is not None:
            program.ring.close()
        _log.info("{event}", event="server.stopped")
