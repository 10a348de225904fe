"""Who holds a lease: a process, by the machine's boot, its id and its start.

Lease times are read from the boot-time clock, which goes on through suspends
and which nobody can set; a lease of another boot, or of a process that is
gone, is free. What a lease allows and how it is fenced: `tables.py`.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass


def boot_ms() -> int:
    """Milliseconds since the machine started, suspends included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def wall_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def boot_id() -> str:
    """What the kernel calls this boot of the machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def process_start(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot; None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    # After the name: state is field 3 of proc(5), starttime field 22. A zombie has ended.
    return None if fields[0] == b"Z" else int(fields[19])


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that may hold leases."""

    boot: str
    pid: int
    start: int

    @property
    def text(self) -> str:
        """As in `unit.lease_owner`."""
        return f"{self.boot}/{self.pid}/{self.start}"

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """The owner a text names; None when it names none."""
        parts = text.split("/")
        if len(parts) != 3 or not (parts[1].isdecimal() and parts[2].isdecimal()):
            return None
        return cls(parts[0], int(parts[1]), int(parts[2]))

    @classmethod
    def this_process(cls) -> Owner:
        """The owner that leases taken by this process name."""
        pid = os.getpid()
        return cls(boot_id(), pid, process_start(pid) or 0)

    def is_alive(self) -> bool:
        """True while the process runs."""
        return self.boot == boot_id() and process_start(self.pid) == self.start
