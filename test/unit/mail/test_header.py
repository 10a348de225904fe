"""The header of a message as exact octets."""

import pytest

from mailgate.mail.header import Header, header_end


@pytest.mark.parametrize(
    "octets, names",
    [
        (b"Subject: x\r\n\r\nbody: no\r\n", (b"subject",)),
        (b"Subject: x\r\n folded: not a field\r\nTo : a\r\n\r\n", (b"subject", b"to")),
        (b"\r\nSubject: body\r\n", ()),
        (b"invalid\r\n", ()),
        (b"", ()),
        (b"Received: 1\r\nReceived: 2\r\n", (b"received", b"received")),
        (b"no field\r\nX-Y: z\r\n\r\n", (b"x-y",)),
    ],
)
def test_fields_are_found_by_name(octets, names):
    assert Header(octets).names == names


def test_counting_and_asking():
    header = Header(b"Received: 1\r\nreceived: 2\r\nDate: x\r\n\r\n")
    assert header.count(b"received") == 2
    assert header.has(b"date")
    assert not header.has(b"message-id")
    assert header.block == b"Received: 1\r\nreceived: 2\r\nDate: x\r\n"


@pytest.mark.parametrize("octets, end", [(b"A: b\r\n\r\nx", 6), (b"\r\nx", 0), (b"A: b", 4), (b"A: b\r\n", 6)])
def test_the_header_ends_at_the_first_empty_line(octets, end):
    assert header_end(octets) == end
