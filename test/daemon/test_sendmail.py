"""Mail that programs of the host hand in: with and without the daemon, once, and only what they are allowed to."""

import json
import os
import pwd
import re
import smtplib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from support.daemon import Gateway, settle
from support.ports import wait_until
from support.sink import NextHop

from mailgate.admin.sendmail.main import main

OPEN = """
[session.auth]
must-match-sender = "listener != 'sendmail'"
"""
RELAY = """
[session.rcpt]
relay = "listener = 'sendmail'"
[queue.strategy]
route = [ {{ if = "is_local_domain('*', rcpt_domain)", then = "'local'" }}, {{ else = "'hop'" }} ]
[queue.route.hop]
type = "relay"
address = "127.0.0.1"
port = {port}
tls.implicit = false
"""
MESSAGE = b"Subject: hello\n\nbody\n.\nnot any more\n"


def sendmail(gateway, *arguments, text=MESSAGE, **environment):
    """Run the program; its exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "mailgate.admin.sendmail.main", *arguments],
        input=text,
        env=gateway.environment() | environment,
        capture_output=True,
        timeout=60,
    )
    return done.returncode


def dropped(gateway):
    """The drops that wait."""
    own = {"wake", ".lock", ".aside"}
    return sorted(name for name in os.listdir(gateway.directory / "maildrop") if name not in own)


def test_a_running_daemon_takes_it_at_once(tmp_path):
    with Gateway(tmp_path, changes=(OPEN, '[queue]\npoll = "1h"')) as gateway:
        gateway.wait_log("server.started")
        assert sendmail(gateway, "-f", "joe@sender.test", "john@foobar.org") == 0
        (octets,) = gateway.wait_mail("john", "foobar.org")
    assert b"\r\nSubject: hello\r\n" in octets.replace(b"\n", b"\r\n").replace(b"\r\r", b"\r")
    assert b"not any more" not in octets
    assert dropped(gateway) == []
    assert "listener=sendmail" in gateway.log_text()


@pytest.mark.spec("OUT-281")
def test_mail_waits_for_the_daemon_and_is_delivered_once(tmp_path):
    gateway = Gateway(tmp_path, changes=(OPEN,))
    with gateway:
        gateway.wait_log("server.started")
    assert sendmail(gateway, "john@foobar.org", text=b"Subject: while down\n\nx\n") == 0
    assert len(dropped(gateway)) == 1
    with gateway:
        gateway.wait_mail("john", "foobar.org")
        gateway.wait_queue_empty()
        settle()
        assert len(gateway.maildir("john", "foobar.org")) == 1
    assert dropped(gateway) == []


@pytest.mark.spec("OUT-281")
def test_a_crash_between_commit_and_removal_makes_no_second_message(tmp_path):
    gateway = Gateway(tmp_path, changes=(OPEN,))
    with gateway:
        gateway.wait_log("server.started")
    assert sendmail(gateway, "john@foobar.org", "nobody@foobar.org") == 0
    environment = gateway.environment
    gateway.environment = lambda: environment() | {"MAILGATE_CRASH": "T2"}
    gateway.start(ready=False)
    assert gateway.wait_end(60) < 0
    (tmp_path / "twistd.pid").unlink(missing_ok=True)
    assert len(dropped(gateway)) == 1
    gateway.environment = environment
    with gateway:
        wait_until(lambda: dropped(gateway) == [], 20, "an empty maildrop")
        gateway.wait_queue_empty()
        settle()
    mail = gateway.maildir("john", "foobar.org")
    assert len(mail) == 1
    assert gateway.log_text().count("queue.queue-message-authenticated") == 1


@pytest.mark.spec("OUT-281")
def test_a_program_killed_after_the_rename_has_handed_it_in(tmp_path):
    gateway = Gateway(tmp_path, changes=(OPEN,))
    with gateway:
        gateway.wait_log("server.started")
    assert sendmail(gateway, "john@foobar.org", MAILGATE_CRASH="T1") < 0
    assert len(dropped(gateway)) == 1
    with gateway:
        gateway.wait_mail("john", "foobar.org")


def test_kill_9_between_any_two_steps_neither_loses_nor_doubles(tmp_path):
    gateway = Gateway(tmp_path, changes=(OPEN,))
    gateway.start()
    gateway.wait_log("server.started")
    for number in range(40):
        assert sendmail(gateway, "john@foobar.org", text=b"Subject: number %d\n\nx\n" % number) == 0
        if number % 8 == 5:
            gateway.kill()
            gateway.start()
    try:
        gateway.wait_mail("john", "foobar.org", 40, seconds=60)
        wait_until(lambda: dropped(gateway) == [], 20, "an empty maildrop")
        gateway.wait_queue_empty(20)
    finally:
        gateway.stop()
    numbers = [re.search(rb"number ([0-9]+)", octets)[1] for octets in gateway.maildir("john", "foobar.org")]
    assert sorted(map(int, numbers)) == list(range(40))


def test_a_message_larger_than_the_memory_it_may_take(tmp_path):
    with Gateway(tmp_path, changes=(OPEN,)) as gateway:
        gateway.wait_log("server.started")
        sendmail(gateway, "john@foobar.org")
        gateway.wait_mail("john", "foobar.org")
        before = gateway.peak_octets()
        line = b"x" * 75 + b"\n"
        assert sendmail(gateway, "-i", "john@foobar.org", text=b"Subject: big\n\n" + line * 400_000) == 0
        gateway.wait_mail("john", "foobar.org", 2, seconds=60)
        assert gateway.peak_octets() - before < 16 * 1024 * 1024


def test_refused_mail_comes_back(tmp_path):
    with Gateway(tmp_path, changes=(OPEN,)) as gateway:
        gateway.wait_log("server.started")
        assert sendmail(gateway, "-f", "john@foobar.org", "nobody@foobar.org") == 0
        (octets,) = gateway.wait_mail("john", "foobar.org")
    assert b"multipart/report" in octets
    assert b"nobody@foobar.org" in octets
    assert dropped(gateway) == []


def test_mailq_and_the_retry_of_sendmail(tmp_path):
    with NextHop(replies={"MAIL": ["450 4.2.0 not now"]}) as hop:
        gateway = Gateway(tmp_path, changes=(OPEN, RELAY.format(port=hop.port)))
        with gateway:
            gateway.wait_log("server.started")
            assert sendmail(gateway, "x@relay.test") == 0
            gateway.wait_log("delivery.mail-from-rejected")
            wait_until(lambda: any(row.state == "temp_fail" for row in gateway.queue()), 20, "a delay")
        command = [sys.executable, "-m", "mailgate.admin.sendmail.main", "-bp"]
        listed = subprocess.run(command, env=gateway.environment(), capture_output=True, text=True, timeout=60)
        assert listed.returncode == 0
        assert "x@relay.test" in listed.stdout
        assert "450" in listed.stdout
        command = [sys.executable, "-m", "mailgate.admin.mailq", "-j"]
        (line,) = subprocess.run(command, env=gateway.environment(), capture_output=True, text=True).stdout.splitlines()
        assert json.loads(line)["queue_name"] == "deferred"


# --- other users ------------------------------------------------------------------


@pytest.fixture
def public():
    """A directory every user can reach."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def as_nobody(call):
    """Run a call as another user; its exit status."""
    nobody = pwd.getpwnam("nobody")
    child = os.fork()
    if not child:
        status = 99
        try:
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            os.umask(0o077)
            status = call()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def hand_in(config, *arguments, text=b"Subject: hello\n\nbody\n"):
    """The program inside a process that is somebody else already."""

    def call():
        read, write = os.pipe()
        os.write(write, text)
        os.close(write)
        os.dup2(read, 0)
        os.environ["MAILGATE_CONFIG"] = str(config)
        return main(arguments)

    return call


@pytest.fixture
def for_all(public):
    if os.geteuid() != 0:
        pytest.skip("needs root: it changes to another user")
    gateway = Gateway(public / "gateway")
    gateway.config.chmod(0o644)
    with gateway:
        gateway.wait_log("server.started")
        yield gateway


def test_any_user_may_hand_in_and_is_who_he_is(for_all):
    assert as_nobody(hand_in(for_all.config, "john@foobar.org")) == 0
    (octets,) = for_all.wait_mail("john", "foobar.org")
    assert b"<nobody@mx.test>" in octets
    assert "from=nobody@mx.test" in for_all.log_text()


def test_nobody_else_can_read_or_take_away_what_was_handed_in(for_all):
    for_all.stop()
    assert sendmail(for_all, "john@foobar.org") == 0
    (name,) = dropped(for_all)
    path = for_all.directory / "maildrop" / name

    def attack():
        for number, attempt in enumerate(
            (
                lambda: path.read_bytes(),
                lambda: path.unlink(),
                lambda: path.rename(path.with_name("stolen")),
                lambda: path.write_bytes(b""),
                lambda: (path.parent / ".lock").read_bytes(),
                lambda: os.listdir(path.parent / ".aside"),
                lambda: (path.parent / "wake").unlink(),
            )
        ):
            try:
                attempt()
            except PermissionError:
                continue
            return 10 + number
        return 0

    assert as_nobody(attack) == 0
    for_all.start()
    for_all.wait_mail("john", "foobar.org")


def test_what_users_put_there_never_shows_anybody_elses_file(for_all):
    secret = for_all.directory / "secret"
    secret.write_bytes(b"Subject: secret\r\n\r\ntop secret\r\n")
    secret.chmod(0o600)
    directory = for_all.directory / "maildrop"
    now = time.time_ns() // 1_000_000

    def plant():
        names = iter(f"{now:012x}-{number:024x}" for number in range(10))
        (directory / next(names)).symlink_to(secret)
        os.mkfifo(directory / next(names))
        (directory / next(names)).mkdir()
        (directory / next(names)).write_bytes(b"torn")
        (directory / "evil").write_bytes(b"x")
        (directory / "..evil").symlink_to("/etc/passwd")
        unreadable = directory / next(names)
        unreadable.write_bytes(b"x")
        unreadable.chmod(0)
        return 0

    assert as_nobody(plant) == 0
    assert as_nobody(hand_in(for_all.config, "john@foobar.org")) == 0
    for_all.wait_mail("john", "foobar.org")
    wait_until(lambda: len(dropped(for_all)) == 0, 20, "an empty maildrop")
    assert for_all.is_running
    assert all(b"secret" not in path.read_bytes() for path in for_all.all_mail())
    assert for_all.log_text().count("maildrop.set-aside") == 7
    with smtplib.SMTP("127.0.0.1", for_all.port("smtp"), timeout=20) as client:
        assert client.noop()[0] == 250
