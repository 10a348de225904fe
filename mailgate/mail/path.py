"""Mail addresses as they stand in an envelope (RFC 5321 4.1.2).

The case a client sent is kept; everything that is compared uses `key`.
Grammar belongs to `wire/smtp/parse.py`: a `Path` holds what was understood.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# RFC 5321 4.1.2, Atom extended by RFC 6531 3.3 to any character above ASCII.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u0080-\U0010ffff-]+"
_DOT_STRING = re.compile(rf"{_ATOM}(\.{_ATOM})*")


class Path(NamedTuple):
    """A reverse-path or forward-path without its source route.

    `local` is the local part with quoting removed and escapes resolved;
    `domain` is the domain or the address literal, brackets included. Both are
    empty for the null reverse-path.
    """

    local: str
    domain: str

    @property
    def is_null(self) -> bool:
        """True for the null reverse-path `<>`."""
        return not self.domain and not self.local

    @property
    def text(self) -> str:
        """`local@domain` for people, logs and expressions; empty for the null path."""
        return f"{self.local}@{self.domain}" if self.domain or self.local else ""

    @property
    def key(self) -> str:
        """The lower-cased text: what addresses are compared by."""
        return self.text.lower()

    @property
    def stored(self) -> str:
        """The text kept in the queue: local part as received, domain in lower case."""
        return f"{self.local}@{self.domain.lower()}" if self.domain or self.local else ""

    @property
    def wire(self) -> str:
        """The path with angle brackets, its local part quoted when it must be."""
        if not self.domain and not self.local:
            return "<>"
        local = self.local
        if not _DOT_STRING.fullmatch(local):
            local = '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return f"<{local}@{self.domain}>"

    @property
    def is_ascii(self) -> bool:
        """True when the path can travel without SMTPUTF8 (RFC 6531)."""
        return self.local.isascii() and self.domain.isascii()

    @classmethod
    def parse(cls, text: str) -> Path:
        """Split a plain `local@domain` at its last `@`; an empty text is the null path.

        For addresses that were checked before (configuration, queue rows), not
        for what a client sent.
        """
        local, _, domain = text.rpartition("@")
        return cls(local, domain) if local else cls(text, "") if text else NULL_PATH


NULL_PATH = Path("", "")
