"""What all sessions of one listener share: one generation's rules and ports.

Built once per listener by `service/build.py`; a reload builds new ones, and
sessions that run keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.interfaces import IReactorTime

from mailgate.config.schema.server import ListenerSettings
from mailgate.config.schema.session import SessionSettings
from mailgate.decisions.ring import Ring
from mailgate.queue.store import QueueStore
from mailgate.session.accept import Acceptance
from mailgate.session.ports import Ports
from mailgate.session.prepared import Prepared


@dataclass(frozen=True, slots=True)
class Site:
    """One listener's surroundings."""

    listener_id: str
    listener: ListenerSettings
    rules: SessionSettings
    """For clients that have logged in."""
    in_clear: Prepared
    in_tls: Prepared
    """For those that have not."""
    ports: Ports
    store: QueueStore
    acceptance: Acceptance
    ring: Ring | None
    clock: IReactorTime
    """Seconds that only go forward, and timers."""
    wall: Callable[[], float]
    """Seconds since the epoch."""
    default_domain: str
    """`report.domain`: what `<postmaster>` without a domain belongs to."""
