"""`decisions.*`: the record of every decision, kept for `mailgate explain`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from mailgate.config.key import key
from mailgate.config.kind import BOOLEAN, DURATION, PATH, SIZE
from mailgate.config.system import DECISIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionsSettings:
    """The ring of recorded decisions."""

    enable: bool = key(BOOLEAN, default=True, doc="Record every decision.")
    path: str = key(PATH, default=DECISIONS, doc="Directory of the record.")
    max_size: int = key(
        SIZE, default="256mb", unit="bytes", doc="Size of the record; the oldest part goes when it is reached."
    )
    max_age: timedelta = key(DURATION, default="7d", doc="Age after which a decision goes.")
