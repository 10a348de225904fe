"""NSD with signed zones and a validating Unbound in front of it, on free loopback ports, as an ordinary user.

| zone                   | what a validating resolver says of it |
|------------------------|---------------------------------------|
| lab.example            | secure                                |
| plain.lab.example      | insecure: delegated without DS        |
| expired.example        | bogus: its signatures ran out         |
| 2.0.192.in-addr.arpa   | insecure: no anchor is above it       |

Every other name does not exist, and nothing is asked outside the machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from support import needs
from support.peers import open_folder
from support.ports import free_port, is_listening, wait_until

SECURE, PLAIN, EXPIRED, REVERSE = "lab.example", "plain.lab.example", "expired.example", "2.0.192.in-addr.arpa"
BIG_TEXTS = tuple(f"{number:02d}" + "x" * 240 for number in range(20))
FINGERPRINT = bytes(range(32))

_HEAD = "@ 60 SOA ns1.lab.example. hostmaster.lab.example. 1 3600 600 86400 30\n@ 60 NS ns1.lab.example.\n"
_ZONES = {
    SECURE: f"""{_HEAD}
ns1 60 A 127.0.0.1
@ 60 MX 20 mx2
@ 60 MX 10 mx1
@ 60 TXT "v=spf1 ip4:192.0.2.0/24" " -all"
@ 60 TXT "second"
mx1 60 A 192.0.2.1
mx1 60 A 192.0.2.2
mx1 60 AAAA 2001:db8::1
mx2 60 A 192.0.2.3
_25._tcp.mx1 60 TLSA 3 1 1 {FINGERPRINT.hex()}
alias 60 CNAME further
further 30 CNAME mx1
astray 60 CNAME nowhere
plain 60 NS ns1
null 60 MX 0 .
{"".join(f'big 60 TXT "{text}"{chr(10)}' for text in BIG_TEXTS)}""",
    PLAIN: f"{_HEAD}www 60 A 192.0.2.7\n",
    EXPIRED: f"{_HEAD}@ 60 MX 10 mx\nmx 60 A 192.0.2.66\n",
    REVERSE: f"{_HEAD}1 60 PTR mx1.lab.example.\n",
}
_LONG_AGO = ("-i", "20250101000000", "-e", "20250201000000")


class SignedDns:
    """The two servers; `authority` is NSD's port, `port` Unbound's."""

    def __init__(self) -> None:
        names = ("nsd", "unbound", "ldns-keygen", "ldns-signzone")
        self._nsd, self._unbound, self._keygen, self._sign = (needs.program(name) for name in names)
        self.authority, self.port = free_port(), free_port()
        self.folder = open_folder("mgdns")
        self._processes: list[subprocess.Popen[bytes]] = []
        for zone, text in _ZONES.items():
            (self.folder / f"{zone}.zone").write_text(f"$ORIGIN {zone}.\n{text}", encoding="ascii")
        anchors = [self._signed(SECURE), self._signed(EXPIRED, *_LONG_AGO)]
        self._configure(anchors)
        # Never as root, whoever runs the tests.
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, self._user, "nogroup")

    def _signed(self, zone: str, *dates: str) -> Path:
        """Sign a zone in place; the file of its key."""

        def run(*command: str) -> str:
            done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=30)
            assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"
            return done.stdout.strip()

        key = run(self._keygen, "-k", "-a", "ECDSAP256SHA256", zone)
        run(self._sign, *dates, "-o", zone, "-f", f"{zone}.signed", f"{zone}.zone", key)
        (self.folder / f"{zone}.signed").replace(self.folder / f"{zone}.zone")
        return self.folder / f"{key}.key"

    def _configure(self, anchors: list[Path]) -> None:
        folder = self.folder
        zones = "".join(f'zone:\n  name: {zone}\n  zonefile: "{zone}.zone"\n' for zone in _ZONES)
        (folder / "nsd.conf").write_text(
            f"""server:
  ip-address: 127.0.0.1@{self.authority}
  username: ""
  chroot: ""
  zonesdir: "{folder}"
  database: ""
  pidfile: "{folder}/nsd.pid"
  xfrdfile: "{folder}/xfrd.state"
  zonelistfile: "{folder}/zone.list"
  xfrdir: "{folder}"
  logfile: "{folder}/nsd.log"
remote-control:
  control-enable: no
{zones}""",
            encoding="ascii",
        )
        trusted = "".join(f'  trust-anchor-file: "{anchor}"\n' for anchor in anchors)
        here = "".join(f'  local-zone: "{zone}." transparent\n' for zone in _ZONES)
        stubs = "".join(
            f"stub-zone:\n  name: {zone}\n  stub-addr: 127.0.0.1@{self.authority}\n  stub-no-cache: yes\n"
            for zone in _ZONES
        )
        (folder / "unbound.conf").write_text(
            f"""server:
  directory: "{folder}"
  chroot: ""
  username: ""
  pidfile: "{folder}/unbound.pid"
  use-syslog: no
  logfile: "{folder}/unbound.log"
  val-log-level: 2
  interface: 127.0.0.1
  port: {self.port}
  do-not-query-localhost: no
  module-config: "validator iterator"
  num-threads: 1
  local-zone: "." static
{here}{trusted}{stubs}remote-control:
  control-enable: no
""",
            encoding="ascii",
        )

    def start(self) -> None:
        """Start both in the foreground and wait for their ports."""
        for program, config, port in (
            (self._nsd, "nsd.conf", self.authority),
            (self._unbound, "unbound.conf", self.port),
        ):
            process = subprocess.Popen(
                [program, "-d", "-c", str(self.folder / config)],
                cwd=self.folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                user=self._user,
                group="nogroup" if self._user else None,
                extra_groups=[] if self._user else None,
            )
            self._processes.append(process)

            def up(process: subprocess.Popen[bytes] = process, port: int = port) -> bool:
                assert process.poll() is None, f"{process.args} ended:\n{self.log_text()}"
                return is_listening(port)

            wait_until(up, 10, f"{program}'s port")

    def stop(self) -> None:
        """Stop both and remove their files."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def log_text(self) -> str:
        """What both logged."""
        logs = (self.folder / name for name in ("nsd.log", "unbound.log"))
        return "".join(log.read_text(encoding="utf-8", errors="replace") for log in logs if log.exists())
