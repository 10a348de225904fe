"""The message that is coming in: what is kept of it, and what is thrown away."""

from support.memory_store import MemoryStore

from mailgate.mail import replies
from mailgate.mail.verdict import Reason, Refuse
from mailgate.session.incoming import Incoming
from mailgate.session.stages import data

FOR_NOW = Refuse(replies.TRY_LATER, Reason.UNEXPECTED)
NOT_OFFERED = Refuse(replies.NOT_OFFERED, Reason.PARAMETER_NOT_OFFERED)


def begun(limit=10):
    incoming = Incoming(MemoryStore())
    incoming.begin(limit)
    return incoming


def test_octets_up_to_the_limit_are_kept():
    incoming = begun()
    incoming.write(b"12345")
    incoming.write(b"67890")
    assert (incoming.size_octets, incoming.too_big) == (10, False)
    assert incoming.queue_id != 0


def test_one_octet_more_lets_go_of_all():
    incoming = begun()
    incoming.write(b"1234567890")
    incoming.write(b"1")
    incoming.write(b"2")
    assert (incoming.spool, incoming.size_octets, incoming.too_big) == (None, 0, True)


def test_a_refused_chunk_is_thrown_away_with_what_came_before():
    incoming = begun()
    incoming.write(b"123")
    incoming.chunk_begins(FOR_NOW)
    incoming.write(b"456")
    assert incoming.spool is None
    assert incoming.chunk_ends() is FOR_NOW
    assert incoming.chunk_ends() is None


def test_chunks_after_a_refused_one_are_refused_up_to_the_last():
    incoming = begun()
    incoming.chunk_was_refused(FOR_NOW, last=False)
    incoming.chunk_was_refused(data.NO_RECIPIENT, last=False)
    assert (incoming.chunks_refused, incoming.chunked) == (FOR_NOW, True)
    incoming.chunk_was_refused(FOR_NOW, last=True)
    assert incoming.chunks_refused is None


def test_a_chunk_refused_for_good_has_the_next_ones_say_so():
    incoming = begun()
    incoming.chunk_was_refused(data.NO_RECIPIENT, last=False)
    assert incoming.chunks_refused is data.REFUSED_BEFORE


def test_bdat_that_is_not_offered_was_not_used():
    incoming = begun()
    incoming.chunk_was_refused(NOT_OFFERED, last=False)
    assert (incoming.chunks_refused, incoming.chunked) == (None, False)


def test_nothing_is_left_for_the_next_transaction():
    incoming = begun(1)
    incoming.write(b"12")
    incoming.chunk_was_refused(FOR_NOW, last=False)
    incoming.forget()
    assert (incoming.queue_id, incoming.too_big, incoming.chunked, incoming.chunks_refused) == (0, False, False, None)
