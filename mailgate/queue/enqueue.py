"""From accepted recipients to queue rows: which schedule, and when the first attempt is.

Used wherever a message is put into the queue: by a session, and for mail that
mailgate writes itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twisted.logger import Logger

from mailgate.expr.choice import Choice
from mailgate.expr.outside import Outside
from mailgate.mail.envelope import DeliverBy, Recipient
from mailgate.mail.lean import lean
from mailgate.mail.unknown import Unknown
from mailgate.queue.item import QueuedRecipient, Source
from mailgate.queue.schedule import Schedule, Terms, first_plan
from mailgate.queue.scope import MessageFacts, Note, RecipientScope, ignore_note

_log = Logger(namespace="mailgate.queue")

DEFAULT = "default"


@lean
@dataclass(frozen=True, slots=True)
class Arrival:
    """What schedule expressions and the arithmetic look at, of a message that is being accepted."""

    created_ms: int
    return_path: str
    source: Source
    size_octets: int
    priority: int = 0
    hold_ms: int = 0
    deliver_by: DeliverBy | None = None
    from_ip: str = "127.0.0.1"
    via_port: int = 0

    def facts(self, addresses: tuple[str, ...]) -> MessageFacts:
        """The same as expressions see it, with the recipients."""
        return MessageFacts(
            self.created_ms,
            self.return_path,
            addresses,
            self.priority,
            self.from_ip,
            self.via_port,
            self.source,
            self.size_octets,
        )


class Schedules:
    """Every `queue.schedule.<id>` by name, and `queue.strategy.schedule`, which chooses."""

    def __init__(self, strategy: Choice[str], schedules: Mapping[str, Schedule], outside: Outside) -> None:
        """`schedules` holds one called `default`, which stands in for names that nothing defines."""
        self._strategy = strategy
        self._schedules = schedules
        self.outside = outside
        self.always: Schedule | None = None
        """What every recipient gets, whoever it is; None where the rule has to be asked."""
        if strategy.fixed is not None:
            self.always = schedules.get(strategy.fixed[0])

    async def choose(self, scope: RecipientScope) -> Schedule | Unknown:
        """The schedule for one recipient; `Unknown` where the rule asks something that does not answer."""
        recorded = scope.notes is not ignore_note
        name = await (self._strategy.value(scope) if recorded else self._strategy.unrecorded(scope))
        if isinstance(name, Unknown):
            return name
        return self.named(name)

    def named(self, name: str) -> Schedule:
        """The schedule of that name; the default one, with an event, when nothing defines it."""
        schedule = self._schedules.get(name)
        if schedule is None:
            _log.warn("{event}", event="smtp.id-not-found", table="queue.schedule", id=name)
            schedule = self._schedules[DEFAULT]
        return schedule


async def queued_recipients(
    arrival: Arrival, recipients: Sequence[Recipient], schedules: Schedules, note: Note = ignore_note
) -> tuple[QueuedRecipient, ...]:
    """The rows of a message's recipients: sorted by address, one for each address.

    A schedule that cannot be found out now is no reason to refuse a message:
    it starts under the default one, and the rule is asked again later.
    """
    rows: list[QueuedRecipient] = []
    by_address = {recipient.path.stored: recipient for recipient in reversed(recipients)}
    addresses = sorted(by_address)
    message: MessageFacts | None = None
    terms = Terms(arrival.created_ms, arrival.hold_ms, arrival.deliver_by)
    for index, address in enumerate(addresses):
        schedule = schedules.always
        if schedule is None:
            if message is None:
                message = arrival.facts(tuple(addresses))
            scope = RecipientScope(message, address, schedules.outside, arrival.created_ms, notes=note)
            chosen = await schedules.choose(scope)
            schedule = schedules.named(DEFAULT) if isinstance(chosen, Unknown) else chosen
        plan = first_plan(schedule, terms)
        recipient = by_address[address]
        rows.append(
            QueuedRecipient(
                index,
                address,
                schedule.queue,
                plan.retry_due_ms,
                plan.notify_due_ms,
                plan.expiry,
                recipient.orcpt,
                recipient.notify,
                schedule=schedule.name,
            )
        )
    return tuple(rows)
