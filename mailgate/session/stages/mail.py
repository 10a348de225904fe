"""The MAIL stage: `[session.mail]`, `[session.extensions]`; RFC 5321 3.3 and the extensions' own RFCs."""

from __future__ import annotations

from datetime import timedelta

from mailgate.mail import replies
from mailgate.mail.change import SetReversePath
from mailgate.mail.envelope import Body
from mailgate.mail.path import NULL_PATH, Path
from mailgate.mail.unknown import Unknown
from mailgate.mail.verdict import PROCEED, Cause, Proceed, Reason, Refuse, Verdict
from mailgate.session.chain import Policy
from mailgate.session.context import MailContext
from mailgate.session.idle import Idle
from mailgate.session.unanswered import unanswered

# RFC 6710 allows -9 to 9; policies assign meaning to -6 to 6 only.
PRIORITY_LIMIT = 6


def not_offered(cause: Cause) -> Refuse:
    """A parameter of an extension that the key in `cause` does not offer."""
    return Refuse(replies.PARAMETER_NOT_OFFERED, Reason.PARAMETER_NOT_OFFERED, cause=cause)


def out_of_range(cause: Cause) -> Refuse:
    """A parameter beyond what the key in `cause` offers."""
    return Refuse(replies.PARAMETER_OUT_OF_RANGE, Reason.PARAMETER_OUT_OF_RANGE, cause=cause)


def helo_was_said(context: MailContext) -> Verdict:
    """Ask for a greeting first, where `session.ehlo.require` does."""
    if context.session.helo is not None:
        return PROCEED
    required = context.connection.ehlo_require
    if isinstance(required, Unknown):
        return unanswered(required, context.cause(context.rules.ehlo.require))
    if not required:
        return PROCEED
    return Refuse(replies.SAY_EHLO_FIRST, Reason.HELO_MISSING, cause=context.cause(context.rules.ehlo.require))


def mail_is_first(context: MailContext) -> Verdict:
    """Refuse a second MAIL; the open transaction stays."""
    if context.transaction is None:
        return PROCEED
    return Refuse(replies.TRANSACTION_OPEN, Reason.TRANSACTION_OPEN)


def identity_suffices(context: MailContext) -> Verdict:
    """Ask for AUTH where `session.auth.require` does."""
    if context.session.identity is not None:
        return PROCEED
    required = context.connection.auth_require
    if isinstance(required, Unknown):
        return unanswered(required, context.cause(context.rules.auth.require))
    if not required:
        return PROCEED
    return Refuse(replies.AUTH_REQUIRED, Reason.AUTH_REQUIRED, cause=context.cause(context.rules.auth.require))


async def sender_is_allowed(context: MailContext) -> Verdict:
    """Refuse a reverse-path the operator does not allow (`session.mail.is-allowed`)."""
    allowed = await context.rules.mail.is_allowed.value(context)
    if isinstance(allowed, Unknown):
        return unanswered(allowed, context.cause(context.rules.mail.is_allowed))
    if allowed:
        return PROCEED
    cause = context.cause(context.rules.mail.is_allowed)
    return Refuse(replies.SENDER_NOT_ALLOWED, Reason.SENDER_NOT_ALLOWED, cause=cause)


async def address_is_rewritten(context: MailContext) -> Verdict:
    """Replace the reverse-path as `session.mail.rewrite` says: an address, or nothing for the null path."""
    text = await context.rules.mail.rewrite.value(context)
    if isinstance(text, Unknown):
        return unanswered(text, context.cause(context.rules.mail.rewrite))
    if text is None or (text and "@" not in text) or text == context.path.text:
        return PROCEED
    return Proceed((SetReversePath(Path.parse(text) if text else NULL_PATH),))


async def sender_is_own(context: MailContext) -> Verdict:
    """Hold an authenticated client to its own addresses (`session.auth.must-match-sender`)."""
    identity = context.session.identity
    if identity is None:
        return PROCEED
    address = context.path.key
    if address and (address == identity.login.lower() or address in identity.addresses):
        return PROCEED
    if address and f"@{context.path.domain.lower()}" in identity.addresses:
        return PROCEED
    must_match = await context.rules.auth.must_match_sender.value(context)
    if isinstance(must_match, Unknown):
        return unanswered(must_match, context.cause(context.rules.auth.must_match_sender))
    if not must_match:
        return PROCEED
    rule = context.rules.auth.must_match_sender
    cause = context.cause(rule, ("sender", address), ("login", identity.login), ("addresses", identity.addresses))
    return Refuse(replies.SENDER_NOT_YOURS, Reason.SENDER_NOT_YOURS, cause=cause)


async def tls_requirement_is_offered(context: MailContext) -> Verdict:
    """REQUIRETLS only where it is offered (RFC 8689 4.2.1)."""
    if not context.parameters.requiretls:
        return PROCEED
    offered = await context.rules.extensions.requiretls.value(context)
    if isinstance(offered, Unknown):
        return unanswered(offered, context.cause(context.rules.extensions.requiretls))
    return PROCEED if offered else not_offered(context.cause(context.rules.extensions.requiretls))


async def binary_body_is_offered(context: MailContext) -> Verdict:
    """BODY=BINARYMIME only where it is offered: without BDAT such a message cannot be sent (RFC 3030 3)."""
    if context.parameters.body is not Body.BINARY:
        return PROCEED
    offered = await context.rules.extensions.chunking.value(context)
    if isinstance(offered, Unknown):
        return unanswered(offered, context.cause(context.rules.extensions.chunking))
    return PROCEED if offered else not_offered(context.cause(context.rules.extensions.chunking))


async def deadline_is_in_range(context: MailContext) -> Verdict:
    """BY only where it is offered, up to the offered time, and not in the past for mode R (RFC 2852 4)."""
    asked = context.parameters.deliver_by
    if asked is None:
        return PROCEED
    longest = await context.rules.extensions.deliver_by.value(context)
    if isinstance(longest, Unknown):
        return unanswered(longest, context.cause(context.rules.extensions.deliver_by))
    if longest is None:
        return not_offered(context.cause(context.rules.extensions.deliver_by))
    if timedelta(seconds=abs(asked.seconds)) > longest or (asked.mode == "R" and asked.seconds <= 0):
        facts = (("by", f"{asked.seconds};{asked.mode}"), ("longest", str(longest)))
        return out_of_range(context.cause(context.rules.extensions.deliver_by, *facts))
    return PROCEED


async def priority_is_in_range(context: MailContext) -> Verdict:
    """MT-PRIORITY other than 0 only where it is offered, and within the policies' range (RFC 6710)."""
    asked = context.parameters.priority
    if not asked:
        return PROCEED
    policy = await context.rules.extensions.mt_priority.value(context)
    if isinstance(policy, Unknown):
        return unanswered(policy, context.cause(context.rules.extensions.mt_priority))
    if policy is None:
        return not_offered(context.cause(context.rules.extensions.mt_priority))
    if abs(asked) <= PRIORITY_LIMIT:
        return PROCEED
    return out_of_range(context.cause(context.rules.extensions.mt_priority, ("priority", asked), ("policy", policy)))


async def size_fits(context: MailContext) -> Verdict:
    """Refuse an announced size above `session.data.limits.size` (RFC 1870 6.1)."""
    announced = context.parameters.size_octets
    if announced is None:
        return PROCEED
    limit = await context.rules.data.limits.size.value(context)
    if isinstance(limit, Unknown):
        return unanswered(limit, context.cause(context.rules.data.limits.size))
    if announced <= limit:
        return PROCEED
    cause = context.cause(context.rules.data.limits.size, ("size", announced), ("limit", limit))
    return Refuse(replies.MESSAGE_TOO_BIG, Reason.MESSAGE_TOO_BIG, cause=cause)


async def hold_is_in_range(context: MailContext) -> Verdict:
    """HOLDFOR and HOLDUNTIL only where they are offered, and up to the offered time (RFC 4865)."""
    if context.parameters.hold_seconds is None and context.parameters.hold_until is None:
        return PROCEED
    longest = await context.rules.extensions.future_release.value(context)
    if isinstance(longest, Unknown):
        return unanswered(longest, context.cause(context.rules.extensions.future_release))
    if longest is None:
        return not_offered(context.cause(context.rules.extensions.future_release))
    if timedelta(seconds=context.hold_seconds) <= longest:
        return PROCEED
    facts = (("hold seconds", context.hold_seconds), ("longest", str(longest)))
    return out_of_range(context.cause(context.rules.extensions.future_release, *facts))


async def dsn_is_offered(context: MailContext) -> Verdict:
    """ENVID and RET only where DSN is offered (RFC 3461)."""
    if context.parameters.envid is None and context.parameters.ret is None:
        return PROCEED
    offered = await context.rules.extensions.dsn.value(context)
    if isinstance(offered, Unknown):
        return unanswered(offered, context.cause(context.rules.extensions.dsn))
    return PROCEED if offered else not_offered(context.cause(context.rules.extensions.dsn))


IDLE: Idle[MailContext] = {
    identity_suffices: lambda known: known.rules.auth.require.is_always(False),
    sender_is_allowed: lambda known: known.rules.mail.is_allowed.is_always(True),
    address_is_rewritten: lambda known: known.rules.mail.rewrite.is_always(None),
    sender_is_own: lambda known: not known.is_logged_in,
}

PLAIN_POLICIES: tuple[Policy[MailContext], ...] = (
    helo_was_said,
    mail_is_first,
    identity_suffices,
    sender_is_allowed,
    address_is_rewritten,
    sender_is_own,
)
"""What every MAIL passes; all there is to decide where it has no parameters."""

POLICIES: tuple[Policy[MailContext], ...] = (
    *PLAIN_POLICIES,
    tls_requirement_is_offered,
    binary_body_is_offered,
    deadline_is_in_range,
    priority_is_in_range,
    size_fits,
    hold_is_in_range,
    dsn_is_offered,
)
