"""The expiry sweeper: nobody's time to live depends on a free slot.

A recipient past its time to live is closed where an attempt begins, and an
attempt begins because its unit is due: the end of a time to live is one of the
moments a unit falls due at. What that misses is mail nobody attempts: of a
virtual queue that is clogged, or that no configuration serves any more. So at
an interval the sweeper leases such units by `QueueStore.expired`, which looks
at nothing but the end, and hands the leases to `take`. That is the delivery's
own entrance for claimed units, which closes the recipients, writes the
notification and records both in one transaction before it contacts anybody; an
expired unit needs no slot, because nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailgate.queue.item import Lease
from mailgate.queue.lease import wall_ms as host_wall_ms
from mailgate.queue.store import QueueStore, StoreFailed
from mailgate.queue.thread import DelayedCall, StoreReactor

BATCH_UNITS = 100

_log = Logger()


class Sweeper:
    """Looks for expired units at start and then at every interval, in bounded batches.

    `take` must not raise; it owns the leases from then on and records them as
    it does those it claimed itself.
    """

    def __init__(
        self,
        store: QueueStore,
        take: Callable[[Sequence[Lease]], object],
        reactor: StoreReactor,
        interval: timedelta = timedelta(seconds=30),
        wall_ms: Callable[[], int] = host_wall_ms,
    ) -> None:
        self._store = store
        self._take = take
        self._reactor = reactor
        self._interval = interval
        self._wall_ms = wall_ms
        self._next: DelayedCall | None = None
        self._running: Deferred[None] | None = None

    def start(self) -> None:
        """Sweep now, and from now on."""
        self._running = Deferred.fromCoroutine(self._sweep_and_wait())
        self._running.addErrback(_trap_cancelled)

    def stop(self) -> None:
        """Sweep no more."""
        if self._next is not None and self._next.active():
            self._next.cancel()
        if self._running is not None:
            self._running.cancel()

    async def sweep(self) -> int:
        """Hand over every unit that has expired by now; how many."""
        now_ms = self._wall_ms()
        count = 0
        while leases := await self._store.expired(now_ms, BATCH_UNITS):
            count += len(leases)
            self._take(leases)
            if len(leases) < BATCH_UNITS:
                break
        return count

    async def _sweep_and_wait(self) -> None:
        try:
            count = await self.sweep()
            if count:
                _log.info("queue.swept {count}", count=count)
        except StoreFailed:
            _log.failure("the queue could not be swept, it will be tried again")
        self._next = self._reactor.callLater(self._interval.total_seconds(), self.start)


def _trap_cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)
