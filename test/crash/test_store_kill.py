"""The store's process is killed under load, and the next one finds all that was reported."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import store_load
from support.queue_invariants import violations

KILLS = 5
ROOT = Path(store_load.__file__).parents[2]


def started(database, spool, seed):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, store_load.__file__, database, spool, str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    first = process.stdout.readline()
    if not first:
        raise AssertionError(process.communicate()[1].decode())
    assert first.startswith(b"open")
    return process


def told(output):
    """What the process said, by word: `kept`, `going`, `gone`. A line cut by the kill does not count."""
    words = {"kept": [], "going": [], "gone": []}
    for line in output.decode().splitlines(keepends=True):
        if line.endswith("\n"):
            word, queue_id = line.split()
            words[word].append(int(queue_id, 16))
    return words


def test_every_commit_that_was_reported_is_there_once_after_each_kill(tmp_path):
    database, spool = str(tmp_path / "queue.sqlite"), str(tmp_path / "spool")
    chance = random.Random(1)
    kept, going, gone = set(), set(), set()
    for number in range(KILLS):
        process = started(database, spool, number)
        time.sleep(0.2 + chance.random() * 0.4)
        process.kill()
        output, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors.decode()
        words = told(output)
        assert len(words["kept"]) == len(set(words["kept"]))
        assert kept.isdisjoint(words["kept"])
        kept |= set(words["kept"])
        going |= set(words["going"])
        gone |= set(words["gone"])
        assert violations(database, spool) == []
        db = sqlite3.connect(database)
        present = [id_ for (id_,) in db.execute("SELECT id FROM message")]
        db.close()
        assert kept - going <= set(present)
        assert gone.isdisjoint(present)
    assert len(kept) > 50
    assert gone


@pytest.mark.spec("OUT-213")
def test_a_second_process_is_refused_while_the_first_one_lives_and_not_after(tmp_path):
    database, spool = str(tmp_path / "queue.sqlite"), str(tmp_path / "spool")
    first = started(database, spool, 1)
    try:
        with pytest.raises(AssertionError, match=f"in use by process {first.pid}"):
            started(database, spool, 2)
    finally:
        first.kill()
        first.communicate()
    third = started(database, spool, 3)
    third.kill()
    third.communicate()
    assert violations(database, spool) == []
