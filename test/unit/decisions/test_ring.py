import json
import os
from datetime import timedelta

import pytest

from mailgate.decisions.entry import FIELDS, Entry, Kind, Trail
from mailgate.decisions.ring import Ring, segments
from mailgate.mail.reply import reply
from mailgate.mail.session import Identity, Session, Tls
from mailgate.mail.unknown import Unknown

SESSION = Session(
    "sessionaaaaa",
    "smtp",
    "smtp",
    "192.0.2.1",
    53211,
    "192.0.2.9",
    25,
    "mx.test",
    helo="client.test",
    tls=Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384"),
    identity=Identity("john"),
)
ACCEPTED = (reply(250, "2.0.0", "Queued"),)


class Clock:
    def __init__(self):
        self.now = 1_700_000_000.0

    def __call__(self):
        return self.now


def ring(folder, **given):
    given = {"size_octets": 1 << 20, "age": timedelta(days=7), "now": Clock()} | given
    return Ring(str(folder), **given)


def trail(trace="traceaaaaaaa", reads=(("sender", "a@b.test"),)):
    made = Trail(trace, 1_699_999_999_000)
    made.sender = "a@b.test"
    made.add("mail", "session.mail.is-allowed", "mailgate.toml:31", reads, "true", 12)
    made.add_recipient("x@y.test", "250 2.1.5")
    return made


def lines(folder):
    found = []
    for path in segments(str(folder)):
        with open(path, "rb") as file:
            found.extend(file.read().splitlines())
    return found


def entries(folder):
    return [Entry.read(line) for line in lines(folder)]


def test_what_went_in_comes_out(tmp_path):
    r = ring(tmp_path)
    r.record(Kind.TRANSACTION, trail(), SESSION, replies=ACCEPTED, queue_id=0xABC, size_octets=77)
    r.drain()
    (entry,) = entries(tmp_path)
    assert (entry.kind, entry.trace, entry.session) == ("transaction", "traceaaaaaaa", "sessionaaaaa")
    assert entry.queue_id == "0000000000000abc"
    assert (entry.started_ms, entry.ended_ms) == (1_699_999_999_000, 1_700_000_000_000)
    assert (entry.peer_ip, entry.peer_port, entry.local_ip, entry.local_port) == ("192.0.2.1", 53211, "192.0.2.9", 25)
    assert (entry.tls, entry.helo, entry.login, entry.sender) == ("TLSv1.3", "client.test", "john", "a@b.test")
    assert entry.size_octets == 77
    (asked,) = entry.recipients
    assert (asked.address, asked.reply, asked.steps) == ("x@y.test", "250 2.1.5", 1)
    (step,) = entry.steps
    assert (step.stage, step.rule, step.place) == ("mail", "session.mail.is-allowed", "mailgate.toml:31")
    assert (step.reads, step.said, step.micros) == ((("sender", "a@b.test"),), "true", 12)
    assert entry.replies == ("250 2.0.0 Queued",)
    assert r.written == 1


def test_the_line_is_an_array_of_the_documented_places(tmp_path):
    r = ring(tmp_path)
    r.record(Kind.SESSION, trail(), SESSION, replies=())
    r.drain()
    assert len(json.loads(lines(tmp_path)[0])) == len(FIELDS)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("text", "text"),
        (5, 5),
        (1.5, 1.5),
        (True, True),
        (None, None),
        (("a", ("b", 1)), ["a", ["b", 1]]),
        (b"\xffabc", "\\xffabc"),
        (Unknown("dns", "timed out"), {"unknown": "dns", "reason": "timed out"}),
        ("x" * 5000, "x" * 1024 + "..."),
        (tuple("a" for _ in range(40)), ["a"] * 32 + ["... 8 more"]),
        (frozenset({"b", "a"}), ["a", "b"]),
        (timedelta(seconds=1), "0:00:01"),
        ('\udcff\n"\\ü', '\udcff\n"\\ü'),
    ],
)
def test_every_value_a_rule_may_read_can_be_told(tmp_path, value, read):
    r = ring(tmp_path)
    r.record(Kind.TRANSACTION, trail(reads=(("x", value),)), SESSION, replies=ACCEPTED)
    r.drain()
    (entry,) = entries(tmp_path)
    assert entry.steps[0].reads == (("x", read),)


def test_secrets_are_taken_out_wherever_they_come_from(tmp_path):
    r = ring(tmp_path, secrets=["hunter2", 'qu"ote\n', ""])
    made = trail(reads=(("password", "it is hunter2!"), ("n", 5), ("list", ("hunter2", Unknown("x", "hunter2")))))
    made.add("data", "check", "", (), 'said qu"ote\n', 1)
    made.add_recipient("hunter2@y.test", "250")
    r.record(Kind.TRANSACTION, made, SESSION, replies=(reply(550, "5.7.1", "no hunter2"),), reason="hunter2")
    r.drain()
    (line,) = lines(tmp_path)
    assert b"hunter2" not in line
    assert b"ote" not in line
    entry = Entry.read(line)
    assert entry.trace == "traceaaaaaaa"
    assert dict(entry.steps[0].reads)["password"] == "it is [redacted]!"
    assert dict(entry.steps[0].reads)["n"] == 5


def test_a_client_cannot_make_a_trail_grow_without_bound(tmp_path):
    made = Trail("traceaaaaaaa", 0)
    for number in range(100_000):
        made.add("rcpt", f"rule {number}", "", (), "no", 0)
        made.add_recipient("x@y.test", "550")
    assert len(made.steps) < 2000
    assert len(made.recipients) <= 1000
    r = ring(tmp_path)
    r.record(Kind.TRANSACTION, made, SESSION, replies=())
    r.drain()
    (entry,) = entries(tmp_path)
    assert len(entry.steps) == 256
    assert entry.left_out == 100_000 - 256
    assert entry.steps[0].rule == "rule 0"
    assert entry.steps[-1].rule == "rule 99999"


def test_when_too_much_waits_the_oldest_goes_and_is_counted(tmp_path):
    r = ring(tmp_path, size_octets=1 << 26)
    for number in range(40_000):
        r.record(Kind.TRANSACTION, trail(f"t{number}"), SESSION, replies=ACCEPTED)
    assert 0 < r.dropped < 40_000
    r.drain()
    kept = entries(tmp_path)
    assert len(kept) == 40_000 - r.dropped == r.written
    assert kept[-1].trace == "t39999"


def test_the_folder_stays_within_its_size(tmp_path):
    r = ring(tmp_path, size_octets=200_000)
    for number in range(2000):
        r.record(Kind.TRANSACTION, trail(f"t{number}"), SESSION, replies=ACCEPTED)
        if number % 10 == 0:
            r.drain()
            assert sum(os.path.getsize(path) for path in segments(str(tmp_path))) <= 200_000 + 20_000
    r.drain()
    kept = entries(tmp_path)
    assert kept[-1].trace == "t1999"
    assert len(kept) > 300
    assert [int(entry.trace[1:]) for entry in kept] == list(range(2000 - len(kept), 2000))


def test_what_is_too_old_goes(tmp_path):
    clock = Clock()
    r = ring(tmp_path, age=timedelta(days=1), now=clock)
    r.record(Kind.TRANSACTION, trail("old"), SESSION, replies=ACCEPTED)
    r.drain()
    (path,) = segments(str(tmp_path))
    os.utime(path, (clock.now, clock.now))
    clock.now += 86_000
    r.record(Kind.TRANSACTION, trail("new"), SESSION, replies=ACCEPTED)
    r.drain()
    assert len(segments(str(tmp_path))) == 2
    clock.now += 500
    r.drain()
    (newest,) = segments(str(tmp_path))
    assert newest != path


def test_a_segment_somebody_removed_is_begun_anew(tmp_path):
    clock = Clock()
    r = ring(tmp_path, now=clock)
    for number in range(2):
        r.record(Kind.TRANSACTION, trail(f"t{number}"), SESSION, replies=ACCEPTED)
        r.drain()
        if number == 0:
            os.unlink(segments(str(tmp_path))[0])
    assert [entry.trace for entry in entries(tmp_path)] == ["t1"]


def test_a_disk_that_fails_is_told_once_and_does_not_stop_anything(tmp_path):
    failures = []
    folder = tmp_path / "file"
    folder.write_text("in the way")
    r = ring(folder, on_failure=failures.append)
    for _ in range(3):
        r.record(Kind.TRANSACTION, trail(), SESSION, replies=ACCEPTED)
        r.drain()
    assert r.lost == 3
    assert len(failures) == 1
    folder.unlink()
    r.record(Kind.TRANSACTION, trail(), SESSION, replies=ACCEPTED)
    r.drain()
    assert r.written == 1


def test_the_files_are_for_the_operator_only(tmp_path):
    folder = tmp_path / "decisions"
    r = ring(folder)
    r.record(Kind.TRANSACTION, trail(), SESSION, replies=ACCEPTED)
    r.drain()
    assert os.stat(folder).st_mode & 0o7 == 0
    assert os.stat(segments(str(folder))[0]).st_mode & 0o7 == 0


def test_the_thread_writes_what_waits_before_it_ends(tmp_path):
    r = ring(tmp_path)
    r.record(Kind.TRANSACTION, trail("before"), SESSION, replies=ACCEPTED)
    r.start()
    for number in range(100):
        r.record(Kind.TRANSACTION, trail(f"t{number}"), SESSION, replies=ACCEPTED)
    r.close()
    r.close()
    assert [entry.trace for entry in entries(tmp_path)] == ["before", *(f"t{number}" for number in range(100))]


@pytest.mark.parametrize("line", [b"", b"{}", b"[1,2]", b'["transaction","x', b"\xff", b"[" + b"null," * 40 + b"1]"])
def test_a_torn_line_is_no_entry(line):
    assert Entry.read(line) is None
