import errno
import json
import os
import sqlite3
import subprocess
import sys
import time

import pytest

from mailgate.admin import output
from mailgate.admin.main import main
from mailgate.admin.order import BadOrder, read_page
from mailgate.mail.status import ErrorKind, RecipientStatus, RemoteReply
from mailgate.queue.entry import entry
from mailgate.queue.item import Content, ExpiresBy, Expiry, NewMessage, QueuedRecipient, Source, State
from mailgate.queue.lease import Owner, boot_ms
from mailgate.queue.migrate import migrate
from mailgate.queue.pause import Pause, PauseOf
from mailgate.queue.sqlite import connect
from mailgate.queue.tables import Tables

NOW = time.time_ns() // 1_000_000
HOUR = 3_600_000
DAY = 24 * HOUR
DNS = RecipientStatus("b.test", ErrorKind.DNS, "SERVFAIL for b.test")
REPLY = RecipientStatus(
    "mx.c.test", ErrorKind.UNEXPECTED_REPLY, "", "RCPT TO:<y@c.test>", RemoteReply(451, "4.2.0", "Busy")
)
DONE = RecipientStatus("mx.a.test", reply=RemoteReply(250, "2.0.0", "OK"))

A, B, C, D = 0x192ABCDEF01, 0x192ABCDEF02, 0x192ABCDEF03, 0x192ABCDEF04


def recipient(index, address, *, due=None, state=State.SCHEDULED, status=None, queue="remote", **given):
    given = {"expiry": Expiry(ExpiresBy.TTL, 3 * DAY), "notify_due_ms": None} | given
    return QueuedRecipient(index, address, queue, due, given.pop("notify_due_ms"), state=state, status=status, **given)


def message(id, sender, *recipients, age=HOUR, content=None, **given):
    octets = content or Content(20, b"Subject: x\r\n\r\nbody\r\n")
    return NewMessage(
        id,
        NOW - age,
        b"Received: here\r\n",
        octets,
        sender,
        given.pop("source", Source.AUTHENTICATED),
        recipients,
        **given,
    )


def messages(spool):
    (spool / "03").mkdir(parents=True)
    (spool / "03" / "00000192abcdef03").write_bytes(b"Subject: big\r\n\r\n" + b"x" * 400_000)
    return [
        (
            message(
                A,
                "John@A.test",
                recipient(0, "w@a.test", state=State.COMPLETED, status=DONE),
                recipient(1, "x@b.test", due=NOW + HOUR, state=State.TEMP_FAIL, status=DNS, retry_num=2),
                trace="k3v7q2mzcb4d",
                priority=3,
                env_id="env",
            ),
            None,
        ),
        (
            message(
                B,
                "",
                recipient(
                    0,
                    "y@c.test",
                    due=NOW - 60_000,
                    state=State.TEMP_FAIL,
                    status=REPLY,
                    queue="dsn",
                    expiry=Expiry(ExpiresBy.ATTEMPTS, 10),
                    retry_num=4,
                ),
                source=Source.DSN,
                age=5 * DAY,
            ),
            None,
        ),
        (
            message(
                C,
                "z@a.test",
                recipient(0, "x@b.test", due=NOW + 10_000, notify_due_ms=NOW + DAY, orcpt="x@old.test"),
                content=Content(400_016, path="unused"),
            ),
            "hash-of-the-file",
        ),
        (message(D, "z@a.test", recipient(0, "Ü\x1b@d.test", due=NOW + 20_000, held=True)), None),
    ]


@pytest.fixture
def place(tmp_path, monkeypatch):
    config = tmp_path / "mailgate.toml"
    config.write_text(
        f"""
        [server]
        hostname = "mx.test"
        [server.listener."smtp"]
        bind = "127.0.0.1:2525"
        protocol = "smtp"
        [storage]
        data = "q"
        [store."q"]
        type = "sqlite"
        path = "{tmp_path}/queue.sqlite"
        [queue]
        spool = "{tmp_path}/spool"
        """
    )
    monkeypatch.setenv("MAILGATE_CONFIG", str(config))
    return tmp_path


@pytest.fixture
def empty(place):
    db = connect(f"{place}/queue.sqlite", write=True)
    migrate(db)
    db.close()
    return place


@pytest.fixture
def filled(empty):
    db = connect(f"{empty}/queue.sqlite", write=True)
    Tables(db, "", 60_000).insert([entry(each, digest) for each, digest in messages(empty / "spool")])
    db.close()
    return empty


def run(capsysbinary, *arguments):
    status = main(["queue", *arguments])
    out, err = capsysbinary.readouterr()
    return status, out.decode(), err.decode()


def listed(capsysbinary, *arguments):
    status, out, err = run(capsysbinary, "list", "--json", *arguments)
    assert err == ""
    document = json.loads(out)
    return status, [int(item["id"], 16) for item in document["items"]], document["total"]


def test_by_next_delivery_with_what_waits_for_nothing_last(filled, capsysbinary):
    assert listed(capsysbinary) == (0, [B, C, A, D], 4)


@pytest.mark.spec("OUT-186", "OUT-270")
@pytest.mark.parametrize(
    ("selector", "ids"),
    [
        (["192abcdef01"], [A]),
        (["00000192ABCDEF01", "192abcdef04"], [A, D]),
        (["--sender", "john@a"], [A]),
        (["-s", "<>"], [B]),
        (["--rcpt", "X@B"], [C, A]),
        (["--text", "A.test"], [C, A, D]),
        (["--text", "y@c"], [B]),
        (["--domain", "B.test"], [C, A]),
        (["-d", "test"], []),
        (["--queue", "dsn"], [B]),
        (["--status", "scheduled"], [C]),
        (["--status", "held"], [D]),
        (["--status", "temp_fail"], [B, A]),
        (["--status", "completed"], [A]),
        (["--status", "perm_fail"], []),
        (["--before", "+1m"], [B, C]),
        (["--after", "+1m"], [A]),
        (["-b", "-1h"], []),
        (["--after", "2020-01-01T00:00:00Z", "--before", "2020-01-01T00:00:00+01:00"], []),
        (["--older", "2d"], [B]),
        (["--younger", "2d"], [C, A, D]),
        (["--error", "servfail"], [A]),
        (["--error", "unexpected response"], [B]),
        (["--error", "Message: Busy"], [B]),
        (["--text", "z@a", "--status", "held"], [D]),
        # All must hold for one and the same recipient.
        (["--domain", "b.test", "--status", "completed"], []),
        (["ffffffffffffffff"], []),
    ],
)
def test_selectors(filled, capsysbinary, selector, ids):
    assert listed(capsysbinary, *selector) == (0 if ids else 1, ids, len(ids))


@pytest.mark.spec("OUT-186")
def test_limit_and_offset_do_not_change_the_total(filled, capsysbinary):
    assert listed(capsysbinary, "--limit", "2", "--offset", "1") == (0, [C, A], 4)
    assert listed(capsysbinary, "--limit", "0") == (0, [], 4)


def test_a_limit_and_an_offset_may_be_larger_than_any_number_of_the_queue(filled, capsysbinary):
    most = "99999999999999999999"
    everything = listed(capsysbinary)
    assert listed(capsysbinary, "--limit", most) == everything
    assert listed(capsysbinary, "--limit", most, "--offset", most) == (0, [], everything[2])


def test_nothing_in_the_queue_is_no_failure(empty, capsysbinary):
    assert listed(capsysbinary) == (0, [], 0)
    status, out, _ = run(capsysbinary, "list")
    assert (status, out) == (0, "The queue has no such message\n")


@pytest.mark.spec("OUT-187")
def test_the_entry_object(filled, capsysbinary):
    _, out, _ = run(capsysbinary, "show", "192ABCDEF01", "--json")
    facts = json.loads(out)
    created = facts.pop("created")
    assert created.endswith("Z")
    assert len(created) == len("2026-01-31T12:00:00.000Z")
    first, second = facts.pop("recipients")
    assert facts.pop("blob_hash")
    assert facts.pop("progress") == created
    assert facts == {
        "id": "00000192abcdef01",
        "return_path": "John@A.test",
        "size": 36,
        "source": "authenticated",
        "trace": "k3v7q2mzcb4d",
        "priority": 3,
        "env_id": "env",
    }
    assert first == {
        "address": "w@a.test",
        "queue": "remote",
        "status": {"completed": "Code: 250, Enhanced code: 2.0.0, Message: OK"},
        "retry_num": 0,
    }
    assert second.pop("next_retry")
    assert second.pop("expires")
    assert second == {
        "address": "x@b.test",
        "queue": "remote",
        "status": {"temp_fail": "Error for b.test: DNS lookup failed: SERVFAIL for b.test"},
        "retry_num": 2,
        "last_error": "dns",
    }


@pytest.mark.spec("OUT-187")
def test_what_operators_said_is_in_the_entry(filled, capsysbinary):
    change = (
        "UPDATE recipient SET held_since = 1000, held_reason = 'olga: odd', route_override = 'hop', progress = 5000"
    )
    db = sqlite3.connect(f"{filled}/queue.sqlite")
    db.execute(f"{change} WHERE message_id = ?", (C,))
    db.commit()
    db.close()
    facts = json.loads(run(capsysbinary, "show", "192abcdef03", "--json")[1])
    assert facts["progress"] == "1970-01-01T00:00:05.000Z"
    (found,) = facts["recipients"]
    assert "next_retry" not in found
    assert (found["held"], found["route"]) == (True, "hop")
    assert (found["held_since"], found["held_reason"]) == ("1970-01-01T00:00:01.000Z", "olga: odd")
    shown = run(capsysbinary, "show", "192abcdef03")[1]
    assert "Held          since 1970-01-01 00:00:01Z, olga: odd\n" in shown
    assert "Route         hop, by an operator\n" in shown


@pytest.mark.spec("OUT-187")
def test_optional_members_of_a_recipient(filled, capsysbinary):
    def only(id):
        return json.loads(run(capsysbinary, "show", id, "--json")[1])["recipients"][0]

    counted = only("192abcdef02")
    assert counted["attempts_left"] == 6
    assert "expires" not in counted
    noticed = only("192abcdef03")
    assert noticed["status"] == "scheduled"
    assert noticed["orcpt"] == "x@old.test"
    assert {"next_retry", "next_notify", "expires"} <= noticed.keys()
    held = only("192abcdef04")
    assert held["held"] is True
    assert held["address"] == "Ü\x1b@d.test"
    assert "next_retry" not in held


def test_an_attempt_in_flight_shows_while_its_process_lives(filled, capsysbinary):
    def attempted():
        return json.loads(run(capsysbinary, "show", "192abcdef03", "--json")[1])["recipients"][0].get("in_attempt")

    def lease(owner, until):
        db = sqlite3.connect(f"{filled}/queue.sqlite")
        db.execute("UPDATE unit SET lease_owner = ?, lease_until = ? WHERE message_id = ?", (owner, until, C))
        db.commit()
        db.close()

    assert attempted() is None
    me = Owner.this_process()
    lease(me.text, boot_ms() + 60_000)
    assert attempted() is True
    lease(me.text, boot_ms() - 1)
    assert attempted() is None
    lease(Owner(me.boot, me.pid, me.start + 1).text, boot_ms() + 60_000)
    assert attempted() is None


def test_the_list_for_people(filled, capsysbinary):
    status, out, _ = run(capsysbinary, "list")
    lines = out.splitlines()
    assert status == 0
    assert lines[0].split() == ["ID", "Delivery", "Due", "Sender", "Recipients", "Size"]
    assert lines[1].startswith("00000192abcdef02  ")
    assert "  <>  " in lines[1]
    assert "w@a.test (delivered), x@b.test (tempfail)" in lines[3]
    assert "\\x1b@d.test (held)" in lines[4]
    assert "\x1b" not in out
    assert lines[-1] == "4 messages"
    _, out, _ = run(capsysbinary, "list", "--limit", "1")
    assert out.splitlines()[-1] == "1 of 4 messages"


def test_a_terminal_gets_a_table(filled, capsysbinary, monkeypatch):
    monkeypatch.setattr(output.sys.stdout, "isatty", lambda: True, raising=False)
    _, out, _ = run(capsysbinary, "list", "192abcdef01")
    assert "Delivery" in out
    assert "│" in out


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("queue", [("remote", 3, 4), ("dsn", 1, 1)]),
        ("domain", [("b.test", 2, 2), ("a.test", 1, 1), ("c.test", 1, 1), ("d.test", 1, 1)]),
    ],
)
def test_groups(filled, capsysbinary, by, groups):
    status, out, _ = run(capsysbinary, "list", "--by", by, "--json")
    document = json.loads(out)
    assert status == 0
    assert [(g["name"], g["messages"], g["recipients"]) for g in document["groups"]] == groups
    assert document["total"] == len(groups)
    assert all(g["oldest"].endswith("Z") for g in document["groups"])
    _, out, _ = run(capsysbinary, "list", "--by", by)
    assert out.splitlines()[0].split() == [by.capitalize(), "Messages", "Recipients", "Oldest"]


def test_groups_by_error_of_what_was_selected(filled, capsysbinary):
    _, out, _ = run(capsysbinary, "list", "--by", "error", "--status", "temp_fail", "--json")
    assert [g["name"] for g in json.loads(out)["groups"]] == [
        "DNS lookup failed: SERVFAIL for b.test",
        "Unexpected response for RCPT TO:<y@c.test>: Code: 451, Enhanced code: 4.2.0, Message: Busy",
    ]


def test_show_for_people(filled, capsysbinary):
    status, out, _ = run(capsysbinary, "show", "00000192ABCDEF01")
    assert status == 0
    for name, value in (
        ("ID", "00000192abcdef01"),
        ("Trace", "k3v7q2mzcb4d"),
        ("Recipient", "x@b.test"),
        ("Status", "tempfail"),
        ("Details", "Error for b.test: DNS lookup failed: SERVFAIL for b.test"),
        ("Retry #", "2"),
    ):
        assert f"{name:14}{value}\n" in out
    assert "after 6 more failed attempts" in run(capsysbinary, "show", "192abcdef02")[1]


def test_stored_octets_and_header(filled, capsysbinary):
    assert run(capsysbinary, "show", "192abcdef01", "--content")[1] == "Received: here\r\nSubject: x\r\n\r\nbody\r\n"
    assert run(capsysbinary, "show", "192abcdef01", "--headers")[1] == "Received: here\r\nSubject: x\r\n"
    _, out, _ = run(capsysbinary, "show", "192abcdef03", "--content")
    assert out == "Received: here\r\nSubject: big\r\n\r\n" + "x" * 400_000
    assert run(capsysbinary, "show", "192abcdef03", "--headers")[1] == "Received: here\r\nSubject: big\r\n"


def test_a_content_that_is_gone_is_said_in_one_line(filled, capsysbinary):
    (filled / "spool" / "03" / "00000192abcdef03").unlink()
    status, out, err = run(capsysbinary, "show", "192abcdef03", "--content")
    assert (status, out) == (75, "")
    assert len(err.splitlines()) == 1


def test_an_id_that_is_not_there(filled, capsysbinary):
    status, out, err = run(capsysbinary, "show", "ff")
    assert (status, out) == (1, "")
    assert (
        err
        == "mailgate: 00000000000000ff is not in the queue; mailgate explain 00000000000000ff tells what became of it\n"
    )
    status, out, err = run(capsysbinary, "show", "ffffffffffffffff", "--json")
    assert status == 1
    assert json.loads(out)["error"]["code"] == 1
    assert err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "nohex"],
        ["list", "--before", "tomorrow"],
        ["list", "--before", "2026-01-31"],
        ["list", "--before", "2026-01-31T12:00:00"],
        ["list", "--older", "long"],
        ["list", "--after", "+"],
        ["list", "--status", "lost"],
        ["list", "--limit", "-1"],
        # A moment of the year 10000: what is due then could not be shown.
        ["retry", "--all", "--at", "9999-12-31T23:59:59-23:00"],
        # What is no UTF-8 on a command line is in no queue either.
        ["list", "--rcpt", "\udcff"],
        ["list", "--error", "\udcff"],
        ["export", "--match", "rcpt == '\udcff'"],
        ["hold", "--all", "--reason", "\udcff"],
        ["list", "--nosuch"],
        ["show"],
        ["show", "1", "2"],
        ["show", "00000000000000001"],
        ["show", "1", "--content", "--headers"],
        ["nosuch"],
    ],
)
def test_wrong_usage(filled, capsysbinary, arguments):
    status, out, err = run(capsysbinary, *arguments)
    assert (status, out) == (64, "")
    assert err.startswith("mailgate: ")
    assert len(err.splitlines()) == 1
    status, out, err = run(capsysbinary, *arguments, "--json")
    assert status == 64
    assert json.loads(out)["error"]["code"] == 64
    assert err == ""


def test_no_queue_yet(place, capsysbinary):
    status, _, err = run(capsysbinary, "list")
    assert status == 75
    assert err == f"mailgate: there is no queue at {place}/queue.sqlite\n"
    assert not (place / "queue.sqlite").exists()
    status, out, _ = run(capsysbinary, "list", "--json")
    assert json.loads(out)["error"]["code"] == 75 == status


def test_a_file_that_is_no_queue(place, capsysbinary):
    (place / "queue.sqlite").write_bytes(b"not a database " * 100)
    assert run(capsysbinary, "list")[0] == 75
    (place / "queue.sqlite").write_bytes(b"")
    status, _, err = run(capsysbinary, "list")
    assert status == 75
    assert "version 0" in err


def test_a_queue_of_a_later_version(empty, capsysbinary):
    db = sqlite3.connect(f"{empty}/queue.sqlite")
    db.execute("UPDATE flag SET value = '99' WHERE name = 'schema'")
    db.commit()
    db.close()
    assert run(capsysbinary, "list")[0] == 75


def test_no_permission(empty, capsysbinary, monkeypatch):
    if os.getuid() == 0:
        # Root may read everything.
        monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("queue.sqlite"))
    else:
        (empty / "queue.sqlite").chmod(0)
    status, _, err = run(capsysbinary, "list")
    assert status == 77
    assert err == f"mailgate: no permission to read {empty}/queue.sqlite\n"


def test_a_configuration_that_is_refused(place, capsysbinary):
    (place / "mailgate.toml").write_text("[nosuch]\nx = 1\n[session]\ntiemout = '5m'\n")
    status, out, err = run(capsysbinary, "list")
    assert (status, out) == (78, "")
    assert len(err.splitlines()) == 2
    status, out, err = run(capsysbinary, "list", "--json")
    assert json.loads(out)["error"]["code"] == 78
    assert err == ""


def test_reading_while_somebody_writes(filled, capsysbinary):
    db = connect(f"{filled}/queue.sqlite", write=True)
    db.execute("BEGIN IMMEDIATE")
    db.execute("DELETE FROM message")
    assert listed(capsysbinary)[2] == 4
    db.execute("COMMIT")
    assert listed(capsysbinary)[2] == 0
    db.close()


def test_reading_changes_nothing(filled, capsysbinary):
    def state():
        return {p.name: p.read_bytes() for p in filled.glob("queue.sqlite*") if not p.name.endswith("-shm")}

    before = state()
    for arguments in (["list"], ["list", "--by", "error"], ["show", "192abcdef01"]):
        run(capsysbinary, *arguments)
    assert {name: octets for name, octets in state().items() if octets} == {n: o for n, o in before.items() if o}


# --- expressions ---------------------------------------------------------------------------


def test_an_expression_selects_recipients(filled, capsysbinary):
    assert listed(capsysbinary, "--match", "last_error == 'dns' && retry_num > 1") == (0, [A], 1)
    _, out, _ = run(capsysbinary, "list", "--match", "rcpt_domain == 'b.test'", "--limit", "1", "--json")
    document = json.loads(out)
    assert (document["total"], [int(item["id"], 16) for item in document["items"]]) == (2, [C])
    _, out, _ = run(capsysbinary, "list", "--match", "retry_num > 0", "--by", "queue", "--json")
    assert [(each["name"], each["recipients"]) for each in json.loads(out)["groups"]] == [("dsn", 1), ("remote", 1)]
    assert run(capsysbinary, "list", "--match", "false")[0] == 1


def test_an_expression_with_a_mistake_is_told(filled, capsysbinary):
    status, _, err = run(capsysbinary, "list", "--match", "retry_nmu > 1")
    assert (status, "retry_num" in err, "column 1" in err) == (64, True, True)


def test_what_an_expression_cannot_know_is_left_out_and_said(filled, capsysbinary):
    status, out, err = run(capsysbinary, "list", "--match", "dns_query('a.test', 'mx') != ''", "--json")
    assert (status, json.loads(out)["total"]) == (1, 0)
    assert "5 recipients were left out" in err


# --- pauses and counts ---------------------------------------------------------------------


def pause(place, scope, owner):
    text = Pause(NOW, "olga", "upgrade", owner).text()
    db = sqlite3.connect(f"{place}/queue.sqlite")
    db.execute("INSERT INTO flag VALUES (?, ?)", (scope.flag, text))
    db.commit()
    db.close()


@pytest.mark.spec("OUT-266", "OUT-269")
def test_status_counts_open_recipients_by_queue(filled, capsysbinary):
    status, out, _ = run(capsysbinary, "status", "--json")
    document = json.loads(out)
    oldest = [each.pop("oldest") for each in document["queues"].values()]
    seconds = [(each.pop("oldest_seconds"), each.pop("stalled_seconds")) for each in document["queues"].values()]
    assert status == 0
    assert document == {
        "running": True,
        "daemon": False,
        "queues": {
            "dsn": {"scheduled": 0, "held": 0, "temp_fail": 1},
            "remote": {"scheduled": 1, "held": 1, "temp_fail": 1},
        },
        "suspensions": [],
    }
    assert all(moment.endswith("Z") for moment in oldest)
    assert all(age >= stalled >= 0 for age, stalled in seconds)
    text = run(capsysbinary, "status")[1]
    assert text.startswith("Running\nThe daemon cannot be reached")


def test_a_pause_of_the_cluster_outlives_its_daemon_and_that_of_a_node_does_not(filled, capsysbinary):
    gone = Owner("another-boot", 1, 1)
    pause(filled, PauseOf.NODE, gone.text)
    assert json.loads(run(capsysbinary, "status", "--json")[1])["running"]
    pause(filled, PauseOf.CLUSTER, gone.text)
    assert not json.loads(run(capsysbinary, "list", "--json")[1])["running"]
    out = run(capsysbinary, "status")[1]
    assert "Paused for the cluster since" in out
    assert "by olga: upgrade" in out
    assert "node" not in out


def test_a_pause_of_a_node_counts_while_its_daemon_lives(filled, capsysbinary):
    pause(filled, PauseOf.NODE, Owner.this_process().text)
    assert not json.loads(run(capsysbinary, "status", "--json")[1])["running"]
    assert run(capsysbinary, "list")[1].endswith("Paused: mailgate queue status\n")


@pytest.fixture
def left_over(empty):
    """A spool file without a message, old enough."""
    path = empty / "spool" / "0f" / "000000000000000f"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nobody's")
    os.utime(path, (1, 1))
    return path


def test_a_file_that_another_repair_has_removed_meanwhile_is_repaired(left_over, capsysbinary, monkeypatch):
    unlink = os.unlink

    def slower(path, **given):
        unlink(path, **given)
        unlink(path, **given)

    monkeypatch.setattr(os, "unlink", slower)
    status, out, err = run(capsysbinary, "check", "--repair", "--json")
    assert (status, err) == (0, "")
    assert [problem["id"] for problem in json.loads(out)["repaired"]] == ["000000000000000f"]


@pytest.mark.parametrize(("number", "code"), [(errno.EACCES, 77), (errno.EROFS, 75)])
def test_a_file_that_cannot_be_removed_is_told_in_one_line(left_over, capsysbinary, monkeypatch, number, code):
    def refused(path, **given):
        raise OSError(number, "not now", path)

    monkeypatch.setattr(os, "unlink", refused)
    status, out, err = run(capsysbinary, "check", "--repair")
    assert (status, out, err) == (code, "", f"mailgate: {left_over} cannot be removed: not now\n")


@pytest.mark.parametrize("arguments", [("queue", "status"), ("queue", "status", "--json"), ("queue", "list", "--json")])
def test_an_output_that_cannot_be_written_is_told_in_one_line(empty, arguments):
    with open("/dev/full", "wb") as full:
        ended = mailgate(*arguments, stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 75
    (line,) = ended.stderr.decode().splitlines()
    assert line.endswith(": No space left on device")


@pytest.mark.parametrize("arguments", [("queue", "list"), ("queue", "list", "--json"), ("queue", "export")])
def test_where_there_is_no_output_at_all_there_is_nobody_to_be_told(empty, arguments):
    ended = mailgate(*arguments, stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1))
    assert (ended.returncode, ended.stderr) == (0, b"")


def mailgate(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "mailgate.admin.main", *arguments], check=False, **options)


@pytest.mark.parametrize("given", [{"reason": "\udcff"}, {"route": "\udcff"}, {"selection": {"rcpt": "\udcff"}}])
def test_an_order_of_somebody_else_that_is_no_text_is_refused(given):
    with pytest.raises(BadOrder, match="UTF-8"):
        read_page({"action": "hold", "all": True, "selection": {}, **given}, "olga")
