"""`twistd mailgate` in the background, and what is left when it cannot start."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.daemon import Gateway
from support.ports import is_listening, wait_until

TWISTD = str(Path(sys.executable).with_name("twistd"))


def in_background(gateway, *options):
    return subprocess.run(
        [TWISTD, f"--pidfile={gateway.directory / 'twistd.pid'}", *options, "mailgate", "--config", gateway.config],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=gateway.directory,
        env=gateway.environment(),
    )


@pytest.mark.parametrize("named", [False, True])
def test_it_writes_its_log_and_pid_file_and_goes(tmp_path, authority, named):
    gateway = Gateway(tmp_path, authority)
    log = tmp_path / ("mail.log" if named else "twistd.log")
    options = [f"--logfile={log}"] if named else []
    done = in_background(gateway, *options)
    pid_file = tmp_path / "twistd.pid"
    assert done.returncode == 0, done.stdout + done.stderr
    pid = int(pid_file.read_text())
    try:
        wait_until(lambda: " info server.started " in log.read_text(), 20, "its start")
        assert is_listening(gateway.port("smtp"))
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not pid_file.exists(), 20, "the end of the daemon")
    assert " info server.stopped" in log.read_text()
    assert not is_listening(gateway.port("smtp"))


def test_an_address_in_use_is_told_and_leaves_no_pid_file(tmp_path, authority):
    gateway = Gateway(tmp_path, authority)
    with socket.create_server(("127.0.0.1", gateway.port("smtp"))):
        done = in_background(gateway)
        assert done.returncode == 1
        assert f"127.0.0.1:{gateway.port('smtp')}" in (tmp_path / "twistd.log").read_text()
        # twistd tells its parent first and tidies up after that.
        wait_until(lambda: not (tmp_path / "twistd.pid").exists(), 20, "the pid file to go")
        done = in_background(gateway, "-n")
        assert done.returncode == 69
        assert f"cannot listen on 127.0.0.1:{gateway.port('smtp')}" in done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert not (tmp_path / "twistd.pid").exists()


def test_a_stop_while_it_starts_is_a_stop(tmp_path, authority):
    gateway = Gateway(tmp_path, authority)
    gateway.start(ready=False)
    wait_until(lambda: (tmp_path / "twistd.pid").exists(), 20, "a pid file")
    assert gateway.stop() == 0
    assert not (tmp_path / "twistd.pid").exists()
    assert "Traceback" not in gateway.log_text()
    with gateway:
        gateway.wait_log("server.started")
