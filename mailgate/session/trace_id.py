"""Trace ids: 60 random bits, 12 characters of `a-z2-7`; processes need not agree on anything."""

from __future__ import annotations

import os
import struct

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
# Two characters at once: an id is drawn for every transaction.
_PAIRS = tuple(first + second for first in _ALPHABET for second in _ALPHABET)


def new_trace_id(bits: int | None = None) -> str:
    """Draw a trace id (RFC 4648 base32 in lower case, without padding), or make it of 64 random bits."""
    if bits is None:
        bits = int.from_bytes(os.urandom(8), "big")
    pairs = _PAIRS
    return (
        pairs[bits & 1023]
        + pairs[bits >> 10 & 1023]
        + pairs[bits >> 20 & 1023]
        + pairs[bits >> 30 & 1023]
        + pairs[bits >> 40 & 1023]
        + pairs[bits >> 50 & 1023]
    )


class TraceIds:
    """Trace ids whose random bits are drawn for many at once: each draw is a system call."""

    _AT_ONCE = 64

    __slots__ = ("_bits",)

    def __init__(self) -> None:
        self._bits: list[int] = []

    def new(self) -> str:
        """As `new_trace_id`."""
        if not self._bits:
            self._bits = list(struct.unpack(f"{self._AT_ONCE}Q", os.urandom(8 * self._AT_ONCE)))
        return new_trace_id(self._bits.pop())
