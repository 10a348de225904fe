"""From one generation of the configuration to the next, while mail flows.

    read and build (on a thread)  ->  may it change without a restart?
    ->  open new addresses  ->  put everything in place, in one go

Until the last step nothing is touched, so whatever is wrong leaves the old
generation as it was. Sessions keep the rules they began with; new ones, and
attempts that begin, get the new rules. The store, the record of decisions, idle
connections and counters live on.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from mailgate.config.error import ConfigError, ConfigErrors, dotted
from mailgate.config.kind import SocketAddress
from mailgate.config.load import Loaded, load
from mailgate.config.place import Path
from mailgate.config.schema.server import SocketSettings
from mailgate.config.schema.settings import Settings
from mailgate.listen.sockets import CannotListen
from mailgate.service.build import Program, Renewal, Unbuildable, blocking, min_free_octets, renew
from mailgate.service.listeners import Listeners
from mailgate.service.supervisor import Supervisor

_log = Logger(namespace="mailgate.service")

_NEEDS = "needs a restart"
_RESTART = "put the old value back, or restart mailgate"


# New objects before a collection: a session's are gone by themselves, cycles are rare.
_GARBAGE_THRESHOLD = 10_000


def settle_memory() -> None:
    """What a generation is made of stays: the collector need not look at it again, nor look so often."""
    # An earlier generation goes with its last session.
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE_THRESHOLD, 20, 20)


class Refused(Exception):
    """A reload that changed nothing, with everything that stands against it."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True)
class InUse:
    """The generation that serves; `since` is seconds since the epoch."""

    number: int
    since: float
    settings: Settings
    warnings: tuple[str, ...]


class Reloader:
    """Keeps the generation in use and changes it; one reload at a time."""

    def __init__(
        self,
        program: Program,
        listeners: Listeners,
        loaded: Loaded,
        file: str,
        *,
        wall: Callable[[], float] = time.time,
        supervisor: Supervisor | None = None,
    ) -> None:
        """`loaded` is what the program was built of, `file` where it is read again."""
        self._program = program
        self._listeners = listeners
        self._file = file
        self._wall = wall
        self._supervisor = supervisor or Supervisor()
        self._run_blocking = blocking(program.reactor)
        self._turn = DeferredLock()
        self._is_closed = False
        self.in_use = InUse(1, wall(), loaded.settings, tuple(map(str, loaded.warnings)))

    @property
    def file(self) -> str:
        """The configuration file, in full."""
        return self._file

    @property
    def status(self) -> str:
        """What is in use, in a few words."""
        settings = self.in_use.settings
        addresses = sum(len(listener.bind) for listener in settings.server.listener.values())
        where = f"{addresses} address{'' if addresses == 1 else 'es'}"
        return f"{settings.server.hostname} serves on {where}, generation {self.in_use.number}"

    def close(self) -> None:
        """Refuse reloads from now on, those under way too: mailgate stops."""
        self._is_closed = True

    async def reload(self, by: str) -> InUse:
        """Read the file again and serve with what it says; `by` is who asked, for the log.

        Waits for its turn. Raises `Refused`; then nothing has changed.
        """
        await self._turn.acquire()
        self._supervisor.reloading()
        try:
            return await self._reload(by)
        except Refused as refused:
            for problem in refused.problems:
                _log.error("{event}", event="config.refused", reason=problem, by=by, generation=self.in_use.number)
            raise
        finally:
            if not self._is_closed:
                self._supervisor.ready(self.status)
            self._turn.release()

    async def _reload(self, by: str) -> InUse:
        try:
            loaded, renewal = await self._run_blocking(self._read)
        except ConfigErrors as wrong:
            raise Refused(tuple(map(str, wrong.errors))) from None
        except Unbuildable as wrong:
            raise Refused(tuple(f"{self._file}: {problem}" for problem in wrong.problems)) from None
        if self._is_closed:
            raise Refused(("mailgate is stopping",))
        fixed = tuple(
            str(ConfigError(*loaded.written.origins.place(key), dotted(key), problem, _RESTART))
            for key, problem in restart_only(self.in_use.settings, loaded.settings)
        )
        if fixed:
            raise Refused(fixed)
        try:
            self._listeners.change(renewal.factories)
        except CannotListen as problem:
            raise Refused((f"{self._file}: {problem}",)) from None
        self._put_in_place(loaded, renewal)
        self.in_use = InUse(self.in_use.number + 1, self._wall(), loaded.settings, tuple(map(str, loaded.warnings)))
        settle_memory()
        for warning in self.in_use.warnings:
            _log.warn("{event}", event="config.warning", warning=warning)
        _log.info("{event}", event="config.reloaded", generation=self.in_use.number, by=by)
        return self.in_use

    def _read(self) -> tuple[Loaded, Renewal]:
        """On a thread: reading lists and checking thousands of rules takes its time."""
        loaded = load(self._file)
        return loaded, renew(self._program, loaded.settings, loaded.secrets)

    def _put_in_place(self, loaded: Loaded, renewal: Renewal) -> None:
        """What cannot fail, after all that could."""
        program, settings = self._program, loaded.settings
        program.store.adjust(settings.queue.inline_size, min_free_octets(settings), settings.queue.journal == "sync")
        if renewal.ring is not None:
            if program.ring is None:
                program.ring = renewal.ring
                program.ring.start()
            kept = settings.decisions
            program.ring.keep(size_octets=kept.max_size, age=kept.max_age, secrets=loaded.secrets)
        program.client_tls.forget()
        program.wake.use(renewal.delivery, renewal.pace)
        program.sweeper.use(renewal.delivery, renewal.rounds)
        program.pickup.use(renewal.pickup)


def restart_only(old: Settings, new: Settings) -> Iterator[tuple[Path, str]]:
    """What differs and cannot change in a running program: the key, and what is wrong with it."""
    store: Path = ("storage", "data")
    if old.storage.data == new.storage.data and new.storage.data is not None:
        store = ("store", new.storage.data, "path")
    differences: list[tuple[Path, object, object]] = [
        (store, old.queue_file, new.queue_file),
        (("queue", "spool"), old.queue.spool, new.queue.spool),
        (("queue", "maildrop"), old.queue.maildrop, new.queue.maildrop),
        (("queue", "lease"), old.queue.lease, new.queue.lease),
        (("decisions", "path"), old.decisions.path, new.decisions.path),
        (("management", "socket"), old.management.socket, new.management.socket),
    ]
    for key, before, after in differences:
        if before != after:
            yield key, f"changed from {before} to {after}, which {_NEEDS}"
    sockets = {address: options for address, _, options in _sockets(old)}
    for address, listener_id, options in _sockets(new):
        if address not in sockets:
            continue
        for field in fields(SocketSettings):
            was, will = getattr(sockets[address], field.name), getattr(options, field.name)
            if was != will:
                name = field.name.replace("_", "-")
                problem = f"changed from {_shown(was)} to {_shown(will)} for {address}, which {_NEEDS}"
                yield ("server", "listener", listener_id, "socket", name), problem


def _sockets(settings: Settings) -> Iterator[tuple[SocketAddress, str, SocketSettings]]:
    for listener_id, listener in settings.server.listener.items():
        for address in listener.bind:
            yield address, listener_id, listener.socket


def _shown(value: object) -> str:
    return "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
