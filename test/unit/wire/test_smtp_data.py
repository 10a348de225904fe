"""Message text: dots, the end mark, bare CR and LF, however the octets are cut."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.smtp_core import ways

from mailgate.wire.smtp.data import BareNewline, DataReader, has_bare_newline, normalized

# Received, with the end mark; stored when normalised (less the last CRLF); bare newlines in it.
VECTORS = [
    (b"hi\r\n..\r\n.a\r\n\r\n.\r\n", b"hi\r\n.\r\na\r\n", False),
    (b"\r\na\rb\nc\r\n.d\r\n..\r\n\r\n.\r\n", b"\r\na\r\nb\r\nc\r\nd\r\n.\r\n", True),
    (
        b"\n.\r\nMAIL FROM:<x@y>\r\nDATA\r\n\r\n.\r\n",
        b"\r\n.\r\nMAIL FROM:<x@y>\r\nDATA\r\n",
        True,
    ),
    (b"a\r\n.\rb\r\n\r\n.\r\n", b"a\r\n\r\nb\r\n", True),
    (b"a\n..b\r\n.\n\r\n.\r\n", b"a\r\n..b\r\n\r\n", True),
    (b"a\r\r\n.\r\n", b"a\r\n", True),
    # An empty message, one of a single dot, one of dots.
    (b".\r\n", None, False),
    (b"..\r\n.\r\n", b".", False),
    (b"...\r\n....\r\n.\r\n", b"..\r\n...", False),
    (b".a\r\n.\r\n", b"a", False),
    (b"\r\n.\r\n", b"", False),
    (b"\n\r\n.\r\n", b"\r\n", True),
    (b".\n\r\n.\r\n", b"\r\n", True),
    (b".\r\r\n.\r\n", b"\r\n", True),
    (b"a\r\n.\r.\r\n.\r\n", b"a\r\n\r\n.", True),
]

SMUGGLING = [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r\n", b"\r\n.\r", b"\r.\r"]


def read(pieces, mode):
    """Text, whether it is to be refused, and what is left over after the end."""
    reader = DataReader(mode)
    text, waiting = b"", b""
    for piece in pieces:
        octets = waiting + piece
        if not reader.ended:
            found, used = reader.take(octets, 0)
            text += found
            octets = octets[used:]
            assert reader.ended or len(octets) <= 2
        waiting = octets
    return text, reader.bare_newline, reader.ended, waiting


@pytest.mark.parametrize("received, stored, bare", VECTORS)
def test_vectors(received, stored, bare):
    expected = b"" if stored is None else stored + b"\r\n"
    for pieces in ways(received):
        assert read(pieces, BareNewline.NORMALIZE) == (expected, False, True, b"")
        text, refused, ended, rest = read(pieces, BareNewline.REJECT)
        assert (refused, ended, rest) == (bare, True, b"")
        if not bare:
            assert text == expected


@pytest.mark.parametrize("mode", BareNewline)
@pytest.mark.parametrize("octets", SMUGGLING)
def test_only_crlf_dot_crlf_ends_the_data(octets, mode):
    for pieces in ways(b"a" + octets + b"MAIL FROM:<x@y>\r\n"):
        assert not read(pieces, mode)[2]
    for pieces in ways(b"a" + octets + b"b\r\n.\r\nQUIT\r\n"):
        text, refused, ended, rest = read(pieces, mode)
        assert ended
        assert refused is (mode is BareNewline.REJECT)
        assert rest == b"QUIT\r\n"
        assert text.startswith(b"a")
        assert text.endswith(b"b\r\n")


def test_octets_after_the_end_are_left_alone():
    assert read([b"a\r\n.\r\nQUIT\r\n.\r\n"], BareNewline.REJECT) == (b"a\r\n", False, True, b"QUIT\r\n.\r\n")


def test_the_first_end_mark_counts():
    octets = b"..\r\n.a\r\n.\r\nMAIL\r\n.\r\n..\r\n.\r\n"
    assert read([octets], BareNewline.REJECT) == (b".\r\na\r\n", False, True, b"MAIL\r\n.\r\n..\r\n.\r\n")


def test_a_block_may_begin_inside_a_buffer():
    octets = b"DATA\r\n.a\r\nb\r\n.\r\nQUIT"
    reader = DataReader(BareNewline.REJECT)
    assert reader.take(octets, 6) == (b"a\r\nb\r\n", len(octets) - 4)
    assert reader.ended


@pytest.mark.parametrize(
    "octets, bare",
    [
        (b"", False),
        (b"a", False),
        (b"a\r\nb\r\n", False),
        (b"\r\n\r\n", False),
        (b"\n", True),
        (b"\r", True),
        (b"a\r\nb\n", True),
        (b"a\r\nb\rc", True),
        (b"a\n\r", True),
        (b"\r\r\n", True),
        (b"\x85\x0b\x0c\xff", False),
    ],
)
def test_bare_newlines_are_found(octets, bare):
    assert has_bare_newline(octets) is bare


def by_the_book(octets, normalize):
    """End of data octet by octet, as RFC 5321 4.5.2 tells it."""
    out, bare = b"", False
    at, line_start = 0, True
    while at < len(octets):
        if line_start and octets[at : at + 1] == b".":
            if octets[at : at + 3] == b".\r\n":
                return out, bare and not normalize, True, octets[at + 3 :]
            at += 1
            line_start = False
        elif octets[at : at + 2] == b"\r\n":
            out += b"\r\n"
            at += 2
            line_start = True
        else:
            octet = octets[at : at + 1]
            if octet in (b"\r", b"\n"):
                bare = True
                out += b"\r\n" if normalize else octet
            else:
                out += octet
            at += 1
            line_start = False
    return out, bare and not normalize, False, b""


TEXT = st.lists(
    st.sampled_from([b"a", b".", b"\r\n", b"\r", b"\n", b"..", b"\r\n.", b"\r\n.\r\n", b"long line"]), max_size=14
)


@given(TEXT, st.sampled_from(BareNewline), st.data())
def test_blocks_agree_with_the_book(parts, mode, data):
    octets = b"".join(parts) + b"\r\n.\r\nREST"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=5)))
    pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
    assert read(pieces, mode) == by_the_book(octets, mode is BareNewline.NORMALIZE)


@given(st.lists(st.sampled_from([b"a", b"\r\n", b"\r", b"\n"]), max_size=12))
def test_normalising_leaves_nothing_bare(parts):
    octets = b"".join(parts)
    assert not has_bare_newline(normalized(octets))
    assert has_bare_newline(octets) is bool(re.search(rb"(?<!\r)\n|\r(?!\n)", octets))
    assert normalized(octets) == re.sub(rb"\r\n|\r|\n", b"\r\n", octets)
