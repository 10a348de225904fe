"""A maildrop and the daemon's end of it in memory but for the directory: no reactor, no thread, no socket."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

from support.listener import ListenerInMemory
from support.memory_store import MemoryStore
from twisted.internet.defer import Deferred, maybeDeferred

from mailgate.config.schema.server import HANDED_IN
from mailgate.listen.handed_in import HandedInAcceptance
from mailgate.listen.pickup import Pickup, PickupRules
from mailgate.queue.drop import DropEnvelope, DropRecipient
from mailgate.queue.handin import HandIn
from mailgate.queue.maildrop import Maildrop
from mailgate.queue.store import StoreFailed
from mailgate.reports.refused import RefusalNotifier
from mailgate.reports.submit import DsnRules
from mailgate.session.site import listener_site

CONTENT = b"Subject: x\r\n\r\nbody\r\n"


class RecordingStore(MemoryStore):
    """A queue in memory that knows what of the maildrop was settled."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: dict[str, int] = {}
        self.forgotten: list[tuple[int, list[str]]] = []
        self.committing: list[tuple[Deferred[None], Callable[[], None]]] | None = None
        """Commits that wait; None while each is done at once."""

    def commit(self, message):
        """Keep the message with the record of its drops, or neither."""
        if any(name in self.recorded for name in message.drops):
            return maybeDeferred(_raise, StoreFailed("UNIQUE constraint failed: maildrop.name"))
        done = super().commit(message)
        if self.fail_with is None:
            self.recorded |= dict.fromkeys(message.drops, message.id)
        if self.committing is None:
            return done
        waiting = Deferred()
        self.committing.append((waiting, lambda: done.chainDeferred(waiting)))
        return waiting

    async def settled_drops(self, name):
        """What is recorded of one drop."""
        return frozenset(each for each in self.recorded if each.partition("#")[0] == name)

    async def forget_drops(self, before_ms, present):
        """Remember what was to be forgotten."""
        self.forgotten.append((before_ms, list(present)))


def _raise(error):
    raise error


class HandedInMemory:
    """What `sendmail` hands in, and what becomes of it."""

    def __init__(self, directory, config: str) -> None:
        self.path = directory / "maildrop"
        self.store = RecordingStore()
        self.listener = ListenerInMemory(config, store=self.store)
        self.clock = self.listener.clock
        self.readers: list[object] = []
        self.clock.addReader = self.readers.append
        self.clock.removeReader = lambda reader: self.readers.remove(reader) if reader in self.readers else None
        self.blocked: list[tuple[Deferred, Callable[[], object]]] | None = None
        """Blocking calls that wait; None while each is made at once."""
        self.ahead_seconds = 0.0
        self.maildrop = Maildrop(str(self.path))
        self.pickup = Pickup(
            self.maildrop,
            self.store,
            self.rules(),
            self.run_blocking,
            self.clock,
            self.wall_ms,
            lambda: None,
            lambda fd, knock: (fd, knock),
        )

    def rules(self) -> PickupRules:
        """The rules of the configuration."""
        listener = self.listener
        settings, shared = listener.settings, listener.shared
        site = listener_site(
            settings,
            HANDED_IN,
            ports=shared.ports,
            store=self.store,
            acceptance=shared.acceptance,
            ring=shared.ring,
            clock=self.clock,
            wall=shared.wall,
        )
        dsn = settings.report.dsn
        rules = DsnRules(settings.report.submitter, dsn.from_name, dsn.from_address, dsn.max_size)
        return PickupRules(
            site,
            partial(HandedInAcceptance, self.store, listener.schedules, listener.quotas, listener.wall, lambda: None),
            RefusalNotifier(self.store, rules, listener.schedules, self.wall_ms),
            settings.server.hostname,
            settings.queue.poll.total_seconds(),
        )

    def wall_ms(self) -> int:
        """The time of day: that of the machine, for the names of drops are made by it."""
        return int((time.time() + self.ahead_seconds) * 1000)

    def run_blocking(self, work):
        """Make a call at once, or keep it."""
        if self.blocked is None:
            return maybeDeferred(work)
        waiting = Deferred()
        self.blocked.append((waiting, work))
        return waiting

    def start(self) -> None:
        """Start, and look for the first time."""
        Deferred.fromCoroutine(self.pickup.start())

    def stop(self) -> Deferred[None]:
        """Stop."""
        return Deferred.fromCoroutine(self.pickup.stop())

    def hand_in(self, *recipients, sender="john@foobar.org", content=CONTENT, **facts) -> str:
        """What `sendmail` does; the name of the drop."""
        drop = HandIn(str(self.path))
        each = tuple(one if isinstance(one, DropRecipient) else DropRecipient(one) for one in recipients)
        drop.begin(DropEnvelope(sender, each, **facts))
        drop.write(content)
        return drop.finish()

    def knock(self) -> None:
        """Wake it, and let it look."""
        for _, knock in self.readers[:1]:
            knock()
        self.wait(0.1)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.ahead_seconds += seconds
        self.clock.pump([0.01] * 5)
        self.clock.advance(max(seconds - 0.05, 0))

    @property
    def names(self) -> list[str]:
        """What is in the directory beside the daemon's own."""
        return sorted(name for name in os.listdir(self.path) if name not in ("wake", ".lock", ".aside"))

    @property
    def aside(self) -> list[str]:
        """What was set aside."""
        return sorted(os.listdir(self.path / ".aside"))
