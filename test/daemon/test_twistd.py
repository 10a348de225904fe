"""`twistd mailgate` itself: it starts, listens, refuses a bad configuration, and stops."""

import smtplib
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.daemon import IMPLICIT_TLS, LMTP, REPOSITORY, SMTP, Gateway
from support.ports import is_listening

LISTENERS = {"smtp": SMTP, "submission": SMTP, "submissions": IMPLICIT_TLS, "lmtp": LMTP}


def test_one_factory_per_listener(tmp_path, authority):
    with Gateway(tmp_path, authority, listeners=LISTENERS) as gateway:
        gateway.wait_log("server.started")
        log = gateway.log_text()
    for listener, factory in (
        ("smtp", "ESMTPFactory"),
        ("submission", "ESMTPFactory"),
        ("submissions", "ESMTPFactory"),
        ("lmtp", "LMTPFactory"),
    ):
        port = gateway.port(listener)
        assert log.count(f"{factory} starting on {port}") == 1, log
        started = [line for line in log.splitlines() if "listener.started" in line and f":{port}" in line]
        assert len(started) == 1, log
        assert f"listener={listener} " in started[0]
    assert log.count("Factory starting on") == len(LISTENERS)


def test_each_listener_greets_in_its_own_way(tmp_path, authority):
    with Gateway(tmp_path, authority, listeners=LISTENERS) as gateway:
        with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=20) as client:
            assert client.ehlo("client.test")[0] == 250
            assert client.has_extn("starttls")
        with smtplib.SMTP_SSL("localhost", gateway.port("submissions"), context=authority.client_context()) as client:
            assert client.ehlo("client.test")[0] == 250
            assert not client.has_extn("starttls")
        with socket.create_connection(("127.0.0.1", gateway.port("lmtp")), timeout=20) as plain:
            assert plain.recv(1000).startswith(b"220 mx.test ")
            plain.sendall(b"EHLO client.test\r\n")
            assert plain.recv(1000).startswith(b"500 5.5.1")


def test_mail_goes_through_to_the_maildir(tmp_path, authority):
    with Gateway(tmp_path, authority) as gateway:
        with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=20) as client:
            client.sendmail("a@client.test", ["jane@foobar.org", "john@foobar.org"], "Subject: x\r\n\r\nhi\r\n")
        for user in ("jane", "john"):
            (octets,) = gateway.wait_mail(user, "foobar.org")
            assert octets.startswith(b"Delivered-To: " + user.encode())
            assert octets.endswith(b"Subject: x\n\nhi\n")
        gateway.wait_queue_empty()


@pytest.mark.spec("IN-263")
def test_stops_within_its_grace_and_starts_again_on_the_same_ports(tmp_path, authority):
    gateway = Gateway(tmp_path, authority)
    for _ in range(2):
        gateway.start()
        with socket.create_connection(("127.0.0.1", gateway.port("smtp")), timeout=20) as idle:
            assert idle.recv(1000).startswith(b"220")
            assert gateway.stop() == 0
            assert idle.recv(1000).startswith(b"421 4.3.0")
            assert idle.recv(1000) == b""
    assert not is_listening(gateway.port("smtp"))


def test_a_bad_configuration_opens_no_port_and_tells_every_error(tmp_path, authority):
    gateway = Gateway(tmp_path, authority, changes=('[session]\ntiemout = "5m"\nduration = "nonsense"\n',))
    gateway.start(ready=False)
    assert gateway.wait_end() == 78
    log = gateway.log_text()
    assert "session.tiemout" in log
    assert "session.timeout" in log
    assert "session.duration" in log
    assert str(gateway.config) in log
    assert not is_listening(gateway.port("smtp"))
    assert not gateway.queue_path.exists()


def twistd(*arguments, cwd):
    return subprocess.run(
        [str(Path(sys.executable).with_name("twistd")), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)},
    )


def test_help_names_the_option(tmp_path):
    done = twistd("mailgate", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "--config" in done.stdout


def test_check_reads_the_configuration_and_starts_nothing(tmp_path, authority):
    gateway = Gateway(tmp_path, authority)
    done = twistd("-n", "mailgate", "--config", str(gateway.config), "--check", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    gateway.config.write_text(gateway.config.read_text() + "\n[nonsense]\nx = 1\n")
    done = twistd("-n", "mailgate", "--config", str(gateway.config), "--check", cwd=tmp_path)
    assert done.returncode == 78
    assert "nonsense" in done.stdout + done.stderr
    assert not gateway.queue_path.exists()


def test_a_second_daemon_on_one_store_refuses_to_start_and_names_the_first(tmp_path, authority):
    with Gateway(tmp_path / "one", authority) as first:
        second = Gateway(tmp_path / "two", authority, changes=(f'[store.queue]\npath = "{first.queue_path}"\n',))
        second.start(ready=False)
        assert second.wait_end() != 0
        assert str(first.pid) in second.log_text()
        assert first.is_running
