"""Large messages on a listener whose spool is files: a disk that gets full, and what is left of what was refused."""

import errno
import os

import pytest
from support.baseline import baseline
from support.listener import SMTP_AND_LMTP, ListenerInMemory
from support.memory_store import MemoryStore
from twisted.internet.defer import fail, succeed
from twisted.python.failure import Failure

from mailgate.queue.place import Space
from mailgate.queue.spool import FileSpool

CONFIG = """
[session.data.limits]
size = 8000
"""
MAIL = b"MAIL FROM:<a@client.test>\r\n"
RCPTS = b"RCPT TO:<b@relay.test>\r\nRCPT TO:<c@relay.test>\r\n"
PART = b"X: " + b"x" * 1495 + b"\r\n"
PARTS = 5


def at_once(work):
    try:
        return succeed(work())
    except OSError:
        return fail(Failure())


class StoreOnDisk(MemoryStore):
    """Its spools have files above 1000 octets; what it has taken stays on disk."""

    def __init__(self, directory):
        super().__init__()
        self.directory = directory
        self._in_files = {}

    def spool(self, queue_id):
        space = Space((str(self.directory),), 0)
        return FileSpool(queue_id, str(self.directory), 1000, at_once, space, self._in_files)

    def commit(self, message):
        if message.content.path is not None:
            self._in_files.pop(message.id).keep()
        return super().commit(message)

    def files(self):
        return [path for path in self.directory.rglob("*") if path.is_file()]


def commands(how):
    """A message of several writes, and how many replies come before the final ones."""
    if how == "data":
        return [b"DATA\r\n", *[PART] * PARTS, b"\r\nbody\r\n.\r\n"], 1
    chunks = [b"BDAT %d\r\n%b" % (len(PART), PART)] * PARTS
    return [*chunks, b"BDAT 0 LAST\r\n"], PARTS


def connected(store, protocol):
    connection = ListenerInMemory(baseline("B0", SMTP_AND_LMTP, CONFIG), store=store).connect(protocol)
    connection.send(b"LHLO c.test\r\n" if protocol == "lmtp" else b"EHLO c.test\r\n")
    return connection


def codes(connection):
    return [line[:9].decode() for line in connection.received().split(b"\r\n") if line[3:4] == b" "]


@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
@pytest.mark.parametrize("how", ["data", "bdat"])
@pytest.mark.parametrize("good", range(PARTS - 1))
def test_a_disk_that_gets_full_is_one_temporary_answer_at_the_end(tmp_path, monkeypatch, protocol, how, good):
    store = StoreOnDisk(tmp_path)
    connection = connected(store, protocol)
    connection.send(MAIL + RCPTS)
    connection.received()
    said, before = commands(how)
    written = []

    def writev(fd, parts, write=os.writev):
        if len(written) >= good:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(fd)
        return write(fd, parts)

    monkeypatch.setattr(os, "writev", writev)
    for octets in said:
        connection.send(octets)
    monkeypatch.undo()
    final = ["452 4.3.1"] * (2 if protocol == "lmtp" else 1)
    assert codes(connection)[before:] == final
    assert store.files() == []
    # The session goes on, and the same message is taken once there is room.
    connection.send(MAIL + RCPTS)
    for octets in said:
        connection.send(octets)
    assert codes(connection)[-1] == "250 2.0.0"
    assert len(store.files()) == len(connection.queued()) == 1
    assert store.files()[0].stat().st_size == connection.queued()[0].message.content.size_octets


@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
@pytest.mark.parametrize(
    "how, end",
    [
        *[(how, end) for how in ("data", "bdat") for end in ("leaves", "has a bare newline", "is too big")],
        # DATA has no other end than its end mark.
        ("bdat", "says RSET"),
        ("bdat", "says EHLO"),
    ],
)
def test_nothing_of_what_is_not_taken_stays_in_the_spool(tmp_path, protocol, how, end):
    store = StoreOnDisk(tmp_path)
    connection = connected(store, protocol)
    connection.send(MAIL + RCPTS)
    said, _ = commands(how)
    for octets in said[:-1]:
        connection.send(octets)
    assert len(store.files()) == 1
    if end == "leaves":
        connection.leave()
    elif end == "has a bare newline":
        connection.send(b"a\nb\r\n.\r\n" if how == "data" else b"BDAT 4 LAST\r\na\nb\n")
        assert codes(connection)[-1] == "550 5.6.0"
    elif end == "is too big":
        connection.send(PART + b".\r\n" if how == "data" else b"BDAT 1500 LAST\r\n" + PART)
        assert codes(connection)[-1] == "552 5.3.4"
    else:
        hello = b"LHLO c.test\r\n" if protocol == "lmtp" else b"EHLO c.test\r\n"
        connection.send(b"RSET\r\n" if end == "says RSET" else hello)
    assert store.files() == []
    assert connection.queued() == []
