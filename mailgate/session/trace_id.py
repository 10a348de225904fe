"""Trace ids: 60 random bits, 12 characters of `a-z2-7`; processes need not agree on anything."""

from __future__ import annotations

import os

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
# Two characters at once: an id is drawn for every transaction.
_PAIRS = tuple(first + second for first in _ALPHABET for second in _ALPHABET)


def new_trace_id() -> str:
    """Draw a trace id (RFC 4648 base32 in lower case, without padding)."""
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
