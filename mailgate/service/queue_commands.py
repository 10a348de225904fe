"""What the daemon does to its queue for operators: orders, pauses, and what only its memory knows.

Long selections are read on a thread with a connection of their own; changes go
to the writer a few messages at a time, so that new mail and results are never
more than a moment behind them. Every change is an event with its actor.
"""

from __future__ import annotations

import pwd
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice

from twisted.logger import Logger

from mailgate.admin.control import Answer, Request
from mailgate.admin.control_socket import Caller, Command
from mailgate.admin.failure import Failed, Status
from mailgate.admin.matching import BadMatch, compile_match, matching
from mailgate.admin.order import COMMAND, PAGE_MESSAGES, BadOrder, Page, read_page
from mailgate.config.schema.settings import Settings
from mailgate.deliver.wake import Wake
from mailgate.queue.inspect import Ordered, Orders, connect_read_only, newest_id, orders, pick, read
from mailgate.queue.item import QueueItem, queue_id_text
from mailgate.queue.lease import Owner
from mailgate.queue.operate import Action, Change, carry_out
from mailgate.queue.pause import Pause, PauseOf, pauses
from mailgate.queue.sqlite import SqliteStore
from mailgate.queue.store import StoreFailed
from mailgate.service.build import RunBlocking
from mailgate.service.outlook import Outlook, outlook

# What the writer takes at once: some milliseconds of its time.
_MESSAGES_AT_ONCE = 100
# Recipients whose next attempt is told; each may ask a name server.
_OUTLOOKS = 50
# Of a million unknown answers an operator wants to see some.
_UNKNOWN_TOLD = 10

_log = Logger(namespace="mailgate.queue")

Picked = dict[int, frozenset[int]]


class QueueCommands:
    """The commands about the queue, over the running program."""

    def __init__(
        self,
        store: SqliteStore,
        wake: Wake,
        settings: Callable[[], Settings],
        right_daemon: Callable[[Request], None],
        run_blocking: RunBlocking,
        wall_ms: Callable[[], int],
    ) -> None:
        """`settings` gives those in use; `right_daemon` raises `Failed` for a request meant for another."""
        self._store = store
        self._wake = wake
        self._settings = settings
        self._right_daemon = right_daemon
        self._run_blocking = run_blocking
        self._wall_ms = wall_ms
        self._pauses: dict[PauseOf, Pause] = {}

    def table(self) -> Mapping[str, Command]:
        """Every command by its name."""
        return {
            COMMAND: self.change,
            "queue.pause": self.pause,
            "queue.resume": self.resume,
            "queue.repair": self.repair,
            "queue.why": self.why,
        }

    async def start(self) -> None:
        """Take up the pause of the cluster again; call it before attempts begin. Raises `StoreFailed`."""
        self._pauses = await self._run_blocking(self._read_pauses)
        if self._pauses:
            self._wake.pause()

    # --- orders -------------------------------------------------------------------------

    async def change(self, request: Request, caller: Caller) -> Answer:
        """Carry out one page of an order (`admin/order.py`)."""
        self._right_daemon(request)
        actor = await self._run_blocking(_user, caller.uid)
        try:
            page = read_page(request.arguments, actor)
            match = None if page.selection.match is None else compile_match(page.selection.match)
        except (BadOrder, BadMatch) as bad:
            raise Failed(Status.USAGE, str(bad)) from None
        self._demand_route(page)
        if page.order.action is Action.RETRY and page.order.at_ms is None:
            page = replace(page, order=replace(page.order, at_ms=self._wall_ms()))
        unknown: list[str] = []
        changes: list[Change] = []
        try:
            until, picked = await self._run_blocking(self._pick, page)
            is_last = len(picked) < PAGE_MESSAGES
            for some in _portions(picked):
                if match is not None:
                    messages = await self._run_blocking(self._read, list(some))
                    outside = self._wake.generation.outside
                    some, doubts = await matching(match, outside, messages, some, self._wall_ms())
                    unknown += [f"{doubt.dependency}: {doubt.reason}" for doubt in doubts]
                if some:
                    changes += await self._carry_out(page, some)
        except StoreFailed as failure:
            before = (
                "" if page.dry_run or not changes else f"; of this page {len(changes)} messages were changed before"
            )
            raise Failed(Status.NOT_NOW, f"{failure}{before}") from None
        finally:
            if not page.dry_run and any(change.recipients for change in changes):
                self._wake.nudge()
        result: dict[str, object] = {
            "matched": len(changes),
            "changed": _changed(page.order.action, changes),
            "ids": [queue_id_text(change.id) for change in changes],
            "held": sum(change.held for change in changes),
            "unknown": len(unknown),
            "reasons": sorted(set(unknown))[:_UNKNOWN_TOLD],
            "until": until,
        }
        if not is_last:
            result["after"] = max(picked)
        return Answer(Status.OK, "", result)

    def _demand_route(self, page: Page) -> None:
        routes = self._settings().queue.route
        if page.order.route is not None and page.order.route not in routes:
            names = ", ".join(sorted(routes))
            raise Failed(Status.USAGE, f'there is no route "{page.order.route}": the configuration in use has {names}')

    async def _carry_out(self, page: Page, picked: Picked) -> Sequence[Change]:
        if page.dry_run:
            return await self._run_blocking(self._in_thought, page, picked)
        order = page.order
        changes = await self._store.operate(order, picked)
        for change in changes:
            if not change.recipients:
                continue
            _log.info(
                "{event}",
                event="queue.operator",
                queueId=queue_id_text(change.id),
                action=order.action.value,
                actor=order.actor,
                reason=order.reason,
                total=change.recipients,
            )
            if change.removed:
                _log.info(
                    "{event}",
                    event="delivery.completed",
                    queueId=queue_id_text(change.id),
                    elapsed=self._wall_ms() - change.created_ms,
                )
        return changes

    # --- pauses -------------------------------------------------------------------------

    async def pause(self, request: Request, caller: Caller) -> Answer:
        """Begin no attempt any more, of this node or of the cluster."""
        self._right_daemon(request)
        scope = PauseOf.CLUSTER if request.arguments.get("cluster") is True else PauseOf.NODE
        actor = await self._run_blocking(_user, caller.uid)
        reason = str(request.arguments.get("reason") or "")
        was_running = not self._pauses
        if scope not in self._pauses:
            pause = Pause(self._wall_ms(), actor, reason, Owner.this_process().text)
            await self._keep(scope, pause.text())
            self._pauses[scope] = pause
            self._wake.pause()
            _tell_operator("pause", actor, reason, scope)
        return self._paused(was_running)

    async def resume(self, request: Request, caller: Caller) -> Answer:
        """Take a pause away; attempts begin when no other is left."""
        self._right_daemon(request)
        scope = PauseOf.CLUSTER if request.arguments.get("cluster") is True else PauseOf.NODE
        actor = await self._run_blocking(_user, caller.uid)
        was_running = not self._pauses
        if scope in self._pauses:
            await self._keep(scope, None)
            self._pauses.pop(scope, None)
            if not self._pauses:
                self._wake.resume()
            _tell_operator("resume", actor, str(request.arguments.get("reason") or ""), scope)
        return self._paused(was_running)

    def _paused(self, was_running: bool) -> Answer:
        left = [scope.value for scope in PauseOf if scope in self._pauses]
        return Answer(Status.OK, "", {"previous": was_running, "running": not left, "paused": left})

    async def _keep(self, scope: PauseOf, text: str | None) -> None:
        try:
            await self._store.set_flag(scope.flag, text)
        except StoreFailed as failure:
            raise Failed(Status.NOT_NOW, str(failure)) from None

    def _read_pauses(self) -> dict[PauseOf, Pause]:
        with self._reading() as db:
            return pauses(db)

    # --- questions ----------------------------------------------------------------------

    async def why(self, request: Request, caller: Caller) -> Answer:
        """The free slots of the virtual queues some messages are in, and with `next` where they would go."""
        self._right_daemon(request)
        ids = request.arguments.get("ids")
        if not isinstance(ids, list) or not all(type(id_) is int and 0 <= id_ < 1 << 63 for id_ in ids):
            raise Failed(Status.USAGE, "ids are numbers")
        try:
            messages, ordered = await self._run_blocking(self._read_with_orders, ids)
        except StoreFailed as failure:
            raise Failed(Status.NOT_NOW, str(failure)) from None
        queues = {recipient.queue for message in messages for recipient in message.recipients}
        result: dict[str, object] = {"slots": {queue: self._wake.free_slots(queue) for queue in sorted(queues)}}
        if request.arguments.get("next") is True:
            result["next"] = await self._outlooks(messages, ordered)
        return Answer(Status.OK, "", result)

    async def _outlooks(self, messages: list[QueueItem], ordered: Orders) -> dict[str, object]:
        """By queue id and address, of as many open recipients as an operator wants to read about."""
        found: dict[str, object] = {}
        left = _OUTLOOKS
        for message in messages:
            of_message: dict[str, Outlook] = {}
            for recipient in message.recipients:
                if recipient.state.is_final or not left:
                    continue
                left -= 1
                route = ordered.get((message.id, recipient.index), Ordered()).route
                generation = self._wake.generation
                of_message[recipient.address] = await outlook(generation, message, recipient, route, self._wall_ms())
            found[message.id_text] = of_message
        return found

    def _read_with_orders(self, ids: list[int]) -> tuple[list[QueueItem], Orders]:
        with self._reading() as db:
            return read(db, ids), orders(db, ids)

    # --- repairs ------------------------------------------------------------------------

    async def repair(self, request: Request, caller: Caller) -> Answer:
        """Put right what `mailgate queue check` has found."""
        self._right_daemon(request)
        ids = request.arguments.get("ids")
        if not isinstance(ids, list) or not all(type(id_) is int and 0 <= id_ < 1 << 63 for id_ in ids):
            raise Failed(Status.USAGE, "ids are numbers")
        actor = await self._run_blocking(_user, caller.uid)
        is_ledger = request.arguments.get("ledger") is True
        try:
            for start in range(0, len(ids), _MESSAGES_AT_ONCE):
                await self._store.repair(ids[start : start + _MESSAGES_AT_ONCE], False)
            if is_ledger:
                await self._store.repair((), True)
            if request.arguments.get("files") is True:
                await self._store.collect_garbage()
        except StoreFailed as failure:
            raise Failed(Status.NOT_NOW, str(failure)) from None
        for id_ in ids:
            _log.info("{event}", event="queue.operator", queueId=queue_id_text(id_), action="repair", actor=actor)
        self._wake.nudge()
        return Answer(Status.OK)

    # --- on a thread ----------------------------------------------------------------------

    def _pick(self, page: Page) -> tuple[int, Picked]:
        with self._reading() as db:
            until = newest_id(db) if page.until is None else page.until
            return until, pick(db, page.selection, page.after, until, PAGE_MESSAGES)

    def _read(self, ids: list[int]) -> list[QueueItem]:
        with self._reading() as db:
            return read(db, ids)

    def _in_thought(self, page: Page, picked: Picked) -> list[Change]:
        with self._reading() as db:
            db.execute("BEGIN")
            return carry_out(db, page.order, picked, self._wall_ms(), dry_run=True)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(connect_read_only(self._store.path)) as db:
                yield db
        except (OSError, sqlite3.Error) as failure:
            raise StoreFailed(f"the queue cannot be read: {failure}") from None


def _tell_operator(action: str, actor: str, reason: str, scope: PauseOf) -> None:
    _log.info("{event}", event="queue.operator", action=action, actor=actor, reason=reason, scope=scope.value)


def _portions(picked: Picked) -> Iterator[Picked]:
    remaining = iter(picked.items())
    while portion := dict(islice(remaining, _MESSAGES_AT_ONCE)):
        yield portion


def _changed(action: Action, changes: list[Change]) -> int:
    if action is Action.DROP:
        return sum(1 for change in changes if change.recipients)
    return sum(change.recipients for change in changes)


def _user(uid: int) -> str:
    """Who that is, by the system's word; it may ask a directory."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return f"uid:{uid}" if uid >= 0 else "unknown"
