"""How fast the machine is just now: the milliseconds a fixed loop takes.

Processors that share a core, or a host, with others are at times half as fast
as at others, which hits interpreted code harder than compiled code: ratios of
such a run say little. Waiting for the machine hits all servers alike.
"""

from __future__ import annotations

import statistics
import time

_NEAR = 1.1


class Pace:
    """The machine's pace, compared to the best that was seen."""

    def __init__(self, patience_seconds: float) -> None:
        """`patience_seconds`: how long `settle` may wait."""
        self._patience_seconds = patience_seconds
        self.best_ms = min(_loop_ms() for _ in range(50))

    def settle(self) -> float:
        """Wait until the machine is nearly as fast as it was at its best, or patience is over; its pace in ms."""
        limit = time.monotonic() + self._patience_seconds
        while True:
            now = statistics.median(_loop_ms() for _ in range(5))
            self.best_ms = min(self.best_ms, now)
            if now <= self.best_ms * _NEAR or time.monotonic() >= limit:
                return now
            time.sleep(0.5)


def _loop_ms() -> float:
    start = time.perf_counter()
    table: dict[int, int] = {}
    for number in range(100_000):
        table[number & 1023] = number * 3
    return (time.perf_counter() - start) * 1000
