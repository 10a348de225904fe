"""The header of a message, as exact octets (RFC 5322 2.2).

Nothing is decoded and nothing is written anew: a field is found by its name
and keeps its octets (DESIGN D6). The header ends at the first empty line or
with the octets given.
"""

from __future__ import annotations

import re

# RFC 5322 2.2: a field name is printable US-ASCII without the colon; obsolete
# syntax (4.5) allows white space before the colon.
_FIELD = re.compile(rb"^([!-9;-~]+)[ \t]*:", re.MULTILINE)


def header_end(octets: bytes) -> int:
    """Where the header ends: the offset of the empty line, or the length where there is none."""
    if octets.startswith(b"\r\n"):
        return 0
    end = octets.find(b"\r\n\r\n")
    return len(octets) if end < 0 else end + 2


class Header:
    """The names of a header's fields, found in one pass over its octets."""

    __slots__ = ("_block", "names")

    def __init__(self, octets: bytes) -> None:
        """Read the header at the start of a message; what follows it is not looked at."""
        self._block = octets[: header_end(octets)]
        self.names: tuple[bytes, ...] = tuple(name.lower() for name in _FIELD.findall(self._block))

    @property
    def block(self) -> bytes:
        """The header's octets up to and without the empty line."""
        return self._block

    def count(self, name: bytes) -> int:
        """How many fields are called `name` (lower case)."""
        return self.names.count(name)

    def has(self, name: bytes) -> bool:
        """Whether a field is called `name` (lower case)."""
        return name in self.names
