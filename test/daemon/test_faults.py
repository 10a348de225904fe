"""Clients that misbehave and machines that fail: bounded, logged, nothing lost, nothing half kept."""

import contextlib
import random
import re
import smtplib
import socket
import subprocess
import threading
import time

import pytest
from support import needs
from support.client import Client, still_serves
from support.daemon import Gateway, settle
from support.ports import wait_until
from support.sink import SILENCE, NextHop

MIB = 1024 * 1024

SHORT = """
[session]
timeout = "1s"
duration = "1m"
"""


# --- clients -------------------------------------------------------------------------
def test_a_client_that_stalls_is_told_and_let_go(tmp_path, authority):
    with Gateway(tmp_path, authority, changes=(SHORT,)) as gateway:
        with Client(gateway) as greeted, Client(gateway) as sending:
            sending.to_data()
            sending.socket.sendall(b"Subject: never whole\r\n\r\nhalf a li")
            for client in (greeted, sending):
                assert client.reply().startswith(b"221 2.0.0")
                assert client.line() == b""
        assert gateway.queue() == []
        assert gateway.all_mail() == []
        still_serves(gateway)


def test_a_client_that_vanishes_before_the_dot_leaves_nothing(tmp_path, authority):
    with Gateway(tmp_path, authority) as gateway:
        for size in (10, 2 * MIB):
            client = Client(gateway)
            client.to_data()
            client.socket.sendall(b"Subject: gone\r\n\r\n" + b"x" * 70 * (size // 70) + b"\r\n")
            client.close()
        with Client(gateway) as client:
            assert client.say(b"EHLO client.test\r\n").startswith(b"250")
            client.say(b"MAIL FROM:<a@client.test>\r\n")
            client.say(b"RCPT TO:<jane@foobar.org>\r\n")
            client.socket.sendall(b"BDAT 100000 LAST\r\nSubject: gone\r\n")
        still_serves(gateway)
        assert not any(b"gone" in octets for octets in gateway.maildir("jane", "foobar.org"))
        gateway.wait_queue_empty()
        spool = [path for path in tmp_path.rglob("*") if path.is_file() and "spool" in str(path.parent)]
        assert spool == []


def test_a_client_that_never_reads_its_replies_is_held_back(tmp_path, authority):
    with Gateway(tmp_path, authority, changes=(SHORT,)) as gateway:
        before = gateway.resident_octets()
        deaf = Client(gateway)
        deaf.socket.settimeout(5)
        sent = 0
        # The daemon stops reading once its replies do not get away, so that this blocks, or it hangs up.
        with contextlib.suppress(OSError):
            while sent < 64 * MIB:
                sent += deaf.socket.send(b"HELP\r\n" * 10000)
        assert sent < 64 * MIB
        assert gateway.peak_octets() - before < 24 * MIB
        still_serves(gateway)
        deaf.close()


def test_a_flood_without_line_ends_is_bounded(tmp_path, authority):
    with Gateway(tmp_path, authority, changes=(SHORT,)) as gateway:
        before = gateway.resident_octets()
        with Client(gateway) as client, contextlib.suppress(OSError):
            for _ in range(64):
                client.socket.sendall(b"x" * MIB)
        assert gateway.peak_octets() - before < 24 * MIB
        still_serves(gateway)


def test_a_flood_of_unknown_commands_is_bounded(tmp_path, authority):
    with Gateway(tmp_path, authority) as gateway:
        before = gateway.resident_octets()
        with Client(gateway) as client:
            noise = threading.Thread(target=lambda: client.socket.sendall(b"XYZZY plugh\r\n" * 50000), daemon=True)
            noise.start()
            answered = 0
            with contextlib.suppress(OSError):
                while answered < 50000 and client.line():
                    answered += 1
            noise.join(20)
        assert answered == 50000
        assert gateway.peak_octets() - before < 24 * MIB
        still_serves(gateway)


def test_a_header_that_never_ends_is_bounded(tmp_path, authority):
    limit = "[session.data.limits]\nsize = 1000000\n"
    with Gateway(tmp_path, authority, changes=(limit,)) as gateway:
        before = gateway.resident_octets()
        with Client(gateway) as client:
            client.to_data()
            block = b"X-Pad: " + b"y" * 900 + b"\r\n"
            for _ in range(32):
                client.socket.sendall(block * 1000)
            assert client.say(b"\r\n.\r\n").startswith(b"552 5.3.4")
            assert client.say(b"NOOP\r\n").startswith(b"250")
        assert gateway.peak_octets() - before < 24 * MIB
        assert gateway.queue() == []


def test_peak_memory_of_a_10_mib_message(tmp_path, authority):
    with Gateway(tmp_path, authority) as gateway:
        still_serves(gateway)
        before = gateway.peak_octets()
        with Client(gateway) as client:
            client.to_data()
            client.socket.sendall(b"Subject: big\r\n\r\n")
            for _ in range(10):
                client.socket.sendall((b"z" * 76 + b"\r\n") * (MIB // 78))
            assert client.say(b".\r\n").startswith(b"250 2.0.0")
        wait_until(lambda: any(b"Subject: big" in m for m in gateway.maildir("jane", "foobar.org")), 20)
        assert gateway.peak_octets() - before < 4 * MIB


def test_more_connections_than_allowed_are_closed_without_a_word(tmp_path, authority):
    with Gateway(tmp_path, authority, changes=("[server]\nmax-connections = 2\n",)) as gateway:
        settle()
        address = ("127.0.0.1", gateway.port("smtp"))
        with Client(gateway), Client(gateway), socket.create_connection(address, timeout=20) as third:
            assert third.recv(100) == b""
        settle()
        still_serves(gateway)


# --- the machine ------------------------------------------------------------------------
def test_no_room_for_new_mail_is_a_452(tmp_path, authority):
    with Gateway(tmp_path, authority, changes=("[queue]\nmin-free = 1000000000000000\n",)) as gateway:
        with Client(gateway) as client:
            client.to_data()
            assert client.say(b"Subject: x\r\n\r\nhi\r\n.\r\n").startswith(b"452 4.3.1")
            assert client.say(b"NOOP\r\n").startswith(b"250")
        assert gateway.queue() == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    needs.root()
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        [needs.program("mount"), "-t", "tmpfs", "-o", "size=8m", "none", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run([needs.program("umount"), str(folder)], check=False)


def test_a_full_disk_is_a_452_and_loses_nothing(small_disk, tmp_path, authority):
    others = small_disk / "others"
    others.write_bytes(bytes(2 * MIB))
    with NextHop(replies={"CONNECT": [SILENCE]}) as hop:
        changes = (
            f'[queue]\nmin-free = 1\n[store.queue]\npath = "{small_disk}/queue.sqlite"\n',
            "[session.rcpt]\nrelay = true\n[queue.strategy]\nroute = \"'hop'\"\n"
            f'[queue.route.hop]\ntype = "relay"\naddress = "127.0.0.1"\nport = {hop.port}\ntls.implicit = false\n'
            "[session.data.limits]\nmessages = 1000\n",
        )
        gateway = Gateway(tmp_path / "gateway", authority, changes=changes)
        gateway.queue_path = small_disk / "queue.sqlite"
        kept = 0
        gateway.start()
        try:
            refused = 0
            with Client(gateway) as client:
                assert client.say(b"EHLO client.test\r\n").startswith(b"250")
                for number in range(300):
                    assert client.say(b"MAIL FROM:<a@client.test>\r\n").startswith(b"250")
                    assert client.say(b"RCPT TO:<b@relay.test>\r\n").startswith(b"250")
                    assert client.say(b"DATA\r\n").startswith(b"354")
                    size = 400_000 if number % 3 else 50_000
                    answer = client.say(b"Subject: x\r\n\r\n" + b"y" * size + b"\r\n.\r\n")
                    if answer.startswith(b"250"):
                        kept += 1
                        assert len(gateway.queue()) == kept
                    else:
                        assert answer.startswith((b"452 4.3.1", b"451 4.3.5")), answer
                        refused += 1
                    if refused == 5:
                        break
            assert refused == 5
            assert kept > 5
            assert gateway.is_running
            assert len(gateway.queue()) == kept
        finally:
            gateway.kill()
        hop.script("CONNECT", "220 hop.test ready")
        others.unlink()
        with gateway:
            hop.wait_messages(kept, 60)
            gateway.wait_queue_empty()


def test_kill_9_under_load_twenty_times_loses_and_doubles_nothing(tmp_path, authority):
    changes = (
        "[session.data.limits]\nmessages = 100000\n",
        '[queue.schedule.local]\nretry = "1s"\n',
    )
    gateway = Gateway(tmp_path, authority, changes=changes)
    promised: list[str] = []
    chance = random.Random(20)
    lock = threading.Lock()

    def load(sender, stop):
        number = 0
        while not stop.is_set():
            gone = contextlib.suppress(OSError, smtplib.SMTPException)
            with gone, smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=5) as client:
                while not stop.is_set():
                    number += 1
                    word = f"m-{sender}-{number}-"
                    body = b"z" * 300_000 if number % 10 == 0 else b"hi"
                    octets = f"Subject: {word}\r\n\r\n".encode() + body + b"\r\n"
                    client.sendmail("a@client.test", ["jane@foobar.org"], octets)
                    with lock:
                        promised.append(word)

    for life in range(20):
        gateway.start()
        stop = threading.Event()
        threads = [threading.Thread(target=load, args=(f"{life}.{n}", stop)) for n in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(chance.uniform(0.1, 0.5))
        gateway.kill()
        stop.set()
        for thread in threads:
            thread.join(20)

    with gateway:
        wait_until(lambda: not gateway.queue(), 120, "an empty queue")
    subjects: dict[str, int] = {}
    for octets in gateway.maildir("jane", "foobar.org"):
        match = re.search(rb"Subject: (\S+)", octets)
        assert match, octets[:200]
        word = match[1].decode()
        subjects[word] = subjects.get(word, 0) + 1
        # Whole, whatever was cut off.
        assert octets.endswith(b"hi\n") or octets.endswith(b"z" * 1000 + b"\n")
    lost = [word for word in promised if word not in subjects]
    twice = [word for word, count in subjects.items() if count > 1]
    assert len(promised) > 100
    assert not lost
    assert not twice
