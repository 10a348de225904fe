"""The RCPT stage: `[session.rcpt]`; RFC 5321 3.3, RFC 3461 4."""

from __future__ import annotations

from mailgate.lookup.directory import MailingList
from mailgate.mail import replies
from mailgate.mail.change import ExpandRecipient, SetForwardPath
from mailgate.mail.path import Path
from mailgate.mail.unknown import Unknown
from mailgate.mail.verdict import PROCEED, Discard, Proceed, Reason, Refuse, Verdict
from mailgate.session.chain import Policy
from mailgate.session.context import RcptContext
from mailgate.session.idle import Idle
from mailgate.session.unanswered import unanswered

MOST_REPEATED = 1000

ALREADY_THERE = Discard(Reason.DUPLICATE, replies.RECIPIENT_OK)
NO_TRANSACTION = Refuse(replies.MAIL_FIRST, Reason.NO_TRANSACTION)


def mail_was_said(context: RcptContext) -> Verdict:
    """Refuse RCPT outside a transaction."""
    return PROCEED if context.transaction is not None else NO_TRANSACTION


def count_is_below_limit(context: RcptContext) -> Verdict:
    """At most `session.rcpt.max-recipients` in a transaction."""
    # RFC 5321 4.5.3.1.8: at least 100 recipients.
    if context.transaction is None or context.limits is None:
        return NO_TRANSACTION
    limit = context.limits.max_recipients
    if isinstance(limit, Unknown):
        return unanswered(limit, context.cause(context.rules.rcpt.max_recipients))
    # Each accepted RCPT is owed a final reply on LMTP, a repeated one too: those are bounded as well.
    accepted = context.transaction.replies_due
    if len(context.transaction.recipients) >= limit or accepted >= max(limit, MOST_REPEATED):
        cause = context.cause(context.rules.rcpt.max_recipients, ("limit", limit), ("accepted", accepted))
        return Refuse(replies.TOO_MANY_RECIPIENTS, Reason.TOO_MANY_RECIPIENTS, cause=cause)
    return PROCEED


def dsn_is_offered(context: RcptContext) -> Verdict:
    """NOTIFY and ORCPT only where DSN is offered (RFC 3461)."""
    if (context.parameters.notify is None and context.parameters.orcpt is None) or context.limits is None:
        return PROCEED
    offered = context.limits.dsn
    if isinstance(offered, Unknown):
        return unanswered(offered, context.cause(context.rules.extensions.dsn))
    if offered:
        return PROCEED
    cause = context.cause(context.rules.extensions.dsn)
    return Refuse(replies.PARAMETER_NOT_OFFERED, Reason.PARAMETER_NOT_OFFERED, cause=cause)


def recipient_is_new(context: RcptContext) -> Verdict:
    """Answer a recipient that is there already with 250, and do not add it again."""
    if context.transaction is None:
        return NO_TRANSACTION
    return ALREADY_THERE if context.path.key in context.transaction.recipient_keys else PROCEED


async def address_is_rewritten(context: RcptContext) -> Verdict:
    """Replace the recipient as `session.rcpt.rewrite` says; what is no address changes nothing."""
    text = await context.rules.rcpt.rewrite.value(context)
    if isinstance(text, Unknown):
        return unanswered(text, context.cause(context.rules.rcpt.rewrite))
    if text is None or "@" not in text or text == context.path.text:
        return PROCEED
    return Proceed((SetForwardPath(Path.parse(text)),))


async def mailbox_exists(context: RcptContext) -> Verdict:
    """Refuse an unknown mailbox of a local domain, and strangers' domains where `relay` does not allow them."""
    name = await context.rules.rcpt.directory.value(context)
    if isinstance(name, Unknown):
        return unanswered(name, context.cause(context.rules.rcpt.directory))
    directory = context.ports.directories.find(name) if name is not None else None
    if isinstance(directory, Unknown):
        return unanswered(directory, context.cause(context.rules.rcpt.directory))
    if directory is not None:
        local = await directory.is_local_domain(context.rcpt_domain)
        if isinstance(local, Unknown):
            return unanswered(local, context.cause(context.rules.rcpt.directory))
        if local:
            found = await context.ports.addresses.find(directory, context.path.key, context.outside, context.note)
            if isinstance(found, Unknown):
                return unanswered(found, context.cause(context.rules.rcpt.directory))
            if found is None:
                detail = f"directory {directory.id} has nobody for {context.path.key}"
                cause = context.cause(context.rules.rcpt.directory, ("rcpt", context.path.key))
                return Refuse(replies.NO_SUCH_MAILBOX, Reason.MAILBOX_UNKNOWN, detail=detail, cause=cause)
            if isinstance(found, MailingList):
                return Proceed((ExpandRecipient(found.members),))
            return PROCEED
    relay = await context.rules.rcpt.relay.value(context)
    if isinstance(relay, Unknown):
        return unanswered(relay, context.cause(context.rules.rcpt.relay))
    if relay:
        return PROCEED
    where = "no directory" if directory is None else f"not local in directory {directory.id}"
    cause = context.cause(context.rules.rcpt.relay)
    return Refuse(replies.RELAY_DENIED, Reason.RELAY_DENIED, detail=f"{context.rcpt_domain}: {where}", cause=cause)


def rewritten_one_is_new(context: RcptContext) -> Verdict:
    """As `recipient_is_new`, for the address it was made."""
    return recipient_is_new(context)


IDLE: Idle[RcptContext] = {
    address_is_rewritten: lambda known: known.rules.rcpt.rewrite.is_always(None),
    rewritten_one_is_new: lambda known: known.rules.rcpt.rewrite.is_always(None),
}

POLICIES: tuple[Policy[RcptContext], ...] = (
    mail_was_said,
    count_is_below_limit,
    dsn_is_offered,
    recipient_is_new,
    address_is_rewritten,
    rewritten_one_is_new,
    mailbox_exists,
)
