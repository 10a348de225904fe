import json

import pytest

from mailgate.queue.drop import (
    HEAD_OCTETS,
    UNFINISHED,
    DropEnvelope,
    DropHead,
    DropRecipient,
    NotADrop,
    notify_words,
    read_envelope,
)

WHOLE = DropEnvelope(
    "jörg@a.test",
    (DropRecipient("x@b.test"), DropRecipient("y z@c.test", "SUCCESS,FAILURE", "other@c.test"), DropRecipient("root")),
    "HDRS",
    "id+1",
    True,
)


def test_an_envelope_is_read_as_it_was_written():
    assert read_envelope(WHOLE.octets) == WHOLE
    assert WHOLE.octets.count(b"\n") == 1


def test_the_null_sender_is_written_too():
    envelope = DropEnvelope("", (DropRecipient("x@b.test"),))
    assert read_envelope(envelope.octets) == envelope


def test_a_head_is_read_as_it_was_written():
    head = DropHead(12345, 67, True)
    assert len(head.octets) == len(UNFINISHED) == HEAD_OCTETS
    assert DropHead.of(head.octets, HEAD_OCTETS + 12345 + 67) == head


@pytest.mark.parametrize(
    ("octets", "size", "problem"),
    [
        (UNFINISHED, 100, "not finished"),
        (b"", 0, "no drop"),
        (b"x" * HEAD_OCTETS, 100, "no drop"),
        (DropHead(10, 20, False).octets, HEAD_OCTETS + 29, "size"),
        (DropHead(10, 20, False).octets, HEAD_OCTETS + 31, "size"),
        (DropHead(10, 5_000_000, False).octets, HEAD_OCTETS + 5_000_010, "longer"),
        (DropHead(10, 20, False).octets[:-1] + b"x", HEAD_OCTETS + 30, "not finished|no drop"),
    ],
)
def test_a_file_that_was_cut_short_says_so(octets, size, problem):
    with pytest.raises(NotADrop, match=problem):
        DropHead.of(octets, size)


def envelope(**changes):
    document = {"sender": "a@b.test", "recipients": ["x@b.test"]} | changes
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b"null",
        b"{}",
        envelope(recipients=[]),
        envelope(recipients="x@b.test"),
        envelope(recipients=[1]),
        envelope(recipients=[None]),
        envelope(recipients=[""]),
        envelope(recipients=["x@b.test\r\nRSET"]),
        envelope(recipients=["x@b.test\x85"]),
        envelope(recipients=["x" * 2000]),
        envelope(recipients=["\ud800@b.test"]),
        envelope(recipients=[{"notify": "NEVER"}]),
        envelope(recipients=[{"address": "x@b.test", "notify": "ALWAYS"}]),
        envelope(recipients=[{"address": "x@b.test", "orcpt": "a\nb"}]),
        envelope(recipients=[{"address": "x@b.test", "orcpt": 5}]),
        envelope(sender=None),
        envelope(sender=7),
        envelope(sender="a\r\nDATA"),
        envelope(ret="ALL"),
        envelope(ret=3),
        envelope(envid="a b"),
        envelope(envid="x" * 101),
    ],
)
def test_an_envelope_that_sendmail_would_not_write_is_refused(octets):
    with pytest.raises(NotADrop):
        read_envelope(octets)


@pytest.mark.parametrize(
    ("given", "words"), [("never", "NEVER"), ("success,Failure", "SUCCESS,FAILURE"), (" delay ", "DELAY")]
)
def test_the_words_of_notify(given, words):
    assert notify_words(given) == words


@pytest.mark.parametrize("given", ["", "never,success", "always", "success,success", "success,"])
def test_other_words_are_refused(given):
    with pytest.raises(ValueError):
        notify_words(given)
