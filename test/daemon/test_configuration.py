"""What a configuration does to a whole program: a bad one ends it with nothing opened, a large one is checked."""

import socket
import subprocess
import sys

import pytest
from support.daemon import REPOSITORY, Gateway
from support.large_configuration import large

from mailgate.config.effective import all_keys
from mailgate.config.schema.settings import Settings

# Of each kind of table with a name one entry; every key below has a value that it cannot take.
TABLES = {
    "queue.virtual": "v",
    "queue.schedule": "s",
    "queue.connection": "c",
    "queue.tls": "t",
    "queue.source-ip": '"192.0.2.1"',
}
# No value of TOML is both a number, a text, a list, a table and an expression of the right type.
BAD = "1979-05-27"


def bad_keys():
    """Every key of the queue, of DNS and of reports with a value of no use: key to line of the file."""
    for key in all_keys(Settings):
        if key.startswith(("queue.", "resolver.", "report.")) and not key.startswith(("queue.route.", "queue.quota.")):
            table, _, rest = key.partition(".<id>")
            yield f"{table}.{TABLES[table]}{rest}" if rest else key
    for key in ("limits.mx", "limits.multihomed", "ip-lookup", "port", "allow-loopback"):
        yield f"queue.route.m.{key}"
    for key in (
        "address",
        "port",
        "protocol",
        "tls.implicit",
        "tls.allow-invalid-certs",
        "auth.username",
        "auth.secret",
    ):
        yield f"queue.route.r.{key}"
    for key in ("maildir", "create"):
        yield f"queue.route.l.{key}"


@pytest.mark.spec("OUT-215")
def test_an_error_in_any_key_ends_the_start_with_78_and_opens_nothing(tmp_path, authority):
    keys = list(bad_keys())
    assert len(keys) > 60
    gateway = Gateway(tmp_path, authority, base="B1")
    (tmp_path / "conf.d").mkdir()
    gateway.config.write_text(
        f"""[server.listener.smtp]
bind = "127.0.0.1:{gateway.port("smtp")}"
protocol = "smtp"
[storage]
data = "queue"
[store.queue]
type = "sqlite"
path = "{gateway.queue_path}"
[queue.route]
m.type = "mx"
r.type = "relay"
l.type = "local"
"""
    )
    bad = tmp_path / "conf.d" / "10-bad.toml"
    # Entries without a name have a number, and a header of their own.
    quota = [key.rpartition(".")[2] for key in all_keys(Settings) if key.startswith("queue.quota.")]
    keys += ["", *(f"queue.quota.0000.{name}" for name in quota)]
    lines = [f"{key} = {BAD}\n" for key in keys[: -1 - len(quota)]]
    bad.write_text("".join([*lines, "[[queue.quota]]\n", *(f"{name} = {BAD}\n" for name in quota)]))
    # Whoever opened the listener's port would fail here, and not with 78.
    with socket.create_server(("127.0.0.1", gateway.port("smtp"))):
        gateway.start(ready=False)
        assert gateway.wait_end() == 78
    lines = gateway.log_text().splitlines()
    for number, key in enumerate(keys, 1):
        if not key:
            continue
        (told,) = [line for line in lines if line.startswith(f"{bad}:{number}: {key}: ")]
        assert "; " in told, told
    assert not gateway.queue_path.exists()
    assert "starting" not in gateway.log_text()


@pytest.mark.spec("OUT-216")
def test_the_start_tells_the_errors_of_all_files(tmp_path, authority):
    gateway = Gateway(tmp_path, authority, changes=('[session]\ntiemout = "5m"\n',))
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "10-a.toml").write_text("[queue]\nlease = 'x'\n[server]\nhostname = 'second.test'\n")
    (tmp_path / "conf.d" / "20-b.toml").write_text("[queue.strategy]\nroute = \"rcpt_domian = 'x'\"\n")
    (tmp_path / "conf.d" / "30-c.toml").write_text("[queue\n")
    gateway.start(ready=False)
    assert gateway.wait_end() == 78
    log = gateway.log_text()
    for place in (
        "10-a.toml:2: queue.lease: ",
        "10-a.toml:4: server.hostname: given twice, first in ",
        "30-c.toml:1: ",
    ):
        assert f"{tmp_path}/conf.d/{place}" in log
    assert f"{tmp_path}/conf.d/20-b.toml:2: queue.strategy.route: " in log
    assert "session.tiemout: unknown key; did you mean session.timeout?" in log


def test_a_configuration_of_5000_lines_is_checked(tmp_path):
    path = tmp_path / "mailgate.toml"
    path.write_text("".join(large()))
    assert path.read_text().count("\n") >= 5000
    done = subprocess.run(
        [sys.executable, "-m", "mailgate.admin.main", "config", "check", str(path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
