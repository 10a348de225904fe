"""Pauses: no attempt begins while one is set; mail is accepted as ever.

Both are words in table `flag`, so that whoever reads the queue sees them. That
of a node means nothing once the daemon that set it is gone; that of the cluster
stays until it is taken away.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict, dataclass
from enum import Enum

from mailgate.queue.lease import Owner


class PauseOf(Enum):
    """What is paused; the value is what commands call it."""

    NODE = "node"
    CLUSTER = "cluster"

    @property
    def flag(self) -> str:
        """Its row in table `flag`."""
        return f"paused-{self.value}"


@dataclass(frozen=True, slots=True)
class Pause:
    """Who paused, when, and why."""

    since_ms: int
    actor: str
    reason: str
    owner: str
    """The daemon that was told."""

    def text(self) -> str:
        """As table `flag` keeps it."""
        return json.dumps(asdict(self))


def pauses(db: sqlite3.Connection) -> dict[PauseOf, Pause]:
    """The pauses that are in force."""
    found: dict[PauseOf, Pause] = {}
    for scope in PauseOf:
        row = db.execute("SELECT value FROM flag WHERE name = ?", (scope.flag,)).fetchone()
        if row is not None:
            pause = Pause(**json.loads(row[0]))
            owner = Owner.parse(pause.owner)
            if scope is PauseOf.CLUSTER or (owner is not None and owner.is_alive()):
                found[scope] = pause
    return found
