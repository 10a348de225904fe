import errno
import os
import tracemalloc

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.python.failure import Failure

from mailgate.queue.place import Space, spool_name
from mailgate.queue.spool import HEAD_OCTETS, PENDING_OCTETS, FileSpool
from mailgate.queue.store import StoreFailed, StoreFull

ID = 0x1A1F8CC5A5002D94


class Hand:
    """Blocking calls wait until they are let go, one by one."""

    def __init__(self):
        self.waiting = []

    def __call__(self, work):
        done = Deferred()
        self.waiting.append((work, done))
        return done

    def let_go(self):
        work, done = self.waiting.pop(0)
        try:
            result = work()
        except Exception:
            done.errback(Failure())
        else:
            done.callback(result)

    def let_all_go(self):
        while self.waiting:
            self.let_go()


def at_once(work):
    try:
        return succeed(work())
    except Exception:
        return fail(Failure())


def make(tmp_path, run_blocking=at_once, inline=1000, min_free=0):
    return FileSpool(ID, str(tmp_path), inline, run_blocking, Space((str(tmp_path),), min_free), {})


def path(tmp_path):
    return tmp_path / spool_name(ID)


def outcome(awaitable):
    """The result or error of what has ended; None while it waits."""
    results = []
    Deferred.fromCoroutine(awaitable).addBoth(results.append)
    return results


def test_a_small_content_stays_in_memory(tmp_path):
    spool = make(tmp_path)
    for part in (b"Subject: ", b"", b"x\r\n"):
        assert spool.write(part) is None
    assert (spool.size_octets, spool.head()) == (12, b"Subject: x\r\n")
    (content,) = outcome(spool.finish())
    assert (content.size_octets, content.octets, content.path) == (12, b"Subject: x\r\n", None)
    assert spool.head() == b"Subject: x\r\n"
    spool.discard()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_content(tmp_path):
    spool = make(tmp_path)
    assert spool.head() == b""
    assert outcome(spool.finish())[0].octets == b""


def test_a_large_content_goes_to_a_file_octet_for_octet(tmp_path):
    spool = make(tmp_path, inline=0)
    octets = os.urandom(900_000)
    for start in range(0, len(octets), 777):
        spool.write(octets[start : start + 777])
    (content,) = outcome(spool.finish())
    assert (content.size_octets, content.octets, content.path) == (900_000, None, str(path(tmp_path)))
    assert path(tmp_path).read_bytes() == octets
    assert path(tmp_path).stat().st_mode & 0o777 == 0o600
    assert spool.head() == octets[:HEAD_OCTETS]


def test_a_writer_faster_than_the_disk_is_told_to_wait(tmp_path):
    hand = Hand()
    spool = make(tmp_path, hand)
    block = b"x" * 65_536
    waits = [spool.write(block) for _ in range(PENDING_OCTETS // len(block))]
    assert waits == [None] * len(waits)
    wait = spool.write(block)
    assert wait is not None
    # Everything that waits is written by the next call, however many writes it was.
    assert len(hand.waiting) == 1
    hand.let_go()
    assert not wait.called
    hand.let_go()
    assert wait.called
    assert hand.waiting == []
    assert path(tmp_path).stat().st_size == spool.size_octets


def test_finish_waits_for_what_is_being_written(tmp_path):
    hand = Hand()
    spool = make(tmp_path, hand)
    spool.write(b"x" * 2000)
    spool.write(b"y" * 2000)
    result = outcome(spool.finish())
    for _ in range(2):
        hand.let_go()
        assert result == []
    hand.let_go()
    assert result[0].size_octets == 4000
    assert path(tmp_path).read_bytes() == b"x" * 2000 + b"y" * 2000


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull), (errno.EIO, StoreFailed)]
)
@pytest.mark.parametrize("call", ["writev", "fsync"])
def test_a_disk_that_fails_is_told_at_the_end_and_leaves_no_file(tmp_path, monkeypatch, number, kind, call):
    hand = Hand()
    spool = make(tmp_path, hand)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    waits = [spool.write(b"x" * 300_000) for _ in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        hand.let_all_go()
        assert all(wait is None or wait.called for wait in waits)
        assert spool.write(b"more") is None
        result = outcome(spool.finish())
        hand.let_all_go()
    assert type(result[0].value) is kind
    assert not path(tmp_path).exists()
    spool.discard()


def test_a_name_that_is_taken_fails_and_is_left_alone(tmp_path):
    path(tmp_path).parent.mkdir()
    path(tmp_path).write_bytes(b"another's")
    spool = make(tmp_path)
    spool.write(b"x" * 2000)
    (failure,) = outcome(spool.finish())
    assert failure.check(StoreFailed)
    assert path(tmp_path).read_bytes() == b"another's"


def test_too_little_free_space_fails_before_anything_is_written(tmp_path):
    spool = make(tmp_path, min_free=1 << 62)
    spool.write(b"x" * 2000)
    (failure,) = outcome(spool.finish())
    assert failure.check(StoreFull)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("let_go", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("finishing", [False, True])
def test_discarded_at_any_moment_no_file_stays(tmp_path, let_go, finishing):
    hand = Hand()
    spool = make(tmp_path, hand)
    wait = [spool.write(b"x" * 300_000) for _ in range(3)][-1]
    result = outcome(spool.finish()) if finishing else []
    for _ in range(let_go):
        if hand.waiting:
            hand.let_go()
    spool.discard()
    spool.discard()
    assert spool.write(b"late") is None
    hand.let_all_go()
    assert wait.called
    assert not path(tmp_path).exists()
    if finishing and let_go < 3:
        assert result[0].check(StoreFailed)


def test_finishing_what_was_discarded_fails(tmp_path):
    spool = make(tmp_path)
    spool.write(b"x")
    spool.discard()
    assert outcome(spool.finish())[0].check(StoreFailed)


def test_one_who_stops_waiting_for_the_end_leaves_the_file_to_discard(tmp_path):
    hand = Hand()
    spool = make(tmp_path, hand)
    spool.write(b"x" * 2000)
    finishing = Deferred.fromCoroutine(spool.finish())
    hand.let_go()
    finishing.addErrback(lambda failure: failure.trap(CancelledError))
    finishing.cancel()
    spool.discard()
    # Nothing else happens to the file while it is being synced.
    assert len(hand.waiting) == 1
    hand.let_all_go()
    assert not path(tmp_path).exists()


def test_a_kept_file_survives_discard(tmp_path):
    spool = make(tmp_path)
    spool.write(b"x" * 2000)
    outcome(spool.finish())
    spool.keep()
    spool.discard()
    assert path(tmp_path).exists()


def test_ten_mebibytes_pass_through_less_than_two(tmp_path):
    spool = make(tmp_path, inline=262_144)
    tracemalloc.start()
    try:
        for _ in range(160):
            spool.write(bytes(65_536))
        spool.head()
        outcome(spool.finish())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert spool.size_octets == 10 * 1024 * 1024
    assert peak < 2 * 1024 * 1024


def test_pending_octets_are_bounded_when_the_writer_heeds_the_wait(tmp_path):
    hand = Hand()
    spool = make(tmp_path, hand, inline=262_144)
    tracemalloc.start()
    try:
        for _ in range(160):
            wait = spool.write(bytes(65_536))
            if wait is not None:
                while not wait.called:
                    hand.let_go()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * 1024 * 1024
    spool.discard()
    hand.let_all_go()
