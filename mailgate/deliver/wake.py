"""Due work into lanes: one lane per virtual queue, so many attempts at once in each.

    nudge (new mail), a timer (the next moment something falls due), the end of
    an attempt, the poll limit  ->  one scan: claim what the free slots of all
    lanes take, in one transaction  ->  one attempt per claimed unit.

Scans are coalesced: at once when idle, at most one each 10 ms when busy, so that
neither a flood of new mail nor a flood of results makes a flood of claims.
Leases are renewed while attempts run; an attempt whose lease cannot be renewed
is stopped, unless a next hop has the message already: its answer is waited for.
On shutdown nothing is claimed any more, attempts get time to end, and leases are
given back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailgate.deliver.fence import Fence
from mailgate.deliver.plan import THREADS_OF_A_LOST_QUEUE
from mailgate.deliver.results import Generation
from mailgate.deliver.unit import Surroundings, UnitAttempt
from mailgate.queue.item import Lease
from mailgate.queue.store import StoreFailed

# Between two scans while there is work: long enough to fill a claim, short enough to keep lanes full.
_SCAN_SECONDS = 0.01
_PRESSURE_SECONDS = 60.0
# A unit that has waited longer than this past its time goes before every priority.
_OVERDUE_MS = 600_000
_HIGHEST = 100
# Up to so many units begin in the order in which they fell due.
_IN_ORDER = 3

_log = Logger(namespace="mailgate.deliver")


@dataclass(frozen=True, slots=True)
class Pace:
    """Times in seconds: `queue.poll`, `queue.lease`."""

    poll_seconds: float = 5.0
    lease_seconds: float = 60.0


class _Lane:
    """The slots of one virtual queue."""

    __slots__ = ("has_more", "limit", "pressure_look", "running")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0
        self.has_more = False
        """The last claim took all it asked for: there is probably more."""
        self.pressure_look = float("-inf")
        """When to see again whether more is due than this lane can take."""


class _Running:
    """One attempt under way."""

    __slots__ = ("deferred", "fence", "lane", "lease", "renewed")

    def __init__(self, lease: Lease, lane: _Lane, now: float, fence: Fence) -> None:
        self.lease = lease
        self.lane = lane
        self.fence = fence
        self.renewed = now
        self.deferred: Deferred[None] | None = None


class Wake:
    """The scheduler of one process. All methods are for the reactor's thread."""

    def __init__(self, around: Surroundings, generation: Generation, clock: IReactorTime, pace: Pace = Pace()) -> None:
        self._around = around
        self._generation = generation
        self._clock = clock
        self._pace = pace
        self._lease_ms = round(pace.lease_seconds * 1000)
        self._lanes: dict[str, _Lane] = {}
        self._running: dict[tuple[int, str], _Running] = {}
        self._is_open = False
        self._is_paused = False
        self._is_scanning = False
        self._is_wanted = False
        self._last_scan = float("-inf")
        self._scan_call: IDelayedCall | None = None
        self._due_call: IDelayedCall | None = None
        self._renew_call: IDelayedCall | None = None
        self._idle: list[Deferred[None]] = []
        self._make_lanes()

    # --- what others call ----------------------------------------------------------------

    def start(self) -> None:
        """Begin to look for due work."""
        self._is_open = True
        self._want_scan()

    def nudge(self) -> None:
        """Something new is in the queue. Cheap; call it as often as you like."""
        if self._is_open and not self._is_wanted:
            self._want_scan()

    def use(self, generation: Generation, pace: Pace | None = None) -> None:
        """Take another generation of the configuration for the attempts that begin from now on.

        `pace` is a new one of the same `lease_seconds`: leases are not shortened or prolonged while they are held.
        """
        self._generation = generation
        if pace is not None:
            self._pace = pace
        self._make_lanes()
        self._want_scan()

    @property
    def generation(self) -> Generation:
        """What attempts that begin now go by."""
        return self._generation

    def pause(self) -> None:
        """Begin no attempt any more; those under way go on, and what expires is still told."""
        self._is_paused = True

    def resume(self) -> None:
        """Begin attempts again, at once with what is due."""
        self._is_paused = False
        self._want_scan()

    def slots(self, queue: str) -> int:
        """Attempts that a virtual queue may have at once."""
        lane = self._lanes.get(queue)
        return lane.limit if lane is not None else THREADS_OF_A_LOST_QUEUE

    def free_slots(self, queue: str) -> int | None:
        """Attempts that a virtual queue may begin now; None where nobody serves it."""
        lane = self._lanes.get(queue)
        return max(lane.limit - lane.running, 0) if lane is not None else None

    @property
    def running(self) -> int:
        """Attempts under way."""
        return len(self._running)

    async def stop(self, grace_seconds: float) -> None:
        """Claim nothing more and wait for the attempts; those that take longer than this are ended.

        So are, after a third of that time, those that have not handed over
        their message. What an ended attempt had found out is stored, and its
        lease given back.
        """
        self._is_open = False
        for call in (self._scan_call, self._due_call):
            _cancel(call)
        limits = (
            self._clock.callLater(grace_seconds / 3, self._end_early),
            self._clock.callLater(grace_seconds, self._abort),
        )
        # A claim under way ends in attempts of its own: wait for what it brings, too.
        while self._running or self._is_scanning:
            idle: Deferred[None] = Deferred()
            self._idle.append(idle)
            await idle
        for limit in limits:
            _cancel(limit)
        _cancel(self._renew_call)

    # --- scans ---------------------------------------------------------------------------

    def _make_lanes(self) -> None:
        threads = self._generation.plan.threads
        for name in {*threads, *self._lanes}:
            limit = threads.get(name, THREADS_OF_A_LOST_QUEUE)
            if name in self._lanes:
                self._lanes[name].limit = limit
            else:
                self._lanes[name] = _Lane(limit)

    def _want_scan(self) -> None:
        """Have a scan soon: now when the last one is a while ago, never two at a time."""
        if not self._is_open or self._is_wanted or self._is_paused:
            return
        self._is_wanted = True
        if not self._is_scanning:
            wait = self._last_scan + _SCAN_SECONDS - self._clock.seconds()
            self._scan_call = self._clock.callLater(max(0.0, wait), self._begin_scan)

    def _begin_scan(self) -> None:
        self._is_wanted = False
        self._is_scanning = True
        Deferred.fromCoroutine(self._scan()).addErrback(self._broken).addBoth(self._end_scan)

    def _end_scan(self, _: object) -> None:
        self._is_scanning = False
        self._last_scan = self._clock.seconds()
        if not self._is_open:
            self._tell_idle()
        elif self._is_wanted:
            self._is_wanted = False
            self._want_scan()

    async def _scan(self) -> None:
        if self._is_paused:
            return
        slots = {name: lane.limit - lane.running for name, lane in self._lanes.items() if lane.running < lane.limit}
        leases: list[Lease] = []
        if slots:
            try:
                leases = await self._around.store.claim(slots, self._around.wall_ms())
            except StoreFailed as fault:
                _log.error("{event}", event="queue.claim-failed", details=str(fault))
                self._look_again_in(self._pace.poll_seconds)
                return
        taken: dict[str, int] = {}
        for lease in leases:
            taken[lease.queue] = taken.get(lease.queue, 0) + 1
        for name, lane in self._lanes.items():
            # A lane without a free slot was not asked about.
            lane.has_more = taken.get(name, 0) >= slots.get(name, 0)
        if self._is_open and not self._is_paused:
            for lease in self._in_turn(leases):
                self._begin(lease, self._lanes[lease.queue])
        else:
            await self._give_back(leases)
            return
        if not self._is_wanted:
            await self._plan_next_look()

    def _in_turn(self, leases: list[Lease]) -> list[Lease]:
        """In which order attempts begin: by priority, and among equals at random where there are many."""
        if len(leases) < 2:
            return leases
        now_ms, chance = self._around.wall_ms(), self._around.chance
        if len(leases) <= _IN_ORDER:
            return sorted(leases, key=lambda lease: -_rank(lease, now_ms))
        return sorted(leases, key=lambda lease: (-_rank(lease, now_ms), chance()))

    async def _plan_next_look(self) -> None:
        """Set the timer for the earliest moment a free lane has something to do."""
        now = self._clock.seconds()
        free = []
        for name, lane in self._lanes.items():
            if lane.running < lane.limit:
                free.append(name)
            elif now >= lane.pressure_look:
                await self._tell_pressure(name, lane, now)
        wait = self._pace.poll_seconds
        if free:
            try:
                due_ms = await self._around.store.next_due(free)
            except StoreFailed:
                due_ms = None
            if due_ms is not None:
                wait = min(wait, (due_ms - self._around.wall_ms()) / 1000)
        self._look_again_in(wait)

    async def _tell_pressure(self, name: str, lane: _Lane, now: float) -> None:
        lane.pressure_look = now + 1
        try:
            due_ms = await self._around.store.next_due([name])
        except StoreFailed:
            return
        if due_ms is not None and due_ms <= self._around.wall_ms():
            lane.pressure_look = now + _PRESSURE_SECONDS
            _log.warn(
                "{event}",
                event="queue.back-pressure",
                queueName=name,
                limit=lane.limit,
                reason="more is due than slots are free",
            )

    def _look_again_in(self, seconds: float) -> None:
        """Scan at the latest in so many seconds."""
        if not self._is_open:
            return
        _cancel(self._due_call)
        self._due_call = self._clock.callLater(max(seconds, _SCAN_SECONDS), self._want_scan)

    def _look_again_at(self, due_ms: int) -> None:
        """Something falls due at this moment: not later than then."""
        seconds = max((due_ms - self._around.wall_ms()) / 1000, 0.0)
        if seconds < _SCAN_SECONDS:
            self._want_scan()
        elif self._due_call is None or not self._due_call.active():
            self._look_again_in(min(seconds, self._pace.poll_seconds))
        elif self._due_call.getTime() > self._clock.seconds() + seconds:
            self._look_again_in(seconds)

    # --- attempts ------------------------------------------------------------------------

    def _begin(self, lease: Lease, lane: _Lane) -> None:
        now_ms = self._around.wall_ms()
        fence = Fence(now_ms)
        fence.ends_ms = now_ms + self._lease_ms
        running = _Running(lease, lane, self._clock.seconds(), fence)
        lane.running += 1
        self._running[lease.item.id, lease.queue] = running
        if self._renew_call is None:
            self._renew_call = self._clock.callLater(self._pace.lease_seconds / 3, self._renew)
        attempt = UnitAttempt(lease, self._around, self._generation, fence)
        running.deferred = Deferred.fromCoroutine(self._run(attempt, running))
        running.deferred.addErrback(self._ended_badly, running).addBoth(self._ended, running)

    async def _run(self, attempt: UnitAttempt, running: _Running) -> None:
        due_ms = await attempt.run()
        if due_ms is not None and self._is_open:
            self._look_again_at(due_ms)

    def _ended_badly(self, failure: Failure, running: _Running) -> None:
        """An attempt that could not even record: its lease runs out, and the unit is tried again."""
        queue_id = running.lease.item.id_text
        if failure.check(CancelledError):
            _log.info("{event}", event="delivery.attempt-aborted", queueId=queue_id)
        else:
            _log.failure("{event}", failure, event="delivery.internal-error", queueId=queue_id)

    def _ended(self, _: object, running: _Running) -> None:
        key = (running.lease.item.id, running.lease.queue)
        if self._running.get(key) is running:
            del self._running[key]
        lane = running.lane
        lane.running -= 1
        if lane.has_more:
            self._want_scan()
        if not self._running:
            self._tell_idle()

    def _tell_idle(self) -> None:
        idle, self._idle = self._idle, []
        for waiting in idle:
            waiting.callback(None)

    def _end_early(self) -> None:
        """End attempts that have not handed over their message, and have no results that are not stored."""
        for running in list(self._running.values()):
            self._end_unless_needed(running)

    def _abort(self) -> None:
        """End all attempts; one whose results are being stored ends by itself, stored or not."""
        for running in list(self._running.values()):
            running.fence.hurry = True
            if running.deferred is not None and not running.fence.recording:
                running.deferred.cancel()

    def _end_unless_needed(self, running: _Running) -> None:
        """End an attempt at once, unless it is known, or will be, what became of its message."""
        fence = running.fence
        if running.deferred is not None and not (fence.recording or fence.pausing or fence.transmitting):
            running.deferred.cancel()

    async def _give_back(self, leases: list[Lease]) -> None:
        for lease in leases:
            try:
                await self._around.store.record(lease, (), None, end=True)
            except StoreFailed:
                # It runs out by itself.
                return

    # --- leases ----------------------------------------------------------------

    def _renew(self) -> None:
        self._renew_call = None
        if self._running:
            self._renew_call = self._clock.callLater(self._pace.lease_seconds / 3, self._renew)
            Deferred.fromCoroutine(self._renew_all()).addErrback(self._broken)

    async def _renew_all(self) -> None:
        began, began_ms = self._clock.seconds(), self._around.wall_ms()
        held = list(self._running.values())
        moved = {}
        for running in held:
            where = running.fence.moved()
            if where is not None:
                moved[running.lease.item.id, running.lease.queue] = where
        lost: set[tuple[int, str]] = set()
        try:
            lost = await self._around.store.renew([running.lease for running in held], moved)
        except StoreFailed as fault:
            _log.error("{event}", event="queue.renew-failed", details=str(fault))
            for running in held:
                running.fence.has_moved |= (running.lease.item.id, running.lease.queue) in moved
        else:
            for running in held:
                running.renewed = began
                running.fence.ends_ms = began_ms + self._lease_ms
        oldest = self._clock.seconds() - self._pace.lease_seconds * 2 / 3
        for running in held:
            if (running.lease.item.id, running.lease.queue) in lost or running.renewed <= oldest:
                self._fence_off(running)

    def _fence_off(self, running: _Running) -> None:
        """The lease may be another's by now: stop."""
        if self._running.get((running.lease.item.id, running.lease.queue)) is not running:
            # It ended while its renewal was on its way.
            return
        if not running.fence.lost:
            _log.info(
                "{event}", event="queue.lease-expired", queueId=running.lease.item.id_text, queue=running.lease.queue
            )
        running.fence.lost = True
        self._end_unless_needed(running)

    def _broken(self, failure: Failure) -> None:
        """A fault of the program in a scan: told, and looked again at the poll limit."""
        _log.failure("{event}", failure, event="queue.scheduler-failed")
        self._look_again_in(self._pace.poll_seconds)


def _rank(lease: Lease, now_ms: int) -> int:
    """How early a unit of one claim begins: its priority, or the highest when it has waited for long."""
    due = min((one.retry_due_ms for one in lease.item.recipients if one.retry_due_ms is not None), default=now_ms)
    return _HIGHEST if due < now_ms - _OVERDUE_MS else lease.item.priority


def _cancel(call: IDelayedCall | None) -> None:
    if call is not None and call.active():
        call.cancel()


def pause_with(clock: IReactorTime) -> Callable[[float], Awaitable[None]]:
    """How attempts wait a while: by this clock."""

    def pause(seconds: float) -> Deferred[None]:
        waiting: Deferred[None] = Deferred(lambda _: call.cancel())
        call = clock.callLater(seconds, waiting.callback, None)
        return waiting

    return pause
