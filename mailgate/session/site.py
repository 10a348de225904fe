"""What all sessions of one listener share: one generation's rules and ports.

Made once per listener by whoever runs sessions; a reload makes new ones, and
sessions that run keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from mailgate.config.schema.server import HANDED_IN, ListenerSettings, handed_in
from mailgate.config.schema.session import SessionSettings
from mailgate.config.schema.settings import Settings
from mailgate.decisions.entry import Kind, Trail
from mailgate.mail.reply import Reply
from mailgate.mail.session import Session
from mailgate.queue.store import QueueStore
from mailgate.session.accept import Acceptance
from mailgate.session.chains import Chains, chains
from mailgate.session.idle import Known
from mailgate.session.ports import Ports
from mailgate.session.prepared import Prepared, prepare, specialised
from mailgate.session.trace_id import TraceIds


class Record(Protocol):
    """Where finished trails go."""

    def record(
        self,
        kind: Kind,
        trail: Trail,
        session: Session,
        *,
        replies: Sequence[Reply],
        reason: str = "",
        queue_id: int | None = None,
        size_octets: int | None = None,
    ) -> None:
        """Keep a finished trail. Never blocks, never raises."""
        ...


@dataclass(frozen=True, slots=True)
class Site:
    """One listener's surroundings."""

    listener_id: str
    listener: ListenerSettings
    rules: SessionSettings
    """For clients that have logged in."""
    chains: Chains
    """For them, too."""
    in_clear: Prepared
    in_tls: Prepared
    """For those that have not."""
    ports: Ports
    store: QueueStore
    acceptance: Acceptance
    ring: Record | None
    clock: IReactorTime
    """Seconds that only go forward, and timers."""
    wall: Callable[[], float]
    """Seconds since the epoch."""
    default_domain: str
    """`report.domain`: what `<postmaster>` without a domain belongs to."""
    trace_ids: TraceIds = field(default_factory=TraceIds)

    @property
    def hostname(self) -> str:
        """The name of a session before its rules have been asked: what they will say, where that is fixed."""
        return self.listener.hostname or self.in_clear.hostname


def listener_site(
    settings: Settings,
    listener_id: str,
    *,
    ports: Ports,
    store: QueueStore,
    acceptance: Acceptance,
    ring: Record | None,
    clock: IReactorTime,
    wall: Callable[[], float],
) -> Site:
    """The surroundings of one listener's sessions, its rules worked out as far as they can be."""
    listener = handed_in() if listener_id == HANDED_IN else settings.server.listener[listener_id]
    known = {"listener": listener_id, "protocol": listener.protocol}
    rules = specialised(settings.session, known)
    return Site(
        listener_id=listener_id,
        listener=listener,
        rules=rules,
        chains=chains(Known(rules, is_logged_in=True)),
        in_clear=prepare(settings.session, listener_id, listener.protocol, is_tls=False),
        in_tls=prepare(settings.session, listener_id, listener.protocol, is_tls=True),
        ports=ports,
        store=store,
        acceptance=acceptance,
        ring=ring,
        clock=clock,
        wall=wall,
        default_domain=settings.report.domain,
    )
