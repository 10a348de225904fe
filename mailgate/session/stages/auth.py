"""The AUTH stage: `[session.auth]`; RFC 4954.

These policies decide whether an exchange may begin; the exchange itself is
`wire/smtp/sasl.py`, and whether the credentials are right the directory says.
"""

from __future__ import annotations

from mailgate.mail import replies
from mailgate.mail.unknown import Unknown
from mailgate.mail.verdict import PROCEED, Reason, Refuse, Verdict
from mailgate.session.chain import Policy
from mailgate.session.context import AuthContext
from mailgate.session.unanswered import unanswered

NOT_AVAILABLE = Refuse(replies.AUTH_NOT_AVAILABLE, Reason.AUTH_NOT_AVAILABLE)


def cannot_authenticate(unknown: Unknown, key: str) -> Refuse:
    """454 for what could not be found out: no error of the client's, so it is not counted."""
    return unanswered(unknown, key, temporary=replies.AUTH_UNKNOWN, rejected=replies.AUTH_FAILED)


async def identity_is_open(context: AuthContext) -> Verdict:
    """One authentication a session (RFC 4954 4)."""
    if context.session.identity is not None:
        return Refuse(replies.AUTH_ALREADY, Reason.SEQUENCE)
    return PROCEED


async def no_transaction_is_open(context: AuthContext) -> Verdict:
    """No AUTH inside a mail transaction (RFC 4954 4)."""
    return Refuse(replies.AUTH_IN_TRANSACTION, Reason.SEQUENCE) if context.in_transaction else PROCEED


async def directory_is_there(context: AuthContext) -> Verdict:
    """AUTH needs a directory (`session.auth.directory`) that is defined."""
    name = context.connection.auth_directory
    if isinstance(name, Unknown):
        return cannot_authenticate(name, "session.auth.directory")
    if name is None:
        return NOT_AVAILABLE
    directory = context.ports.directories.find(name)
    if isinstance(directory, Unknown):
        return cannot_authenticate(directory, "session.auth.directory")
    return PROCEED if directory is not None else NOT_AVAILABLE


async def mechanism_is_offered(context: AuthContext) -> Verdict:
    """Only the mechanisms of `session.auth.mechanisms`, as they are now."""
    offered = await context.rules.auth.mechanisms.value(context)
    if isinstance(offered, Unknown):
        return cannot_authenticate(offered, "session.auth.mechanisms")
    if not offered:
        return NOT_AVAILABLE
    if context.mechanism in offered:
        return PROCEED
    return Refuse(replies.AUTH_UNKNOWN_MECHANISM, Reason.AUTH_NOT_AVAILABLE)


POLICIES: tuple[Policy[AuthContext], ...] = (
    identity_is_open,
    no_transaction_is_open,
    directory_is_there,
    mechanism_is_offered,
)
