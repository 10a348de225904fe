"""The text of BDAT chunks: bare CR and LF over all of them, BODY=BINARYMIME, normalising."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.wire.smtp.chunk import ChunkReader
from mailgate.wire.smtp.data import BareNewline


def read(pieces, mode=BareNewline.REJECT, binary=False):
    reader = ChunkReader(mode, binary)
    text = b"".join([reader.take(piece) for piece in pieces])
    text += reader.finish()
    assert reader.finish() == b""
    return text, reader.bare_newline


def test_text_passes_as_it_is():
    assert read([b"a\r\n.\r\n..b"]) == (b"a\r\n.\r\n..b", False)


def test_a_crlf_over_two_chunks_is_one():
    assert read([b"a\r", b"\nb"]) == (b"a\r\nb", False)
    assert read([b"a\r", b"", b"\nb"]) == (b"a\r\nb", False)


@pytest.mark.parametrize("pieces", [[b"a\n"], [b"a\rb"], [b"a\r"], [b"a\r", b"b"], [b"a", b"\n"], [b"\r", b"\r\n"]])
def test_bare_newlines(pieces):
    text = b"".join(pieces)
    assert read(pieces) == (text, True)
    assert read(pieces, BareNewline.NORMALIZE) == (re.sub(rb"\r\n|\r|\n", b"\r\n", text), False)


@pytest.mark.parametrize("mode", BareNewline)
@pytest.mark.parametrize("cut", range(20))
def test_a_binary_body_passes_octet_for_octet(mode, cut):
    text = b"A: b\r\n\r\nbo\rdy\n\r\r\n\r"
    assert read([text[:cut], text[cut:]], mode, binary=True) == (text, False)


@pytest.mark.parametrize("cut", range(12))
def test_a_binary_message_without_header(cut):
    text = b"\r\nbo\rdy\n\r"
    assert read([text[:cut], text[cut:]], binary=True) == (text, False)


def test_a_binary_header_is_made_of_lines():
    assert read([b"A: b\n\r\n\r\nbody\n"], binary=True) == (b"A: b\n\r\n\r\nbody\n", True)
    assert read([b"A: b\n\r\n\r\nbo\ndy"], BareNewline.NORMALIZE, binary=True) == (b"A: b\r\n\r\n\r\nbo\ndy", False)
    assert read([b"A: b\r"], binary=True) == (b"A: b\r", True)


TEXT = st.lists(st.sampled_from([b"a", b"\r\n", b"\r", b"\n", b"\r\n\r\n", b"x: y"]), max_size=12)


@given(TEXT, st.sampled_from(BareNewline), st.booleans(), st.data())
def test_pieces_do_not_matter(parts, mode, binary, data):
    octets = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=5)))
    pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
    header, body = octets, b""
    if binary:
        end = 2 if octets.startswith(b"\r\n") else octets.find(b"\r\n\r\n") + 4
        if end >= 4 or octets.startswith(b"\r\n"):
            header, body = octets[:end], octets[end:]
    stored = re.sub(rb"\r\n|\r|\n", b"\r\n", header)
    if mode is BareNewline.NORMALIZE:
        assert read(pieces, mode, binary) == (stored + body, False)
    else:
        assert read(pieces, mode, binary) == (octets, stored != header)
