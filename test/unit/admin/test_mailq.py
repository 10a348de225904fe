import json
import os
import subprocess
import sys
import time
from contextlib import closing

import pytest

from mailgate.admin.mailq import main
from mailgate.mail.status import ErrorKind, RecipientStatus, RemoteReply
from mailgate.queue.entry import entry
from mailgate.queue.item import Content, ExpiresBy, Expiry, NewMessage, QueuedRecipient, Source, State
from mailgate.queue.lease import Owner, boot_ms
from mailgate.queue.migrate import migrate
from mailgate.queue.sqlite import connect
from mailgate.queue.tables import Tables

NOW = time.time_ns() // 1_000_000
HOUR = 3_600_000
REFUSED = RecipientStatus(
    "mx.c.test", ErrorKind.UNEXPECTED_REPLY, "", "RCPT TO:<y@c.test>", RemoteReply(451, "4.2.0", "Busy")
)
DONE = RecipientStatus("mx.a.test", reply=RemoteReply(250, "2.0.0", "OK"))


def recipient(index, address, due=NOW - 1, **given):
    return QueuedRecipient(index, address, "remote", due, None, Expiry(ExpiresBy.TTL, 72 * HOUR), **given)


def message(id, sender, *recipients):
    content = Content(1500, b"x" * 1500)
    return NewMessage(id, NOW - HOUR, b"", content, sender, Source.AUTHENTICATED, recipients)


MESSAGES = (
    message(0xA1, "new@a.test", recipient(0, "x@b.test", orcpt="orig@b.test")),
    message(
        0xA2,
        "",
        recipient(0, "done@a.test", state=State.COMPLETED, status=DONE),
        recipient(1, "y@c.test", NOW + HOUR, state=State.TEMP_FAIL, status=REFUSED, retry_num=1),
        recipient(2, "z@c.test", NOW + HOUR, state=State.TEMP_FAIL, status=REFUSED, retry_num=1),
    ),
    message(0xA3, "held@a.test", recipient(0, "h@b.test", held=True)),
    message(0xA4, "now\x1b[2J@a.test", recipient(0, "n@b.test")),
    message(0xA5, "cancelled@a.test", recipient(0, "c@b.test")),
)


@pytest.fixture
def queue(tmp_path, monkeypatch):
    path = tmp_path / "queue.sqlite"
    (tmp_path / "mailgate.toml").write_text(
        f'[storage]\ndata = "q"\n[store.q]\ntype = "sqlite"\npath = "{path}"\n[session]\nnot = "checked here"\n'
    )
    monkeypatch.setenv("MAILGATE_CONFIG", str(tmp_path / "mailgate.toml"))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()

    def filled(messages):
        with closing(connect(str(path), write=True)) as db:
            migrate(db)
            tables = Tables(db, "test", 60_000)
            db.execute("BEGIN IMMEDIATE")
            tables.insert([entry(each) for each in messages])
            db.execute(
                "UPDATE unit SET lease_owner = ?, lease_until = ? WHERE message_id = ?",
                (Owner.this_process().text, boot_ms() + HOUR, 0xA4),
            )
            db.execute("UPDATE recipient SET cancel_mark = 'cancel' WHERE message_id = ?", (0xA5,))
            db.execute("COMMIT")

    return filled


def documents(capfd):
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


@pytest.mark.spec("OUT-280")
def test_the_familiar_listing(queue, capfd):
    queue(MESSAGES)
    assert main([]) == 0
    lines = capfd.readouterr().out.splitlines()
    arrival = time.strftime("%a %b %d %H:%M:%S", time.gmtime((NOW - HOUR) / 1000))
    space = " " * 47
    reason = f"(Unexpected response for {REFUSED.command}: {REFUSED.reply})"
    assert lines == [
        "-Queue ID-        --Size-- ---Arrival Time----  -Sender/Recipient-------",
        f"00000000000000a1      1500 {arrival}  new@a.test",
        f"{space}x@b.test",
        "",
        f"00000000000000a2      1500 {arrival}  MAILER-DAEMON",
        reason,
        f"{space}y@c.test",
        f"{space}z@c.test",
        "",
        f"00000000000000a3!     1500 {arrival}  held@a.test",
        f"{space}h@b.test",
        "",
        f"00000000000000a4*     1500 {arrival}  now?[2J@a.test",
        f"{space}n@b.test",
        "",
        f"00000000000000a5      1500 {arrival}  cancelled@a.test",
        f"{space}c@b.test",
        "",
        "-- 8 Kbytes in 5 Requests.",
    ]


@pytest.mark.spec("OUT-280")
def test_one_json_object_for_each_message(queue, capfd):
    queue(MESSAGES)
    assert main(["-j"]) == 0
    found = documents(capfd)
    delayed = f"Unexpected response for {REFUSED.command}: {REFUSED.reply}"
    assert found[0] == {
        "queue_name": "incoming",
        "queue_id": "00000000000000a1",
        "arrival_time": (NOW - HOUR) // 1000,
        "message_size": 1500,
        "forced_expire": False,
        "sender": "new@a.test",
        "recipients": [{"address": "x@b.test", "orig_address": "orig@b.test"}],
    }
    assert found[1]["sender"] == "MAILER-DAEMON"
    assert found[1]["recipients"] == [
        {"address": "y@c.test", "delay_reason": delayed},
        {"address": "z@c.test", "delay_reason": delayed},
    ]
    assert [each["queue_name"] for each in found] == ["incoming", "deferred", "hold", "active", "incoming"]
    assert [each["forced_expire"] for each in found] == [False, False, False, False, True]


@pytest.mark.spec("OUT-280")
def test_an_empty_queue_says_so(queue, capfd):
    queue(())
    assert main([]) == 0
    assert capfd.readouterr().out == "Mail queue is empty\n"
    assert main(["-j"]) == 0
    assert capfd.readouterr().out == ""


def test_more_messages_than_are_read_at_once(queue, capfd):
    queue([message(number + 1, "a@b.test", recipient(0, f"r{number}@c.test")) for number in range(2500)])
    assert main(["-j"]) == 0
    assert [each["recipients"][0]["address"] for each in documents(capfd)] == [f"r{n}@c.test" for n in range(2500)]


def test_a_queue_that_is_not_there_and_options_that_are_none(queue, capfd):
    assert main([]) == 75
    assert capfd.readouterr().err.startswith("mailq: there is no queue")
    assert main(["-x"]) == 64


def test_whoever_reads_the_output_may_stop_when_he_has_seen_enough(queue, capfd, monkeypatch):
    # More than fits into what is kept before it is written: the pipe is found shut while the queue is read.
    queue([message(id, "many@a.test", recipient(0, "x@b.test")) for id in range(1, 500)])
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as shut:
        monkeypatch.setattr(sys, "stdout", shut)
        assert main([]) == 0
    assert capfd.readouterr().err == ""


def test_where_there_is_no_output_at_all_there_is_nobody_to_be_told(queue):
    queue(MESSAGES)
    # As `mailq >&-` starts it.
    ended = subprocess.run(
        [sys.executable, "-m", "mailgate.admin.mailq"],
        check=False,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.close(1),
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
