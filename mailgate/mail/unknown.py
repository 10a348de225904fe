"""`Unknown`: how a port says that it could not answer.

"There is none" is an answer; "I could not find out" is not. Whoever asks a
port looks at the answer's type before using it, and an outage never becomes a
"no" (DESIGN, promise 3). Kleene's three-valued logic over it lives with the
expressions (`mailgate.expr`).
"""

from __future__ import annotations

from typing import NamedTuple


class Unknown(NamedTuple):
    """The third answer: `dependency` did not answer, because of `reason`.

    Both texts are for the log and the trace only; they never reach a client.
    """

    dependency: str
    reason: str
    reject: bool = False
    """The rule said `on-error = "reject"`: refuse for good instead of for now."""

    def __bool__(self) -> bool:
        raise TypeError("an Unknown is neither true nor false; look at its type first")
