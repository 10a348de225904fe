"""Takes what `sendmail` has put into the maildrop: at the start, when it is told, and every `queue.poll`.

A drop is settled when each of its recipients is in the queue, was thrown away
by the policy, or was refused and its sender told. What settles a recipient is
recorded in the transaction that does it, and only then is the file removed: a
crash in between leaves a file that the next look finds in the record, and
removes. A temporary refusal leaves the file for later; after five days it is
final. What is no drop is moved aside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailgate.crash.point import ARMED, passed
from mailgate.listen.handed_in import (
    BLOCK_OCTETS,
    Conversation,
    HandedInAcceptance,
    Judged,
    NotADrop,
    Verdict,
    drop_names,
    qualified,
    settled_numbers,
)
from mailgate.mail.unknown import Unknown
from mailgate.queue.item import NewMessage, queue_id_text
from mailgate.queue.maildrop import Drop, InUse, Maildrop
from mailgate.queue.spool import RunBlocking
from mailgate.queue.store import StoreFailed
from mailgate.reports.refused import RefusalNotifier, RefusedRecipient
from mailgate.session.site import Site

_log = Logger(namespace="mailgate.listen")

AT_ONCE = 20
"""Drops that are taken at the same time; they share their commits."""
OF_ONE_USER = 10
"""And of one user: who hands in what takes long keeps nobody else waiting."""
FOUND, FOUND_OF_ONE_USER = 500, 250
"""Drops that one look finds, so that not every few of a long backlog cost another look."""
GIVEN_UP_AFTER = timedelta(days=5)
_RETRY_SECONDS = (30.0, 60.0, 120.0, 300.0, 600.0, 900.0)
"""Pauses after temporary refusals of one drop; the last one repeats."""
_PAUSE_SECONDS = 0.05
"""Between two looks: however often somebody knocks, mailgate has other things to do."""
_MORE_SECONDS = 0.005
_SWEEP_SECONDS = 3600.0
_RECORD_KEPT_MS = 24 * 3600 * 1000


class DropRecord(Protocol):
    """What of the store only the maildrop needs."""

    def new_id(self) -> int:
        """A queue id."""
        ...

    def commit(self, message: NewMessage) -> Deferred[None]:
        """Keep a message for good."""
        ...

    async def settled_drops(self, name: str) -> frozenset[str]:
        """What is recorded of one drop."""
        ...

    async def forget_drops(self, before_ms: int, present: Sequence[str]) -> None:
        """Forget what was taken before a moment, but for files that are still there."""
        ...


class Knocks(Protocol):
    """The part of the reactor that is needed."""

    def seconds(self) -> float:
        """Seconds that only go forward."""
        ...

    def callLater(self, delay: float, callable: Callable[[], object]) -> IDelayedCall:
        """As `IReactorTime.callLater`."""
        ...

    def addReader(self, reader: IReadDescriptor) -> None:
        """As `IReactorFDSet.addReader`."""

    def removeReader(self, reader: IReadDescriptor) -> None:
        """As `IReactorFDSet.removeReader`."""


@dataclass(frozen=True, slots=True)
class PickupRules:
    """What a generation of the configuration says about mail that is handed in."""

    site: Site
    acceptance: Callable[[], HandedInAcceptance]
    refusals: RefusalNotifier
    hostname: str
    poll_seconds: float


class Pickup:
    """The maildrop's end in the daemon."""

    def __init__(
        self,
        maildrop: Maildrop,
        store: DropRecord,
        rules: PickupRules,
        run_blocking: RunBlocking,
        reactor: Knocks,
        wall_ms: Callable[[], int],
        nudge: Callable[[], None],
        knocker: Callable[[int, Callable[[], None]], IReadDescriptor],
    ) -> None:
        """`nudge` is called when a notification was queued; `knocker` makes the reader of the maildrop's pipe."""
        self._maildrop = maildrop
        self._store = store
        self._rules = rules
        self._run_blocking = run_blocking
        self._reactor = reactor
        self._wall_ms = wall_ms
        self._nudge = nudge
        self._knocker = knocker
        self._reader: IReadDescriptor | None = None
        self._running: dict[str, Deferred[None]] = {}
        self._users: dict[str, int] = {}
        """Whose the drops are that are being taken."""
        self._of_user: Counter[int] = Counter()
        self._found: list[tuple[str, int]] = []
        """Drops that wait for a place, and whose they are."""
        self._is_all = True
        """The last look has found everything there was."""
        self._conversations: set[Conversation] = set()
        self._later: dict[str, tuple[float, int]] = {}
        """Drops that were refused for now: when they are tried again, and how often they were."""
        self._looking: Deferred[None] | None = None
        self._again = False
        """Somebody knocked while it looked."""
        self._more = False
        """There was more than one look finds."""
        self._timer: IDelayedCall | None = None
        self._swept = float("-inf")
        self._cleared = float("-inf")
        self._stopping = False
        self._trouble = ""
        """What keeps the maildrop from being used, as it was logged last."""

    def use(self, rules: PickupRules) -> None:
        """Follow another generation's rules from the next drop on."""
        self._rules = rules

    async def start(self) -> None:
        """Open the maildrop, take what is there, and from now on what comes.

        One that cannot be opened is tried again every `queue.poll`.
        """
        await self._open()
        self._look()

    async def stop(self) -> None:
        """Take nothing more; what is being committed is waited for, everything else stays in the maildrop."""
        self._stopping = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._looking is not None:
            await self._looking
        for conversation in tuple(self._conversations):
            conversation.stop()
        for running in tuple(self._running.values()):
            await running
        if self._reader is not None:
            self._reactor.removeReader(self._reader)
            self._reader = None
        self._maildrop.close()

    # --- looking ------------------------------------------------------------------

    def _knock(self) -> None:
        """Something came: look soon, and not more often than that."""
        if self._reader is not None:
            # Whoever knocks without end is heard once for each look.
            self._reactor.removeReader(self._reader)
        if self._looking is not None:
            self._again = True
        else:
            self._look_in(_PAUSE_SECONDS)

    def _look_in(self, seconds: float) -> None:
        timer = self._timer
        if self._stopping:
            return
        if timer is not None and timer.active():
            if timer.getTime() <= self._reactor.seconds() + seconds:
                return
            timer.cancel()
        self._timer = self._reactor.callLater(seconds, self._look)

    def _look(self) -> None:
        if self._looking is not None or self._stopping:
            return
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        looking = self._looking = Deferred.fromCoroutine(self._look_now())
        looking.addErrback(lambda failure: _log.failure("{event}", failure=failure, event="maildrop.failed"))
        looking.addBoth(lambda _: self._looked())

    def _looked(self) -> None:
        self._looking = None
        again, self._again = self._again, False
        more, self._more = self._more, False
        if self._stopping:
            return
        if self._reader is not None:
            self._reactor.addReader(self._reader)
        self._look_in(_MORE_SECONDS if more else _PAUSE_SECONDS if again else self._rules.poll_seconds)

    async def _look_now(self) -> None:
        if not self._maildrop.is_open and not await self._open():
            return
        now = self._reactor.seconds()
        if now - self._swept >= _SWEEP_SECONDS:
            self._swept = now
            await self._sweep()
        waiting = {name for name, (due, _) in self._later.items() if due > now}
        known = Counter(self._users.values()) + Counter(user for _, user in self._found)
        skip = waiting.union(self._running, (name for name, _ in self._found))
        try:
            look = await self._run_blocking(partial(self._maildrop.look, FOUND, skip, known, FOUND_OF_ONE_USER))
        except OSError as failure:
            self._tell(f"{self._maildrop.path} cannot be read: {failure.strerror}")
            return
        self._trouble = ""
        for name in look.foreign:
            await self._set_aside(name, "its name is none that sendmail gives")
        known.update(user for _, user in look.drops)
        self._is_all = len(look.drops) < FOUND and max(known.values(), default=0) < FOUND_OF_ONE_USER
        self._found += look.drops
        self._fill()
        if now - self._cleared >= _SWEEP_SECONDS:
            self._cleared = now
            # What was due an hour ago and is not being taken is gone, or will be found anew.
            long_due = [name for name, (due, _) in self._later.items() if due < now - _SWEEP_SECONDS]
            for name in long_due:
                if name not in self._running:
                    del self._later[name]

    async def _open(self) -> bool:
        try:
            obstacles = await self._run_blocking(self._maildrop.open)
        except InUse as failure:
            self._tell(str(failure))
            return False
        except OSError as failure:
            self._tell(f"{failure.filename or self._maildrop.path}: {failure.strerror}")
            return False
        self._reader = self._knocker(self._maildrop.wake, self._knock)
        for obstacle in obstacles:
            _log.warn("{event}", event="maildrop.obstacle", reason=obstacle)
        return True

    def _tell(self, trouble: str) -> None:
        """Log what keeps mail from being taken, once for each trouble."""
        if trouble != self._trouble:
            self._trouble = trouble
            _log.error("{event}", event="maildrop.unusable", reason=trouble)

    async def _sweep(self) -> None:
        """Clear away what nobody will finish, and forget what was taken a day ago."""
        now_ms = self._wall_ms()
        try:
            removed = await self._run_blocking(partial(self._maildrop.sweep, now_ms))
            old = await self._run_blocking(partial(self._maildrop.old, now_ms - _RECORD_KEPT_MS))
            await self._store.forget_drops(now_ms - _RECORD_KEPT_MS, old)
        except (OSError, StoreFailed) as failure:
            _log.warn("{event}", event="maildrop.not-swept", reason=str(failure))
            return
        if removed:
            _log.info("{event}", event="maildrop.unfinished-removed", count=removed)

    # --- one drop -------------------------------------------------------------------

    def _fill(self) -> None:
        """Take as many of what was found as may be taken now, the oldest first."""
        found, self._found = self._found, []
        for place, (name, user) in enumerate(found):
            if self._stopping or len(self._running) >= AT_ONCE:
                self._found += found[place:]
                return
            if self._of_user[user] < OF_ONE_USER:
                self._begin(name, user)
            else:
                self._found.append((name, user))

    def _begin(self, name: str, user: int) -> None:
        running = Deferred.fromCoroutine(self._take(name))
        if running.called:
            running.addErrback(partial(self._failed, name))
            return
        self._running[name] = running
        self._users[name] = user
        self._of_user[user] += 1
        running.addErrback(partial(self._failed, name))
        running.addBoth(lambda _: self._ended(name))

    def _failed(self, name: str, failure: Failure) -> None:
        """A mistake of ours, or the end: the file stays, and is tried again later."""
        if failure.check(CancelledError):
            return
        _log.failure("{event} drop={drop}", failure=failure, event="maildrop.failed", drop=name)
        self._postpone(name)

    def _ended(self, name: str) -> None:
        user = self._users.pop(name)
        del self._running[name]
        self._of_user[user] -= 1
        if not self._of_user[user]:
            del self._of_user[user]
        if self._found:
            self._fill()
        if self._found or self._is_all:
            return
        # There is more than was found.
        if self._looking is not None:
            self._more = True
        else:
            self._look_in(_MORE_SECONDS)

    async def _take(self, name: str) -> None:
        recorded = await self._settled(name)
        if recorded is None:
            return
        if name in recorded:
            await self._remove(name)
            return
        try:
            drop = await self._run_blocking(partial(self._maildrop.take, name, self._wall_ms()))
        except NotADrop as wrong:
            await self._set_aside(name, str(wrong))
            return
        except FileNotFoundError:
            self._later.pop(name, None)
            return
        except OSError as failure:
            self._tell(f"{name} in {self._maildrop.path} cannot be read: {failure.strerror}")
            self._postpone(name)
            return
        try:
            await self._settle(drop, settled_numbers(drop, recorded))
        except NotADrop as wrong:
            await self._set_aside(name, str(wrong))
        except OSError as failure:
            self._tell(f"{name} in {self._maildrop.path} cannot be read: {failure.strerror}")
            self._postpone(name)
        finally:
            await self._run_blocking(drop.close)

    async def _settled(self, name: str) -> frozenset[str] | None:
        try:
            return await self._store.settled_drops(name)
        except StoreFailed as failure:
            self._tell(f"the queue cannot say what was taken: {failure}")
            self._postpone(name)
            return None

    async def _settle(self, drop: Drop, settled: set[int]) -> None:
        rules = self._rules
        wanted = [number for number in range(len(drop.envelope.recipients)) if number not in settled]
        refused: dict[int, Verdict] = {}
        later: dict[int, Verdict] = {}
        while wanted:
            verdicts = await self._converse(rules, drop, wanted, not later and not refused)
            for number, verdict in verdicts.items():
                if verdict.judged is Judged.REFUSED:
                    refused[number] = verdict
                elif verdict.judged is Judged.LATER:
                    later[number] = verdict
            if not verdicts:
                # Only a mistake of ours: nothing was said about anybody.
                self._postpone(drop.name)
                return
            wanted = [number for number in wanted if number not in verdicts]
        if later and self._wall_ms() - drop.handed_in_ms > GIVEN_UP_AFTER // timedelta(milliseconds=1):
            refused |= later
            later = {}
        if refused and not await self._tell_sender(rules, drop, refused):
            self._postpone(drop.name)
            return
        if later:
            self._refused_for_now(drop, later)
            return
        if ARMED:
            passed("T2")
        await self._remove(drop.name)

    async def _converse(
        self, rules: PickupRules, drop: Drop, wanted: Sequence[int], settled: bool
    ) -> Mapping[int, Verdict]:
        if self._stopping:
            raise CancelledError()
        conversation = Conversation(rules.site, rules.acceptance(), drop, rules.hostname, self._run_blocking)
        self._conversations.add(conversation)
        try:
            verdicts = await conversation.run(wanted, settled)
        finally:
            self._conversations.discard(conversation)
        kept = [number for number, verdict in verdicts.items() if verdict.judged is Judged.KEPT]
        if kept:
            _log.info(
                "{event}",
                event="maildrop.taken",
                drop=drop.name,
                login=drop.login,
                to=[drop.envelope.recipients[number].address for number in kept],
                said=verdicts[kept[0]].reply.text,
            )
        return verdicts

    async def _tell_sender(self, rules: PickupRules, drop: Drop, refused: Mapping[int, Verdict]) -> bool:
        """Queue the notification about what was refused; False when that cannot be done now."""
        envelope = drop.envelope
        sender = qualified(envelope.sender, rules.hostname).stored
        if sender and any(verdict.refuses_sender for verdict in refused.values()):
            # Nobody has shown that this sender has anything to do with it; the user has.
            sender = qualified(drop.login, rules.hostname).stored
        queue_id = self._store.new_id()
        about = [
            RefusedRecipient(
                qualified(envelope.recipients[number].address, rules.hostname).stored,
                verdict.command,
                verdict.reply,
                envelope.recipients[number].notify,
                envelope.recipients[number].orcpt,
            )
            for number, verdict in sorted(refused.items())
        ]
        first = refused[min(refused)]
        try:
            dsn = await rules.refusals.notification(
                sender,
                about,
                await self._run_blocking(partial(drop.read, 0, BLOCK_OCTETS)),
                queue_id=queue_id,
                created_ms=drop.handed_in_ms,
                envid=envelope.envid or None,
                drops=drop_names(drop, sorted(refused), whole=False),
            )
            if isinstance(dsn, Unknown):
                self._tell(f"notifications cannot be written: {dsn.reason}")
                return False
            if dsn is not None:
                await self._store.commit(dsn)
                self._nudge()
        except StoreFailed as failure:
            self._tell(f"a notification cannot be kept: {failure}")
            return False
        _log.info(
            "{event}",
            event="maildrop.refused",
            queueId=queue_id_text(queue_id),
            drop=drop.name,
            login=drop.login,
            to=[each.address for each in about],
            code=f"{first.reply.code} {first.reply.enhanced}",
            said=first.reply.text,
            notified=sender if dsn is not None else "nobody",
        )
        return True

    def _refused_for_now(self, drop: Drop, later: Mapping[int, Verdict]) -> None:
        first = later[min(later)]
        _log.info(
            "{event}",
            event="maildrop.delayed",
            drop=drop.name,
            login=drop.login,
            code=f"{first.reply.code} {first.reply.enhanced}",
            said=first.reply.text,
            again=self._postpone(drop.name),
        )

    def _postpone(self, name: str) -> str:
        """Try a drop again after a pause that grows; how long it is."""
        times = self._later[name][1] if name in self._later else 0
        pause = _RETRY_SECONDS[min(times, len(_RETRY_SECONDS) - 1)]
        self._later[name] = self._reactor.seconds() + pause, times + 1
        return f"{pause:g}s"

    async def _remove(self, name: str) -> None:
        self._later.pop(name, None)
        try:
            await self._run_blocking(partial(self._maildrop.remove, name))
        except OSError as failure:
            # It is in the record, and will not be taken again.
            self._tell(f"{name} in {self._maildrop.path} cannot be removed: {failure.strerror}")
            self._postpone(name)

    async def _set_aside(self, name: str, reason: str) -> None:
        self._later.pop(name, None)
        path = await self._run_blocking(partial(self._maildrop.set_aside, name))
        _log.warn("{event}", event="maildrop.set-aside", file=name, reason=reason, to=path or "left where it is")
