"""Exim and OpenSMTPD, unpacked and not installed, with files of their own on free loopback ports.

Both have to be started by root. OpenSMTPD's paths are compiled in: it runs in a
mount namespace of its own, where /var and /run are empty.
"""

from __future__ import annotations

import shutil
import signal
import subprocess

from support import needs
from support.ca import Authority
from support.peers import open_folder
from support.ports import free_port, is_listening, wait_until

_EXIM = """
exim_path = {program}
spool_directory = {folder}/spool
log_file_path = {folder}/log/%slog
pid_file_path = {folder}/exim.pid
primary_hostname = exim.lab.example
local_interfaces = 127.0.0.1
daemon_smtp_ports = {smtp} : {smtps}
tls_on_connect_ports = {smtps}
tls_advertise_hosts = *
tls_certificate = {cert}
tls_privatekey = {key}
chunking_advertise_hosts = *
smtputf8_advertise_hosts = *
dsn_advertise_hosts = *
host_lookup =
keep_environment =
never_users =
acl_smtp_mail = acl_mail
acl_smtp_rcpt = acl_rcpt
acl_smtp_data = acl_data
message_size_limit = 20M
begin acl
acl_mail:
  deny   condition = ${{if match{{$sender_address}}{{^in@}}{{${{if def:authenticated_id{{no}}{{yes}}}}}}{{no}}}}
         message = 5.7.0 log in
  accept
acl_rcpt:
  defer  local_parts = defer
         message = 4.3.0 try again
  deny   local_parts = deny
         message = 5.7.1 refused
  accept domains = exim.lab.example
  deny   message = relay not permitted
acl_data:
  deny   condition = ${{if match{{$rh_subject:}}{{rejectme}}}}
         message = 5.7.1 content refused
  accept
begin routers
loc:
  driver = accept
  domains = exim.lab.example
  transport = maildir
begin transports
maildir:
  driver = appendfile
  directory = {folder}/mail/all
  maildir_format
  batch_max = 100
  user = Debian-exim
  envelope_to_add
  return_path_add
begin retry
* * F,1h,1m
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{alice}}}}{{eq{{$auth3}}{{secret1}}}}}}}}
  server_set_id = $auth2
"""


class Exim:
    """Exim takes mail for `exim.lab.example` into one Maildir.

    It puts off `defer@`, refuses `deny@` and a subject with `rejectme`, and takes mail from `in@...` only from who has
    logged in as `alice` with `secret1`. `ports`: `smtp` (STARTTLS offered), `smtps` (implicit TLS).
    """

    def __init__(self, authority: Authority) -> None:
        needs.root()
        self._program = needs.unpacked("exim") / "usr/sbin/exim4"
        self.folder = open_folder("mgex")
        self.ports = {name: free_port() for name in ("smtp", "smtps")}
        self.mail = self.folder / "mail"
        for name in ("spool", "log", "mail"):
            (self.folder / name).mkdir()
            shutil.chown(self.folder / name, "Debian-exim", "Debian-exim")
        certificate = authority.issue("localhost", "127.0.0.1", "::1")
        cert, key = self.folder / "cert.pem", self.folder / "key.pem"
        shutil.copy(certificate.cert, cert)
        shutil.copy(certificate.key, key)
        key.chmod(0o644)
        self._config = self.folder / "exim.conf"
        self._config.write_text(
            _EXIM.format(program=self._program, folder=self.folder, cert=cert, key=key, **self.ports),
            encoding="ascii",
        )
        self._config.chmod(0o644)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemon in the foreground and wait for its ports."""
        with open(self.folder / "out", "ab") as out:
            self._process = subprocess.Popen(
                [self._program, "-C", self._config, "-bdf", "-q1m"], stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )

        def up() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, f"Exim ended:\n{self.log_text()}"
            return all(is_listening(port) for port in self.ports.values())

        wait_until(up, 10, "Exim's ports")

    def stop(self) -> None:
        """Stop the daemon and remove its files."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def log_text(self) -> str:
        """What Exim has to say."""
        return "".join(
            path.read_text(encoding="utf-8", errors="replace")
            for path in (self.folder / "out", self.folder / "log/mainlog", self.folder / "log/paniclog")
            if path.exists()
        )

    def messages(self) -> list[bytes]:
        """All that was delivered."""
        new = self.mail / "all/new"
        return [path.read_bytes() for path in sorted(new.iterdir())] if new.is_dir() else []


_SMTPD = """
pki lab cert "{cert}"
pki lab key "{key}"
table vusers {{ "@" = "nobody" }}
listen on 127.0.0.1 port {plain} hostname smtpd.lab.example
listen on 127.0.0.1 port {tls} tls pki lab hostname smtpd.lab.example
action "keep" maildir "{mail}/%{{rcpt.user}}" virtual <vusers>
match from any for domain "smtpd.lab.example" action "keep"
"""

_SMTPD_START = """
set -e
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var
mkdir -p /var/spool/smtpd /var/lib/opensmtpd/empty /var/tmp /usr/libexec
ln -s /run /var/run
chmod 711 /var/spool/smtpd
mount --bind {root}/usr/libexec /usr/libexec
exec {root}/usr/sbin/smtpd -d -v -f {config}
"""


class OpenSmtpd:
    """OpenSMTPD takes mail for `smtpd.lab.example`, a Maildir for each user.

    `ports`: `plain`, and `tls`, which offers a STARTTLS that the build of Debian 12 cannot complete.
    """

    def __init__(self, authority: Authority) -> None:
        needs.root()
        source = needs.unpacked("opensmtpd")
        self.folder = open_folder("mgos")
        # Its own /var is empty, and the package may be unpacked below the other one.
        root = self.folder / "root"
        shutil.copytree(source, root, symlinks=True)
        self.ports = {name: free_port() for name in ("plain", "tls")}
        self.mail = self.folder / "mail"
        self.mail.mkdir()
        self.mail.chmod(0o777)
        certificate = authority.issue("localhost", "127.0.0.1", "::1")
        cert, key = self.folder / "cert.pem", self.folder / "key.pem"
        shutil.copy(certificate.cert, cert)
        shutil.copy(certificate.key, key)
        key.chmod(0o600)
        config = self.folder / "smtpd.conf"
        config.write_text(_SMTPD.format(cert=cert, key=key, mail=self.mail, **self.ports), encoding="ascii")
        config.chmod(0o600)
        self._start = self.folder / "start.sh"
        self._start.write_text(_SMTPD_START.format(root=root, config=config), encoding="ascii")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it in a mount namespace and wait for its ports."""
        unshare = needs.program("unshare")
        with open(self.folder / "out", "ab") as out:
            self._process = subprocess.Popen(
                [unshare, "-m", "--propagation", "private", "sh", self._start],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

        def up() -> bool:
            assert self._process is not None
            if self._process.poll() is not None:
                needs.missing(f"OpenSMTPD does not start here: {self.log_text()}")
            return all(is_listening(port) for port in self.ports.values())

        wait_until(up, 10, "OpenSMTPD's ports")

    def stop(self) -> None:
        """Stop it and remove its files."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def log_text(self) -> str:
        """What it has to say."""
        out = self.folder / "out"
        return out.read_text(encoding="utf-8", errors="replace") if out.exists() else ""

    def mailbox(self, user: str) -> list[bytes]:
        """The messages of a user."""
        new = self.mail / user / "new"
        return [path.read_bytes() for path in sorted(new.iterdir())] if new.is_dir() else []
