"""One life of a daemon, drawn at random: its load, how it ends, what its disk loses.

`drawn(chance)` says what is to be, `Life.live(lane, chance, name)` does it. All that is drawn comes from
`chance`, so that a seed gives the same lives again; the moments at which processes meet are the machine's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from support.crash_daemon import LEASE_SECONDS, Lane
from support.crash_load import Mix
from support.disk import OPEN, RENAME, SYNC, WRITE

# Points of the table with the latest passing that is drawn, and how often each is drawn.
POINTS = {
    "A0": (40, 2), "A1": (6, 2), "A2": (6, 2), "A3": (20, 4), "A4": (20, 4), "A5": (30, 3), "A6": (1, 1), "Q1": (20, 1),
    "S1": (10, 1), "S2": (10, 2), "S3": (2, 1), "D1": (20, 2), "D2": (20, 2), "D3": (4, 2), "D4": (25, 4),
    "D5": (25, 5), "D6": (25, 5), "D7": (30, 3), "D8": (8, 4), "D9": (8, 3), "L0": (12, 3), "L1": (12, 5), "N1": (6, 3),
    "N2": (6, 3), "N3": (3, 2), "F1": (15, 2), "F2": (4, 2), "F3": (1, 1), "E1": (3, 2), "E2": (3, 2), "X1": (1, 1),
}  # fmt: skip
KINDS = {"point": 58, "kill": 14, "stop": 5, "fault": 15, "term": 8}

SIZES = (
    ((300, 5), (3_000, 5)),
    ((16_200, 1), (16_384, 1), (16_500, 1)),
    ((60_000, 3), (400_000, 1), (900_000, 1)),
    ((300, 6), (3_000, 6), (16_384, 1), (60_000, 2)),
)
BEHAVIOURS = (
    (("ok", 1),),
    (("ok", 10), ("later", 1), ("busy", 1), ("slow", 1), ("never", 1), ("mute", 1)),
    (("ok", 2), ("slow", 2), ("vanish", 1)),
    (("ok", 2), ("never", 3), ("mute", 2)),
    (("ok", 3), ("later", 2), ("busy", 2), ("vanish", 1)),
)
DOMAINS = (
    ("smtp.test",),
    ("lmtp.test",),
    ("local.test",),
    ("smtp.test", "smtp.test", "lmtp.test", "local.test"),
    ("smtp.test", "other.test", "lmtp.test"),
)
_ERRORS = (errno.ENOSPC, errno.EIO)
_FAULTY = ("queue.sqlite-wal", "queue.sqlite", "/spool/", "/mail/")


class Broken(AssertionError):
    """The daemon did what it must not do."""


@dataclass(frozen=True)
class Fault:
    """What calls fail how, and for how long."""

    operations: int
    path: str
    error: int
    skip: int
    count: int
    half: bool
    seconds: float


@dataclass(frozen=True)
class Life:
    """One life. `passing` counts; `power` is empty, `random` or `all`: what of the unsynced is lost at its end."""

    kind: str
    label: str
    passing: int
    power: str
    mix: Mix
    moment: float
    """Seconds after which something is done to it, where nothing else says when."""
    fault: Fault | None
    reader: bool
    """Before it starts, somebody reads the mail in the Maildirs."""

    @property
    def name(self) -> str:
        """For the table."""
        if self.fault is not None:
            return f"fault {errno.errorcode[self.fault.error]}"
        return self.label or {"kill": "kill -9", "stop": "SIGSTOP", "term": "SIGTERM"}[self.kind]


def drawn(chance: random.Random) -> Life:
    """What is to be."""
    kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
    label, passing = "", 0
    if kind == "point":
        label = chance.choices(list(POINTS), [weight for _, weight in POINTS.values()])[0]
        passing = chance.randint(1, POINTS[label][0])
    mix = Mix(
        sessions=chance.randint(1, 8),
        messages=chance.randint(8, 40),
        sizes=_fitting(label, chance.choice(SIZES), {"A1": SIZES[2], "A2": SIZES[2], "D3": SIZES[2], "F2": SIZES[2]}),
        recipients=_fitting(label, chance.choice(((1,), (1, 1, 2, 3), (2, 5))), {"D8": (3, 5), "D9": (3, 5)}),
        behaviours=_fitting(
            label,
            chance.choice(BEHAVIOURS),
            dict.fromkeys(("N1", "N2", "N3", "E1", "E2"), BEHAVIOURS[3]) | {"S3": BEHAVIOURS[2]},
        ),
        domains=_fitting(
            label,
            chance.choice(DOMAINS),
            dict.fromkeys(("D4", "D5", "D6", "N1", "N2", "N3", "E1", "E2", "S3", "D1", "D2", "D3"), DOMAINS[3])
            | {
                "D8": DOMAINS[1],
                "D9": DOMAINS[4],
                "A6": ("smtp.test", "full.test"),
                "L0": DOMAINS[2],
                "L1": DOMAINS[2],
            },
        ),
        chunking=chance.choice((0.0, 0.3, 1.0)),
        notify=chance.choice((0.0, 0.3)),
    )
    fault = None
    if kind == "fault":
        path = chance.choice(_FAULTY)
        operations = chance.choice((WRITE, SYNC, WRITE | SYNC, OPEN | WRITE, RENAME | WRITE | SYNC))
        fault = Fault(
            operations,
            path,
            chance.choice(_ERRORS),
            chance.choice((0, chance.randint(1, 60))),
            chance.choice((1, chance.randint(2, 30), -1)),
            chance.random() < 0.3,
            chance.uniform(0.05, 0.8),
        )
    power = chance.choices(("", "random", "all"), (45, 40, 15))[0]
    moment = chance.uniform(0.0, 0.5)
    return Life(kind, label, passing, power, mix, moment, fault, reader=not power and chance.random() < 0.4)


def _fitting(label: str, usual: tuple, needed: dict[str, tuple]) -> tuple:
    return needed.get(label, usual)


@dataclass
class Past:
    """What a life has come to."""

    reached: bool = True
    """It ended where it was to end."""
    promised: int = 0
    in_doubt: int = 0
    undone: int = 0
    """What the power cut took back, names and files."""


def live(life: Life, lane: Lane, chance: random.Random, name: str) -> Past:
    """Live it; at its end the daemon is down. Raises `Broken` and other AssertionErrors."""
    past = Past()
    if life.label == "F3":
        lane.put_orphan()
    if life.reader:
        lane.read_mail()
    if life.kind == "point":
        up = lane.start_or_crash(f"{life.label}:{life.passing}")
    else:
        lane.start()
        up = True
    if up:
        if life.label in ("E1", "E2"):
            # Expiry is left to the sweeper.
            lane.command("queue", "pause")
        with _loaded(life, lane, chance, name, past):
            _interfere(life, lane)
        if life.kind == "point":
            if life.label == "X1":
                os.kill(lane.pid, signal.SIGTERM)
            past.reached = lane.wait_crash(3.0)
        elif life.kind == "fault":
            _serves_again(lane, chance, name, past)
        elif life.kind == "term":
            status = lane.stop()
            if status:
                raise Broken(f"SIGTERM ended it with {status}")
    if lane.is_running:
        lane.kill()
    if lane.disk is not None:
        lane.disk.heal()
        if life.power:
            past.undone = sum(lane.disk.cut_power(chance, all_lost=life.power == "all").values())
        else:
            lane.disk.forget()
    before = sum(lane.allowed.values())
    broken = lane.look()
    past.in_doubt = sum(lane.allowed.values()) - before
    if broken:
        raise Broken("; ".join(broken[:5]))
    return past


@contextlib.contextmanager
def _loaded(life: Life, lane: Lane, chance: random.Random, name: str, past: Past) -> Iterator[None]:
    """Under load; at the end the load is over."""
    loads = random.Random(chance.random())

    def work() -> None:
        past.promised += len(lane.load(life.mix, loads, name).promised)

    began = time.monotonic()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(100)
    if thread.is_alive() or time.monotonic() - began > 50:
        raise Broken(f"clients waited {time.monotonic() - began:.0f} s for replies")


def _interfere(life: Life, lane: Lane) -> None:
    """Do to it what is to be done while it is under load."""
    if life.kind == "point":
        return
    time.sleep(life.moment)
    if life.kind == "kill":
        lane.kill()
    elif life.kind == "stop":
        os.kill(lane.pid, signal.SIGSTOP)
        time.sleep(LEASE_SECONDS * 1.3)
        os.kill(lane.pid, signal.SIGCONT)
    elif life.fault is not None and lane.disk is not None:
        fault = life.fault
        lane.disk.fail(fault.operations, fault.path, fault.error, skip=fault.skip, count=fault.count, half=fault.half)
        time.sleep(fault.seconds)
        lane.disk.heal()


def _serves_again(lane: Lane, chance: random.Random, name: str, past: Past) -> None:
    """After the disk's faults it still takes mail."""
    if not lane.is_running:
        raise Broken(f"it ended when its disk failed:\n{lane.log_text()[-3000:]}")
    for number in range(10):
        told = lane.load(Mix(sessions=1, messages=1), chance, f"{name}.again{number}")
        past.promised += len(told.promised)
        if told.promised:
            return
        time.sleep(0.5)
    raise Broken(f"it takes no mail although its disk is well again:\n{lane.log_text()[-3000:]}")
