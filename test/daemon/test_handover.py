"""The moment a message changes hands: crashes, lost leases and stuck attempts around the final octets."""

import contextlib
import sqlite3
import subprocess
import time

import pytest
from support import needs
from support.daemon import Gateway
from support.ports import wait_until
from support.relaying import CHANGES, relay, send
from support.sink import HELD, NextHop

FAR = 10**15


def changes(hop, *more):
    return (CHANGES, relay(hop), *more)


def rows(gateway, question):
    """What an outsider reads of the queue."""
    with contextlib.closing(sqlite3.connect(f"file:{gateway.queue_path}?mode=ro", uri=True, timeout=10)) as db:
        return db.execute(question).fetchall()


def meddle(gateway, statement):
    """What another node, or time, would do to the queue."""
    with contextlib.closing(sqlite3.connect(gateway.queue_path, timeout=10, isolation_level=None)) as db:
        db.execute(statement)


STEAL = f"UPDATE unit SET lease_gen = lease_gen + 1, lease_owner = 'another/1/1', lease_until = {FAR}"
GIVE_BACK = "UPDATE unit SET lease_owner = NULL, lease_until = NULL"


@pytest.mark.spec("OUT-206")
def test_a_crash_before_the_final_reply_repeats_the_same_octets_a_minute_later(tmp_path, authority):
    with NextHop(replies={"DOT": [HELD]}) as hop:
        gateway = Gateway(tmp_path, authority, base="B1", changes=changes(hop))
        gateway.start()
        send(gateway, "x@relay.test")
        assert hop.held.acquire(timeout=10)
        assert rows(gateway, "SELECT phase, host, rcpt_idx FROM attempt") == [("transmitting", "127.0.0.1", "[0]")]
        gateway.kill()
        before_ms = time.time_ns() // 1_000_000
        hop.script("DOT", "250 2.0.0 taken")
        hop.release()
        wait_until(lambda: len(hop.messages) == 1, 10)
        with gateway:
            gateway.wait_log("delivery.in-doubt")
            ((due_ms, retry_num),) = rows(gateway, "SELECT retry_due, retry_num FROM recipient")
            assert due_ms >= before_ms + 60_000
            assert retry_num == 0
            assert rows(gateway, "SELECT count(*) FROM attempt") == [(0,)]
            gateway.hasten()
            gateway.wait_queue_empty()
        first, second = hop.messages
        assert first.octets == second.octets
        assert gateway.log_text().count("delivery.in-doubt") == 1


@pytest.mark.spec("OUT-203")
def test_an_attempt_that_takes_longer_than_its_lease_keeps_it(tmp_path, authority):
    with NextHop(replies={"DOT": [HELD]}) as hop:
        gateway = Gateway(tmp_path, authority, base="B1", changes=changes(hop, '[queue]\nlease = "900ms"\n'))
        with gateway:
            send(gateway, "x@relay.test")
            assert hop.held.acquire(timeout=10)
            # Three leases, and six looks for due mail.
            time.sleep(3)
            assert len(hop.dialogues) == 1
            ((generation, owner),) = rows(gateway, "SELECT lease_gen, lease_owner FROM unit")
            assert generation == 1
            assert f"/{gateway.pid}/" in owner
            hop.release()
            gateway.wait_queue_empty()
        assert len(hop.messages) == 1
        assert "queue.lease-expired" not in gateway.log_text()


@pytest.mark.spec("OUT-204")
@pytest.mark.parametrize("size", [10, 300_000])
def test_a_lease_that_is_lost_before_the_final_octets_keeps_them_back(tmp_path, authority, size):
    with (
        NextHop(replies={"DATA": [HELD]} if size > 100_000 else {"RCPT": [HELD]}) as hop,
        Gateway(tmp_path, authority, base="B1", changes=changes(hop)) as gateway,
    ):
        send(gateway, "x@relay.test", body=("y" * 70 + "\r\n") * max(1, size // 72))
        assert hop.held.acquire(timeout=10)
        meddle(gateway, STEAL)
        hop.release()
        gateway.wait_log("delivery.attempt-aborted")
        assert hop.messages == []
        assert rows(gateway, "SELECT count(*) FROM attempt") == [(0,)]
        # Whoever has the lease does what he likes; here he gives it back.
        hop.script("RCPT", "250 2.1.5 OK")
        hop.script("DATA", "354 go on")
        meddle(gateway, GIVE_BACK)
        gateway.wait_queue_empty()
        assert len(hop.messages) == 1


@pytest.mark.spec("OUT-205")
def test_a_delivery_that_ends_after_its_lease_was_lost_counts(tmp_path, authority):
    with (
        NextHop(replies={"DOT": [HELD]}) as hop,
        Gateway(tmp_path, authority, base="B1", changes=changes(hop)) as gateway,
    ):
        send(gateway, "x@relay.test")
        assert hop.held.acquire(timeout=10)
        meddle(gateway, STEAL)
        hop.release()
        gateway.wait_log("delivery.late-result")
        assert rows(gateway, "SELECT state FROM recipient") == [("completed",)]
        meddle(gateway, GIVE_BACK)
        gateway.wait_queue_empty()
        assert len(hop.messages) == 1


@pytest.mark.spec("OUT-288")
def test_an_attempt_without_progress_loses_its_lease_and_the_mail_is_tried_again(tmp_path, authority):
    with NextHop(replies={"RCPT": [HELD]}) as hop:
        quick = '[queue]\nsweep = "300ms"\nlease = "3s"\n'
        with Gateway(tmp_path, authority, base="B1", changes=changes(hop, quick)) as gateway:
            send(gateway, "x@relay.test")
            assert hop.held.acquire(timeout=10)
            hop.script("RCPT", "250 2.1.5 OK")
            # The next renewal writes down how far it is; then time passes.
            wait_until(lambda: rows(gateway, "SELECT phase FROM attempt") == [("connected",)], 10)
            meddle(gateway, "UPDATE unit SET progress = progress - 3600000")
            gateway.wait_log("queue.stalled")
            (line,) = [line for line in gateway.log_text().splitlines() if "queue.stalled" in line]
            assert "phase=connected" in line
            assert "host=127.0.0.1" in line
            assert f"/{gateway.pid}/" in line
            # A second attempt delivers, while the first is still at its RCPT.
            gateway.wait_queue_empty()
            assert len(hop.messages) == 1
            hop.release()
            gateway.wait_log("delivery.attempt-aborted")
        assert len(hop.messages) == 1


@pytest.mark.spec("OUT-285", "OUT-286")
def test_while_nothing_is_delivered_mail_expires_and_its_sender_is_told(tmp_path, authority):
    with NextHop() as hop:
        short = (
            '[queue]\nsweep = "300ms"\n[queue.schedule.quick]\nexpire = "1s"\n'
            "[queue.strategy]\nschedule = [ { if = \"rcpt_domain = 'relay.test'\", then = \"'quick'\" }, "
            "{ else = \"'local'\" } ]\n"
        )
        with Gateway(tmp_path, authority, base="B1", changes=changes(hop, short)) as gateway:
            assert gateway.command("queue", "pause").returncode == 0
            send(gateway, "x@relay.test")
            gateway.wait_log("queue.swept")
            assert [(row.address, row.state) for row in gateway.queue()] == [("john@foobar.org", "scheduled")]
            assert hop.dialogues == []
            assert gateway.command("queue", "resume").returncode == 0
            (report,) = gateway.wait_mail("john", "foobar.org")
            assert b"Message expired without any delivery attempts made." in report


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


def test_without_an_octet_left_on_the_disk_a_stop_ends_within_the_grace(small_disk, tmp_path, authority):
    with NextHop(replies={"DOT": [HELD]}) as hop:
        store = f'[queue]\nmin-free = 1\n[store.queue]\npath = "{small_disk}/queue.sqlite"\n'
        grace = '[server]\nshutdown-grace = "3s"\n'
        gateway = Gateway(tmp_path / "gateway", authority, base="B1", changes=changes(hop, store, grace))
        gateway.queue_path = small_disk / "queue.sqlite"
        gateway.start()
        send(gateway, "x@relay.test")
        assert hop.held.acquire(timeout=10)
        with open(small_disk / "others", "wb", buffering=0) as others, contextlib.suppress(OSError):
            while True:
                others.write(bytes(4096))
        hop.release()
        gateway.wait_log("queue.record-failed")
        began = time.monotonic()
        assert gateway.stop() == 0
        assert time.monotonic() - began < 8
        (small_disk / "others").unlink()
        with gateway:
            # The hop has it, and nobody could write that down.
            gateway.wait_log("delivery.in-doubt")
            gateway.hasten()
            gateway.wait_queue_empty()
        assert {one.octets for one in hop.messages} == {hop.messages[0].octets}


def test_lmtp_recipients_that_have_their_reply_are_not_sent_to_again(tmp_path, authority):
    with NextHop(lmtp=True, replies={"DOT": ["250 2.0.0 one", "452 4.2.2 full", HELD]}) as hop:
        lmtp = '[queue.route.hop]\nprotocol = "lmtp"\n[queue.schedule.quick]\nretry = "1h"\n'
        gateway = Gateway(tmp_path, authority, base="B1", changes=changes(hop, lmtp))
        gateway.start()
        send(gateway, "a@relay.test", "b@relay.test", "c@relay.test")
        assert hop.held.acquire(timeout=10)
        states = "SELECT address, state FROM recipient ORDER BY idx"
        wait_until(lambda: [state for _, state in rows(gateway, states)][:2] == ["completed", "temp_fail"], 10)
        gateway.kill()
        hop.script("DOT", "250 2.0.0 done")
        hop.release()
        with gateway:
            gateway.wait_log("delivery.in-doubt")
            (line,) = [line for line in gateway.log_text().splitlines() if "delivery.in-doubt" in line]
            assert "a@relay.test" not in line
            gateway.hasten()
            gateway.wait_queue_empty()
        assert [one.recipients for one in hop.messages][-1] == ["b@relay.test", "c@relay.test"]
