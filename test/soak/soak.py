"""`make soak`: one daemon for a long time, under loads of every kind, and whether it is at the end what it was.

A round is a load through all listeners (kept sessions and short ones, in clear, in TLS, LMTP) to next hops that
take, delay, refuse and vanish and to Maildirs; clients that do what they should not (`vandals.py`); and an operator
who reloads, looks, holds and releases. Then the queue runs empty, every message is accounted for, and what the
process has in use is written down: memory, descriptors, threads, the sizes of its files.

    SOAK_MINUTES    how long (30)
    SOAK_SEED       what is drawn (1)
    SOAK_MESSAGES   messages of a round (1500)

Ends with a table. The exit status is 1 when a message was lost or came twice, the log has a mistake of the
program's own in it, or it goes on growing.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from crash.life import BEHAVIOURS, DOMAINS, SIZES
from soak.vandals import rage, unchecked
from support.ca import Authority
from support.crash_daemon import Account, Lane
from support.crash_hop import Hops, Memory
from support.crash_load import Load, Mix
from support.daemon import IMPLICIT_TLS, LMTP, SMTP

LISTENERS = {"smtp": SMTP, "submissions": IMPLICIT_TLS, "lmtp": LMTP}
CHANGES = """
[session]
timeout = "5s"
[session.rcpt]
errors.total = 1000
[server.tls]
timeout = "2s"
[session.data.limits]
size = 2000000
"""
MISTAKES = ("Traceback", "smtp.unexpected", "connection.failed", "internal-error", "Unhandled", "CRITICAL")
# What the last third of a long run may have more than the third before it.
GROWTH_OCTETS = 4 * 1024 * 1024
# Connections that are kept for the next delivery, and log files, come and go.
DESCRIPTORS = 24
ROUNDS_FOR_A_VERDICT = 9


@dataclass(frozen=True)
class Sample:
    """What the process has in use while nothing is queued."""

    resident_octets: int
    descriptors: int
    threads: int
    database_octets: int
    journal_octets: int
    spool_files: int


@dataclass
class Soak:
    """What was found."""

    account: Account = field(default_factory=Account)
    samples: list[Sample] = field(default_factory=list)

    def verdict(self) -> list[str]:
        """What is wrong."""
        wrong = list(self.account.faults)
        if not self.samples:
            return wrong
        first, last = self.samples[0], self.samples[-1]
        if last.descriptors > first.descriptors + DESCRIPTORS:
            wrong.append(f"descriptors: {first.descriptors} at first, {last.descriptors} at last")
        if last.threads > first.threads + 8:
            wrong.append(f"threads: {first.threads} at first, {last.threads} at last")
        if last.spool_files:
            wrong.append(f"{last.spool_files} spool files are left")
        third = len(self.samples) // 3
        if len(self.samples) >= ROUNDS_FOR_A_VERDICT:
            before, after = (
                statistics.median(sample.resident_octets for sample in part)
                for part in (self.samples[third : 2 * third], self.samples[2 * third :])
            )
            if after - before > GROWTH_OCTETS:
                wrong.append(f"memory: {before / 2**20:.1f} MiB in the second third, {after / 2**20:.1f} in the last")
        return wrong


class Site(Lane):
    """The daemon."""

    def __init__(self, directory: Path, hops: Hops, authority: Authority) -> None:
        super().__init__(directory, hops, authority=authority, listeners=LISTENERS, changes=(CHANGES,))

    def look_at_it(self) -> Sample:
        """Take a sample."""
        process = Path(f"/proc/{self.pid}")
        return Sample(
            self.resident_octets(),
            len(os.listdir(process / "fd")),
            len(os.listdir(process / "task")),
            self.queue_path.stat().st_size,
            Path(f"{self.queue_path}-wal").stat().st_size,
            sum(1 for path in (self.root / "spool").rglob("*") if path.is_file()),
        )

    def go_round(self, chance: random.Random, name: str, messages: int) -> Account:
        """One round, until the queue is empty; what became of its mail."""
        tls = unchecked()
        loads = [
            Load(self.port("smtp"), _mix(chance, messages // 2), chance, f"{name}.kept"),
            Load(self.port("smtp"), _mix(chance, messages // 6), chance, f"{name}.short", patience=1),
            Load(self.port("submissions"), _mix(chance, messages // 6), chance, f"{name}.tls", tls=tls, patience=5),
            Load(self.port("lmtp"), _mix(chance, messages // 6), chance, f"{name}.lmtp", lmtp=True, patience=20),
        ]
        faults: list[str] = []
        works: list[Callable[[], object]] = [load.run for load in loads]
        works.append(lambda: rage(self.ports, random.Random(f"{name}.vandals"), messages // 10))
        works.append(lambda: self._operate(chance, faults))
        threads = [threading.Thread(target=_noted, args=(work, faults)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for load in loads:
            self.told.add(load.told)
        self.settle()
        account = self.account()
        log = self.log_text()
        for mistake in MISTAKES:
            if mistake in log:
                at = log.index(mistake)
                faults.append(f"in the log: {log[max(0, at - 500) : at + 2500]}")
                break
        account.faults += faults
        return account

    def _operate(self, chance: random.Random, faults: list[str]) -> None:
        # Exit status 1 says that there was nothing to do it to.
        commands = [
            (["reload"], (0,)),
            (["status"], (0,)),
            (["queue", "list"], (0,)),
            (["queue", "status"], (0,)),
            (["queue", "hold", "--domain", "lmtp.test"], (0, 1)),
            (["queue", "check"], (0,)),
            (["queue", "release", "--domain", "lmtp.test"], (0, 1)),
        ]
        for command, fine in commands:
            time.sleep(chance.random() / 5)
            done = self.command(*command)
            if done.returncode not in fine:
                faults.append(f"{' '.join(command)}: exit status {done.returncode}: {done.stdout}{done.stderr}")


def _mix(chance: random.Random, messages: int) -> Mix:
    return Mix(
        sessions=chance.choice((1, 4, 10)),
        messages=messages,
        sizes=chance.choice(SIZES),
        recipients=chance.choice(((1,), (1, 1, 2, 4))),
        behaviours=chance.choice(BEHAVIOURS),
        domains=chance.choice(DOMAINS),
        chunking=chance.choice((0.0, 0.3, 1.0)),
        notify=chance.choice((0.0, 0.3)),
    )


def _noted(work: Callable[[], object], faults: list[str]) -> None:
    try:
        work()
    except Exception as error:
        faults.append(f"{type(error).__name__}: {error}")


def soak(
    directory: Path, is_over: Callable[[int], bool], seed: int, messages: int, say: Callable[[str], object]
) -> Soak:
    """Rounds until `is_over`, which is asked with the number of those gone."""
    found = Soak()
    hops = Hops(Memory(), slow_seconds=0.05)
    site = Site(directory / "site", hops, Authority(directory))
    began = time.monotonic()
    try:
        site.start()
        rounds = 0
        while not is_over(rounds) and not found.account.faults:
            account = site.go_round(random.Random(f"{seed}.{rounds}"), f"{seed}.{rounds}", messages)
            found.account.add(account)
            if account.faults:
                break
            site.forget()
            found.samples.append(site.look_at_it())
            rounds += 1
            say(_line(rounds, (time.monotonic() - began) / 60, found))
        status = site.stop()
        if status:
            found.account.faults.append(f"SIGTERM ended it with {status}")
        found.account.faults += site.look()
    finally:
        if site.is_running:
            site.kill()
        hops.close()
    return found


def _line(rounds: int, minutes: float, found: Soak) -> str:
    sample = found.samples[-1]
    return (
        f"{rounds:4} rounds, {minutes:5.1f} min: {found.account.promised} promised, {found.account.lost} lost,"
        f" {found.account.repeats} repeats; {sample.resident_octets / 2**20:.1f} MiB, {sample.descriptors} descriptors,"
        f" {sample.threads} threads, database {sample.database_octets / 2**20:.1f} MiB"
        f" and {sample.journal_octets / 2**20:.1f} of journal"
    )


def main() -> int:
    """Run it."""
    minutes = float(os.environ.get("SOAK_MINUTES") or 30)
    seed = int(os.environ.get("SOAK_SEED") or 1)
    messages = int(os.environ.get("SOAK_MESSAGES") or 1500)
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    end = time.monotonic() + minutes * 60
    found = soak(directory, lambda _: time.monotonic() > end, seed, messages, lambda line: print(line, flush=True))
    wrong = found.verdict()
    print(f"\nseed {seed}: {found.account.promised} recipients promised, {found.account.notifications} notifications")
    for fault in wrong:
        print(f"  {fault}")
    if wrong:
        print(f"left in {directory}")
    else:
        print("nothing was lost, nothing grew")
        shutil.rmtree(directory)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
