"""Quotas of a running daemon: who is refused, what makes room again, and what a kill leaves of it."""

import re
import smtplib
import sqlite3

import pytest
from support.daemon import Gateway
from support.ports import wait_until
from support.queue_invariants import violations
from support.sink import NextHop

CHANGES = """
[queue]
poll = "200ms"

[queue.strategy]
route = "'hop'"
schedule = "'quick'"

[queue.schedule.quick]
queue-name = "remote"
retry = "1s"
expire = "1h"

[queue.route.hop]
type = "relay"
address = "127.0.0.1"
port = {port}
tls.implicit = false

[queue.quota.each]
messages = 2
key = ["sender"]
enable = true
"""


@pytest.fixture
def hop():
    with NextHop() as made:
        yield made


def submit(gateway, sender, recipient="x@elsewhere.test"):
    """Hand in a message; the final reply."""
    with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=20) as client:
        client.ehlo("client.test")
        client.mail(sender)
        client.rcpt(recipient)
        return client.data("Subject: x\r\n\r\nhi\r\n")


def used(gateway):
    """Messages in use, in all buckets, as the table says and as the ledger says."""
    db = sqlite3.connect(f"file:{gateway.queue_path}?mode=ro", uri=True, timeout=10)
    try:
        return tuple(
            db.execute(f"SELECT ifnull(sum(messages), 0) FROM {table}").fetchone()[0]
            for table in ("quota_usage", "quota_ledger")
        )
    finally:
        db.close()


@pytest.mark.spec("OUT-044", "OUT-053", "IN-256")
def test_room_for_two(tmp_path, hop):
    # Each attempt is told to come back: nothing leaves before the test says so.
    hop.script("RCPT", *["450 4.2.0 later"] * 1000)
    with Gateway(tmp_path, base="B0", changes=(CHANGES.replace("{port}", str(hop.port)),)) as gateway:
        assert [submit(gateway, "a@client.test")[0] for _ in range(2)] == [250, 250]
        code, text = submit(gateway, "a@client.test")
        assert (code, text[:41]) == (452, b"4.3.1 Mail system full, try again later. ")
        assert submit(gateway, "b@client.test")[0] == 250
        gateway.wait_log("queue.quota-exceeded")
        assert re.search(r'id="?each"? type="?Sender"?', gateway.log_text())
        assert used(gateway) == (3, 3)
        gateway.kill()
        assert violations(gateway.queue_path, tmp_path / "spool") == []
        gateway.start()
        assert used(gateway) == (3, 3)
        assert submit(gateway, "a@client.test")[0] == 452
        hop.script("RCPT")
        gateway.wait_queue_empty()
        assert used(gateway) == (0, 0)
        assert submit(gateway, "a@client.test")[0] == 250
        hop.wait_messages(4)
    assert violations(gateway.queue_path, tmp_path / "spool") == []


@pytest.mark.spec("OUT-044", "OUT-051")
def test_what_an_operator_cancels_makes_room_once(tmp_path, hop):
    hop.script("RCPT", *["450 4.2.0 later"] * 1000)
    changes = CHANGES.replace("{port}", str(hop.port)).replace('key = ["sender"]', 'key = ["rcpt_domain"]')
    with Gateway(tmp_path, base="B0", changes=(changes,)) as gateway:
        assert [submit(gateway, "a@client.test")[0] for _ in range(3)] == [250, 250, 452]
        one = gateway.queue()[0].message_id
        done = gateway.command("queue", "cancel", f"{one:016x}")
        assert done.returncode == 0, done.stderr
        wait_until(lambda: used(gateway) == (1, 1), 20, "room for one")
        assert [submit(gateway, "a@client.test")[0] for _ in range(2)] == [250, 452]
    assert violations(gateway.queue_path, tmp_path / "spool") == []
