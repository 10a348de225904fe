"""A daemon that is made to crash under load, again and again, and the account of what became of the mail.

lane = Lane(tmp_path, hops)                  # hops: support.crash_hop.Hops
lane.start("D5:3")                           # MAILGATE_CRASH
told = lane.load(Mix(), random.Random(1), "first")
lane.wait_crash(2) or lane.kill()
lane.look()                                  # what lies on the disk now: broken invariants, deliveries in doubt
lane.start(); lane.settle(); lane.stop(); lane.account()
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from support.ca import Authority
from support.crash_hop import Hops, message_id
from support.crash_load import Load, Mix, Told, is_whole
from support.daemon import SMTP, Gateway
from support.disk import Disk
from support.nursery import Nursery
from support.queue_invariants import violations

from mailgate.queue.check import problems

INLINE_OCTETS = 16_384
LEASE_SECONDS = 3
# However busy the machine is.
PATIENCE_SECONDS = 180.0

CONFIGURATION = """
[session.extensions]
dsn = true

[session.rcpt]
relay = true
max-recipients = 100

[session.data.limits]
messages = 100000

[queue]
inline-size = {inline}
spool = "{root}/spool"
min-free = {min_free}
poll = "300ms"
sweep = "500ms"
lease = "{lease}s"

[store.queue]
path = "{root}/queue.sqlite"

[queue.strategy]
route = [
    {{ if = "rcpt_domain = 'local.test'", then = "'local'" }},
    {{ if = "rcpt_domain = 'lmtp.test'", then = "'lmtp'" }},
    {{ else = "'smtp'" }},
]
schedule = [
    {{ if = "matches('^mute-', rcpt)", then = "'short'" }},
    {{ if = "rcpt_domain = 'local.test'", then = "'boxes'" }},
    {{ else = "'quick'" }},
]

[queue.quota.everybody]
messages = 1000000

[queue.quota.domains]
key = ["rcpt_domain"]
messages = 1000000

[queue.quota.recipients]
key = ["rcpt"]
messages = 1000000

[queue.quota.full]
match = "rcpt_domain = 'full.test'"
key = ["rcpt_domain"]
messages = 1

[queue.schedule.quick]
queue-name = "remote"
retry = ["200ms", "500ms"]
expire = "1h"

[queue.schedule.boxes]
queue-name = "local"
retry = ["200ms", "500ms"]
expire = "1h"

[queue.schedule.short]
queue-name = "remote"
retry = ["300ms"]
notify = ["400ms"]
expire = "1500ms"

[queue.route.local]
type = "local"
maildir = "{root}/mail/%{{domain}}/%{{user}}"

[queue.route.smtp]
type = "relay"
address = "127.0.0.1"
port = {smtp}
tls.implicit = false

[queue.route.lmtp]
type = "relay"
address = "127.0.0.1"
port = {lmtp}
protocol = "lmtp"
tls.implicit = false

[queue.connection.default]
max-recipients = {max_recipients}
timeout.data = "5m"
"""


_ID = re.compile(r"^Message-ID: (<[^>]*>)", re.MULTILINE)
_DOUBT = re.compile(r" delivery\.in-doubt queueId=(\w+) to=\[([^\]]*)\].* since=")
_TOLD = re.compile(r"^Final-Recipient: rfc822;\s*(\S+)\r?\nAction: (\w+)", re.MULTILINE)


@dataclass
class Account:
    """What became of the mail; `faults` is empty when all is well."""

    promised: int = 0
    """Recipients of messages that were answered with 250."""
    unsure: int = 0
    lost: int = 0
    repeats: int = 0
    """Further copies of what had been taken; each was in doubt, or is a fault."""
    in_doubt: int = 0
    excused: int = 0
    """Copies of what a next hop took and then closed the connection instead of saying so."""
    notifications: int = 0
    faults: list[str] = field(default_factory=list)
    log: str = ""

    def add(self, other: Account) -> None:
        """Sum up."""
        for name in ("promised", "unsure", "lost", "repeats", "in_doubt", "excused", "notifications"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.faults += other.faults


class Lane(Gateway):
    """One store, one daemon after the other, and all that clients and next hops know of its mail."""

    def __init__(
        self,
        directory: Path,
        hops: Hops,
        library: Path | None = None,
        nursery: Nursery | None = None,
        *,
        authority: Authority | None = None,
        listeners: Mapping[str, str] | None = None,
        changes: tuple[str, ...] = (),
        **options: object,
    ) -> None:
        """`library` is of `support.disk`; without a `nursery` each daemon is started by `twistd`.

        `authority`, `listeners` and `changes` are as for a Gateway, `options` values in the configuration above.
        """
        directory = directory.resolve()
        directory.mkdir(parents=True, exist_ok=True)
        self.hops = hops
        self.disk = Disk(directory, library) if library is not None else None
        self.root = directory / "disk"
        self.root.mkdir(exist_ok=True)
        (self.root / "mail").mkdir(exist_ok=True)
        values = {"min_free": 1, "max_recipients": 2, "lease": LEASE_SECONDS, "inline": INLINE_OCTETS} | options
        text = CONFIGURATION.format(root=self.root, **hops.ports, **values)
        super().__init__(
            directory, authority, base="B0", changes=(text, *changes), listeners=listeners or {"smtp": SMTP}
        )
        self.queue_path = self.root / "queue.sqlite"
        self.mail_root = self.root / "mail"
        self.told = Told()
        self.allowed: Counter[tuple[str, str]] = Counter()
        """How often a repeat may be: once for each crash that found the delivery in doubt."""
        self.seen: dict[str, str] = {}
        self._extra: dict[str, str] = {}
        self._nursery = nursery
        self._log_from = 0

    # --- the daemon ----------------------------------------------------------------------
    def environment(self) -> dict[str, str]:
        """With the crash point and the disk."""
        return super().environment() | self._extra

    def start(self, point: str | None = None, *, ready: bool = True) -> None:
        """Start, to crash at `point`."""
        self._extra = {} if point is None else {"MAILGATE_CRASH": point}
        if self.disk is not None:
            self._extra |= self.disk.environment()
        self._log_from = len(self.log_text())
        pid_file = self.directory / "twistd.pid"
        pid_file.unlink(missing_ok=True)
        if self._nursery is None:
            super().start(ready=False)
        else:
            arguments = ["twistd", "-n", f"--pidfile={pid_file}", "mailgate", "--config", str(self.config)]
            environment = self.environment()
            environment.pop("MAILGATE_CRASH", None)
            self._process = self._nursery.start(arguments, self.directory, self.log, environment, point)
        if ready:
            self.wait_ready()

    def start_or_crash(self, point: str) -> bool:
        """Start, where the point may come before it is ready: False when it did."""
        self.start(point, ready=False)
        try:
            self.wait_ready()
        except AssertionError:
            if self._process is not None and self._process.poll() == -signal.SIGKILL:
                return False
            raise
        return True

    def load(self, mix: Mix, chance: random.Random, name: str) -> Told:
        """Have clients send until all is sent or the daemon is gone."""
        told = Load(self.port("smtp"), mix, chance, name, is_over=lambda: not self.is_running).run()
        self.told.add(told)
        return told

    def wait_ready(self, seconds: float = PATIENCE_SECONDS) -> None:
        """As a Gateway's, but by the time this process runs: a machine may stand still for half a minute."""
        process = self._process
        assert process is not None

        def up() -> bool:
            assert process.poll() is None, f"the daemon ended with {process.returncode}:\n{self.log_text()[-4000:]}"
            # The port is there before the queue is open.
            return _greets(self.port("smtp"))

        assert _in_turns(up, seconds), f"it takes no connections:\n{self.log_text()[-4000:]}"

    def stop(self, seconds: float = PATIENCE_SECONDS) -> int:
        """As a Gateway's."""
        return super().stop(seconds)

    def wait_crash(self, seconds: float) -> bool:
        """Wait for the daemon to end; whether it did, by SIGKILL."""
        assert self._process is not None
        if not _in_turns(lambda: self._process is not None and self._process.poll() is not None, seconds):
            return False
        status = self._process.poll()
        assert status == -signal.SIGKILL, f"the daemon ended with {status}:\n{self.log_text()[-4000:]}"
        return True

    # --- the disk, the daemon being down -----------------------------------------------------
    def look(self) -> list[str]:
        """Broken invariants; deliveries that are in doubt may from now on be repeated once more."""
        if not self.queue_path.exists():
            return []
        broken = [*violations(self.queue_path, self.root / "spool"), *self._check()]
        for id_, address in [*self.in_doubt(), *self._doubted()]:
            self.allowed[id_, address] += 1
        return broken

    def _check(self) -> list[str]:
        """What `mailgate queue check` would find, old files without a message aside."""
        db = sqlite3.connect(self.queue_path)
        try:
            found = problems(db, str(self.root / "spool"), int(time.time() * 1000), 10**13)
            return [f"queue check: {problem}" for problem in found]
        finally:
            db.close()

    def in_doubt(self) -> list[tuple[str, str]]:
        """Message-ID and recipient of each delivery that is marked as TRANSMITTING."""
        db = sqlite3.connect(self.queue_path)
        try:
            rows = db.execute(
                "SELECT attempt.message_id, address FROM attempt, json_each(attempt.rcpt_idx)"
                " JOIN recipient ON recipient.message_id = attempt.message_id AND recipient.idx = value"
                " WHERE phase = 'transmitting'"
            ).fetchall()
            return [(self.id_of(db, queue_id), address) for queue_id, address in rows]
        finally:
            db.close()

    def _doubted(self) -> list[tuple[str, str]]:
        """As `in_doubt`: what the last daemon itself found so while it ran, its leases having run out under it.

        What its attempts learnt all the same came late, and is gone if it did not come before the end.
        """
        running = self.log_text()[self._log_from :].partition("server.started")[2]
        db = sqlite3.connect(self.queue_path)
        try:
            return [
                (self.id_of(db, int(queue_id, 16)), address)
                for queue_id, addresses in _DOUBT.findall(running)
                if db.execute("SELECT 1 FROM message WHERE id = ?", (int(queue_id, 16),)).fetchone()
                for address in addresses.split(",")
            ]
        finally:
            db.close()

    def id_of(self, db: sqlite3.Connection, queue_id: int) -> str:
        """The Message-ID of a queued message."""
        octets, path = db.execute("SELECT octets, path FROM content WHERE message_id = ?", (queue_id,)).fetchone()
        if path is not None:
            with open(self.root / "spool" / path, "rb") as file:
                octets += file.read(4096)
        return message_id(octets)

    def id_of_message(self, queue_id: int) -> str:
        """As `id_of`."""
        db = sqlite3.connect(self.queue_path)
        try:
            return self.id_of(db, queue_id)
        finally:
            db.close()

    def rows(self, question: str, *values: object) -> list[sqlite3.Row]:
        """Ask the store."""
        db = sqlite3.connect(self.queue_path, timeout=10)
        db.row_factory = sqlite3.Row
        try:
            return db.execute(question, values).fetchall()
        finally:
            db.close()

    def put_orphan(self) -> Path:
        """A spool file of two hours ago without a message."""
        queue_id = (int(time.time() * 1000) - 7_200_000) << 20 | random.randrange(1 << 14)
        name = f"{queue_id:016x}"
        taken = list((self.root / "spool").glob("??/*"))
        folder = taken[0].parent if taken else self.root / "spool" / name[-2:]
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / name
        file.write_bytes(b"left behind")
        os.utime(file, (time.time() - 7200, time.time() - 7200))
        return file

    def read_mail(self) -> None:
        """A reader takes new mail into cur/ and marks it as seen."""
        for path in list(self.mail_root.glob("*/*/new/*")):
            path.rename(path.parent.parent / "cur" / f"{path.name}:2,S")

    # --- the end -----------------------------------------------------------------------------
    def hurry(self) -> None:
        """What waits for its next attempt is due now, as an operator's retry makes it."""
        now = int(time.time() * 1000)
        db = sqlite3.connect(self.queue_path, timeout=10, isolation_level=None)
        try:
            db.execute("BEGIN IMMEDIATE")
            # What the next start finds in doubt it puts off itself: only then it is to be hurried.
            late = db.execute(
                "SELECT 1 FROM unit WHERE lease_owner IS NULL AND due > ? AND due < ?", (now + 2000, now + 86_400_000)
            ).fetchall()
            if late:
                db.execute("UPDATE recipient SET retry_due = ? WHERE retry_due > ?", (now, now + 2000))
                db.execute(
                    "UPDATE unit SET due = ? WHERE lease_owner IS NULL AND due > ? AND EXISTS (SELECT 1 FROM recipient"
                    " WHERE recipient.message_id = unit.message_id AND recipient.queue = unit.queue AND retry_due = ?)",
                    (now, now, now),
                )
            db.execute("COMMIT")
        finally:
            db.close()

    def settle(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until nothing is queued, hurrying what waits."""

        def is_empty() -> bool:
            assert self.is_running, f"the daemon ended:\n{self.log_text()[-4000:]}"
            if not self.rows("SELECT 1 FROM message LIMIT 1"):
                return True
            self.hurry()
            return False

        if not _in_turns(is_empty, seconds, 0.2):
            left = [tuple(row) for row in self.rows("SELECT * FROM queue_view LIMIT 5")]
            units = [tuple(row) for row in self.rows("SELECT * FROM unit LIMIT 5")]
            raise AssertionError(f"the queue does not run empty; left: {left} {units}")

    def account(self) -> Account:
        """Hold what clients were told against what arrived. The queue is empty."""
        account = Account()
        boxes = self._boxes()
        memory = self.hops.memory
        known = self.told.promised | self.told.unsure
        notices = self._notices()
        tellings = Counter(telling for those in notices.values() for telling in those)
        account.faults += [f"{telling}: told {count} times" for telling, count in tellings.items() if count > 1]
        with memory.lock:
            taken = dict(memory.taken)
        for id_, recipients in known.items():
            is_promised = id_ in self.told.promised
            for recipient in recipients:
                account.promised += is_promised
                account.unsure += not is_promised
                behaviour = recipient.partition("-")[0]
                key = (id_, recipient)
                if recipient.endswith("@local.test"):
                    digests, bound, wanted = boxes.pop(key, []), 1, 1
                else:
                    entry = taken.pop(key, None)
                    digests = entry.digests if entry is not None else []
                    bound = 1 + self.allowed[key] + memory.excused[key]
                    account.in_doubt += self.allowed[key]
                    account.excused += memory.excused[key]
                    wanted = 0 if behaviour in ("never", "mute") else 1
                    if entry is not None and not is_whole(entry.octets):
                        account.faults.append(f"{key}: not whole")
                if not wanted:
                    bound = 0
                    if is_promised and not tellings[*key, "failed"]:
                        account.lost += 1
                        account.faults.append(f"{key}: no notification of its failure")
                if is_promised and len(digests) < wanted:
                    account.lost += 1
                    account.faults.append(f"{key}: lost")
                if len(digests) > bound:
                    account.faults.append(f"{key}: {len(digests)} copies where {bound} may be")
                if len(set(digests)) > 1:
                    account.faults.append(f"{key}: its repeats differ")
                account.repeats += max(0, len(digests) - 1)
        for (id_, recipient), entry in taken.items():
            if id_ not in notices:
                account.faults.append(f"{id_} for {recipient}: nobody sent it")
                continue
            account.notifications += 1
            bound = 1 + self.allowed[id_, recipient] + memory.excused[id_, recipient]
            account.in_doubt += self.allowed[id_, recipient]
            account.excused += memory.excused[id_, recipient]
            account.repeats += len(entry.digests) - 1
            if len(entry.digests) > bound or len(set(entry.digests)) > 1:
                account.faults.append(f"{id_} for {recipient}: {len(entry.digests)} copies where {bound} may be")
        account.faults += [f"{key}: in a Maildir, and nobody sent it" for key in boxes]
        return account

    def forget(self) -> None:
        """All is accounted for: begin anew with an empty queue."""
        self.told = Told()
        self.allowed.clear()
        self.hops.memory.forget()
        for path in self.mail_root.glob("*/*/*/*"):
            path.unlink()
        self.log.write_bytes(b"")
        if self.disk is not None:
            self.disk.forget()

    def _boxes(self) -> dict[tuple[str, str], list[str]]:
        """The copies in the Maildirs."""
        found: dict[tuple[str, str], list[str]] = {}
        for part in ("new", "cur"):
            for path in self.mail_root.glob(f"*/*/{part}/*"):
                octets = path.read_bytes()
                first, _, rest = octets.partition(b"\n")
                assert first.startswith(b"Delivered-To: "), (path, octets[:200])
                key = (message_id(rest), first[14:].decode())
                found.setdefault(key, []).append("whole" if is_whole(rest) else f"{path} is not whole")
        return found

    def _notices(self) -> dict[str, set[tuple[str, str, str]]]:
        """Of each notification that arrived: the message, recipient and action it tells of."""
        with self.hops.memory.lock:
            arrived = {id_: entry.octets for (id_, _), entry in self.hops.memory.taken.items()}
        return {id_: _told_by(octets) for id_, octets in arrived.items() if b"multipart/report" in octets}


def _told_by(notification: bytes) -> set[tuple[str, str, str]]:
    text = notification.decode("utf-8", "replace")
    ids = _ID.findall(text)
    # The first is its own, the second stands in the header it carries back.
    return {(ids[1], to, action) for to, action in _TOLD.findall(text)}


def _greets(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            return connection.recv(4) == b"220 "
    except OSError:
        return False


def _in_turns(condition: Callable[[], object], seconds: float, turn: float = 0.02) -> bool:
    """Whether it came true within so many seconds of this process's own time."""
    for _ in range(int(seconds / turn)):
        if condition():
            return True
        time.sleep(turn)
    return bool(condition())
