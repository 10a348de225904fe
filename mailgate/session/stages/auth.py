"""The AUTH stage: `[session.auth]`; RFC 4954.

These policies decide whether an exchange may begin; the exchange itself is
`wire/smtp/sasl.py`, and whether the credentials are right the directory says.
"""

from __future__ import annotations

from mailgate.mail import replies
from mailgate.mail.unknown import Unknown
from mailgate.mail.verdict import PROCEED, Cause, Reason, Refuse, Verdict
from mailgate.session.chain import Policy
from mailgate.session.context import AuthContext
from mailgate.session.unanswered import unanswered


def not_available(cause: Cause) -> Refuse:
    """AUTH where the key in `cause` leaves nothing to authenticate with."""
    return Refuse(replies.AUTH_NOT_AVAILABLE, Reason.AUTH_NOT_AVAILABLE, cause=cause)


def cannot_authenticate(unknown: Unknown, cause: Cause) -> Refuse:
    """454 for what could not be found out: no error of the client's, so it is not counted."""
    return unanswered(unknown, cause, temporary=replies.AUTH_UNKNOWN, rejected=replies.AUTH_FAILED)


def identity_is_open(context: AuthContext) -> Verdict:
    """One authentication a session (RFC 4954 4)."""
    if context.session.identity is not None:
        return Refuse(replies.AUTH_ALREADY, Reason.SEQUENCE)
    return PROCEED


def no_transaction_is_open(context: AuthContext) -> Verdict:
    """No AUTH inside a mail transaction (RFC 4954 4)."""
    return Refuse(replies.AUTH_IN_TRANSACTION, Reason.SEQUENCE) if context.in_transaction else PROCEED


def directory_is_there(context: AuthContext) -> Verdict:
    """AUTH needs a directory (`session.auth.directory`) that is defined."""
    name = context.connection.auth_directory
    if isinstance(name, Unknown):
        return cannot_authenticate(name, context.cause(context.rules.auth.directory))
    if name is None:
        return not_available(context.cause(context.rules.auth.directory))
    directory = context.ports.directories.find(name)
    if isinstance(directory, Unknown):
        return cannot_authenticate(directory, context.cause(context.rules.auth.directory))
    return PROCEED if directory is not None else not_available(context.cause(context.rules.auth.directory))


async def mechanism_is_offered(context: AuthContext) -> Verdict:
    """Only the mechanisms of `session.auth.mechanisms`, as they are now."""
    offered = await context.rules.auth.mechanisms.value(context)
    if isinstance(offered, Unknown):
        return cannot_authenticate(offered, context.cause(context.rules.auth.mechanisms))
    if context.mechanism in offered:
        return PROCEED
    cause = context.cause(context.rules.auth.mechanisms, ("mechanism", context.mechanism), ("offered", offered))
    if not offered:
        return not_available(cause)
    return Refuse(replies.AUTH_UNKNOWN_MECHANISM, Reason.AUTH_NOT_AVAILABLE, cause=cause)


POLICIES: tuple[Policy[AuthContext], ...] = (
    identity_is_open,
    no_transaction_is_open,
    directory_is_there,
    mechanism_is_offered,
)
