"""A queue of version 1: brought up to date with its mail, also when that is cut short."""

import base64
import hashlib
import sqlite3
import subprocess
import sys
import time
from importlib.resources import files

import pytest
from support.daemon import Gateway
from support.queue_invariants import violations
from support.relaying import CHANGES, relay
from support.sink import NextHop

from mailgate.queue.migrate import VERSION, version

OCTETS = b"Subject: from before\r\n\r\nhello\r\n"

# As program version 1 left them: one that waits, one that is delayed, one of a process that is gone.
MAIL = f"""
INSERT INTO message VALUES ({{id}}, {{now}}, 'inline', '{{hash}}', {len(OCTETS)}, 'john@client.test',
    'unauthenticated', NULL, NULL, NULL, NULL, 0, 0, NULL, '127.0.0.1', 25);
INSERT INTO content VALUES ({{id}}, CAST('Subject: from before' || char(13, 10, 13, 10) || 'hello' || char(13, 10)
    AS BLOB), NULL);
INSERT INTO recipient VALUES ({{id}}, 0, 'r{{id}}@relay.test', NULL, NULL, 'remote', 'quick', '{{state}}', NULL,
    {{now}}, {{retries}}, NULL, 0, 'ttl', 3600000, 0, NULL);
INSERT INTO unit VALUES ({{id}}, 'remote', {{now}}, {{now}} + 3600000, {{owner}}, 1, {{until}});
"""

# Ends the process by SIGKILL when so many statements have begun.
KILLED = """
import os, signal, sqlite3, sys
from mailgate.queue.migrate import migrate
left = int(sys.argv[2])
def count(statement):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.set_trace_callback(count)
migrate(db)
"""


@pytest.fixture
def old(tmp_path):
    """The file of a queue of version 1 with three messages."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(OCTETS).digest()).rstrip(b"=").decode()
    path = tmp_path / "queue.sqlite"
    now = int(time.time()) * 1000
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(files("mailgate.queue").joinpath("schema.sql").read_text("utf-8"))
    db.execute("INSERT INTO flag VALUES ('schema', '1')")
    for id, state, retries, owner, until in (
        (1, "scheduled", 0, "NULL", "NULL"),
        (2, "temp_fail", 3, "NULL", "NULL"),
        (3, "scheduled", 0, "'another-boot/1/1'", 10**15),
    ):
        text = MAIL.format(id=id, state=state, retries=retries, owner=owner, until=until, hash=digest, now=now)
        db.executescript(text)
    db.commit()
    db.close()
    return path


def test_mail_of_a_queue_of_version_1_is_delivered(old, tmp_path, authority):
    with NextHop() as hop:
        gateway = Gateway(tmp_path, authority, base="B1", changes=(CHANGES, relay(hop)))
        assert gateway.queue_path == old
        with gateway:
            gateway.wait_queue_empty()
        assert sorted(one.recipients[0] for one in hop.messages) == [f"r{id}@relay.test" for id in (1, 2, 3)]
        assert {one.octets for one in hop.messages} == {OCTETS}
    db = sqlite3.connect(old)
    assert version(db) == VERSION
    db.close()


@pytest.mark.parametrize("statements", [0, 1, 2, 5, 12, 25, 40])
def test_a_migration_that_is_killed_begins_again(old, tmp_path, statements):
    done = subprocess.run([sys.executable, "-c", KILLED, str(old), str(statements)], check=False)
    db = sqlite3.connect(old, isolation_level=None)
    if done.returncode == -9:
        # Nothing of it is there.
        assert version(db) == 1
        assert db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'attempt'").fetchone() == (0,)
    assert db.execute("SELECT count(*) FROM message").fetchone() == (3,)
    db.close()
    whole = subprocess.run([sys.executable, "-c", KILLED, str(old), "1000"], check=False)
    assert whole.returncode == 0
    db = sqlite3.connect(old, isolation_level=None)
    assert version(db) == VERSION
    assert db.execute("SELECT count(*) FROM recipient WHERE progress IS NULL AND cancel_mark IS NULL").fetchone() == (
        3,
    )
    db.close()
    assert violations(str(old), str(tmp_path / "spool")) == []
