"""Connections to one store, never more than so many, used off the reactor's thread.

Each connection belongs to a thread of its own, which begins when there is work
for it and ends when it had none for a while, so that a generation of the
configuration that is gone leaves nothing behind. Whoever asks waits for a
bounded time: for a connection, and for the answer. After that, and whenever
the store or the way to it fails, the answer is `Unknown`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from threading import Condition, Thread
from typing import Generic, NamedTuple, Protocol, TypeVar

from twisted.internet.defer import Deferred

from mailgate.expr.value import Value
from mailgate.lookup.store import KeyConnection, SqlConnection, StoreError
from mailgate.mail.unknown import Unknown

T = TypeVar("T")
C = TypeVar("C", bound=KeyConnection)
C_co = TypeVar("C_co", bound=KeyConnection, covariant=True)


class Limits(NamedTuple):
    """How many connections there may be, and how many seconds anything may take."""

    most: int
    wait: float
    """For a connection that is free."""
    answer: float
    """For the answer, waiting included."""
    keep: float
    """That a connection stays open unused."""


class Connections(Protocol[C_co]):
    """Lends a connection to a piece of work."""

    def use(self, work: Callable[[C_co], T], /) -> Awaitable[T | Unknown]:
        """Answer what the work returned; `Unknown` for a `StoreError` and for what took too long."""
        ...


class Keys(Generic[C]):
    """A `KeyStore` over connections."""

    __slots__ = ("_connections",)

    def __init__(self, connections: Connections[C]) -> None:
        self._connections = connections

    async def get(self, key: str) -> str | Unknown | None:
        """The value of `key`."""
        return await self._connections.use(lambda connection: connection.get(key))

    async def set(self, key: str, value: str) -> Unknown | None:
        """Give `key` a value."""
        return await self._connections.use(lambda connection: connection.set(key, value))

    async def counter(self, key: str) -> int | Unknown:
        """The counter `key`."""
        return await self._connections.use(lambda connection: connection.counter(key))

    async def increase(self, key: str, by: int) -> int | Unknown:
        """Add to the counter `key`."""
        return await self._connections.use(lambda connection: connection.increase(key, by))


class Database(Keys[SqlConnection]):
    """A `KeyStore` that is an `SqlStore` as well."""

    __slots__ = ()

    async def query(self, statement: str, arguments: tuple[Value, ...]) -> Value | Unknown:
        """Run one statement."""
        return await self._connections.use(lambda connection: connection.query(statement, arguments))


class DelayedCall(Protocol):
    """A call the reactor will make."""

    def cancel(self) -> object:
        """Do not make it."""
        ...

    def active(self) -> object:
        """Whether it is still to be made."""
        ...


class Reactor(Protocol):
    """What is needed of the reactor."""

    def callFromThread(self, callable: Callable[..., object], /, *args: object) -> object:
        """Run a call on the reactor's thread, soon."""
        ...

    def callLater(self, delay: float, callable: Callable[..., object], /, *args: object) -> DelayedCall:
        """Run a call after so many seconds."""
        ...


class _Job(ABC, Generic[C]):
    """A piece of work and whoever awaits it. `taken` changes under the lock of the connections."""

    __slots__ = ("taken", "timers")

    def __init__(self) -> None:
        self.taken = False
        self.timers: list[DelayedCall] = []

    def no_timers(self) -> None:
        """Call off whatever was to happen later."""
        for timer in self.timers:
            if timer.active():
                timer.cancel()

    @abstractmethod
    def run(self, connection: C) -> None:
        """Do it and keep what it answers; on a thread."""

    @abstractmethod
    def fail(self, why: Unknown | Exception) -> None:
        """Keep this in place of an answer."""

    @abstractmethod
    def fire(self) -> None:
        """Tell the one who waits what was kept; on the reactor's thread."""

    @abstractmethod
    def give_up(self, why: Unknown) -> None:
        """Tell him that, whatever the thread may still find; on the reactor's thread."""


class _Call(_Job[C], Generic[C, T]):
    """A job that is one function of the connection."""

    __slots__ = ("_answer", "_why", "_work", "answered")

    def __init__(self, work: Callable[[C], T], cancelled: Callable[[_Job[C]], None]) -> None:
        super().__init__()
        self._work = work
        self._answer: tuple[T, ...] = ()
        self._why: Unknown | Exception | None = None
        self.answered: Deferred[T | Unknown] = Deferred(lambda _: cancelled(self))

    def run(self, connection: C) -> None:
        self._answer = (self._work(connection),)

    def fail(self, why: Unknown | Exception) -> None:
        self._why = why

    def fire(self) -> None:
        if self.answered.called:
            return
        self.no_timers()
        if self._why is None:
            self.answered.callback(self._answer[0])
        elif isinstance(self._why, Exception):
            self.answered.errback(self._why)
        else:
            self.answered.callback(self._why)

    def give_up(self, why: Unknown) -> None:
        self.no_timers()
        if not self.answered.called:
            self.answered.callback(why)


class ThreadedConnections(Generic[C]):
    """The connections of live mail."""

    def __init__(self, id: str, connect: Callable[[], C], limits: Limits, reactor: Reactor) -> None:
        """`connect` is called on a thread and raises `StoreError`; `id` names the store to operators."""
        self._name = f"store {id}"
        self._connect = connect
        self._limits = limits
        self._reactor = reactor
        self._changed = Condition()
        # Under its lock.
        self._jobs: deque[_Job[C]] = deque()
        self._threads = 0
        self._idle = 0

    # --- the reactor's side

    def use(self, work: Callable[[C], T], /) -> Deferred[T | Unknown]:
        """Have the work done with a connection, in the order of asking."""
        job = _Call(work, self._cancelled)
        limits = self._limits
        if limits.wait < limits.answer:
            job.timers.append(self._reactor.callLater(limits.wait, self._not_taken, job, limits.wait))
        job.timers.append(self._reactor.callLater(limits.answer, self._not_answered, job))
        with self._changed:
            self._jobs.append(job)
            begin = len(self._jobs) > self._idle and self._threads < limits.most
            self._threads += begin
            self._changed.notify()
        if begin:
            Thread(target=self._run, name=self._name, daemon=True).start()
        return job.answered

    def _take_back(self, job: _Job[C]) -> bool:
        """Forget a job that no thread has taken; whether that was possible."""
        with self._changed:
            if job.taken:
                return False
            job.taken = True
            self._jobs.remove(job)
            return True

    def _cancelled(self, job: _Job[C]) -> None:
        # The Deferred then fails by itself, as a cancelled one does.
        self._take_back(job)
        job.no_timers()

    def _not_taken(self, job: _Job[C], after: float) -> None:
        if self._take_back(job):
            job.give_up(Unknown(self._name, f"no connection was free within {after:g} s"))

    def _not_answered(self, job: _Job[C]) -> None:
        self._not_taken(job, self._limits.answer)
        # The thread may still be at it: what it finds comes too late.
        job.give_up(Unknown(self._name, f"no answer within {self._limits.answer:g} s"))

    # --- a thread

    def _run(self) -> None:
        connection: C | None = None
        while (job := self._next()) is not None:
            try:
                if connection is not None and not connection.is_usable():
                    connection.close()
                    connection = None
                if connection is None:
                    connection = self._connect()
                job.run(connection)
            except StoreError as error:
                job.fail(Unknown(self._name, str(error)))
                _closed(connection)
                connection = None
            except Exception as error:
                job.fail(error)
                _closed(connection)
                connection = None
            self._reactor.callFromThread(job.fire)
        _closed(connection)

    def _next(self) -> _Job[C] | None:
        """The next job; None when there was none for so long that this thread has ended."""
        with self._changed:
            if not self._jobs:
                self._idle += 1
                self._changed.wait_for(lambda: self._jobs, self._limits.keep)
                self._idle -= 1
            if not self._jobs:
                self._threads -= 1
                return None
            job = self._jobs.popleft()
            job.taken = True
            return job


def _closed(connection: KeyConnection | None) -> None:
    if connection is not None:
        connection.close()
