"""The two ways a dialogue breaks: by our fault or by the peer's.

`server.py` raises only `LocalError`: whatever a client sends becomes an event
(RFC 5321 4.2.4 asks for a reply to everything). `RemoteError` travels inside
`wire`, from the grammar of an argument to the event that reports it, and to
the callers of the client side.
"""

from __future__ import annotations

from mailgate.mail.reply import Reply


class LocalError(Exception):
    """Our own code broke the rules of the dialogue; a bug, never the peer's doing."""


class RemoteError(Exception):
    """The peer broke the rules; `reply` is what it deserves to hear, or what it said."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.code, reply.enhanced, reply.text)
        self.reply = reply
