"""The facts of one mail transaction: from an accepted MAIL to its final reply.

Frozen; only `session/driver.py` replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mailgate.mail.envelope import MailParameters, Recipient
from mailgate.mail.lean import lean
from mailgate.mail.path import Path


@lean
@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction as policies see it."""

    trace_id: str
    reverse_path: Path
    parameters: MailParameters
    recipients: tuple[Recipient, ...] = ()
    recipient_keys: frozenset[str] = frozenset()
    """The addresses of `recipients` in lower case."""
    replies_due: int = 0
    """RCPT commands answered 250, duplicates included: LMTP owes one final reply for each."""
    hold_seconds: int = 0
    """FUTURERELEASE: seconds from now, computed once at MAIL."""
