"""One thread that does jobs in batches and reports each batch with one call.

Jobs handed over in one turn of the reactor, or until it has nothing else to do
(`soon`), reach the thread together, or in groups where they are large; those
that arrive while it works wait, and are its next batch. So the busier it is,
the larger its batches: neither side ever waits for a batch to fill.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mailgate.queue.store import StoreFailed

T = TypeVar("T")
R = TypeVar("R")

BATCH_JOBS = 1000
BATCH_OCTETS = 8 * 1024 * 1024
# With so much to write the thread begins while the turn goes on and brings more.
_GROUP_OCTETS = 256 * 1024

_log = Logger(namespace="mailgate.queue")


class StoreReactor(Protocol):
    """What the store needs of the reactor."""

    def callFromThread(self, callable: Callable[..., object], /, *args: object) -> object:
        """Run a call on the reactor thread, soon."""
        ...

    def callLater(self, delay: float, callable: Callable[..., object], /, *args: object) -> DelayedCall:
        """Run a call after so many seconds."""
        ...


class DelayedCall(Protocol):
    """A call the reactor will make."""

    def cancel(self) -> object:
        """Do not make it."""
        ...

    def active(self) -> object:
        """Whether it is still to be made."""
        ...


class Job(ABC, Generic[R]):
    """Something to be done with resource `R`, awaited by somebody."""

    octets = 0
    """What it weighs in a batch."""

    def make_ready(self) -> None:
        """Make what `run` needs, on the reactor thread, just before the thread takes it. What it raises fails it."""

    @abstractmethod
    def run(self, resource: R) -> None:
        """Do it, and keep the result. Raises what went wrong; may be run again."""

    @abstractmethod
    def fail(self, error: StoreFailed) -> None:
        """Keep an error as the result."""

    @abstractmethod
    def fire(self) -> None:
        """Tell the one who waits, on the reactor thread."""


class Call(Job[R], Generic[R, T]):
    """A job that is one function of the resource."""

    def __init__(self, function: Callable[[R], T], octets: int = 0) -> None:
        self.function = function
        self.octets = octets
        self.deferred: Deferred[T] = Deferred()
        self._outcome: list[T] = []
        self._error: StoreFailed | None = None

    def run(self, resource: R) -> None:
        """Call the function."""
        self._outcome = [self.function(resource)]

    def fail(self, error: StoreFailed) -> None:
        """Keep an error as the result."""
        self._error = error

    def fire(self) -> None:
        """Fire the Deferred."""
        if self._error is not None:
            self.deferred.errback(self._error)
        else:
            self.deferred.callback(self._outcome[0])


class StoreThread(Generic[R]):
    """A thread with a resource of its own that works off jobs.

    `work` is given each batch; it ends every job with a result or `fail`, and
    should not raise. `start` fails with what `opening` raised.
    """

    def __init__(
        self,
        name: str,
        reactor: StoreReactor,
        opening: Callable[[], R],
        work: Callable[[R, Sequence[Job[R]]], None],
        closing: Callable[[R], None],
        soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        """`soon` has something called on the reactor thread; the default is its next turn."""
        self._name = name
        self._reactor = reactor
        self._opening = opening
        self._work = work
        self._closing = closing
        self._inbox: SimpleQueue[list[Job[R]] | None] = SimpleQueue()
        self._gathered: list[Job[R]] = []
        self._gathered_octets = 0
        self._soon = soon if soon is not None else partial(reactor.callLater, 0)
        self._open = False
        self._started: Deferred[None] = Deferred()
        self._stopped: Deferred[None] = Deferred()

    def start(self) -> Deferred[None]:
        """Start the thread; fires when its resource is open."""
        Thread(target=self._main, name=self._name, daemon=True).start()
        return self._started

    def stop(self) -> Deferred[None]:
        """Do what was handed over so far, refuse more, close; fires after that."""
        if self._open:
            self._open = False
            self._hand_over()
            self._inbox.put(None)
            return self._stopped
        return Deferred.fromCoroutine(_nothing())

    def submit(self, job: Job[R]) -> None:
        """Have a job done. It fails at once when the thread is not running."""
        if not self._open:
            job.fail(StoreFailed("the queue is not open"))
            job.fire()
            return
        if not self._gathered:
            self._soon(self._hand_over)
        self._gathered.append(job)
        self._gathered_octets += job.octets
        if self._gathered_octets >= _GROUP_OCTETS:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._gathered:
            gathered, self._gathered, self._gathered_octets = self._gathered, [], 0
            failed: list[Job[R]] = []
            self._inbox.put([job for job in gathered if _is_ready(job, failed)])
            # Not before the others are on their way: who hears of it may ask for more, or stop the thread.
            for job in failed:
                job.fire()

    def _opened(self) -> None:
        self._open = True
        self._started.callback(None)

    # Below: on the thread.

    def _main(self) -> None:
        try:
            resource = self._opening()
        except BaseException as error:
            reason = error if isinstance(error, Exception) else StoreFailed(repr(error))
            self._reactor.callFromThread(self._started.errback, reason)
            return
        self._reactor.callFromThread(self._opened)
        waiting: deque[Job[R]] = deque()
        running = True
        while running or waiting:
            if not waiting:
                running = self._receive(waiting, self._inbox.get())
            while running:
                try:
                    running = self._receive(waiting, self._inbox.get_nowait())
                except Empty:
                    break
            if waiting:
                self._do(resource, _batch(waiting))
        try:
            self._closing(resource)
        except BaseException:
            _log.failure("{event}", event="queue.not-closed")
        self._reactor.callFromThread(self._stopped.callback, None)

    def _receive(self, waiting: deque[Job[R]], jobs: list[Job[R]] | None) -> bool:
        if jobs is None:
            return False
        waiting.extend(jobs)
        return True

    def _do(self, resource: R, batch: Sequence[Job[R]]) -> None:
        try:
            self._work(resource, batch)
        except BaseException as error:
            # Without the thread nobody would hear anything any more, nor could mailgate be stopped.
            _log.failure("{event}", event="queue.batch-failed")
            for job in batch:
                job.fail(StoreFailed(repr(error)))
        self._reactor.callFromThread(_fire, batch)


def _is_ready(job: Job[R], failed: list[Job[R]]) -> bool:
    """Make a job ready, or add it to those that failed.

    One after the other they run from the processor's cache, which each by itself does not.
    """
    try:
        job.make_ready()
    except Exception as error:
        _log.failure("{event}", event="queue.job-failed")
        job.fail(StoreFailed(repr(error)))
        failed.append(job)
        return False
    return True


def _batch(waiting: deque[Job[R]]) -> list[Job[R]]:
    batch: list[Job[R]] = []
    octets = 0
    while waiting and len(batch) < BATCH_JOBS and (not batch or octets + waiting[0].octets <= BATCH_OCTETS):
        octets += waiting[0].octets
        batch.append(waiting.popleft())
    return batch


def _fire(batch: Sequence[Job[R]]) -> None:
    for job in batch:
        job.fire()


async def _nothing() -> None:
    return None
