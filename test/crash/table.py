"""The crash table: what each point leaves behind, what happens after the next start, and how a test gets there.

A row's load is made so that the point is passed; `leaves` looks at what lies on the disk directly after the
crash, `after` at what the next start made of it before anything was hurried. Both assert. That nothing is lost,
nothing repeated that was not in doubt, and no invariant broken is looked at for every row.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from support.crash_daemon import Lane
from support.crash_load import Mix
from support.ports import wait_until

from mailgate.crash.point import POINTS

SMALL = ((400, 1),)
LARGE = ((60_000, 1),)
OK = (("ok", 1),)
FINAL = ("completed", "perm_fail")

Look = Callable[[Lane], None]


def nothing(lane: Lane) -> None:
    """There is nothing more to say of this row."""


@dataclass(frozen=True)
class Row:
    """One row."""

    label: str
    leaves_text: str
    recovery_text: str
    mix: Mix
    leaves: Look = nothing
    after: Look = nothing
    passing: int = 1
    before: Look = nothing
    """With the daemon up, ahead of the load."""
    prepare: Look = nothing
    """With the daemon down, before the first start; the store may not be there yet."""
    meanwhile: Look = nothing
    """With the daemon up, after the load."""
    runs_empty: bool = True
    slow_seconds: float = 1.5
    """How late a slow next hop replies."""
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def event(self) -> str:
        """What has happened at this point."""
        return POINTS[self.label]


# --- looks -----------------------------------------------------------------------------------------
def count(lane: Lane, question: str, *values: object) -> int:
    """A number from the store."""
    if not lane.queue_path.exists():
        return 0
    return int(lane.rows(question, *values)[0][0])


def orphans(lane: Lane) -> list[os.DirEntry[str] | object]:
    """Spool files without a message."""
    present = {f"{row[0]:016x}" for row in lane.rows("SELECT id FROM message")}
    return [path for path in (lane.root / "spool").glob("??/*") if path.name not in present]


def has_orphan(lane: Lane) -> None:
    """A spool file has no message."""
    assert orphans(lane)


def orphan_goes_when_it_is_old(lane: Lane) -> None:
    """Not younger than an hour; the next start looks again."""
    left = orphans(lane)
    assert left
    lane.stop()
    for path in left:
        os.utime(str(path), (time.time() - 7200, time.time() - 7200))
    lane.start()
    wait_until(lambda: not orphans(lane), 10, "removed spool files")


def old_orphan_goes(lane: Lane) -> None:
    """The start has removed what the one before had found."""
    wait_until(lambda: not orphans(lane), 10, "removed spool files")


def no_message(lane: Lane) -> None:
    """The queue is empty: nobody was told otherwise."""
    assert not lane.told.promised
    assert count(lane, "SELECT count(*) FROM message") == 0


def unpromised_message(lane: Lane) -> None:
    """A message is kept whose client has not heard of it."""
    assert count(lane, "SELECT count(*) FROM message") > len(lane.told.promised)


def promised_message(lane: Lane) -> None:
    """A message is kept, and its client knows."""
    assert lane.told.promised
    assert count(lane, "SELECT count(*) FROM message")


def nothing_leased(lane: Lane) -> None:
    """Units are free."""
    assert count(lane, "SELECT count(*) FROM unit WHERE lease_owner IS NOT NULL") == 0
    assert count(lane, "SELECT count(*) FROM unit")


def leased_not_transmitting(lane: Lane) -> None:
    """A unit is leased, nothing was handed over."""
    assert count(lane, "SELECT count(*) FROM unit WHERE lease_owner IS NOT NULL")
    assert not lane.in_doubt()


def nothing_counted(lane: Lane) -> None:
    """After the start: no attempt was counted for what was cut short before."""
    lane.wait_log("queue.lease")


def transmitting(lane: Lane) -> None:
    """The journal says so."""
    assert lane.in_doubt()


def transmitting_and_taken(lane: Lane) -> None:
    """The journal says so, and the next hop has the message."""
    doubts = lane.in_doubt()
    assert doubts
    wait_until(lambda: any(key in lane.hops.memory.taken for key in doubts), 5, "the next hop to take it")


def put_off_a_minute(lane: Lane) -> None:
    """What is in doubt is told once and not tried before a minute has passed."""
    wait_until(lambda: "delivery.in-doubt" in lane.log_text(), 10, "delivery.in-doubt")
    rows = lane.rows(
        "SELECT retry_due, retry_num FROM recipient WHERE state NOT IN ('completed', 'perm_fail') AND retry_due > ?",
        int(time.time() * 1000) + 20_000,
    )
    assert rows
    assert all(row["retry_num"] == 0 for row in rows)


def some_final_one_in_doubt(lane: Lane) -> None:
    """Who has a reply has a result; the others are in doubt."""
    assert count(lane, "SELECT count(*) FROM recipient WHERE state = 'completed'")
    assert lane.in_doubt()
    open_ = {
        (lane.id_of_message(row["message_id"]), row["address"])
        for row in lane.rows("SELECT message_id, address FROM recipient WHERE state NOT IN ('completed', 'perm_fail')")
    }
    assert open_ & set(lane.in_doubt())


def one_group_final(lane: Lane) -> None:
    """Of one message some are done and some are open."""
    assert count(
        lane,
        "SELECT count(*) FROM (SELECT message_id FROM recipient GROUP BY message_id"
        " HAVING sum(state = 'completed') BETWEEN 1 AND count(*) - 1)",
    )


def in_tmp(lane: Lane) -> None:
    """A copy is in tmp/."""
    assert list(lane.mail_root.glob("*/*/tmp/*"))


def in_new(lane: Lane) -> None:
    """A copy is in new/, and its recipient still open."""
    assert list(lane.mail_root.glob("*/*/new/*"))
    assert count(lane, "SELECT count(*) FROM recipient WHERE state NOT IN ('completed', 'perm_fail')")


def read_meanwhile(lane: Lane) -> None:
    """As `in_new`; then a reader takes every copy into cur/ and marks it."""
    in_new(lane)
    for path in list(lane.mail_root.glob("*/*/new/*")):
        path.rename(path.parent.parent / "cur" / f"{path.name}:2,S")


def not_told(lane: Lane) -> None:
    """No notification is queued, and nothing says one was."""
    assert count(lane, "SELECT count(*) FROM message WHERE source = 'dsn'") == 0
    assert count(lane, "SELECT count(*) FROM recipient WHERE dsn_sent AND state = 'perm_fail'") == 0


def told(lane: Lane) -> None:
    """A notification is queued."""
    assert count(lane, "SELECT count(*) FROM message WHERE source = 'dsn'")


def delay_told(lane: Lane) -> None:
    """The notice of delay is queued, and its threshold passed."""
    told(lane)
    assert count(lane, "SELECT count(*) FROM recipient WHERE notify_num = 1")


def expired_not_closed(lane: Lane) -> None:
    """Past its time, and still open."""
    assert count(lane, "SELECT count(*) FROM recipient WHERE state NOT IN ('completed', 'perm_fail')")


def orphan_planted(lane: Lane) -> None:
    """An old file without a message lies in the spool."""
    lane.put_orphan()


def paused(lane: Lane) -> None:
    """Nothing is attempted: expiry is left to the sweeper."""
    done = lane.command("queue", "pause")
    assert done.returncode == 0, done.stderr


def ended_by_sigterm(lane: Lane) -> None:
    """Ask the daemon to end."""
    os.kill(lane.pid, signal.SIGTERM)


def promised_or_not(lane: Lane) -> None:
    """What of the batch was kept is there."""
    assert count(lane, "SELECT count(*) FROM message")
    assert count(lane, "SELECT count(*) FROM recipient WHERE address LIKE '%@full.test'") <= 1


def canceled(lane: Lane) -> None:
    """An operator cancels what is being attempted."""
    _ordered(lane, "cancel")


def retried(lane: Lane) -> None:
    """An operator wants what is being attempted tried again at once."""
    _ordered(lane, "retry")


def _ordered(lane: Lane, word: str) -> None:
    wait_until(lambda: count(lane, "SELECT count(*) FROM unit WHERE lease_owner IS NOT NULL"), 10, "attempts")
    lane.command("queue", word, "--all")


def cancel_marked(lane: Lane) -> None:
    """The wish is noted where an attempt runs."""
    assert count(lane, "SELECT count(*) FROM recipient WHERE cancel_mark IS NOT NULL OR state = 'perm_fail'")


def asked(lane: Lane) -> None:
    """The wish is noted where an attempt runs."""
    assert count(lane, "SELECT count(*) FROM recipient WHERE asked_due IS NOT NULL")


def gone_or_taken(lane: Lane) -> None:
    """What was cancelled need not arrive: it is no promise any more."""
    lane.told.unsure |= lane.told.promised
    lane.told.promised.clear()


def _mix(**changes: object) -> Mix:
    usual: dict[str, object] = {
        "sessions": 2, "messages": 4, "sizes": SMALL, "recipients": (1,), "behaviours": OK,
        "domains": ("smtp.test",), "chunking": 0.0, "notify": 0.0,
    }  # fmt: skip
    return Mix(**(usual | changes))  # type: ignore[arg-type]


SMTP = _mix()
LMTP = _mix(domains=("lmtp.test",), recipients=(3,))
LOCAL = _mix(domains=("local.test",))
SPOOLED = _mix(sizes=LARGE)
SPREAD = _mix(recipients=(3,), domains=("smtp.test", "lmtp.test", "other.test"))
BOUNCING = _mix(behaviours=(("never", 1),))
MUTE = _mix(behaviours=(("mute", 1),))
SLOW = _mix(behaviours=(("slow", 1),))

AS_LEASED = "leased unit, nothing handed over"
REPEATED = "lease given back at the start; the attempt repeats, not counted"
DOUBT = "in doubt: event, tried again after a minute, the same octets"

ROWS = (
    Row("A0", "nothing, or a part of a spool file", "garbage task; the client retries", SPOOLED, no_message),
    Row("A1", "spool file without message, or no name at all", "the same", SPOOLED, no_message, nothing),
    Row("A2", "whole spool file without message", "the same", SPOOLED, has_orphan, orphan_goes_when_it_is_old),
    Row("A3", "the whole batch or nothing of it", "what is there is delivered", SMTP),
    Row("A4", "message in the queue, its client not told", "delivered; the client may retry", SMTP, unpromised_message),
    Row("A5", "message in the queue", "found at the next start or poll", SMTP, promised_message),
    Row(
        "A6", "the others of the batch", "delivered; the refused one is its client's",
        _mix(sessions=6, messages=24, domains=("smtp.test", "full.test")), promised_or_not,
    ),
    Row("S1", "units free", "claimed at the next start", SMTP, nothing_leased),
    Row("S2", AS_LEASED, REPEATED, SMTP, leased_not_transmitting, nothing_counted),
    Row("S3", "lease until its last renewal", REPEATED, SLOW, nothing),
    Row("D1", AS_LEASED, REPEATED, SMTP, leased_not_transmitting, nothing_counted),
    Row("D2", AS_LEASED, REPEATED, SMTP, leased_not_transmitting, nothing_counted),
    Row("D3", AS_LEASED, REPEATED, _mix(sizes=((900_000, 1),)), leased_not_transmitting, nothing_counted),
    Row("D4", "journal says TRANSMITTING", DOUBT, SMTP, transmitting, put_off_a_minute),
    Row("D5", "journal says TRANSMITTING", DOUBT, SMTP, transmitting_and_taken, put_off_a_minute),
    Row("D6", "journal says TRANSMITTING", DOUBT, SMTP, transmitting_and_taken, put_off_a_minute),
    Row("D7", "results stored", "nothing to do", SMTP),
    Row(
        "D8", "recipients with a reply have their result, the others are in doubt", DOUBT,
        _mix(domains=("lmtp.test",), recipients=(4,), behaviours=(("slow", 1),)),
        some_final_one_in_doubt, put_off_a_minute, options={"max_recipients": 10},
    ),
    Row("D9", "first group final, others as before", "only the others are tried", SPREAD, one_group_final),
    Row("L0", "file in tmp/", "written again, the old one removed", LOCAL, in_tmp),
    Row("L1", "copy in new/, recipient open", "taken as delivered", LOCAL, in_new),
    Row("L1", "copy in cur/ with flags, recipient open", "taken as delivered", LOCAL, read_meanwhile, passing=2),
    Row("N1", "nothing told", "the notification is made anew", BOUNCING, not_told),
    Row("N2", "flags and notification stored", "delivered as a message of its own, once", BOUNCING, told),
    Row("N3", "notice stored, threshold passed", "no second notice", MUTE, delay_told),
    Row("F1", "recipients final, unit due", "told and removed, nobody contacted", BOUNCING),
    Row("F2", "spool file without message", "garbage task", SPOOLED, has_orphan, orphan_goes_when_it_is_old),
    Row(
        "F3", "old spool file without message", "removed at the next start",
        SMTP, has_orphan, old_orphan_goes, prepare=orphan_planted,
    ),
    Row("E1", "recipients as before", "next sweep", MUTE, expired_not_closed, before=paused),
    Row(
        "E2", "recipient final, notification in the queue", "delivered as a message of its own",
        MUTE, told, before=paused,
    ),
    Row("Q1", "nothing", "nothing to do", SMTP, no_message),
    Row(
        "M1", "cancel mark beside the lease", "given up, or delivered where that came first",
        SLOW, cancel_marked, gone_or_taken, meanwhile=canceled, slow_seconds=15,
    ),
    Row(
        "M2", "asked moment beside the lease", "tried then, or delivered",
        SLOW, asked, meanwhile=retried, slow_seconds=15,
    ),
    Row("X1", "attempts finished or as leased", REPEATED, SLOW, meanwhile=ended_by_sigterm),
    Row("X6", "nothing new", "queued mail goes on", SMTP, no_message, options={"min_free": 10**15}, runs_empty=False),
)  # fmt: skip

ELSEWHERE = {
    "T1": ("file in the maildrop", "taken at the next start or poll", "test/daemon/test_sendmail.py"),
    "T2": ("message and file", "the file is removed, no second message", "test/daemon/test_sendmail.py"),
    "X7": ("message without its content", "temporary I/O failure, event, ordinary expiry", "test/crash/test_power.py"),
}
"""Points whose tests are elsewhere: what is left, what happens, where."""
