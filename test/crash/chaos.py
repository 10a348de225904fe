"""`make chaos`: a thousand crashes of a real daemon under load, and what became of the mail.

Each point is one life of a daemon (`life.py`): started on the store the one before left behind, put under a
load, and ended in a way drawn at random. After some lives the queue is let run empty and every message that
clients were told was kept is looked for. Several lanes do this at once, each with a store of its own.

    CHAOS_SEED      what is drawn (1)
    CHAOS_POINTS    how many lives (1000)
    CHAOS_LANES     how many at once (3); with the same three the same lives are drawn
    CHAOS_KEEP      a directory for what failed lanes leave; without it nothing stays

Ends with a table; `--figures FILE` has it written there, too, for `doc/durability.md`. The exit status is 1
when a message was lost, a copy was one too many, or an invariant did not hold.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path

from crash.life import Life, drawn, live
from support.crash_daemon import Account, Lane
from support.crash_hop import Hops, Memory
from support.disk import built
from support.nursery import Nursery

LIVES_UNTIL_EMPTY = 12


@dataclass
class Line:
    """One line of the table."""

    lives: int = 0
    reached: int = 0
    power_cuts: int = 0
    promised: int = 0
    in_doubt: int = 0


@dataclass
class Tally:
    """What lanes have found."""

    lines: dict[str, Line] = field(default_factory=dict)
    account: Account = field(default_factory=Account)

    def add(self, other: Tally) -> None:
        """Sum up."""
        for name, line in other.lines.items():
            mine = self.lines.setdefault(name, Line())
            for key, value in asdict(line).items():
                setattr(mine, key, getattr(mine, key) + value)
        self.account.add(other.account)

    @property
    def lives(self) -> int:
        """All of them."""
        return sum(line.lives for line in self.lines.values())


def lane(number: int, lives: int, seed: int, directory: Path, library: Path | None, results: object) -> None:
    """Live so many lives; each batch's tally goes to `results`."""
    hops = Hops(Memory(), slow_seconds=0.3)
    nursery = Nursery(library)
    batch = 0
    while lives > 0:
        store = Lane(directory / f"lane{number}.{batch}", hops, library, nursery)
        hops.memory.forget()
        is_well = True
        while lives > 0 and is_well:
            size = min(lives, LIVES_UNTIL_EMPTY)
            tally, is_well = _batch(store, random.Random(f"{seed}.{number}.{batch}"), f"{number}.{batch}", size)
            results.put(tally)  # type: ignore[attr-defined]
            lives -= size
            batch += 1
        if is_well:
            shutil.rmtree(store.directory)
    nursery.close()
    hops.close()


def _batch(store: Lane, chance: random.Random, name: str, size: int) -> tuple[Tally, bool]:
    """Some lives, then an empty queue and an account; False when the store is of no further use."""
    tally = Tally()
    history: list[str] = []
    try:
        for number in range(size):
            life = drawn(chance)
            history.append(_described(life))
            past = live(life, store, chance, f"{name}.{number}")
            line = tally.lines.setdefault(life.name, Line())
            line.lives += 1
            line.reached += past.reached
            line.power_cuts += bool(life.power)
            line.promised += past.promised
            line.in_doubt += past.in_doubt
        store.start()
        store.settle()
        status = store.stop()
        assert status == 0, f"SIGTERM ended it with {status}"
        broken = store.look()
        assert not broken, broken
        tally.account = store.account()
    except Exception as error:
        tally.account.faults.append("".join(traceback.format_exception_only(error)).strip())
        if not isinstance(error, AssertionError):
            tally.account.faults.append(traceback.format_exc())
    if store.is_running:
        store.kill()
    if tally.account.faults:
        tally.account.faults.append(f"in batch {name}, {store.directory}, after: " + " | ".join(history))
        # What was not lived counts as lived, so that the sum is right.
        return tally, False
    store.forget()
    return tally, True


def _described(life: Life) -> str:
    how = f"{life.label}:{life.passing}" if life.label else life.kind
    parts = [how, f"power {life.power}" if life.power else "", str(life.fault) if life.fault else ""]
    return " ".join(part for part in parts if part)


def table(tally: Tally) -> str:
    """For people."""
    rows = [("ended by", "lives", "reached", "power cuts", "answered with 250", "found in doubt")]
    for name in sorted(tally.lines):
        line = tally.lines[name]
        rows.append((name, *map(str, (line.lives, line.reached, line.power_cuts, line.promised, line.in_doubt))))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    account = tally.account
    lines += [
        "",
        f"{tally.lives} lives; {account.promised} recipients were promised, {account.lost} of them lost.",
        f"{account.in_doubt} deliveries were in doubt after a crash, {account.excused} more were taken by a next hop"
        " that did not say so;",
        f"{account.repeats} copies were repeats, all of these and with the same octets.",
        f"{account.notifications} notifications; {len(account.faults)} faults.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run it."""
    options = argparse.ArgumentParser(description="Crash mailgate at random and count its mail.")
    options.add_argument("--figures", type=Path, help="write the figures there")
    chosen = options.parse_args()
    seed = int(os.environ.get("CHAOS_SEED") or 1)
    points = int(os.environ.get("CHAOS_POINTS") or 1000)
    lanes = min(int(os.environ.get("CHAOS_LANES") or 3), points)
    keep = os.environ.get("CHAOS_KEEP")
    directory = Path(keep or tempfile.mkdtemp(prefix="chaos-"))
    directory.mkdir(parents=True, exist_ok=True)
    library = built(directory)
    if library is None:
        print("no C compiler: no power cuts and no failing disks", flush=True)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    shares = [points // lanes + (number < points % lanes) for number in range(lanes)]
    began = time.monotonic()
    processes = [
        context.Process(target=lane, args=(number, share, seed, directory, library, results))
        for number, share in enumerate(shares)
    ]
    for process in processes:
        process.start()
    tally = Tally()
    batches = sum(-(-share // LIVES_UNTIL_EMPTY) for share in shares)
    for _ in range(batches):
        while results.empty():
            time.sleep(0.2)
            if not any(process.is_alive() for process in processes) and results.empty():
                break
        if results.empty():
            tally.account.faults.append("a lane ended early")
            break
        found = results.get()
        tally.add(found)
        minutes = (time.monotonic() - began) / 60
        account = tally.account
        print(
            f"{tally.lives}/{points} lives in {minutes:.1f} min: {account.promised} promised, {account.lost} lost,"
            f" {account.repeats} repeats of {account.in_doubt} in doubt, {len(account.faults)} faults",
            flush=True,
        )
        for fault in found.account.faults:
            print(f"  {fault}", flush=True)
    for process in processes:
        process.join(30)
    seconds = time.monotonic() - began
    print(f"\nseed {seed}, {lanes} lanes, {seconds / 60:.1f} minutes\n{table(tally)}")
    if chosen.figures is not None:
        figures = {"seed": seed, "points": points, "lanes": lanes, "seconds": round(seconds), **asdict(tally)}
        chosen.figures.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if not keep:
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if tally.account.faults else 0


if __name__ == "__main__":
    sys.exit(main())
