"""Real servers as neighbours: Postfix and Dovecot with files of their own, on free loopback ports.

Both change their user and so have to be started by root. Their folders are
short (unix sockets below them) and can be entered by everybody.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from support import needs
from support.ca import Authority, Certificate
from support.ports import free_port, is_listening, wait_until

DOMAIN = "lab.example"
USERS = ("alice", "bob")


def open_folder(prefix: str) -> Path:
    """A new folder that daemons which gave up root can enter."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    folder.chmod(0o755)
    return folder


def _readable(certificate: Certificate, folder: Path) -> Certificate:
    """The certificate's files copied to where the peer reads them."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    shutil.copy(certificate.cert, cert)
    shutil.copy(certificate.key, key)
    return Certificate(cert, key)


class Postfix:
    """One Postfix instance: mail for `lab.example` goes to Maildirs, for all else where `main` says.

    `ports` has `smtp` (STARTTLS offered), `smtps` (implicit TLS) and `strict` (mail only after STARTTLS).
    """

    def __init__(self, authority: Authority, main: str = "default_transport = error:no way out\n") -> None:
        needs.root()
        self._program = needs.program("postfix")
        self.folder = open_folder("mgpf")
        self.ports = {name: free_port() for name in ("smtp", "smtps", "strict")}
        self.log = self.folder / "mail.log"
        self.mail = self.folder / "mail"
        etc, spool, data = self.folder / "etc", self.folder / "spool", self.folder / "data"
        for path in (etc, spool, data, self.mail):
            path.mkdir()
        shutil.chown(data, "postfix")
        shutil.chown(self.mail, "nobody")
        certificate = _readable(authority.issue("localhost", "127.0.0.1", "::1"), self.folder)
        trust = self.folder / "ca.pem"
        shutil.copy(authority.trust, trust)
        mailboxes = " ".join(f"{{{user}@{DOMAIN}={user}/}}" for user in USERS)
        (etc / "main.cf").write_text(
            f"""compatibility_level = 3.6
queue_directory = {spool}
data_directory = {data}
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
meta_directory = /etc/postfix
maillog_file = {self.log}
maillog_file_prefixes = {self.folder}
myhostname = postfix.lab.example
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
disable_dns_lookups = yes
smtp_host_lookup = native
alias_maps =
alias_database =
local_recipient_maps =
virtual_mailbox_domains = {DOMAIN}
virtual_mailbox_base = {self.mail}
virtual_mailbox_maps = inline:{{ {mailboxes} }}
virtual_minimum_uid = 1
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
virtual_mailbox_limit = 0
smtpd_tls_security_level = may
smtpd_tls_chain_files = {certificate.key}, {certificate.cert}
smtpd_tls_received_header = yes
smtpd_tls_loglevel = 1
smtp_tls_loglevel = 1
smtp_tls_CAfile = {trust}
message_size_limit = 100000000
mailbox_size_limit = 0
minimal_backoff_time = 2s
queue_run_delay = 2s
in_flow_delay = 0
{main}""",
            encoding="ascii",
        )
        internal = "\n".join(
            line
            for line in """pickup unix n - n 60 1 pickup
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
virtual unix - n n - - virtual
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd""".splitlines()
        )
        (etc / "master.cf").write_text(
            f"127.0.0.1:{self.ports['smtp']} inet n - n - - smtpd\n"
            f"127.0.0.1:{self.ports['smtps']} inet n - n - - smtpd\n  -o smtpd_tls_wrappermode=yes\n"
            f"127.0.0.1:{self.ports['strict']} inet n - n - - smtpd\n  -o smtpd_tls_security_level=encrypt\n"
            f"{internal}\n",
            encoding="ascii",
        )
        self._etc = etc

    def start(self) -> None:
        """Start the instance and wait for its ports."""
        done = subprocess.run([self._program, "-c", self._etc, "start"], capture_output=True, text=True, timeout=30)
        if done.returncode:
            needs.missing(f"Postfix does not start here: {done.stdout}{done.stderr}{self.log_text()}")
        wait_until(lambda: all(is_listening(port) for port in self.ports.values()), 10, "Postfix's ports")

    def stop(self) -> None:
        """Stop the instance and remove its files."""
        subprocess.run([self._program, "-c", self._etc, "stop"], capture_output=True, timeout=30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def log_text(self) -> str:
        """Postfix's log."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def mailbox(self, user: str) -> list[bytes]:
        """The messages in a user's Maildir."""
        new = self.mail / user / "new"
        return [path.read_bytes() for path in sorted(new.iterdir())] if new.is_dir() else []


class Dovecot:
    """Dovecot's LMTP server for `lab.example`; STARTTLS is offered on port `lmtp`."""

    def __init__(self, authority: Authority) -> None:
        needs.root()
        self._program = needs.program("dovecot")
        if not Path("/usr/lib/dovecot/lmtp").exists():
            needs.missing("dovecot-lmtpd is not installed")
        self.folder = open_folder("mgdc")
        self.port = free_port()
        self.log = self.folder / "dovecot.log"
        self.mail = self.folder / "mail"
        self.mail.mkdir()
        shutil.chown(self.mail, "nobody", "nogroup")
        certificate = _readable(authority.issue("localhost", "127.0.0.1", "::1"), self.folder)
        users = self.folder / "users"
        users.write_text("".join(f"{user}@{DOMAIN}:{{PLAIN}}secret::::::\n" for user in USERS), encoding="ascii")
        self._config = self.folder / "dovecot.conf"
        self._config.write_text(
            f"""base_dir = {self.folder}/run
state_dir = {self.folder}/run
instance_name = mailgate-test
log_path = {self.log}
protocols = lmtp
listen = 127.0.0.1
ssl = yes
ssl_cert = <{certificate.cert}
ssl_key = <{certificate.key}
disable_plaintext_auth = no
mail_location = maildir:{self.mail}/%n
mail_uid = nobody
mail_gid = nogroup
first_valid_uid = 1
first_valid_gid = 1
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {users}
}}
userdb {{
  driver = passwd-file
  args = username_format=%u {users}
  override_fields = uid=nobody gid=nogroup home={self.mail}/%n
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {self.port}
  }}
}}
service stats {{
  unix_listener stats-writer {{
    mode = 0666
  }}
}}
postmaster_address = postmaster@{DOMAIN}
hostname = dovecot.{DOMAIN}
recipient_delimiter = +
""",
            encoding="ascii",
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server in the foreground and wait for its port."""
        self._process = subprocess.Popen(
            [self._program, "-F", "-c", str(self._config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"},
        )

        def up() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, f"Dovecot ended:\n{self.log_text()}"
            return is_listening(self.port)

        wait_until(up, 10, "Dovecot's port")

    def stop(self) -> None:
        """Stop the server and remove its files."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def log_text(self) -> str:
        """Dovecot's log."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def mailbox(self, user: str) -> list[bytes]:
        """The messages in a user's Maildir."""
        new = self.mail / user / "new"
        return [path.read_bytes() for path in sorted(new.iterdir())] if new.is_dir() else []
