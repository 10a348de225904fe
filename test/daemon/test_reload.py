"""A running gateway takes another configuration: nothing is dropped, and a bad one changes nothing (I7)."""

import contextlib
import json
import os
import signal
import smtplib
import socket
import stat
import threading
import time
import tomllib

import pytest
from support.baseline import merged
from support.daemon import LMTP, SMTP, Gateway
from support.ports import free_port, is_listening, wait_until
from support.sink import HELD, NextHop

from mailgate.config.write import toml_text

RELAY = """
[session.rcpt]
relay = true
[queue.strategy]
route = "'hop'"
[queue.route.hop]
type = "relay"
address = "127.0.0.1"
tls.implicit = false
"""


def rewrite(gateway, toml):
    """Change the configuration file; tables are merged, other values replaced."""
    tree = merged(tomllib.loads(gateway.config.read_text()), tomllib.loads(toml))
    gateway.config.write_text(toml_text(tree))


def reload(gateway, toml=""):
    """Change the file and have it read; the exit status and what was printed."""
    rewrite(gateway, toml)
    done = gateway.command("reload")
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def status(gateway):
    done = gateway.command("status", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


class Client:
    """A session that goes on while the configuration changes."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.lines = self.socket.makefile("rb")
        self.greeting = self.lines.readline()

    def say(self, line):
        """The whole reply to a command."""
        self.socket.sendall(line + b"\r\n")
        reply = self.lines.readline()
        while reply.splitlines()[-1][3:4] == b"-":
            reply += self.lines.readline()
        return reply

    def send_mail(self, subject):
        for line in (b"MAIL FROM:<a@client.test>", b"RCPT TO:<jane@foobar.org>"):
            assert self.say(line).startswith(b"250")
        assert self.say(b"DATA").startswith(b"354")
        return self.say(b"Subject: " + subject + b"\r\n\r\nhi\r\n.")

    def close(self):
        self.lines.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.mark.spec("IN-034")
def test_new_sessions_get_the_new_rules_and_old_ones_keep_theirs_to_the_end(tmp_path, authority):
    first = "[session.connect]\ngreeting = \"'first'\"\n[session.data.limits]\nsize = 1000000\n"
    with Gateway(tmp_path, authority, changes=(first,)) as gateway, Client(gateway.port("smtp")) as old:
        assert b"first" in old.greeting
        second = "[session.connect]\ngreeting = \"'second'\"\n[session.data.limits]\nsize = 2000\n"
        assert reload(gateway, second) == (0, "generation 2 is in use\n")
        with Client(gateway.port("smtp")) as new:
            assert b"second" in new.greeting
            assert b"SIZE 2000\r\n" in new.say(b"EHLO client.test")
        assert b"SIZE 1000000\r\n" in old.say(b"EHLO client.test")
        assert old.send_mail(b"x" * 5000).startswith(b"250 2.0.0")
        gateway.wait_mail("jane", "foobar.org")
        assert "config.reloaded generation=2" in gateway.log_text()
        assert f"control.command command=reload uid={os.getuid()} pid=" in gateway.log_text()


@pytest.mark.spec("IN-033")
def test_a_broken_file_is_refused_and_nothing_changes(tmp_path, authority):
    with Gateway(tmp_path, authority, changes=("[session.connect]\ngreeting = \"'first'\"\n",)) as gateway:
        with Client(gateway.port("smtp")) as old:
            broken = (
                "[session]\ntiemout = '5m'\n[session.connect]\ngreeting = \"'second'\"\n"
                "[session.data.limits]\nsize = 2000\n[session.ehlo]\nrequire = 'nosuch'\n"
            )
            code, told = reload(gateway, broken)
            assert code == 78
            assert "session.tiemout" in told
            assert "session.ehlo.require" in told
            refused = [line for line in gateway.log_text().splitlines() if " error config.refused " in line]
            assert len(refused) == len(told.splitlines()) == 2
            assert "session.tiemout" in refused[0] + refused[1]
            assert old.say(b"EHLO client.test").startswith(b"250")
            assert old.send_mail(b"old").startswith(b"250 2.0.0")
            with Client(gateway.port("smtp")) as new:
                assert b"first" in new.greeting
                assert b"SIZE 2000\r\n" not in new.say(b"EHLO client.test")
                assert new.send_mail(b"new").startswith(b"250 2.0.0")
        gateway.wait_mail("jane", "foobar.org", 2)
        assert status(gateway)["generation"] == 1
        gateway.config.write_text(gateway.config.read_text() + "\n[server\n")
        done = gateway.command("reload")
        assert done.returncode == 78
        assert done.stdout.startswith(str(gateway.config))
        assert gateway.log_text().count(" error config.refused ") == 3


def test_what_cannot_be_built_is_refused_too(tmp_path, authority):
    with Gateway(tmp_path, authority) as gateway:
        file = tmp_path / "networks"
        file.write_bytes(b"(\n")
        code, told = reload(gateway, f'[store.bad]\ntype = "memory"\nformat = "regex"\nvalues = ["file://{file}"]\n')
        assert code == 78
        assert str(file) in told
        assert "config.refused" in gateway.log_text()
        assert status(gateway)["generation"] == 1


@pytest.mark.spec("OUT-217")
def test_delivery_goes_on_with_the_old_values_when_the_new_ones_are_refused(tmp_path, authority):
    old = "[queue.connection.default]\nehlo-hostname = 'old.test'\n"
    with (
        NextHop(replies={"MAIL": [HELD]}) as hop,
        Gateway(tmp_path, authority, changes=(RELAY, f"[queue.route.hop]\nport = {hop.port}\n", old)) as gateway,
    ):
        with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=20) as client:
            client.sendmail("a@client.test", "one@relay.test", "Subject: 1\r\n\r\n")
            assert hop.held.acquire(timeout=20)
            code, told = reload(gateway, "[queue.connection.default]\nehlo-hostname = 'new.test'\nnosuch = 1\n")
            assert code == 78
            assert "queue.connection.default.nosuch" in told
            assert "config.refused" in gateway.log_text()
            client.sendmail("a@client.test", "two@relay.test", "Subject: 2\r\n\r\n")
            hop.release()
        hop.wait_messages(2)
        assert {line for each in hop.dialogues for line in each.commands if "EHLO" in line} == {"EHLO old.test"}
        gateway.wait_queue_empty()


@pytest.mark.spec("OUT-010")
def test_more_attempts_at_once_by_reload_and_fewer(tmp_path, authority):
    def threads(count):
        return f"[queue.virtual.remote]\nthreads-per-node = {count}\n"

    with (
        NextHop(replies={"MAIL": [HELD]}) as hop,
        Gateway(tmp_path, authority, changes=(RELAY, f"[queue.route.hop]\nport = {hop.port}\n", threads(1))) as gateway,
    ):
        with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=20) as client:
            for number in range(4):
                client.sendmail("a@client.test", f"{number}@relay.test", "Subject: x\r\n\r\n")
        assert hop.held.acquire(timeout=20)
        assert not hop.held.acquire(timeout=0.3)
        assert status(gateway)["attempts"] == 1
        assert reload(gateway, threads(3))[0] == 0
        assert hop.held.acquire(timeout=20)
        assert hop.held.acquire(timeout=20)
        assert not hop.held.acquire(timeout=0.3)
        assert reload(gateway, threads(1))[0] == 0
        assert status(gateway)["attempts"] == 3
        hop.release()
        hop.wait_messages(4)
        gateway.wait_queue_empty()


def test_no_session_and_no_message_is_dropped_by_reloads_under_load(tmp_path, authority):
    extra = free_port()
    changes = ("[session]\ntransfer-limit = '1gb'\n[session.data.limits]\nmessages = 100000\n",)
    with Gateway(tmp_path, authority, changes=changes, listeners={"smtp": SMTP, "lmtp": LMTP}) as gateway:
        gateway.wait_log("server.started")
        accepted, faults, done = [], [], threading.Event()

        def kept(name):
            """One session to the end."""
            try:
                with Client(gateway.port("smtp")) as client:
                    assert client.say(b"EHLO client.test").startswith(b"250")
                    number = 0
                    while not done.is_set():
                        number += 1
                        subject = b"%s-%d" % (name, number)
                        assert client.send_mail(subject).startswith(b"250 2.0.0")
                        accepted.append(subject)
                    assert client.say(b"QUIT").startswith(b"221")
            except (OSError, AssertionError, IndexError) as fault:
                faults.append(fault)

        def coming(name):
            """A session for each message."""
            try:
                number = 0
                while not done.is_set():
                    number += 1
                    with Client(gateway.port("smtp")) as client:
                        assert client.say(b"EHLO client.test").startswith(b"250")
                        subject = b"%s-%d" % (name, number)
                        assert client.send_mail(subject).startswith(b"250 2.0.0")
                        accepted.append(subject)
            except (OSError, AssertionError, IndexError) as fault:
                faults.append(fault)

        clients = [threading.Thread(target=kept, args=(b"kept%d" % n,)) for n in range(3)]
        clients += [threading.Thread(target=coming, args=(b"coming%d" % n,)) for n in range(2)]
        for each in clients:
            each.start()
        before = gateway.config.read_text()
        for number in range(2, 8):
            if number % 2 == 0:
                rewrite(
                    gateway,
                    f"[server.listener.more]\nbind = '127.0.0.1:{extra}'\nprotocol = 'smtp'\n"
                    f"[session.connect]\ngreeting = \"'{number}'\"\n[queue.virtual.local]\nthreads-per-node = 2\n",
                )
            else:
                gateway.config.write_text(before)
            os.kill(gateway.pid, signal.SIGHUP)
            gateway.wait_log(f"config.reloaded generation={number} by=SIGHUP")
            # Twisted closes a port in its next turn, which may come a moment after the word in the log.
            wait_until(lambda number=number: is_listening(extra) == (number % 2 == 0), 5, "the listener to come or go")
        count = len(accepted)
        wait_until(lambda: len(accepted) > count + 20 or faults, 20, "messages after the last reload")
        done.set()
        for each in clients:
            each.join(30)
        assert not faults, faults
        gateway.wait_queue_empty()
        found = [
            octets.partition(b"Subject: ")[2].partition(b"\n")[0] for octets in gateway.maildir("jane", "foobar.org")
        ]
        assert sorted(found) == sorted(accepted)
        assert "Traceback" not in gateway.log_text()
        assert not [line for line in gateway.log_text().splitlines() if " error " in line]


def test_sighup_reads_the_file_again_and_a_broken_one_changes_nothing(tmp_path, authority):
    with Gateway(tmp_path, authority) as gateway:
        gateway.wait_log("server.started")
        rewrite(gateway, "[session.connect]\ngreeting = \"'second'\"\n")
        os.kill(gateway.pid, signal.SIGHUP)
        gateway.wait_log("config.reloaded generation=2 by=SIGHUP")
        rewrite(gateway, "[session.connect]\ngreeting = \"'third'\"\nnosuch = 1\n")
        os.kill(gateway.pid, signal.SIGHUP)
        gateway.wait_log("session.connect.nosuch")
        assert "by=SIGHUP" in next(line for line in gateway.log_text().splitlines() if "config.refused" in line)
        with Client(gateway.port("smtp")) as client:
            assert b"second" in client.greeting
        assert gateway.is_running


def test_addresses_come_go_and_change_hands(tmp_path, authority):
    with Gateway(tmp_path, authority, listeners={"smtp": SMTP, "submission": SMTP}) as gateway:
        gateway.wait_log("server.started")
        smtp, submission, third = gateway.port("smtp"), gateway.port("submission"), free_port()
        with Client(submission) as old:
            # The other listener takes this one's address, and gets one more.
            tree = tomllib.loads(gateway.config.read_text())
            del tree["server"]["listener"]["submission"]
            tree["server"]["listener"]["smtp"]["bind"] = [f"127.0.0.1:{submission}", f"127.0.0.1:{third}"]
            gateway.config.write_text(toml_text(tree))
            assert reload(gateway)[0] == 0
            wait_until(lambda: not is_listening(smtp), 5, "a closed port")
            with Client(submission) as one, Client(third) as two:
                assert one.greeting.startswith(b"220")
                assert two.greeting.startswith(b"220")
                told = {each["id"]: each for each in status(gateway)["listeners"]}
                assert told["smtp"]["connections"] == 2
                assert told["smtp"]["addresses"] == [f"127.0.0.1:{submission}", f"127.0.0.1:{third}"]
                assert told["submission"] == {
                    "id": "submission",
                    "protocol": "smtp",
                    "addresses": [],
                    "connections": 1,
                }
            assert old.say(b"EHLO client.test").startswith(b"250")
            assert gateway.stop() == 0
            assert old.lines.readline().startswith(b"421")


def test_an_address_that_cannot_be_opened_refuses_the_reload(tmp_path, authority):
    with Gateway(tmp_path, authority) as gateway, socket.create_server(("127.0.0.1", 0)) as taken:
        port, free = taken.getsockname()[1], free_port()
        code, told = reload(
            gateway,
            f"[server.listener.one]\nprotocol = 'smtp'\nbind = ['127.0.0.1:{free}', '127.0.0.1:{port}']\n"
            "[session.connect]\ngreeting = \"'second'\"\n",
        )
        assert code == 78
        assert f"server.listener.one.bind: cannot listen on 127.0.0.1:{port}" in told
        wait_until(lambda: not is_listening(free), 5, "the port that could be opened to be closed")
        with Client(gateway.port("smtp")) as client:
            assert b"second" not in client.greeting
        assert [each["id"] for each in status(gateway)["listeners"]] == ["smtp"]


def test_what_needs_a_restart_says_so_by_its_key(tmp_path, authority):
    with Gateway(tmp_path, authority) as gateway:
        (tmp_path / "elsewhere").mkdir()
        elsewhere = tmp_path / "elsewhere"
        code, told = reload(
            gateway,
            f"[store.queue]\npath = '{elsewhere}/queue.sqlite'\n[queue]\nlease = '2m'\n"
            f"[decisions]\npath = '{elsewhere}/decisions'\n[server.socket]\nbacklog = 7\n",
        )
        assert code == 78
        keys = [line.split(": ")[1] for line in told.splitlines()]
        assert sorted(keys) == [
            "decisions.path",
            "queue.lease",
            "queue.maildrop",
            "queue.spool",
            "server.listener.smtp.socket.backlog",
            "store.queue.path",
        ]
        assert all("restart" in line for line in told.splitlines())
        assert not list(elsewhere.iterdir())
        code, told = reload(gateway, f"[management]\nsocket = '{elsewhere}/other.sock'\n")
        # The file names a socket nobody serves yet: the signal still reaches the daemon.
        assert code == 69
        os.kill(gateway.pid, signal.SIGHUP)
        gateway.wait_log("management.socket: changed")


def test_a_new_certificate_is_shown_to_new_connections(tmp_path, authority):
    with Gateway(tmp_path, authority, listeners={"submissions": 'protocol = "smtp"\ntls.implicit = true\n'}) as gateway:
        port = gateway.port("submissions")

        def shown():
            context = authority.client_context()
            context.check_hostname = False
            with smtplib.SMTP_SSL("127.0.0.1", port, context=context, timeout=20) as client:
                return {value for kind, value in client.sock.getpeercert()["subjectAltName"] if kind == "DNS"}

        assert "mx.test" in shown()
        other = authority.issue("other.test")
        new = f'cert = "%{{file:{other.cert}}}%"\nprivate-key = "%{{file:{other.key}}}%"\n'
        assert reload(gateway, f"[certificate.test]\n{new}")[0] == 0
        assert shown() == {"other.test"}


def test_recorded_decisions_can_be_switched_off_and_on(tmp_path, authority):
    with Gateway(tmp_path, authority, changes=("[decisions]\nenable = false\n",)) as gateway:

        def told(subject):
            with Client(gateway.port("smtp")) as client:
                client.say(b"EHLO client.test")
                client.send_mail(subject)
            time.sleep(0.5)
            return gateway.command("explain", "--last", "100").stdout.count("client.test")

        assert told(b"1") == 0
        assert reload(gateway, "[decisions]\nenable = true\n")[0] == 0
        count = told(b"2")
        assert count > 0
        assert reload(gateway, "[decisions]\nenable = false\n")[0] == 0
        assert told(b"3") == count


def test_reloads_at_the_same_time_have_their_turns(tmp_path, authority):
    with Gateway(tmp_path, authority) as gateway:
        ended = []
        asking = [threading.Thread(target=lambda: ended.append(gateway.command("reload"))) for _ in range(3)]
        for each in asking:
            each.start()
        for each in asking:
            each.join(60)
        assert sorted(each.stdout for each in ended) == [f"generation {n} is in use\n" for n in (2, 3, 4)]


# --- the control socket ------------------------------------------------------------
def test_the_socket_is_for_the_daemons_user_and_group_and_goes_with_it(tmp_path, authority):
    with Gateway(tmp_path, authority) as gateway:
        path = tmp_path / "control.sock"
        gateway.wait_log("server.started")
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        told = status(gateway)
        assert told["pid"] == gateway.pid
        assert told["generation"] == 1
        assert told["config"] == str(gateway.config)
        assert told["listeners"][0]["addresses"] == [f"127.0.0.1:{gateway.port('smtp')}"]
        for_people = gateway.command("status")
        assert for_people.returncode == 0
        assert f"Process        {gateway.pid}\n" in for_people.stdout
    assert not path.exists()
    done = gateway.command("reload")
    assert done.returncode == 69
    assert "cannot be reached" in done.stderr
    assert gateway.command("status", "--json").returncode == 69


def test_a_dead_daemons_socket_is_replaced_and_a_live_ones_is_not(tmp_path, authority):
    gateway = Gateway(tmp_path / "one", authority)
    gateway.start()
    gateway.wait_log("server.started")
    gateway.kill()
    assert (tmp_path / "one" / "control.sock").exists()
    with gateway:
        gateway.wait_log("server.started")
        assert status(gateway)["pid"] == gateway.pid
        path = tmp_path / "one" / "control.sock"
        second = Gateway(tmp_path / "two", authority, changes=(f'[management]\nsocket = "{path}"\n',))
        second.start(ready=False)
        assert second.wait_end() == 69
        assert f"management.socket: cannot open {path}: another daemon serves it" in second.log_text()
        assert status(gateway)["pid"] == gateway.pid
        # Its own file says something else.
        done = second.command("reload")
        assert done.returncode == 69
        assert str(gateway.config) in done.stderr


def test_garbage_on_the_socket_is_answered_and_harms_nobody(tmp_path, authority):
    with Gateway(tmp_path, authority) as gateway:
        gateway.wait_log("server.started")
        for octets in (b"\n", b"{}\n", b"\xff\xfe\n", b"[" * 60000 + b"\n", b"x" * 200_000, b'{"version":1}\n'):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(str(tmp_path / "control.sock"))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    client.sendall(octets)
                    assert json.loads(client.recv(10_000))["status"] == 64
        idle = []
        for _ in range(40):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(10)
            client.connect(str(tmp_path / "control.sock"))
            idle.append(client)
        for client in idle:
            client.close()
        wait_until(lambda: gateway.command("status").returncode == 0, 20, "an answer")
        assert "Traceback" not in gateway.log_text()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be nobody")
def test_others_have_no_permission(tmp_path, authority):
    with Gateway(tmp_path, authority) as gateway:
        gateway.wait_log("server.started")
        child = os.fork()
        if not child:
            code = 1
            try:
                # Inside the directory already: the socket itself says no.
                os.chdir(tmp_path)
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                try:
                    socket.socket(socket.AF_UNIX).connect("control.sock")
                except PermissionError:
                    code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
