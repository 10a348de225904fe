"""The message on standard input: its lines, and where it ends.

Programs end lines with LF, some with CR LF, and progress bars use CR alone:
each becomes CR LF, so that no message is refused for what the terminal would
have shown. A line with nothing but a dot ends the input unless `-i` was given.
Blocks come and go; what is held back is at most a few octets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

BLOCK_OCTETS = 262_144
_END_MARK = b"\r\n.\r\n"


def lines(read: Callable[[int], bytes], *, dot_ends: bool) -> Iterator[bytes]:
    """The input in blocks of text with CR LF; the last line gets its end where it has none."""
    blocks = _whole(read)
    return _up_to_dot(blocks) if dot_ends else blocks


def _whole(read: Callable[[int], bytes]) -> Iterator[bytes]:
    half = b""
    last = b""
    while octets := read(BLOCK_OCTETS):
        octets = half + octets
        # Half of a CR LF that the next block completes, or a CR alone.
        half = b"\r" if octets.endswith(b"\r") else b""
        text = with_crlf(octets[:-1] if half else octets)
        if text:
            last = text[-2:]
            yield text
    if half or (last and last != b"\r\n"):
        yield b"\r\n"


def with_crlf(octets: bytes) -> bytes:
    """The octets with each CR LF, each CR and each LF as CR LF."""
    return octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


def _up_to_dot(blocks: Iterator[bytes]) -> Iterator[bytes]:
    # The line end before the first line is no part of the message.
    held, known = b"\r\n", 2
    for block in blocks:
        text = held + block
        end = text.find(_END_MARK)
        if end >= 0:
            if end + 2 > known:
                yield text[known : end + 2]
            return
        stop = max(known, len(text) - len(_END_MARK) + 1)
        if stop > known:
            yield text[known:stop]
        held = text[-(len(_END_MARK) - 1) :]
        known = stop - (len(text) - len(held))
    if held[known:]:
        yield held[known:]
