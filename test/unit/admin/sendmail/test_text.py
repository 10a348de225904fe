import pytest

from mailgate.admin.sendmail.text import lines


def read(octets, sizes):
    """The input in blocks of the given sizes, the rest in one."""
    blocks, at = [], 0
    for size in sizes:
        blocks.append(octets[at : at + size])
        at += size
    blocks.append(octets[at:])
    blocks = [block for block in blocks if block]
    return lambda octets: blocks.pop(0) if blocks else b""


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (b"", b""),
        (b"a\nb\n", b"a\r\nb\r\n"),
        (b"a\r\nb\r\n", b"a\r\nb\r\n"),
        (b"10%\r20%\r\n\r", b"10%\r\n20%\r\n\r\n"),
        (b"no end", b"no end\r\n"),
        (b"a\n\n\nb", b"a\r\n\r\n\r\nb\r\n"),
        (b"a\n.\nb\n", b"a\r\n.\r\nb\r\n"),
        (b".\n", b".\r\n"),
    ],
)
def test_every_line_ends_with_cr_lf_however_it_comes(given, kept):
    for cut in range(len(given) + 1):
        assert b"".join(lines(read(given, [cut]), dot_ends=False)) == kept
    assert b"".join(lines(read(given, [1] * len(given)), dot_ends=False)) == kept


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (b"a\n.\nb\n", b"a\r\n"),
        (b"a\r\n.\r\nb", b"a\r\n"),
        (b".\na\n", b""),
        (b"a\n.", b"a\r\n"),
        (b"a\n..\n.b\n", b"a\r\n..\r\n.b\r\n"),
        (b"a\n", b"a\r\n"),
        (b"a.\n.\n", b"a.\r\n"),
        (b"\n.\n.\n", b"\r\n"),
        (b"", b""),
    ],
)
def test_a_lone_dot_ends_the_input_however_it_comes(given, kept):
    for cut in range(len(given) + 1):
        assert b"".join(lines(read(given, [cut]), dot_ends=True)) == kept
    assert b"".join(lines(read(given, [1] * len(given)), dot_ends=True)) == kept


def test_blocks_are_handed_on_and_not_collected():
    given = iter([b"x" * 1000 + b"\n"] * 1000)
    blocks = lines(lambda octets: next(given, b""), dot_ends=True)
    assert max(map(len, blocks)) < 1100
