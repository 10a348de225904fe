"""One line for each event, whatever is in it."""

import io
import json
import os
import resource

import pytest
from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.python.failure import Failure

from mailgate.service.log import LineObserver, ReactorTurn, ReopenedFile, value_text


def line(**event):
    out = io.StringIO()
    LineObserver(out)({"log_level": LogLevel.info, "log_time": 1767225600.25, **event})
    return out.getvalue()


def test_time_level_name_and_fields():
    told = line(event="smtp.rcpt-refused", trace="k3v7q2mzcb4d", code="550 5.1.2", log_namespace="mailgate.session")
    assert told == '2026-01-01T00:00:00.250Z info smtp.rcpt-refused trace=k3v7q2mzcb4d code="550 5.1.2"\n'


@pytest.mark.parametrize(
    "value",
    ["two\nlines", "cr\rlf", "tab\t", 'quo"te', "a=b", "a b", "", "\x1b[31mred", "é", "\u2028", "\x00", "\x85"],
)
def test_a_value_never_breaks_a_line(value):
    told = line(event="x", about=value)
    assert told.count("\n") == 1
    assert told.isascii()
    assert told[:-1].isprintable()
    assert json.loads(told.partition(" about=")[2]) == value


class Odd:
    def __str__(self):
        raise RuntimeError("no text")


def test_odd_values():
    assert value_text(None) == "None"
    assert value_text(b"a b") == "\"b'a b'\""
    assert value_text(7) == "7"
    assert value_text(["a", "b c", ("d",)]) == '[a,"b c",[d]]'
    assert "RuntimeError" in value_text(Odd())
    assert len(value_text("x" * 100_000)) == 100_000


def test_what_libraries_say_is_a_text():
    assert line(log_format="{n} things\nhappened", n=3, log_namespace="lib") == (
        '2026-01-01T00:00:00.250Z info log text="3 things\\nhappened" from=lib\n'
    )


def test_a_traceback_follows_indented_and_carries_nothing_over():
    try:
        raise ValueError("what a client sent: \x1b[2J\r\n2026 info forged\ud800 é")
    except ValueError:
        told = line(event="smtp.unexpected", trace="a", log_failure=Failure())
    first, *rest = told.splitlines()
    assert first.endswith("info smtp.unexpected trace=a")
    assert rest
    assert all(row.startswith("    ") for row in rest)
    assert told.isascii()
    assert "\x1b" not in told


def test_debug_is_left_out():
    out = io.StringIO()
    log = Logger(namespace="x", observer=LineObserver(out))
    log.debug("{event}", event="quiet")
    assert out.getvalue() == ""
    log.warn("{event}", event="loud")
    assert " warn loud\n" in out.getvalue()


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path):
    now = [0.0]
    path = tmp_path / "log"
    file = ReopenedFile(str(path), lambda: now[0])
    file.write("one\n")
    file.flush()
    path.rename(tmp_path / "log.1")
    now[0] = 2.0
    file.write("two\n")
    file.flush()
    assert (tmp_path / "log.1").read_text() == "one\n"
    assert path.read_text() == "two\n"
    assert os.stat(path).st_mode & 0o007 == 0


class Turn:
    """A turn that ends when told to."""

    def __init__(self):
        self.on = True
        self.calls = []

    def goes_on(self):
        return self.on

    def at_its_end(self, call):
        self.calls.append(call)

    def end(self):
        calls, self.calls = self.calls, []
        for call in calls:
            call()


@pytest.fixture
def told():
    out, turn = io.StringIO(), Turn()
    log = LineObserver(out, turn=turn)

    def tell(event, level=LogLevel.info):
        log({"log_level": level, "log_time": 1767225600.25, "event": event})

    def events():
        return [row.split(" ")[2] for row in out.getvalue().splitlines()]

    tell.turn, tell.events = turn, events
    return tell


def test_lines_of_a_turn_are_written_at_its_end(told):
    told("one")
    told("two")
    assert told.events() == []
    assert len(told.turn.calls) == 1
    told.turn.end()
    assert told.events() == ["one", "two"]
    told("three")
    told.turn.end()
    assert told.events() == ["one", "two", "three"]


def test_what_is_worse_than_info_is_written_at_once_and_after_what_waits(told):
    told("one")
    told("bad", LogLevel.warn)
    assert told.events() == ["one", "bad"]
    told.turn.end()
    told("two")
    told.turn.end()
    assert told.events() == ["one", "bad", "two"]


def test_nothing_waits_once_no_turn_goes_on(told):
    told("one")
    told.turn.on = False
    told("last")
    assert told.events() == ["one", "last"]


def test_outside_of_a_running_reactor_there_is_no_turn():
    assert ReactorTurn().goes_on() is False


class Telling:
    """A value that logs while it is shown."""

    def __init__(self, log):
        self.log = log

    def __str__(self):
        self.log({"log_level": LogLevel.info, "log_time": 1767225600.25, "event": "inner"})
        return "shown"


def test_a_value_that_logs_while_it_is_shown_blocks_nothing():
    out, turn = io.StringIO(), Turn()
    log = LineObserver(out, turn=turn)
    log({"log_level": LogLevel.info, "log_time": 1767225600.25, "event": "outer", "value": Telling(log)})
    turn.end()
    turn.end()
    assert [row.split(" ")[2:] for row in out.getvalue().splitlines()] == [["outer", "value=shown"], ["inner"]]


def test_an_event_that_cannot_be_shown_costs_the_others_of_its_turn_nothing(told):
    told("one")
    told(Odd())
    told("two")
    told.turn.end()
    one, odd, two = told.events()
    assert (one, two) == ("one", "two")
    assert odd == "log"
    # The same for what is written at once, after what waits.
    told("three")
    told(Odd(), LogLevel.warn)
    assert told.events()[3:] == ["three", "log"]


def test_a_turn_without_an_end_keeps_no_more_than_so_many_lines(told):
    for number in range(10_000):
        told(str(number))
    assert len(told.events()) >= 9_000
    told.turn.end()
    assert told.events() == [str(number) for number in range(10_000)]


@pytest.fixture
def full_disk(tmp_path):
    """Lets a file grow so far and no further; `None` lets it grow again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(octets):
        resource.setrlimit(resource.RLIMIT_FSIZE, before if octets is None else (octets, before[1]))

    yield limit
    limit(None)


def test_a_file_that_cannot_be_written_for_a_while_stops_nobody_and_breaks_no_line(tmp_path, full_disk):
    path, turn = tmp_path / "log", Turn()
    publisher = LogPublisher(LineObserver(ReopenedFile(str(path)), turn=turn))
    log = Logger(namespace="x", observer=publisher)
    names = []

    def tell(name):
        names.append(name)
        log.info("{event}", event=name)

    tell("first")
    turn.end()
    full_disk(path.stat().st_size + 100)
    for number in range(1200):
        tell(f"line-{number}")
    turn.end()
    names.append("worse")
    log.warn("{event}", event="worse")
    full_disk(None)
    tell("last")
    turn.end()
    assert [row.split(" ")[2] for row in path.read_text().splitlines()] == names
