"""The rows of a new message."""

from hashlib import sha256

import pytest
from support.sqlite_store import recipient

from mailgate.queue.entry import content_hash, entry, hash_text
from mailgate.queue.item import Content, NewMessage, Source
from mailgate.queue.writer import Insertion

ONE = (recipient(0),)


def message(content, prefix=b"", recipients=ONE):
    return NewMessage(7, 1_767_225_600_000, prefix, content, "a@b.test", Source.UNAUTHENTICATED, recipients)


def test_what_is_stored_is_prefix_and_content_and_the_hash_is_of_both():
    made = entry(message(Content(5, octets=b"text."), b"Received: x\r\n"))
    assert made.content == (7, b"Received: x\r\ntext.", None)
    assert hash_text(sha256(b"Received: x\r\ntext.").digest()) in made.message


def test_a_content_in_a_file_needs_its_hash():
    in_file = message(Content(5, path="x"), b"Received: x\r\n")
    made = entry(in_file, "hash-of-both")
    assert "hash-of-both" in made.message
    assert made.content[:2] == (7, b"Received: x\r\n")
    assert made.content[2]
    with pytest.raises(ValueError, match="0000000000000007 has neither"):
        entry(in_file)


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 4094, 16_384, 16_385, 100_000])
def test_the_hash_is_the_same_in_one_piece_and_in_many(size):
    octets = bytes(range(256)) * (size // 256 + 1)
    assert content_hash(octets[:size]) == hash_text(sha256(octets[:size]).digest())


def test_one_unit_for_each_virtual_queue():
    people = (recipient(0, queue="a"), recipient(1, queue="b"), recipient(2, queue="a"))
    made = entry(message(Content(1, octets=b"x"), recipients=people))
    assert [unit[1] for unit in made.units] == ["a", "b"]
    assert [row[1] for row in made.recipients] == [0, 1, 2]


@pytest.mark.parametrize("octets, people", [(10, 1), (1024 * 1024, 1000), (1024 * 1024 + 1, 1), (10, 1001)])
def test_what_takes_long_is_made_by_the_thread_that_stores_it(octets, people):
    to = tuple(recipient(index) for index in range(people))
    job = Insertion(message(Content(octets, octets=b"x" * octets), recipients=to), None)
    job.make_ready()
    is_made = vars(job)["_entry"] is not None
    assert is_made == (octets <= 1024 * 1024 and people <= 1000)
    assert len(job.entry.recipients) == people
    assert job.entry is job.entry
