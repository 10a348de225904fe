"""A real `twistd mailgate` in a process of its own, on free loopback ports.

gateway = Gateway(tmp_path, authority, base="B2", listeners=LISTENERS)
with gateway:
    smtplib.SMTP("127.0.0.1", gateway.port("smtp"))
gateway.log_text(), gateway.maildir("john", "foobar.org"), gateway.queue()
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from support.baseline import baseline
from support.ca import Authority
from support.ports import free_port, is_listening, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]

SMTP = """
protocol = "smtp"
"""

IMPLICIT_TLS = """
protocol = "smtp"
tls.implicit = true
"""

LMTP = """
protocol = "lmtp"
"""


class QueuedRow(NamedTuple):
    """One recipient as the store keeps it."""

    message_id: int
    address: str
    state: str
    queue: str
    schedule: str


class Gateway:
    """One daemon with its configuration, queue and Maildirs below `directory`.

    `listeners` maps a listener's id to the TOML of its table, without `bind`;
    `second_ports` an id to one more port of that listener.
    """

    def __init__(
        self,
        directory: Path,
        authority: Authority | None = None,
        *,
        base: str = "B1",
        changes: tuple[str, ...] = (),
        drop: tuple[str, ...] = (),
        listeners: Mapping[str, str] | None = None,
        second_ports: Mapping[str, int] | None = None,
    ) -> None:
        self.directory = directory
        self.ports = {name: free_port() for name in (listeners or {"smtp": SMTP})}
        self.queue_path = directory / "queue.sqlite"
        self.mail_root = directory / "mail"
        self.config = directory / "mailgate.toml"
        self.log = directory / "log.txt"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.mail_root.mkdir(exist_ok=True)
        bind = {name: [f"127.0.0.1:{port}"] for name, port in self.ports.items()}
        for name, port in (second_ports or {}).items():
            bind[name].append(f"127.0.0.1:{port}")
        own = [
            f"[server.listener.{name}]\nbind = {bind[name]}\n{text}"
            for name, text in (listeners or {"smtp": SMTP}).items()
        ]
        own.append(
            f"""
            [server]
            shutdown-grace = "3s"

            [storage]
            data = "queue"

            [store.queue]
            type = "sqlite"
            path = "{self.queue_path}"

            [queue.route.local]
            type = "local"
            maildir = "{self.mail_root}/%{{domain}}/%{{user}}"

            [decisions]
            path = "{directory}/decisions"

            [management]
            socket = "{directory}/control.sock"
            """
        )
        if authority is not None:
            certificate = authority.issue("mx.test", "localhost", "127.0.0.1", "::1")
            own.append(
                f"""
                [certificate.test]
                cert = "%{{file:{certificate.cert}}}%"
                private-key = "%{{file:{certificate.key}}}%"
                default = true
                """
            )
        self.config.write_text(baseline(base, *own, *changes, drop=drop), encoding="utf-8")

    # --- the process ------------------------------------------------------------
    def environment(self) -> dict[str, str]:
        """What the daemon and the command line see."""
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith(("MAILGATE", "PYTEST"))},
            "PYTHONPATH": str(REPOSITORY),
            "MAILGATE_HOME": str(self.directory),
            "MAILGATE_CONFIG": str(self.config),
        }

    def start(self, *, ready: bool = True) -> None:
        """Start the daemon and wait until each listener takes connections."""
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("twistd")),
                    "-n",
                    f"--pidfile={self.directory / 'twistd.pid'}",
                    "mailgate",
                    "--config",
                    str(self.config),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self.directory,
                env=self.environment(),
            )
        if ready:
            self.wait_ready()

    def wait_ready(self, seconds: float = 30) -> None:
        """Wait until each listener takes connections; an AssertionError with the log if it ends instead."""

        def up() -> bool:
            process = self._process
            assert process is not None
            assert process.poll() is None, f"the daemon ended with {process.returncode}:\n{self.log_text()}"
            return all(is_listening(port) for port in self.ports.values())

        wait_until(up, seconds, "listeners that take connections")

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def wait_end(self, seconds: float = 20) -> int:
        """Wait for the process to end; its exit status."""
        assert self._process is not None
        return self._process.wait(seconds)

    def stop(self, seconds: float = 20) -> int:
        """Ask the daemon to end (SIGTERM) and wait; its exit status, 0 where Twisted ends by the signal itself."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(seconds)
            return 0 if status == -signal.SIGTERM else status
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"SIGTERM did not end the daemon in {seconds} s:\n{self.log_text()}") from None

    def kill(self) -> None:
        """End the daemon at once (SIGKILL)."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)
        (self.directory / "twistd.pid").unlink(missing_ok=True)

    def __enter__(self) -> Gateway:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; after a failed test the log goes into its report."""
        if self.is_running:
            self.stop()
        if error is not None:
            print(f"--- log of the daemon\n{self.log_text()[-6000:]}")

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `mailgate ARGUMENTS` with this gateway's configuration."""
        return subprocess.run(
            [sys.executable, "-m", "mailgate.admin.main", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.directory,
            env=self.environment(),
        )

    # --- what it did --------------------------------------------------------------
    def port(self, listener: str) -> int:
        """The port of a listener."""
        return self.ports[listener]

    def log_text(self) -> str:
        """Everything the daemon has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def wait_log(self, text: str, seconds: float = 10) -> None:
        """Wait until the log contains `text`."""
        wait_until(lambda: text in self.log_text(), seconds, f"{text!r} in the log")

    def maildir(self, user: str, domain: str) -> list[bytes]:
        """The messages in one Maildir, oldest first."""
        new = self.mail_root / domain / user / "new"
        return [path.read_bytes() for path in sorted(new.iterdir())] if new.is_dir() else []

    def all_mail(self) -> list[Path]:
        """Every message file in every Maildir."""
        return sorted(self.mail_root.glob("*/*/new/*"))

    def wait_mail(self, user: str, domain: str, count: int = 1, seconds: float = 20) -> list[bytes]:
        """Wait until a Maildir holds `count` messages, and give them."""
        wait_until(lambda: len(self.maildir(user, domain)) >= count, seconds, f"{count} messages for {user}@{domain}")
        return self.maildir(user, domain)

    def queue(self) -> list[QueuedRow]:
        """Every queued recipient, read from the store."""
        if not self.queue_path.exists():
            return []
        connection = sqlite3.connect(f"file:{self.queue_path}?mode=ro", uri=True, timeout=10)
        try:
            rows = connection.execute(
                "SELECT message_id, address, state, queue, schedule FROM recipient ORDER BY message_id, address"
            )
            return [QueuedRow(*row) for row in rows]
        finally:
            connection.close()

    def hasten(self) -> None:
        """Make everything due that waits for its next attempt; the daemon sees it at its next poll."""
        with contextlib.closing(sqlite3.connect(self.queue_path, timeout=10, isolation_level=None)) as db:
            now_ms = time.time_ns() // 1_000_000
            db.execute("BEGIN IMMEDIATE")
            db.execute("UPDATE recipient SET retry_due = min(retry_due, ?) WHERE retry_due IS NOT NULL", (now_ms,))
            db.execute("UPDATE unit SET due = min(due, ?) WHERE due IS NOT NULL", (now_ms,))
            db.execute("COMMIT")

    def wait_queue_empty(self, seconds: float = 20) -> None:
        """Wait until nothing is queued."""
        wait_until(lambda: not self.queue(), seconds, "an empty queue")

    def resident_octets(self) -> int:
        """The daemon's resident memory now."""
        return self._status("VmRSS:")

    def peak_octets(self) -> int:
        """The most resident memory the daemon has had."""
        return self._status("VmHWM:")

    def _status(self, word: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith(word):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"no {word} in /proc")


def settle(seconds: float = 0.3) -> None:
    """Give the daemon time to do what it should not do."""
    time.sleep(seconds)
