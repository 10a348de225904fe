import os
import sqlite3
import subprocess
import sys

import pytest

from mailgate.queue.connection import connect
from mailgate.queue.inspect import connect_read_only
from mailgate.queue.migrate import migrate

# What any other program does that looks into the queue and goes.
VISIT = (
    "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('SELECT * FROM flag').fetchall(); db.close()"
)


def test_a_look_into_the_queue_leaves_its_locks_to_the_process_that_writes(tmp_path):
    path = str(tmp_path / "queue.sqlite")
    writer = connect(path, write=True)
    migrate(writer)
    connect_read_only(path).close()
    subprocess.run([sys.executable, "-c", VISIT, path], check=True, timeout=60)
    # A visitor who believes that he is the last one takes the log away, and with it all that is written from then on.
    assert os.path.exists(f"{path}-wal")
    writer.close()


def test_a_queue_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        connect_read_only(str(tmp_path / "queue.sqlite"))
    assert list(tmp_path.iterdir()) == []


def test_the_queue_is_open_for_nothing_but_reading(tmp_path):
    path = str(tmp_path / "queue.sqlite")
    writer = connect(path, write=True)
    migrate(writer)
    db = connect_read_only(path)
    with pytest.raises(sqlite3.OperationalError):
        db.execute("DELETE FROM flag")
    db.close()
    writer.close()
