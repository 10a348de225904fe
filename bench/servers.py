"""The servers that are measured: how each is configured, started and stopped.

Every one has its messages on disk before their 250, accepts any recipient at
relay.test, and either keeps what it accepted (delivery held) or relays it to a
sink on loopback.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from account import Account

import mailgate

HERE = Path(__file__).resolve().parent
DOMAIN = "relay.test"


class Server:
    """One server under measurement."""

    name = ""
    relays = True

    def __init__(self, work: Path, port: int) -> None:
        self.work = work
        self.port = port
        self.folder = work / "servers" / self.name
        self.log = work / f"{self.name}.log"
        self.account = Account("none")
        self._process: subprocess.Popen[bytes] | None = None

    # --- what each server says about itself
    def version(self) -> str:
        """Name and version of what is measured."""
        raise LookupError

    def prepare(self, sink: int | None) -> list[str]:
        """Write the files and give the command; with `sink` mail is relayed there, else held."""
        raise LookupError

    def halt(self) -> None:
        """Stop in the server's own way, where there is one."""

    # --- alike for all
    def start(self, sink: int | None = None, nice: int = 0) -> None:
        """Start from nothing and wait for the greeting."""
        discard(self.folder, self.work)
        self.folder.mkdir(parents=True)
        self.folder.chmod(0o755)
        command = self.prepare(sink)
        self.account = Account(self.name)
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                self.account.wrap(command), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.account.root_pid = self._process.pid
        limit = time.monotonic() + 30
        while not self._greets():
            if time.monotonic() > limit:
                self.stop()
                raise RuntimeError(f"{self.name} does not greet; see {self.log}")
            time.sleep(0.1)
        if nice:
            self.account.put_before_others(nice)

    def _greets(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as client:
                return client.recv(100).startswith(b"220")
        except OSError:
            return False

    def stop(self) -> None:
        """Stop the server and put its files out of the way."""
        self.halt()
        self.account.end()
        if self._process is not None:
            self._process.wait(10)
        self.account.close()
        discard(self.folder, self.work)


class Mailgate(Server):
    """Our own: one process, with the policy the package ships."""

    name = "mailgate"

    def version(self) -> str:
        """The package's version."""
        return f"mailgate {mailgate.__version__} on Python {sys.version.split()[0]}"

    def prepare(self, sink: int | None) -> list[str]:
        """`mailgate_server.py` writes the configuration itself."""
        command = [sys.executable, str(HERE / "mailgate_server.py"), "--port", str(self.port)]
        return [*command, "--dir", str(self.folder), *(["--sink", str(sink)] if sink else [])]


class UnrecordedMailgate(Mailgate):
    """The same without a record of its decisions."""

    name = "unrecorded"

    def prepare(self, sink: int | None) -> list[str]:
        """As mailgate, with `decisions.enable = false`."""
        return [*super().prepare(sink), "--no-record"]


class StockTwisted(Server):
    """Twisted's own ESMTP with a file for each message."""

    name = "twisted"
    relays = False

    def version(self) -> str:
        """Twisted's version."""
        return f"stock Twisted {metadata.version('twisted')} ESMTP, file, fsync and rename in its thread pool"

    def prepare(self, sink: int | None) -> list[str]:
        """No files needed."""
        return [sys.executable, str(HERE / "stock_twisted.py"), "--port", str(self.port), "--dir", str(self.folder)]


class TunedPostfix(Server):
    """Postfix with nothing that slows it down on purpose, and processes enough for every session."""

    name = "postfix"

    def version(self) -> str:
        """The package's version."""
        done = subprocess.run(["postconf", "-h", "mail_version"], capture_output=True, text=True, env=_sbin())
        return f"Postfix {done.stdout.strip()}, in_flow_delay=0, 1100 smtpd processes allowed"

    def prepare(self, sink: int | None) -> list[str]:
        """An instance of its own; without a sink every message goes on hold."""
        etc, spool, data = (self.folder / name for name in ("etc", "spool", "data"))
        for path in (etc, spool, data):
            path.mkdir()
        shutil.chown(data, "postfix")
        where = (
            f"relay_transport = relay:[127.0.0.1]:{sink}\n"
            if sink
            else "smtpd_data_restrictions = check_client_access static:HOLD\n"
        )
        (etc / "main.cf").write_text(
            f"""compatibility_level = 3.6
queue_directory = {spool}
data_directory = {data}
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
maillog_file = {self.work}/postfix.maillog
maillog_file_prefixes = {self.work}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
myhostname = bench.test
mydestination =
alias_maps =
alias_database =
local_recipient_maps =
relay_domains = {DOMAIN}
relay_recipient_maps =
smtpd_relay_restrictions = reject_unauth_destination
message_size_limit = 52428800
in_flow_delay = 0
default_process_limit = 200
smtpd_peername_lookup = no
disable_dns_lookups = yes
relay_destination_concurrency_limit = 100
initial_destination_concurrency = 100
smtpd_client_connection_count_limit = 0
max_use = 1000
{where}""",
            encoding="ascii",
        )
        (etc / "master.cf").write_text(
            f"""127.0.0.1:{self.port} inet n - n - 1100 smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
""",
            encoding="ascii",
        )
        return ["/usr/sbin/postfix", "-c", str(etc), "start"]

    def halt(self) -> None:
        """Postfix is several processes with a command of their own."""
        command = ["/usr/sbin/postfix", "-c", str(self.folder / "etc"), "stop"]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=30)


class Sink:
    """Postfix's smtp-sink: takes everything, keeps nothing, counts."""

    def __init__(self, work: Path, port: int) -> None:
        self.port = port
        self._counts = work / f"sink.{port}"
        with open(self._counts, "wb") as counts:
            self._process = subprocess.Popen(
                ["/usr/sbin/smtp-sink", "-c", "-u", "nobody", f"127.0.0.1:{port}", "4096"],
                stdout=counts,
                stderr=subprocess.DEVNULL,
            )

    def count(self) -> int:
        """Messages so far."""
        with open(self._counts, "rb") as counts:
            counts.seek(max(0, os.path.getsize(self._counts) - 400))
            _, found, tail = counts.read().rpartition(b"mesg=")
        return int(tail.split(b" ")[0].strip() or 0) if found else 0

    def stop(self) -> None:
        """Stop it."""
        self._process.kill()
        self._process.wait(10)


def discard(folder: Path, work: Path) -> None:
    """Put a folder out of the way; deleting it at once would slow what is measured next down."""
    if folder.exists():
        trash = work / "trash"
        trash.mkdir(exist_ok=True)
        folder.rename(trash / f"{folder.name}.{time.monotonic_ns()}")


def _sbin() -> dict[str, str]:
    return {**os.environ, "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"}
