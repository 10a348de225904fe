"""Lines: CRLF only, limits, what a bare CR or LF does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.wire.smtp.line import LINE_OCTETS, Fault, LineBuffer


def lines(pieces):
    """Everything a buffer says to these pieces, up to the first bare newline."""
    buffer = LineBuffer()
    found = []
    for piece in pieces:
        buffer.receive(piece)
        while (line := buffer.line()) is not None:
            found.append(line)
            if line is Fault.BARE_NEWLINE:
                return found
        assert len(buffer.octets) < LINE_OCTETS
    return found


def test_lines_come_without_their_crlf():
    assert lines([b"NOOP\r\n\r\nRSET x\r\nQU"]) == [b"NOOP", b"", b"RSET x"]


def test_nothing_before_the_end_of_the_line():
    assert lines([b"NOOP"]) == []
    assert lines([b"NOOP\r"]) == []


@pytest.mark.parametrize("octets", [b"\n", b"a\n", b"a\rb", b"\r\r\n", b"\ra", b"a\rb\r\n", b"\r\r"])
def test_a_bare_newline_is_told_at_once(octets):
    assert lines([octets]) == [Fault.BARE_NEWLINE]
    assert lines([octets[i : i + 1] for i in range(len(octets))]) == [Fault.BARE_NEWLINE]


def test_a_carriage_return_at_the_end_waits():
    assert lines([b"NOOP\r", b"\n"]) == [b"NOOP"]
    assert lines([b"NOOP\r", b"N"]) == [Fault.BARE_NEWLINE]


def test_the_limit_counts_the_crlf():
    longest = b"x" * (LINE_OCTETS - 2)
    assert lines([longest + b"\r\n"]) == [longest]
    assert lines([longest, b"\r", b"\n"]) == [longest]
    assert lines([longest + b"y\r\n"]) == [Fault.TOO_LONG]
    assert lines([longest + b"y", b"\r", b"\n"]) == [Fault.TOO_LONG]


def test_a_line_too_long_is_discarded_to_its_end():
    assert lines([b"x" * 5000 + b"\r\nNOOP\r\n"]) == [Fault.TOO_LONG, b"NOOP"]
    assert lines([b"x" * 5000, b"y" * 5000, b"\r", b"\nNOOP\r\n"]) == [Fault.TOO_LONG, b"NOOP"]


@pytest.mark.parametrize("end", [b"\n", b"\rx", b"x\ry\r\n"])
def test_a_bare_newline_counts_in_the_discarded_part_too(end):
    assert lines([b"x" * 5000 + end]) == [Fault.BARE_NEWLINE]
    assert lines([b"x" * 5000, *(end[i : i + 1] for i in range(len(end)))]) == [Fault.BARE_NEWLINE]


def test_no_more_is_kept_than_a_line():
    buffer = LineBuffer()
    for _ in range(100):
        buffer.receive(b"x" * 1000)
        assert buffer.line() is None
        assert len(buffer.octets) <= LINE_OCTETS


def test_a_large_read_is_let_go_of():
    buffer = LineBuffer()
    buffer.receive(b"NOOP\r\n" * 10000 + b"QU")
    while buffer.line() is not None:
        pass
    assert buffer.octets == b"QU"


SOUP = st.lists(st.sampled_from([b"a", b"\r\n", b"\r", b"\n", b"NOOP", b"x" * 3000]), max_size=12)


@given(SOUP, st.data())
def test_pieces_do_not_matter(parts, data):
    octets = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=6)))
    pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
    assert lines(pieces) == lines([octets])
