"""The answer to one event: what the driver hands to the shell."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from twisted.internet.defer import Deferred


class Then(Enum):
    """What the shell does after it has sent a step's octets."""

    GO_ON = 0
    CLOSE = 1
    START_TLS = 2


class Step(NamedTuple):
    """The answer to one event."""

    octets: bytes
    then: Then = Then.GO_ON
    wait: Deferred[None] | None = None
    """Read no more before this fires: the disk is behind."""


NOTHING = Step(b"")
