"""Writes `doc/durability.md`: what is promised, how it is tested, and the figures of the last full run.

make chaos CHAOS_FIGURES=test/crash/figures.json && make doc
"""

from __future__ import annotations

import json
from pathlib import Path

from crash.table import ELSEWHERE, ROWS

from mailgate.crash.point import POINTS

FIGURES = Path(__file__).with_name("figures.json")

TEXT = """\
# Accepted means kept

What mailgate promises about mail it has answered with `250`, how that is tested, and what the last full run of the
tests came to. This page is written by `make doc` from the crash table of the tests and the figures of `make chaos`.

## What is promised

- `250` is sent only after the message is on disk for good: the transaction that holds it has been synced, and of a
  message above `queue.inline-size` the file and the names that lead to it before that. A process that is killed, a
  machine that is reset or loses its power loses no such message.
- Of the messages that are committed together all are there after a crash or none; a change that fails, fails alone.
- A message reaches each recipient, or its sender is told that it did not. What a crash interrupts is done again
  without anybody's help: leases of a dead process are free at the next start.
- A recipient is attempted by one deliverer at a time. What was delivered is not delivered again, with one exception
  that SMTP leaves no way around: between the last octets of a message and the stored reply nobody but the next hop
  knows whether it was taken. mailgate writes down that it is in this moment before it is (`queue.journal = "sync"`).
  After a crash these deliveries are in doubt: event `delivery.in-doubt`, the next attempt a minute later, with the
  same octets and the same Message-ID. Local deliveries are never in doubt: a Maildir copy has one name and is found.
- No sender hears twice of one failure or of one delay.
- A disk that is full or fails costs no message that was accepted and does not end the daemon: new mail is answered
  452 or 451 until the disk is well, what is queued goes on. A start needs a disk that works.

This needs a disk that keeps what it says it has kept. A write-back cache without a battery, a virtual disk that ignores
flushes or a network file system makes no such promise; the last is refused at start.

## How it is tested

A crash point is a labelled step of the program. `MAILGATE_CRASH=D4:3` in its environment ends a process at the third
passing of point D4, by SIGKILL; nothing is flushed, closed or told. Without the variable the points cost nothing.

`make test` ends a daemon at each point, looks at what it left, starts another and lets the queue run empty
(`test/crash/test_table.py`). Clients remember what they were answered; next hops by SMTP and LMTP and the Maildirs
remember what they got, every octet of it.

`make chaos` does this at random, a thousand times: any point, any passing; `kill -9` at any moment; SIGSTOP beyond the
lease; SIGTERM; ENOSPC and EIO from write, sync and rename, also half a write. The loads are of small messages, messages
around `queue.inline-size` and messages in files, one or several recipients, DATA and BDAT, next hops that answer 4xx,
5xx, late, or take a message and close the connection without a word, notifications and their delays. In half of the
lives the power is cut at the end: what was not synced is taken back, all of it or some, block by block, with file
lengths and names in directories. After each life the tables are held against the invariants of the queue, and after
every dozen the queue runs empty and each message is accounted for. What is drawn follows from `CHAOS_SEED`.

    make chaos                                   # 1,000 lives; root is not needed, a C compiler is
    make chaos CHAOS_POINTS=100 CHAOS_SEED=7

In its power cuts every sync is an entry in a log, so they show that the program asks for the right syncs in the right
order, not that a disk obeys.
"""


def document(figures: dict) -> str:
    """The whole page."""
    return "\n".join([TEXT, *_run(figures), *_table(figures)]) + "\n"


def _run(figures: dict) -> list[str]:
    account = figures["account"]
    lines = figures["lines"].values()
    lives, cuts = sum(line["lives"] for line in lines), sum(line["power_cuts"] for line in lines)
    messages = sum(line["promised"] for line in lines)
    command = f"make chaos CHAOS_SEED={figures['seed']} CHAOS_POINTS={figures['points']} CHAOS_LANES={figures['lanes']}"
    doubts = account["in_doubt"] + account["excused"]
    return [
        "## The last full run",
        "",
        f"    {command}",
        "",
        f"{lives:,} lives in {figures['seconds'] / 60:.0f} minutes, {cuts:,} of them ended by a power cut.",
        "",
        "| | |",
        "|---|---|",
        f"| messages answered with 250 | {messages:,} |",
        f"| their recipients | {account['promised']:,} |",
        f"| lost | {account['lost']:,} |",
        f"| deliveries in doubt: after a crash, or because a next hop did not answer | {doubts:,} |",
        f"| repeats, each of one that was in doubt and with the same octets | {account['repeats']:,} |",
        "| repeats of anything else | 0 |" if not account["faults"] else f"| faults | {len(account['faults']):,} |",
        f"| notifications that arrived, none twice | {account['notifications']:,} |",
        "| broken invariants | 0 |" if not account["faults"] else "",
        "",
    ]


def _table(figures: dict) -> list[str]:
    lines = figures["lines"]
    rows = {row.label: (row.leaves_text, row.recovery_text) for row in reversed(ROWS)}
    rows |= {label: (leaves, recovery) for label, (leaves, recovery, _) in ELSEWHERE.items()}
    out = [
        "## The crash table",
        "",
        "Lives of the full run that were to end at this point, how many came to it (the others were killed when their",
        "load was over), and how many had their power cut; each with nothing lost and all invariants whole. Every",
        "point has a test of its own in `make test`.",
        "",
        "| Point | The process ends when | It leaves | Then | Lives | Ended there | Power cuts |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, event in POINTS.items():
        leaves, recovery = rows[label]
        line = lines.get(label, {})
        numbers = [str(line.get(name) or "-") for name in ("lives", "reached", "power_cuts")]
        out.append(f"| {' | '.join([label, event, leaves, recovery, *numbers])} |")
    out += [
        "",
        "| Ended otherwise | Lives | Power cuts | Found in doubt |",
        "|---|---|---|---|",
    ]
    for name, line in sorted(lines.items()):
        if name not in POINTS:
            out.append(f"| {name} | {line['lives']} | {line['power_cuts']} | {line['in_doubt']} |")
    return out


def main() -> None:
    """Print the page."""
    print(document(json.loads(FIGURES.read_text(encoding="utf-8"))), end="")


if __name__ == "__main__":
    main()
