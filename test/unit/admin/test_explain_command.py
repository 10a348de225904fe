import json
import os
from datetime import timedelta

import pytest

from mailgate.admin.main import main
from mailgate.decisions.entry import Kind, Trail
from mailgate.decisions.ring import Ring
from mailgate.mail.reply import reply
from mailgate.mail.session import Session


@pytest.fixture
def place(tmp_path, monkeypatch):
    config = tmp_path / "mailgate.toml"
    config.write_text(f'[decisions]\npath = "{tmp_path}/decisions"\n[server]\nhostname = "mx.test"\n')
    monkeypatch.setenv("MAILGATE_CONFIG", str(config))
    return tmp_path


@pytest.fixture
def recorded(place):
    ring = Ring(f"{place}/decisions", size_octets=1 << 20, age=timedelta(days=7))
    for number, trace in enumerate(("aaaaaaaaaaaa", "bbbbbbbbbbbb")):
        trail = Trail(trace, 1_700_000_000_000 + number)
        trail.add("data", "header_is_there", "session.data.require-header", (("fields", 0),), "550 5.6.0", 3)
        trail.add_recipient(f"user{number}@foobar.org", "250 2.1.5")
        session = Session("sessionaaaaa", "smtp", "smtp", f"192.0.2.{number}", 53211, "192.0.2.9", 25, "mx.test")
        ring.record(Kind.TRANSACTION, trail, session, replies=(reply(550, "5.6.0", "No header"),), queue_id=number)
    ring.start()
    ring.close()
    return place


def run(capsys, *arguments):
    status = main(["explain", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_by_trace_id(recorded, capsys):
    status, out, err = run(capsys, "bbbbbbbbbbbb")
    assert (status, err) == (0, "")
    for part in (
        "Transaction bbbbbbbbbbbb",
        "header_is_there (session.data.require-header)",
        "fields = 0",
        "550 5.6.0",
    ):
        assert part in out
    assert "aaaaaaaaaaaa" not in out


@pytest.mark.parametrize(
    ("arguments", "traces"),
    [
        (["BBBBBBBBBBBB"], ["bbbbbbbbbbbb"]),
        (["1"], ["bbbbbbbbbbbb"]),
        (["0000000000000000"], ["aaaaaaaaaaaa"]),
        (["sessionaaaaa"], ["bbbbbbbbbbbb", "aaaaaaaaaaaa"]),
        (["--rcpt", "USER0@"], ["aaaaaaaaaaaa"]),
        (["--peer", "192.0.2.1"], ["bbbbbbbbbbbb"]),
        (["--peer", "192.0.2.0/24"], ["bbbbbbbbbbbb", "aaaaaaaaaaaa"]),
        (["--last", "1"], ["bbbbbbbbbbbb"]),
        (["--last", "5"], ["bbbbbbbbbbbb", "aaaaaaaaaaaa"]),
        (["--rcpt", "foobar", "--last", "1"], ["bbbbbbbbbbbb"]),
        (["--rcpt", "nobody"], []),
    ],
)
def test_questions(recorded, capsys, arguments, traces):
    status, out, err = run(capsys, "--json", *arguments)
    assert [entry["trace"] for entry in json.loads(out)["entries"]] == traces
    assert status == (0 if traces else 1)
    assert err == ""


def test_for_people_the_newest_stands_last(recorded, capsys):
    out = run(capsys, "--last", "2")[1]
    assert out.index("aaaaaaaaaaaa") < out.index("bbbbbbbbbbbb")


def test_nothing_found_is_one_line(recorded, place, capsys):
    status, out, err = run(capsys, "zzzzzzzzzzzz")
    assert (status, out) == (1, "")
    assert err == f"mailgate: nothing of that is in {place}/decisions\n"


def test_a_record_can_be_read_without_its_configuration(recorded, capsys, monkeypatch):
    monkeypatch.setenv("MAILGATE_CONFIG", "/nonexistent")
    assert run(capsys, "--last", "1")[0] == 78
    assert run(capsys, "--last", "1", "--record", f"{recorded}/decisions")[0] == 0


def test_a_switched_off_record_says_so(place, capsys):
    config = place / "mailgate.toml"
    config.write_text(config.read_text().replace("[decisions]", "[decisions]\nenable = false"))
    assert "(decisions.enable is false)" in run(capsys, "--last", "1")[2]


@pytest.mark.parametrize(
    "arguments", [[], ["no-id!"], ["--peer", "nohost"], ["--last", "0"], ["--last", "x"], ["a", "b"]]
)
def test_wrong_usage(recorded, capsys, arguments):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (64, "")
    assert err.startswith("mailgate: ")
    assert json.loads(run(capsys, "--json", *arguments)[1])["error"]["code"] == 64


def test_no_permission(recorded, capsys, monkeypatch):
    listed = os.listdir

    def refuse(path):
        if str(path).endswith("conf.d"):
            return listed(path)
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("mailgate.decisions.ring.os.listdir", refuse)
    status, _, err = run(capsys, "--last", "1")
    assert status == 77
    assert err == f"mailgate: no permission to read {recorded}/decisions\n"
