"""`mailgate queue retry, hold, release, reroute, cancel, drop` against a running gateway."""

import contextlib
import getpass
import json
import re
import smtplib
import sqlite3
import time
import uuid

import pytest
from support.command import command
from support.daemon import Gateway, settle
from support.ports import free_port, wait_until
from support.queue_invariants import violations
from support.sink import HELD, NextHop
from support.sqlite_store import recipient as queued

from mailgate.admin.control import Request, ask
from mailgate.admin.order import PAGE_MESSAGES
from mailgate.queue.connection import connect
from mailgate.queue.entry import entry
from mailgate.queue.item import Content, NewMessage, Source
from mailgate.queue.tables import Tables

# What is for `wait.test` and its kin finds nobody at its port and waits for an hour.
CONFIG = """
[session.rcpt]
relay = true
[queue.strategy]
route = [ {{ if = "is_local_domain('*', rcpt_domain)", then = "'local'" }},
    {{ if = "rcpt_domain == 'delivering.test'", then = "'delivering'" }},
    {{ if = "rcpt_domain == 'failing.test'", then = "'failing'" }},
    {{ else = "'nobody'" }} ]
schedule = [ {{ if = "rcpt_domain == 'slow.test'", then = "'slow'" }}, {{ else = "'hourly'" }} ]
[queue.virtual.slow]
threads-per-node = 3
[queue.schedule.hourly]
queue-name = "default"
retry = "1h"
expire = "2d"
[queue.schedule.slow]
queue-name = "slow"
retry = "1h"
expire = "2d"
[queue.route.nobody]
type = "relay"
address = "127.0.0.1"
port = {closed}
tls.implicit = false
[queue.route.hop]
type = "relay"
address = "127.0.0.1"
port = {open}
tls.implicit = false
[queue.route.delivering]
type = "relay"
address = "127.0.0.1"
port = {delivering}
tls.implicit = false
[queue.route.failing]
type = "relay"
address = "127.0.0.1"
port = {failing}
tls.implicit = false
"""


@pytest.fixture(scope="module")
def hop():
    with NextHop() as server:
        yield server


@pytest.fixture(scope="module")
def delivering():
    """Takes a message, and answers when it is released."""
    with NextHop(replies={"DOT": [HELD]}) as server:
        yield server


@pytest.fixture(scope="module")
def failing():
    """Delays every message when it is released."""
    with NextHop(replies={"EHLO": [HELD], "MAIL": ["450 4.2.0 later"]}) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, authority, hop, delivering, failing):
    ports = {"open": hop.port, "delivering": delivering.port, "failing": failing.port}
    changes = CONFIG.format(closed=free_port(), **ports)
    with Gateway(tmp_path_factory.mktemp("changes"), authority, changes=(changes,)) as daemon:
        yield daemon
        assert violations(str(daemon.queue_path), str(daemon.directory / "spool")) == []


@pytest.fixture(autouse=True)
def empty(gateway):
    yield
    done = command(gateway.config, "queue", "drop", "--all")
    assert done.returncode == 0, done.stderr
    gateway.wait_queue_empty()


def send(gateway, *recipients, sender="jane@foobar.org", wait=True):
    """Hand a message in and wait until its first attempt has failed; its queue id."""
    token = uuid.uuid4().hex
    with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=20) as client:
        client.ehlo("client.test")
        client.mail(sender)
        for recipient in recipients:
            assert client.rcpt(recipient)[0] == 250
        code, text = client.data(f"Subject: {token}\r\n\r\nhi\r\n")
    assert code == 250
    id_ = re.search(r"queued with id ([0-9a-f]+)", text.decode())[1].zfill(16)
    if wait:
        wait_until(lambda: all(row["state"] == "temp_fail" for row in rows(gateway, id_)), 20, "the first attempt")
        wait_until(lambda: leased(gateway, id_) == 0, 20, "the end of the first attempt")
    return id_


def rows(gateway, id_):
    with contextlib.closing(sqlite3.connect(f"file:{gateway.queue_path}?mode=ro", uri=True, timeout=10)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute("SELECT * FROM recipient WHERE message_id = ?", (int(id_, 16),))]


def leased(gateway, id_):
    with contextlib.closing(sqlite3.connect(f"file:{gateway.queue_path}?mode=ro", uri=True, timeout=10)) as db:
        asked = "SELECT count(*) FROM unit WHERE lease_owner IS NOT NULL AND message_id = ?"
        return db.execute(asked, (int(id_, 16),)).fetchone()[0]


def change(gateway, *arguments, status=0):
    """The document of `mailgate queue ARGUMENTS --json`."""
    done = command(gateway.config, "queue", *arguments, "--json")
    assert done.returncode == status, (done.stdout, done.stderr)
    return json.loads(done.stdout)


@pytest.mark.spec("OUT-188", "OUT-269", "OUT-283")
def test_a_retry_wakes_the_scheduler_and_is_an_event(gateway, hop):
    id_ = send(gateway, "a@wait.test")
    due = rows(gateway, id_)[0]["retry_due"]
    found = change(gateway, "retry", id_.upper().lstrip("0"), "--reason", "they are back")
    assert found == {"matched": 1, "changed": 1, "ids": [id_]}
    wait_until(lambda: rows(gateway, id_)[0]["retry_num"] == 2, 10, "the second attempt")
    assert rows(gateway, id_)[0]["retry_due"] > due
    (event,) = [line for line in gateway.log_text().splitlines() if "queue.operator" in line and id_ in line]
    assert f"action=retry actor={getpass.getuser()}" in event
    assert "they are back" in event


def test_a_retry_can_be_put_off_to_another_time(gateway):
    id_ = send(gateway, "a@wait.test")
    change(gateway, "retry", id_, "--at", "2027-06-01T12:00:00Z")
    row = rows(gateway, id_)[0]
    assert row["retry_due"] == 1811851200000
    assert (row["expires_kind"], row["expires_value"]) == ("attempts", 1 + 10)


def test_a_route_is_taken_from_the_configuration_in_use(gateway):
    first, second = send(gateway, "a@wait.test"), send(gateway, "b@wait.test")
    done = command(gateway.config, "queue", "reroute", first, "--route", "nosuch")
    assert (done.returncode, "nosuch" in done.stderr, "nobody" in done.stderr) == (64, True, True)
    assert rows(gateway, first)[0]["route_override"] is None
    change(gateway, "reroute", first, second, "--route", "hop")
    assert [rows(gateway, id_)[0]["route_override"] for id_ in (first, second)] == ["hop", "hop"]
    shown = json.loads(command(gateway.config, "queue", "show", first, "--json").stdout)
    assert shown["recipients"][0]["route"] == "hop"
    change(gateway, "reroute", second, "--clear")
    assert rows(gateway, second)[0]["route_override"] is None


@pytest.mark.spec("OUT-273")
def test_a_message_goes_by_the_route_it_was_given(gateway, hop):
    before = len(hop.messages)
    first, second = send(gateway, "a@wait.test"), send(gateway, "b@wait.test")
    change(gateway, "reroute", first, second, "--route", "hop")
    change(gateway, "reroute", second, "--clear")
    change(gateway, "retry", first, second)
    wait_until(lambda: len(hop.messages) > before, 10, "the message at the other next hop")
    wait_until(lambda: rows(gateway, second)[0]["retry_num"] == 2, 10, "the attempt that failed again")
    assert [one.recipients for one in hop.messages[before:]] == [["a@wait.test"]]
    change(gateway, "reroute", second, "--route", "hop", "--now")
    wait_until(lambda: len(hop.messages) == before + 2, 10, "the other message")


@pytest.mark.spec("OUT-272")
def test_who_is_held_waits_and_who_is_released_is_tried_at_once(gateway, hop):
    before = len(hop.messages)
    id_ = send(gateway, "a@wait.test", "b@slow.test")
    change(gateway, "reroute", id_, "--route", "hop")
    assert change(gateway, "hold", id_, "-r", "b@", "--reason", "a question")["changed"] == 1
    row = next(row for row in rows(gateway, id_) if row["address"] == "b@slow.test")
    assert row["held_reason"] == f"{getpass.getuser()}: a question"
    done = command(gateway.config, "queue", "retry", id_)
    assert "1 recipient of 1 message rescheduled" in done.stdout
    assert "1 held recipients were left alone" in done.stderr
    wait_until(lambda: len(hop.messages) == before + 1, 10, "the recipient that is not held")
    settle()
    assert [one.recipients for one in hop.messages[before:]] == [["a@wait.test"]]
    assert change(gateway, "release", "--status", "held")["ids"] == [id_]
    wait_until(lambda: len(hop.messages) == before + 2, 10, "the recipient that was held")


@pytest.mark.spec("OUT-193")
def test_what_is_ordered_during_an_attempt_loses_against_delivery(gateway, delivering):
    before = len(gateway.maildir("jane", "foobar.org"))
    id_ = send(gateway, "a@delivering.test", wait=False)
    assert delivering.held.acquire(timeout=20)
    assert change(gateway, "cancel", id_)["changed"] == 1
    (blocker,) = change(gateway, "why", id_)["recipients"][0]["blockers"]
    assert blocker["kind"] == "attempt"
    assert "transmitting at 127.0.0.1 [127.0.0.1]" in blocker["detail"]
    assert "then cancel" in blocker["detail"]
    assert change(gateway, "show", id_)["recipients"][0]["in_attempt"] is True
    delivering.release()
    wait_until(lambda: rows(gateway, id_) == [], 20, "the end of the message")
    assert len(delivering.messages) == 1
    assert f"delivery.delivered queueId={id_}" in gateway.log_text()
    assert len(gateway.maildir("jane", "foobar.org")) == before


@pytest.mark.spec("OUT-193", "OUT-188", "OUT-274")
def test_what_is_ordered_during_an_attempt_wins_against_a_temporary_failure(gateway, failing):
    before = len(gateway.maildir("jane", "foobar.org"))
    cancelled, told, dropped, put_off, left = (
        send(gateway, f"{name}@failing.test", wait=False) for name in ("cancel", "notify", "drop", "retry", "nothing")
    )
    for _ in range(5):
        assert failing.held.acquire(timeout=20)
    change(gateway, "cancel", cancelled)
    change(gateway, "cancel", told, "--notify")
    change(gateway, "drop", dropped)
    change(gateway, "retry", put_off, "--at", "+30m")
    asked = rows(gateway, put_off)[0]["asked_due"]
    assert [len(rows(gateway, id_)) for id_ in (cancelled, told, dropped)] == [1, 1, 1]
    failing.release()
    for id_ in (cancelled, told, dropped):
        wait_until(lambda id_=id_: rows(gateway, id_) == [], 20, f"the end of {id_}")
    (dsn,) = gateway.wait_mail("jane", "foobar.org", before + 1)[before:]
    assert b"notify@failing.test" in dsn
    assert b"Delivery canceled." in dsn
    wait_until(lambda: rows(gateway, put_off)[0]["retry_num"] == 1, 20, "the failure")
    wait_until(lambda: rows(gateway, left)[0]["retry_num"] == 1, 20, "the failure of the other")
    row = rows(gateway, put_off)[0]
    assert (row["retry_due"], row["asked_due"], row["state"]) == (asked, None, "temp_fail")
    assert rows(gateway, left)[0]["retry_due"] > asked
    settle()
    assert len(gateway.maildir("jane", "foobar.org")) == before + 1


@pytest.mark.spec("OUT-190", "OUT-270", "OUT-274", "OUT-192")
def test_a_cancel_ends_who_matches_and_tells_nobody(gateway):
    before = len(gateway.maildir("jane", "foobar.org"))
    id_ = send(gateway, "a@wait.test", "b@slow.test", "c@wait.test")
    other = send(gateway, "d@wait.test")
    found = change(gateway, "cancel", "-d", "slow.test", "--sender", "jane@")
    assert found == {"matched": 1, "changed": 1, "ids": [id_]}
    states = {row["address"]: row["state"] for row in rows(gateway, id_)}
    assert states == {"a@wait.test": "temp_fail", "b@slow.test": "perm_fail", "c@wait.test": "temp_fail"}
    change(gateway, "cancel", id_)
    assert rows(gateway, id_) == []
    assert len(rows(gateway, other)) == 1
    settle()
    assert len(gateway.maildir("jane", "foobar.org")) == before
    assert f"delivery.completed queueId={id_}" in gateway.log_text()


@pytest.mark.spec("OUT-274")
def test_a_cancel_that_notifies_writes_one_failure_dsn(gateway):
    before = len(gateway.maildir("jane", "foobar.org"))
    id_ = send(gateway, "a@wait.test", "c@wait.test")
    assert change(gateway, "cancel", id_, "--notify")["changed"] == 2
    (dsn,) = gateway.wait_mail("jane", "foobar.org", before + 1)[before:]
    assert dsn.count(b"Action: failed") == 2
    assert b"Delivery canceled." in dsn
    wait_until(lambda: rows(gateway, id_) == [], 10, "the end of the message")
    settle()
    assert len(gateway.maildir("jane", "foobar.org")) == before + 1


@pytest.mark.spec("OUT-274")
def test_a_drop_removes_the_message_at_once(gateway):
    before = len(gateway.maildir("jane", "foobar.org"))
    id_ = send(gateway, "a@wait.test", "b@slow.test")
    assert change(gateway, "drop", "--rcpt", "a@wait.test") == {"matched": 1, "changed": 1, "ids": [id_]}
    assert rows(gateway, id_) == []
    settle()
    assert len(gateway.maildir("jane", "foobar.org")) == before


@pytest.mark.spec("OUT-195")
@pytest.mark.parametrize("action", ["retry", "hold", "release", "reroute", "cancel", "drop"])
def test_without_a_selector_nothing_is_changed(gateway, action):
    route = ["--clear"] if action == "reroute" else []
    assert change(gateway, action, *route, status=64)["error"]["code"] == 64
    assert change(gateway, action, *route, "--all") == {"matched": 0, "changed": 0, "ids": []}


@pytest.mark.spec("OUT-271")
@pytest.mark.parametrize(
    "arguments", [["retry"], ["hold"], ["reroute", "--route", "hop"], ["cancel"], ["cancel", "--notify"], ["drop"]]
)
def test_a_dry_run_counts_what_the_real_one_changes(gateway, arguments):
    send(gateway, "a@wait.test", "b@slow.test")
    send(gateway, "c@wait.test")
    action, *options = arguments
    with contextlib.closing(sqlite3.connect(f"file:{gateway.queue_path}?mode=ro", uri=True)) as db:
        before = db.execute("SELECT * FROM recipient").fetchall()
        thought = change(gateway, action, *options, "-d", "wait.test", "--dry-run")
        assert db.execute("SELECT * FROM recipient").fetchall() == before
    assert thought.pop("dry_run") is True
    assert thought == change(gateway, action, *options, "-d", "wait.test")
    assert thought["matched"] == 2


@pytest.mark.spec("OUT-268")
def test_what_is_not_there_is_status_one_and_named(gateway):
    id_ = send(gateway, "a@wait.test")
    done = command(gateway.config, "queue", "hold", "1234", "-d", "wait.test")
    assert (done.returncode, done.stderr) == (1, "0000000000001234: nothing matched\n")
    done = command(gateway.config, "queue", "hold", "1234", id_)
    assert done.returncode == 0
    assert done.stdout == "1 recipient of 1 message held\n"
    assert done.stderr == "0000000000001234: nothing matched\n"
    assert command(gateway.config, "queue", "hold", "xyz").returncode == 64
    assert command(gateway.config, "queue", "retry", id_, "--at", "yesterday").returncode == 64


def test_an_expression_picks_recipients(gateway):
    id_ = send(gateway, "a@wait.test", "b@slow.test")
    found = change(
        gateway, "hold", "--match", "queue_name == 'slow' && retry_num == 1 && sender_domain == 'foobar.org'"
    )
    assert (found["changed"], found["ids"]) == (1, [id_])
    assert [row["address"] for row in rows(gateway, id_) if row["held_since"]] == ["b@slow.test"]
    done = command(gateway.config, "queue", "hold", "--match", "qeue_name == 'slow'")
    assert (done.returncode, "queue_name" in done.stderr) == (64, True)
    done = command(gateway.config, "queue", "hold", "--match", "key_exists('no' + 'such', rcpt)")
    assert done.returncode == 1
    assert "2 recipients were left alone" in done.stderr
    assert "nosuch" in done.stderr


def test_what_is_no_order_is_refused_by_the_daemon_itself(gateway):
    path = str(gateway.directory / "control.sock")
    id_ = send(gateway, "a@wait.test")
    for arguments, told in (
        ({}, "Action"),
        ({"action": "drop", "selection": {}}, "--all"),
        ({"action": "drop", "selection": {"colour": "red"}}, "colour"),
        ({"action": "drop", "selection": {"ids": ["x"]}}, "numbers"),
        ({"action": "drop", "selection": {"before_ms": 1e9}}, "before_ms"),
        ({"action": "retry", "selection": {"domain": "x"}, "at": 1 << 70}, "at"),
    ):
        answer = ask(path, Request("queue.change", arguments))
        assert answer.status == 64
        assert told in answer.text
    assert len(rows(gateway, id_)) == 1


@pytest.mark.spec("OUT-267", "OUT-269")
def test_without_the_daemon_changes_end_with_69_and_change_nothing(gateway, tmp_path):
    id_ = send(gateway, "a@wait.test")
    config = tmp_path / "other.toml"
    config.write_text(gateway.config.read_text().replace("control.sock", "nobody.sock"))
    before = rows(gateway, id_)
    for order in (["retry"], ["hold"], ["release"], ["reroute", "--clear"], ["cancel"], ["drop"]):
        done = command(config, "queue", *order, id_, "--json")
        assert done.returncode == 69
        assert json.loads(done.stdout)["error"]["code"] == 69
    assert rows(gateway, id_) == before


@pytest.mark.spec("OUT-191")
def test_a_change_is_about_every_match_however_many_pages_they_are(gateway):
    """Several pages of one request each, and of the ids named one by one more than a request takes."""
    count = 2 * PAGE_MESSAGES + 500
    first, later = 0x1B00000000000000, time.time_ns() // 1_000_000 + 3_600_000
    octets = b"Subject: bulk\r\n\r\n"
    messages = (
        NewMessage(
            first + number,
            later - 7_200_000,
            b"",
            Content(len(octets), octets=octets),
            "bulk@origin.test",
            Source.AUTHENTICATED,
            (
                queued(0, f"a{number}@bulk.test", queue="default", retry_due_ms=later),
                queued(1, f"b{number}@other.test", queue="slow", retry_due_ms=later),
            ),
        )
        for number in range(count)
    )
    with contextlib.closing(connect(str(gateway.queue_path), write=True)) as db:
        db.execute("BEGIN IMMEDIATE")
        Tables(db, "test", 60_000).insert([entry(message) for message in messages])
        db.execute("COMMIT")
    found = change(gateway, "hold", "-d", "bulk.test", "--dry-run")
    assert (found["matched"], found["changed"], len(set(found["ids"]))) == (count, count, count)
    found = change(gateway, "hold", "-d", "bulk.test")
    assert (found["matched"], found["changed"], len(set(found["ids"]))) == (count, count, count)
    assert change(gateway, "list", "--status", "held", "--limit", "1")["total"] == count
    assert change(gateway, "cancel", *found["ids"], "-d", "other.test")["changed"] == count
    with contextlib.closing(sqlite3.connect(f"file:{gateway.queue_path}?mode=ro", uri=True)) as db:
        states = db.execute("SELECT state, count(*) FROM recipient GROUP BY state ORDER BY state").fetchall()
        assert states == [("perm_fail", count), ("scheduled", count)]
    assert change(gateway, "drop", "--sender", "bulk@")["changed"] == count
    assert gateway.queue() == []
