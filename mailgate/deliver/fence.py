"""What an attempt and those who watch over it tell each other: how far it is, and what it may still do."""

from __future__ import annotations

from mailgate.queue.item import Phase, Transmission, Whereabouts


class Fence:
    """The flags of one attempt; `now_ms` is when its unit was claimed.

    Told by the lane: `lost` (the lease is gone, or nobody can say that it is
    not), `ends_ms` (until when it holds, milliseconds since the epoch), and
    `hurry` (the program ends: what cannot be stored at once is left). Told by
    the attempt: the rest.
    """

    __slots__ = (
        "ends_ms",
        "has_moved",
        "host",
        "hurry",
        "indexes",
        "ip",
        "is_journaled",
        "lost",
        "number",
        "pausing",
        "phase",
        "recording",
        "route",
        "since_ms",
    )

    def __init__(self, now_ms: int = 0) -> None:
        self.lost = False
        self.hurry = False
        self.ends_ms = 0
        self.recording = False
        """Results are on their way to disk."""
        self.pausing = False
        """Results could not be stored, and will be tried again."""
        self.phase = Phase.CLAIMED
        self.route = ""
        self.host = ""
        self.ip = ""
        self.indexes: tuple[int, ...] = ()
        """Whom the message is being handed over for."""
        self.number = 0
        """How many transactions have their results."""
        self.since_ms = now_ms
        self.has_moved = False
        """There was progress that no renewal has written down."""
        self.is_journaled = False
        """The journal has a row of this attempt, or will have one."""

    @property
    def transmitting(self) -> bool:
        """The message may have been taken, and nobody has written down whether it was."""
        return self.phase is Phase.TRANSMITTING

    def reached(self, phase: Phase, route: str, host: str, ip: str, now_ms: int) -> None:
        """The attempt got further."""
        self.phase = phase
        self.route = route
        self.host = host
        self.ip = ip
        self.since_ms = now_ms
        self.has_moved = True

    def progressed(self, now_ms: int) -> None:
        """There was progress that is no further phase."""
        self.since_ms = now_ms
        self.has_moved = True

    def concluded(self, now_ms: int) -> None:
        """The results of the transaction are stored."""
        if self.is_journaled:
            self.number += 1
        self.is_journaled = False
        self.indexes = ()
        self.phase = Phase.ROUTED
        self.progressed(now_ms)

    def moved(self) -> Whereabouts | None:
        """Where the attempt is, once for each progress."""
        if not self.has_moved:
            return None
        self.has_moved = False
        self.is_journaled = True
        at = Transmission(self.number, self.route, self.host, self.ip, self.indexes)
        return Whereabouts(self.phase, at, self.since_ms)
