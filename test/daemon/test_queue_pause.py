"""`mailgate queue pause` and `resume` against a running gateway."""

import contextlib
import getpass
import json

import pytest
from support.client import Client
from support.command import command
from support.daemon import Gateway, settle
from support.ports import wait_until


def asked(gateway, *arguments, status=0):
    done = command(gateway.config, "queue", *arguments, "--json")
    assert done.returncode == status, (done.stdout, done.stderr)
    return json.loads(done.stdout)


def send(gateway):
    with Client(gateway) as client:
        client.to_data()
        assert client.say(b"Subject: x\r\n\r\nhi\r\n.\r\n").startswith(b"250 2.0.0")


@contextlib.contextmanager
def running(gateway):
    """The gateway, once it takes commands: its ports are open earlier."""
    with gateway:
        wait_until((gateway.directory / "control.sock").exists, 20, "the control socket")
        yield


@pytest.mark.spec("OUT-027", "OUT-269")
def test_while_paused_mail_is_taken_and_none_is_delivered(tmp_path, authority):
    gateway = Gateway(tmp_path, authority, changes=('[queue]\npoll = "1h"\n',))
    with running(gateway):
        assert asked(gateway, "pause", "--reason", "upgrade") == {"previous": True, "running": False}
        send(gateway)
        settle(0.5)
        assert gateway.all_mail() == []
        assert asked(gateway, "list")["running"] is False
        status = asked(gateway, "status")
        assert (status["running"], status["daemon"]) == (False, True)
        assert sum(each["scheduled"] for each in status["queues"].values()) == 1
        assert asked(gateway, "pause") == {"previous": False, "running": False}
        # Two flags: both must be gone. The poll is an hour away.
        assert asked(gateway, "pause", "--cluster") == {"previous": False, "running": False}
        done = command(gateway.config, "queue", "resume")
        assert done.stdout == "was paused, is paused (cluster)\n"
        settle(0.5)
        assert gateway.all_mail() == []
        assert asked(gateway, "resume", "--cluster") == {"previous": False, "running": True}
        gateway.wait_mail("jane", "foobar.org")
        gateway.wait_queue_empty()
        assert asked(gateway, "resume") == {"previous": True, "running": True}
        log = gateway.log_text()
        assert f"queue.operator action=pause actor={getpass.getuser()} reason=upgrade scope=node" in log
        assert "queue.operator action=resume" in log


def test_a_restart_ends_the_pause_of_the_node_and_not_that_of_the_cluster(tmp_path, authority):
    gateway = Gateway(tmp_path, authority)
    with running(gateway):
        asked(gateway, "pause")
        asked(gateway, "pause", "--cluster", "--reason", "a move")
        send(gateway)
    assert asked(gateway, "list")["running"] is False
    with running(gateway):
        settle(0.5)
        assert gateway.all_mail() == []
        text = command(gateway.config, "queue", "status").stdout
        assert "Paused for the cluster since" in text
        assert f"by {getpass.getuser()}: a move" in text
        assert "for the node" not in text
        asked(gateway, "resume", "--cluster")
        gateway.wait_mail("jane", "foobar.org")
        asked(gateway, "pause")
    assert asked(gateway, "status")["running"] is True
    done = command(gateway.config, "queue", "pause", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (69, 69)
