"""The addresses mailgate listens on, and how they change while it runs.

A listener that stays keeps its factory: connections that are open keep their
generation's rules, new ones get the new rules, and the limit of simultaneous
connections counts both. The socket of an address that stays is never closed,
even when another listener takes it over, so no client finds it shut.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IReactorTime
from twisted.logger import Logger

from mailgate.config.kind import SocketAddress
from mailgate.config.schema.server import SocketSettings
from mailgate.listen.factory import ListenerFactory
from mailgate.listen.sockets import CannotListen, listening_socket
from mailgate.net.poller import Poller

_log = Logger(namespace="mailgate.service")


@dataclass(slots=True)
class _Bound:
    """One address; `port` is Twisted's, on a duplicate of the socket, once connections are taken."""

    factory: ListenerFactory
    socket: socket.socket
    port: IListeningPort | None = None


@dataclass(frozen=True, slots=True)
class OpenListener:
    """One listener as `mailgate status` tells it; of one that is gone only connections are left."""

    id: str
    protocol: str
    addresses: tuple[str, ...]
    connections: int


class Listeners:
    """All listening sockets of the program."""

    def __init__(self, poller: Poller, clock: IReactorTime) -> None:
        self._poller = poller
        self._clock = clock
        self._bound: dict[SocketAddress, _Bound] = {}
        self._factories: tuple[ListenerFactory, ...] = ()
        self._former: list[ListenerFactory] = []
        """Listeners of earlier generations that may still have connections."""

    @property
    def factories(self) -> tuple[ListenerFactory, ...]:
        """One factory per listener, in the order of the configuration."""
        return self._factories

    def open(self, factories: Iterable[ListenerFactory]) -> None:
        """Open every address, and take no connection yet. Raises `CannotListen`; nothing is open then."""
        self._factories = tuple(factories)
        try:
            for address, factory in _wanted(self._factories).items():
                self._bound[address] = _Bound(factory, _opened(factory, address))
        except CannotListen:
            self.close()
            raise

    def serve(self) -> None:
        """Take connections on every address that is open."""
        for address, bound in self._bound.items():
            bound.port = self._adopt(bound.socket, bound.factory)
            _started(bound.factory, address)

    def change(self, factories: tuple[ListenerFactory, ...]) -> None:
        """Serve with the factories of another generation, from the next connection on.

        Raises `CannotListen` when one of its addresses cannot be opened; then
        everything is as it was.
        """
        stay = {(each.listener_id, type(each)): each for each in self._factories}
        made = tuple(stay.get((each.listener_id, type(each)), each) for each in factories)
        replaced = dict(zip(factories, made, strict=True))
        wanted = {address: replaced[factory] for address, factory in _wanted(factories).items()}
        options = {each.listener_id: each.site.listener.socket for each in factories}
        fresh: dict[SocketAddress, _Bound] = {}
        try:
            for address, factory in wanted.items():
                bound = self._bound.get(address)
                if bound is None:
                    opened = _opened(factory, address, options[factory.listener_id])
                    fresh[address] = _Bound(factory, opened)
                    fresh[address].port = self._adopt(opened, factory)
                elif bound.factory is not factory:
                    fresh[address] = _Bound(factory, bound.socket, self._adopt(bound.socket, factory))
        except (CannotListen, OSError) as failure:
            for address, bound in fresh.items():
                _stop(bound)
                if address not in self._bound:
                    bound.socket.close()
            if isinstance(failure, CannotListen):
                raise
            raise CannotListen(f"no address can be opened: {failure.strerror or failure}") from failure
        self._put_in_place(made, factories, wanted, fresh)

    def _put_in_place(
        self,
        made: tuple[ListenerFactory, ...],
        factories: tuple[ListenerFactory, ...],
        wanted: Mapping[SocketAddress, ListenerFactory],
        fresh: Mapping[SocketAddress, _Bound],
    ) -> None:
        for keeps, new in zip(made, factories, strict=True):
            if keeps is not new:
                keeps.use(new.site, new.tls)
        for address, bound in tuple(self._bound.items()):
            if address not in wanted or address in fresh:
                _stop(bound)
                del self._bound[address]
                _log.info("{event}", event="listener.stopped", listener=bound.factory.listener_id, address=str(address))
                if address not in fresh:
                    bound.socket.close()
        for address, bound in fresh.items():
            self._bound[address] = bound
            _started(bound.factory, address)
        self._former = [each for each in (*self._former, *self._factories) if each not in made and each.connections]
        self._factories = made

    def _adopt(self, opened: socket.socket, factory: ListenerFactory) -> IListeningPort:
        # Twisted works on a duplicate of its own.
        return self._poller.adoptStreamPort(opened.fileno(), opened.family, factory)

    def report(self) -> tuple[OpenListener, ...]:
        """The listeners of this generation, then those of earlier ones that still have connections."""
        told = [
            OpenListener(
                each.listener_id,
                each.site.listener.protocol,
                tuple(str(address) for address, bound in self._bound.items() if bound.factory is each),
                len(each.connections),
            )
            for each in self._factories
        ]
        told += [
            OpenListener(each.listener_id, each.site.listener.protocol, (), len(each.connections))
            for each in self._former
            if each.connections
        ]
        return tuple(told)

    def close(self) -> None:
        """Close the sockets where no connection was taken yet."""
        for bound in self._bound.values():
            bound.socket.close()
        self._bound = {}

    async def stop(self, grace_seconds: float) -> None:
        """Take no more connections, say goodbye to all clients at once; who does not go is left after the grace."""
        bound, self._bound = self._bound, {}
        for each in bound.values():
            each.socket.close()
            if each.port is not None:
                await maybeDeferred(each.port.stopListening)
        going = [factory.shut_down() for factory in (*self._factories, *self._former)]
        for ended in going:
            ended.addTimeout(grace_seconds, self._clock, onTimeoutCancel=lambda result, timeout: None)
        for ended in going:
            await ended


def _wanted(factories: Iterable[ListenerFactory]) -> dict[SocketAddress, ListenerFactory]:
    """Who serves each address: no two listeners share one (`config/check.py`)."""
    return {address: factory for factory in factories for address in factory.site.listener.bind}


def _opened(factory: ListenerFactory, address: SocketAddress, options: SocketSettings | None = None) -> socket.socket:
    return listening_socket(factory.listener_id, address, options or factory.site.listener.socket)


def _started(factory: ListenerFactory, address: SocketAddress) -> None:
    _log.info(
        "{event}",
        event="listener.started",
        listener=factory.listener_id,
        protocol=factory.site.listener.protocol,
        address=str(address),
    )


def _stop(bound: _Bound) -> None:
    """Take no further connection at an address; nothing waits for it."""
    if bound.port is not None:
        stopping: Deferred[object] = maybeDeferred(bound.port.stopListening)
        stopping.addErrback(lambda failure: _log.failure("{event}", failure=failure, event="listener.stop-failed"))
