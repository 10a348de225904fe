"""The power is cut, the disk fails, contents go: what was answered with 250 is there, and the daemon goes on."""

import errno
import random
import sqlite3

import pytest
from crash.life import drawn, live
from support import needs
from support.crash_daemon import Lane
from support.crash_hop import Hops, Memory
from support.crash_load import Mix
from support.disk import RENAME, SYNC, WRITE, built
from support.nursery import Nursery
from support.ports import wait_until

LIVES = 10


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    needs.program("gcc")
    return built(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def nursery(library):
    made = Nursery(library)
    yield made
    made.close()


@pytest.fixture
def lane(tmp_path, library, nursery):
    hops = Hops(Memory(), slow_seconds=0.3)
    made = Lane(tmp_path / "lane", hops, library, nursery)
    yield made
    if made.is_running:
        made.kill()
    hops.close()


def is_well(lane):
    """Start, wait for an empty queue, stop; the account."""
    lane.start()
    lane.settle()
    assert lane.stop() == 0
    assert lane.look() == []
    account = lane.account()
    assert account.faults == []
    return account


@pytest.mark.spec("OUT-201")
@pytest.mark.parametrize("all_lost", [True, False])
@pytest.mark.parametrize("size", [400, 60_000])
def test_after_a_power_cut_every_message_that_was_answered_with_250_is_there(lane, size, all_lost):
    mix = Mix(sessions=4, messages=40, sizes=((size, 1),), behaviours=(("ok", 1),), domains=("smtp.test", "local.test"))
    lane.start("A5:10")
    lane.load(mix, random.Random(size), "m")
    assert lane.wait_crash(60)
    lane.disk.cut_power(random.Random(1), all_lost=all_lost)
    assert lane.look() == []
    assert len(lane.told.promised) >= 9
    assert is_well(lane).lost == 0


def test_a_maildir_copy_whose_name_was_lost_is_written_again(lane):
    mix = Mix(sessions=1, messages=4, recipients=(1,), domains=("local.test",))
    lane.start("L1")
    lane.load(mix, random.Random(1), "m")
    assert lane.wait_crash(60)
    assert list(lane.mail_root.glob("*/*/new/*"))
    lane.disk.cut_power(random.Random(1), all_lost=True)
    assert not list(lane.mail_root.glob("*/*/new/*"))
    assert is_well(lane).lost == 0


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize("path", ["queue.sqlite-wal", "/spool/", "/mail/"])
def test_a_disk_that_fails_for_a_while_costs_no_message_and_not_the_daemon(lane, path, error):
    mix = Mix(sessions=4, messages=12, sizes=((400, 1), (60_000, 1)))
    lane.start()
    lane.disk.fail(WRITE | SYNC | RENAME, path, error, skip=5, count=20, half=error == errno.ENOSPC)
    lane.load(mix, random.Random(1), "during")
    lane.disk.heal()
    assert lane.is_running
    assert lane.load(mix, random.Random(2), "after").promised
    lane.settle()
    lane.kill()
    assert lane.look() == []
    assert is_well(lane).lost == 0


def test_a_content_that_is_gone_delays_and_is_told(lane):
    lane.start("A5")
    lane.load(Mix(sessions=1, messages=1, sizes=((60_000, 1),), domains=("smtp.test",)), random.Random(1), "m")
    assert lane.wait_crash(60)
    for file in (lane.root / "spool").glob("??/*"):
        file.unlink()
    lane.start("X7", ready=False)
    assert lane.wait_crash(60)
    assert lane.rows("SELECT 1 FROM recipient WHERE state = 'scheduled'")
    lane.start()
    lane.wait_log("queue.content-not-found", 60)
    assert lane.is_running


def test_some_lives_at_random(lane):
    chance = random.Random(3)
    for number in range(LIVES):
        live(drawn(chance), lane, chance, f"life{number}")
    assert is_well(lane).lost == 0


@pytest.mark.spec("OUT-208")
def test_nobody_holds_the_queue_while_a_next_hop_is_slow(lane):
    lane.hops.slow_seconds = 60
    lane.start()
    slow = Mix(sessions=1, messages=3, behaviours=(("slow", 1),), domains=("smtp.test",))
    lane.load(slow, random.Random(1), "m")
    wait_until(lambda: len(lane.in_doubt()) >= 3, 60, "deliveries that wait for their last reply")
    db = sqlite3.connect(lane.queue_path, timeout=0.5, isolation_level=None)
    # The write lock is free, and no reader keeps the log from being reset.
    db.execute("BEGIN IMMEDIATE")
    db.execute("ROLLBACK")
    assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    db.close()
    assert lane.in_doubt()
