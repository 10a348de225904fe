"""The sweeper: what expired is closed and told, and who makes no progress loses his lease, whatever delivery does.

It has its own timer and knows no lanes, routes or sockets. What is under a live
lease it leaves alone: the results of that attempt apply expiry themselves. Only
when a lease has made no progress for `queue.stall` is it revoked; the unit can
then be claimed again, and what the attempt learns comes late.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailgate.crash.point import ARMED, passed
from mailgate.deliver.fence import Fence
from mailgate.deliver.results import Generation, Results, Surroundings
from mailgate.queue.item import Lease, Stuck, queue_id_text
from mailgate.queue.store import StoreFailed

# So many units at a time, so that neither a transaction nor memory grows with what has expired.
_BATCH = 100

_log = Logger(namespace="mailgate.queue")


@dataclass(frozen=True, slots=True)
class Rounds:
    """Times in seconds: `queue.sweep`, `queue.stall`."""

    sweep_seconds: float = 30.0
    stall_seconds: float = 900.0


class Sweeper:
    """Looks at the queue every so often, and at start. `wake` is called when something became due."""

    def __init__(
        self,
        around: Surroundings,
        generation: Generation,
        clock: IReactorTime,
        wake: Callable[[], None],
        rounds: Rounds = Rounds(),
    ) -> None:
        self._around = around
        self._generation = generation
        self._clock = clock
        self._wake = wake
        self._rounds = rounds
        self._call: IDelayedCall | None = None
        self._is_open = False
        self._sweeping: Deferred[None] | None = None
        self._fences: set[Fence] = set()

    def start(self) -> None:
        """Begin with a first look."""
        self._is_open = True
        self._sweep()

    def use(self, generation: Generation, rounds: Rounds) -> None:
        """Take another generation of the configuration from the next look on."""
        self._generation = generation
        self._rounds = rounds

    async def stop(self) -> None:
        """Finish what is being stored, and look no more."""
        self._is_open = False
        if self._call is not None and self._call.active():
            self._call.cancel()
        sweeping = self._sweeping
        if sweeping is not None:
            ended: Deferred[None] = Deferred()
            sweeping.addBoth(lambda _: ended.callback(None))
            if not any(fence.recording for fence in self._fences):
                sweeping.cancel()
            await ended

    def _sweep(self) -> None:
        self._call = None
        self._sweeping = Deferred.fromCoroutine(self._look())
        self._sweeping.addErrback(self._broken).addBoth(self._swept)

    def _swept(self, _: object) -> None:
        self._sweeping = None
        if self._is_open:
            self._call = self._clock.callLater(self._rounds.sweep_seconds, self._sweep)

    def _broken(self, failure: Failure) -> None:
        if failure.check(StoreFailed):
            _log.error("{event}", event="queue.sweep-failed", details=failure.getErrorMessage())
        elif not failure.check(CancelledError):
            _log.failure("{event}", failure, event="queue.sweep-failed")

    async def _look(self) -> None:
        store = self._around.store
        before_ms = self._around.wall_ms() - round(self._rounds.stall_seconds * 1000)
        stuck = await store.revoke_stuck(before_ms, _BATCH)
        for each in stuck:
            _tell(each)
        swept = False
        more = True
        while more and self._is_open:
            leases = await store.expired(self._around.wall_ms(), _BATCH)
            more = len(leases) == _BATCH
            swept = swept or bool(leases)
            await DeferredList([Deferred.fromCoroutine(self._close(lease)) for lease in leases], consumeErrors=True)
        if stuck or swept:
            # The notifications are new mail; and what was stuck can be tried again.
            self._wake()

    async def _close(self, lease: Lease) -> None:
        """Close the expired recipients of a message, and tell its sender; all at once or not at all."""
        now_ms = self._around.wall_ms()
        fence = Fence(now_ms)
        # What cannot be stored now is left to the next look.
        fence.hurry = True
        self._fences.add(fence)
        try:
            results = Results(lease, self._around, self._generation, fence)
            results.expire(now_ms)
            if ARMED:
                passed("E1")
            expired = [one.address for one in results.recipients if one not in lease.item.recipients]
            if await results.tell_and_record(now_ms, end=True):
                if ARMED:
                    passed("E2")
                _log.info("{event}", event="queue.swept", queueId=lease.item.id_text, queue=lease.queue, to=expired)
                results.after(now_ms)
        except CancelledError:
            # Stopping, or nothing can be stored: its lease runs out, or is given back with all others.
            pass
        except Exception:
            _log.failure("{event}", event="delivery.internal-error", queueId=lease.item.id_text)
        finally:
            self._fences.discard(fence)


def _tell(stuck: Stuck) -> None:
    _log.warn(
        "{event}",
        event="queue.stalled",
        queueId=queue_id_text(stuck.lapsed.queue_id),
        queue=stuck.lapsed.queue,
        owner=stuck.lapsed.owner,
        phase=stuck.phase.value,
        host=stuck.host,
        age=stuck.age_ms // 1000,
    )
