"""What one connection is told, and what the log and the record of decisions say about it.

Two trails are open at most: the session's, and that of a transaction. A
refusal outside a transaction is recorded at once; what happens in one is
recorded with its final reply.
"""

from __future__ import annotations

from twisted.logger import Logger

from mailgate.decisions.entry import Kind, Trail
from mailgate.mail import replies
from mailgate.mail.reply import Reply
from mailgate.mail.session import Session
from mailgate.mail.verdict import Discard, Reason, Refuse
from mailgate.session.context import decided
from mailgate.session.incoming import Incoming
from mailgate.session.site import Site
from mailgate.session.step import Step, Then
from mailgate.wire.smtp.server import ServerConnection

_log = Logger(namespace="mailgate.session")


class Telling:
    """Answers, log lines and records of one connection."""

    __slots__ = ("_core", "_incoming", "_site", "trail", "tx_trail")

    def __init__(self, site: Site, core: ServerConnection, incoming: Incoming, session_id: str) -> None:
        self._site = site
        self._core = core
        self._incoming = incoming
        self.trail = Trail(session_id, self.now_ms())
        """The session's; another one after each record."""
        self.tx_trail: Trail | None = None
        """The transaction's, while one is open."""

    def now_ms(self) -> int:
        """The time of day, in milliseconds since the epoch."""
        return int(self._site.wall() * 1000)

    @property
    def open_trail(self) -> Trail:
        """Where what happens now belongs: the transaction's, else the session's."""
        return self.tx_trail if self.tx_trail is not None else self.trail

    @property
    def trails(self) -> tuple[Trail, ...]:
        """What has been decided and is not recorded yet: of the session, and of an open transaction."""
        return (self.trail,) if self.tx_trail is None else (self.trail, self.tx_trail)

    def say(self, reply: Reply, then: Then = Then.GO_ON) -> Step:
        """A positive reply, or one that needs no record."""
        return Step(self._core.reply(reply, trace_id=self.open_trail.trace_id), then)

    def refuse(
        self,
        session: Session,
        refusal: Refuse | Discard,
        stage: str,
        trail: Trail,
        subject: str = "",
        *,
        by: str = "",
        times: int = 1,
    ) -> Step:
        """Answer a verdict that is not `Proceed`, log it, and record it when no transaction will.

        `by` names the check where it was none of a chain: those are in the trail already.
        """
        if by:
            decided(trail, stage, by, refusal)
        reply = refusal.reply or replies.OK
        if isinstance(refusal, Discard):
            return Step(self._core.reply(*(reply,) * times, trace_id=trail.trace_id))
        self.log_refusal(session, stage, reply, refusal.reason.value, refusal.detail, trail.trace_id, subject)
        if trail is not self.tx_trail:
            self.record(session, Kind.SESSION, trail, (reply,), refusal.reason.value)
        octets = self._core.reply(*(reply,) * times, trace_id=trail.trace_id)
        return Step(octets, Then.CLOSE if refusal.close else Then.GO_ON)

    def record(
        self,
        session: Session,
        kind: Kind,
        trail: Trail,
        said: tuple[Reply, ...],
        reason: str,
        size_octets: int | None = None,
    ) -> None:
        """Record a trail that is at its end."""
        ring = self._site.ring
        if ring is not None:
            ring.record(
                kind,
                trail,
                session,
                replies=said,
                reason=reason,
                queue_id=self._incoming.queue_id or None,
                size_octets=size_octets,
            )
        if trail is self.trail:
            self.trail = Trail(session.id, self.now_ms())

    def log_refusal(
        self, session: Session, stage: str, reply: Reply, reason: str, detail: str, trace_id: str, subject: str = ""
    ) -> None:
        """Log who was refused what, and why."""
        _log.info(
            "{event}",
            event="policy.unknown" if reason == Reason.UNKNOWN_ANSWER.value else f"smtp.{stage}-refused",
            trace=trace_id,
            listener=session.listener,
            remoteIp=session.remote_ip,
            code=f"{reply.code} {reply.enhanced}",
            reason=reason,
            **({"detail": detail} if detail else {}),
            **({"about": subject} if subject else {}),
        )

    def log_login(self, session: Session, login: str) -> None:
        """Log who has logged in."""
        _log.info(
            "{event}",
            event="auth.success",
            trace=session.id,
            listener=session.listener,
            remoteIp=session.remote_ip,
            login=login,
        )

    def log_unexpected(self) -> None:
        """Log the exception that is being treated."""
        _log.failure("{event} trace={trace}", event="smtp.unexpected", trace=self.open_trail.trace_id)
