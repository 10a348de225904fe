"""How much a long queue costs: the next claim, a start, the daemon's memory, and what operators ask.

    python bench/queue_size.py                       # 1,000 and 1,000,000 recipients
    python bench/queue_size.py --recipients 50000 --keep /disk/queue

For each size a store is made as if so many messages of one recipient each had
been accepted: `--octets` of content, domains of very different frequency, half
of them due, the others waiting after failures of several kinds. Then, on it:

- claim: 20 due units leased and given back, as the scheduler does it (median)
- insert: 20 new messages in one transaction, with their sync (median)
- start: from the beginning of `twistd mailgate` to `server.started`
- memory: resident, three seconds after that; nothing is delivered, the queue is paused
- the commands: wall time of the process, the best of `--rounds`
- order: hold and release of one domain through the daemon, recipients a second

Every figure is of this machine, with the file in the cache of the kernel.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path

from mailgate.queue.connection import connect
from mailgate.queue.item import Content, ExpiresBy, Expiry, NewMessage, QueuedRecipient, Source
from mailgate.queue.migrate import migrate
from mailgate.queue.pause import Pause, PauseOf
from mailgate.queue.tables import Tables

REPOSITORY = Path(__file__).resolve().parents[1]
HOUR = 3_600_000
DOMAINS = 20_000
RARE = "d19999.test"
ERRORS = (
    '{"entity": "mx.d.test", "kind": "connection", "detail": "Connection refused"}',
    '{"entity": "d.test", "kind": "dns", "detail": "SERVFAIL"}',
    '{"entity": "mx.d.test", "kind": "unexpected-reply", "command": "RCPT TO", "code": 450, "enhanced": "4.2.0",'
    ' "text": "Try again later"}',
)
CONFIG = """
[server]
hostname = "mx.test"
[server.listener.smtp]
bind = "127.0.0.1:{port}"
protocol = "smtp"
[storage]
data = "queue"
[store.queue]
type = "sqlite"
path = "{directory}/queue.sqlite"
[queue]
spool = "{directory}/spool"
[decisions]
path = "{directory}/decisions"
[management]
socket = "{directory}/control.sock"
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def make(directory: Path, recipients: int, octets: int) -> None:
    """A paused store of so many messages with a recipient each, and its configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "mailgate.toml").write_text(CONFIG.format(directory=directory, port=free_port()))
    now = time.time_ns() // 1_000_000
    content = b"Subject: bench\r\n\r\n".ljust(octets, b"x")
    digest = urlsafe_b64encode(sha256(content).digest()).rstrip(b"=").decode()
    with closing(connect(str(directory / "queue.sqlite"), write=True)) as db:
        migrate(db)
        # Ids as they are made: milliseconds, then the process, then a sequence.
        number = f"WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < {recipients - 1})"
        id_ = f"(({now - 2 * HOUR} + n) << 20)"
        # The squares make few domains frequent and many rare; the last number is the rare one.
        domain = f"(n * 7919 % {DOMAINS}) * (n * 7919 % {DOMAINS}) / {DOMAINS}"
        db.execute("BEGIN")
        db.execute(
            f"{number} INSERT INTO message (id, created, content_kind, content_hash, size, return_path, source,"
            " priority, hold, from_ip, via_port)"
            f" SELECT {id_}, {now - 2 * HOUR} + n, 'inline', ?, ?, 'sender' || n % 1000 || '@origin.test',"
            " 'authenticated', 0, 0, '192.0.2.1', 25 FROM n",
            (digest, octets),
        )
        db.execute(f"{number} INSERT INTO content SELECT {id_}, ?, NULL FROM n", (content,))
        db.execute(
            f"{number} INSERT INTO recipient (message_id, idx, address, queue, schedule, state, status_json, retry_due,"
            " retry_num, notify_num, expires_kind, expires_value, dsn_sent)"
            f" SELECT {id_}, 0, 'user' || n || '@d' || iif(n % 500, {domain}, {DOMAINS - 1}) || '.test',"
            " iif(n % 10, 'remote', 'slow'), 'remote', iif(n % 4, 'temp_fail', 'scheduled'),"
            " CASE n % 4 WHEN 0 THEN NULL WHEN 1 THEN ? WHEN 2 THEN ? ELSE ? END,"
            f" {now} + iif(n % 2, 0 - n % 3600000, n % 86400000), n % 4, 0, 'ttl', {72 * HOUR}, 0 FROM n",
            ERRORS,
        )
        db.execute(
            "INSERT INTO unit (message_id, queue, due, expires, lease_gen)"
            " SELECT message_id, queue, retry_due, created + expires_value, 0"
            " FROM recipient JOIN message ON id = message_id"
        )
        pause = Pause(now, "bench", "nothing shall be delivered", "")
        db.execute("INSERT INTO flag VALUES (?, ?)", (PauseOf.CLUSTER.flag, pause.text()))
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def claims(directory: Path, rounds: int) -> tuple[float, float]:
    """Milliseconds of one claim of 20 units and of one insertion of 20 messages, medians."""
    now = time.time_ns() // 1_000_000
    spent: list[float] = []
    inserted: list[float] = []
    with closing(connect(str(directory / "queue.sqlite"), write=True)) as db:
        tables = Tables(db, "boot/1/1", 60_000)
        for round_ in range(rounds):
            began = time.perf_counter()
            db.execute("BEGIN IMMEDIATE")
            leases = tables.claim({"remote": 20}, now, 0)
            db.execute("COMMIT")
            spent.append((time.perf_counter() - began) * 1000)
            db.execute("BEGIN IMMEDIATE")
            tables.release_all()
            db.execute("COMMIT")
            new = [(_message(now, round_ * 20 + n), None) for n in range(min(20, len(leases)))]
            began = time.perf_counter()
            db.execute("BEGIN IMMEDIATE")
            tables.insert(new)
            db.execute("COMMIT")
            inserted.append((time.perf_counter() - began) * 1000)
        db.execute("DELETE FROM message WHERE id >= ?", (now << 20,))
    return statistics.median(spent), statistics.median(inserted)


def _message(now: int, number: int) -> NewMessage:
    content = Content(2000, octets=b"x" * 2000)
    recipient = QueuedRecipient(0, "a@b.test", "remote", now + HOUR, None, Expiry(ExpiresBy.TTL, HOUR))
    return NewMessage((now << 20) + number, now, b"", content, "a@b.test", Source.AUTHENTICATED, (recipient,))


def environment(directory: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "MAILGATE_CONFIG": str(directory / "mailgate.toml")}


@contextmanager
def daemon(directory: Path) -> Iterator[tuple[float, int]]:
    """A running daemon: the seconds its start took, and its process id."""
    log = directory / "log.txt"
    twistd = Path(sys.executable).with_name("twistd")
    began = time.perf_counter()
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [twistd, "-n", f"--pidfile={directory}/pid", "mailgate", "--config", directory / "mailgate.toml"],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=environment(directory),
        )
    try:
        while b"server.started" not in log.read_bytes():
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.01)
        yield time.perf_counter() - began, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def command(directory: Path, *arguments: str) -> float:
    """Seconds of one command, its start included."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "mailgate.admin.main", "queue", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(directory),
    )
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr.decode())
    return time.perf_counter() - began


def some_id(directory: Path) -> str:
    with closing(connect(str(directory / "queue.sqlite"), write=False)) as db:
        found: int = db.execute("SELECT id FROM message LIMIT 1 OFFSET 500").fetchone()[0]
        return f"{found:016x}"


def held(directory: Path, domain: str) -> int:
    with closing(connect(str(directory / "queue.sqlite"), write=False)) as db:
        asked = "SELECT count(*) FROM recipient WHERE substr(address, ?) = ?"
        found: int = db.execute(asked, (-len(domain) - 1, f"@{domain}")).fetchone()[0]
        return found


def measure(directory: Path, recipients: int, rounds: int) -> dict[str, str]:
    figures: dict[str, str] = {}
    claim, insert = claims(directory, rounds * 10)
    figures["claim of 20, ms"] = f"{claim:.2f}"
    figures["insertion of 20, ms"] = f"{insert:.2f}"
    id_ = some_id(directory)
    with daemon(directory) as (start, pid):
        figures["start, s"] = f"{start:.2f}"
        time.sleep(3)
        figures["memory, MiB"] = f"{resident_mib(pid):.1f}"
        asked: dict[str, tuple[str, ...]] = {
            "queue show ID, s": ("show", id_),
            "queue why ID, s": ("why", id_),
            "queue list -d (rare), s": ("list", "-d", RARE),
            "queue list -d (rare) --json, s": ("list", "-d", RARE, "--json"),
            "queue list -d (frequent), s": ("list", "-d", "d0.test"),
            "queue list, s": ("list",),
            "queue list --error, s": ("list", "--error", "SERVFAIL", "--limit", "10"),
            "queue list --by domain, s": ("list", "--by", "domain"),
            "queue status, s": ("status",),
        }
        for name, arguments in asked.items():
            figures[name] = f"{_best(lambda arguments=arguments: command(directory, *arguments), rounds):.2f}"
        count = held(directory, RARE)
        spent = command(directory, "hold", "-d", RARE) + command(directory, "release", "-d", RARE)
        figures[f"hold and release of {RARE}, s"] = f"{spent:.2f} ({count} recipients)"
        spent = command(directory, "retry", "-q", "slow", "--at", "+10m")
        figures["retry -q slow, recipients/s"] = f"{recipients / 10 / spent:,.0f}"
        figures["memory after that, MiB"] = f"{resident_mib(pid):.1f}"
    figures["queue check, s"] = f"{command(directory, 'check'):.2f}"
    return figures


def _best(measured: Callable[[], float], rounds: int) -> float:
    return min(measured() for _ in range(rounds))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipients", type=int, action="append", help="a size; may be given several times")
    parser.add_argument("--octets", type=int, default=1024, help="of each message")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", metavar="DIR", help="make the stores here and leave them; one that is there is used")
    arguments = parser.parse_args()
    sizes = arguments.recipients or [1000, 1_000_000]
    work = Path(arguments.keep or tempfile.mkdtemp(prefix="mailgate-queue-", dir="/var/tmp"))
    columns: list[dict[str, str]] = []
    try:
        for size in sizes:
            directory = work / str(size)
            if not (directory / "queue.sqlite").exists():
                began = time.perf_counter()
                make(directory, size, arguments.octets)
                print(f"{size} recipients made in {time.perf_counter() - began:.1f} s", file=sys.stderr)
            columns.append(measure(directory, size, arguments.rounds))
    finally:
        if arguments.keep is None:
            shutil.rmtree(work)
    print("| what | " + " | ".join(f"{size:,} recipients" for size in sizes) + " |")
    print("|---" * (len(sizes) + 1) + "|")
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(column.get(name, "") for column in columns) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
