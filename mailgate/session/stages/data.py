"""The DATA stage: `[session.data]`; RFC 5321 3.3, RFC 3030.

Two chains: before the message is let in (DATA, or after a BDAT chunk), and
when it is complete.
"""

from __future__ import annotations

from mailgate.mail import replies
from mailgate.mail.envelope import Body
from mailgate.mail.unknown import Unknown
from mailgate.mail.verdict import PROCEED, Reason, Refuse, Verdict
from mailgate.session.chain import Policy
from mailgate.session.context import DataContext, MessageContext
from mailgate.session.idle import Idle
from mailgate.session.unanswered import unanswered

NO_RECIPIENT = Refuse(replies.RCPT_FIRST, Reason.NO_RECIPIENTS)
REFUSED_BEFORE = Refuse(replies.BDAT_FAILED_BEFORE, Reason.SEQUENCE)


def too_big(context: DataContext, *facts: tuple[str, object]) -> Refuse:
    """The refusal of a message over `session.data.limits.size`."""
    limit = context.limits.size if context.limits is not None else None
    cause = context.cause(context.rules.data.limits.size, ("limit", limit), *facts)
    return Refuse(replies.MESSAGE_TOO_BIG, Reason.MESSAGE_TOO_BIG, cause=cause)


def there_is_a_recipient(context: DataContext) -> Verdict:
    """No message without an accepted recipient."""
    if context.transaction is not None and context.transaction.recipients:
        return PROCEED
    return NO_RECIPIENT


def body_may_come_this_way(context: DataContext) -> Verdict:
    """DATA neither after BDAT nor for BODY=BINARYMIME (RFC 3030 2 and 3)."""
    if context.chunking or context.transaction is None:
        return PROCEED
    if context.chunks_before:
        return Refuse(replies.BDAT_THEN_DATA, Reason.SEQUENCE)
    if context.transaction.parameters.body is Body.BINARY:
        return Refuse(replies.BINARY_NEEDS_BDAT, Reason.SEQUENCE)
    return PROCEED


async def messages_are_left(context: DataContext) -> Verdict:
    """At most `session.data.limits.messages` in a session; the transaction stays."""
    limit = await context.rules.data.limits.messages.value(context)
    if isinstance(limit, Unknown):
        return unanswered(limit, context.cause(context.rules.data.limits.messages))
    if context.messages >= limit:
        cause = context.cause(context.rules.data.limits.messages, ("limit", limit), ("messages", context.messages))
        return Refuse(replies.TOO_MANY_MESSAGES, Reason.TOO_MANY_MESSAGES, cause=cause)
    return PROCEED


async def chunking_is_offered(context: DataContext) -> Verdict:
    """Refuse BDAT, once its chunk was read, where `session.extensions.chunking` is off."""
    offered = await context.rules.extensions.chunking.value(context)
    if isinstance(offered, Unknown):
        return unanswered(offered, context.cause(context.rules.extensions.chunking))
    if offered:
        return PROCEED
    cause = context.cause(context.rules.extensions.chunking)
    return Refuse(replies.NOT_OFFERED, Reason.PARAMETER_NOT_OFFERED, cause=cause)


def size_is_within_limit(context: MessageContext) -> Verdict:
    """Refuse a message that went over `session.data.limits.size`; its octets were let go at once."""
    return too_big(context) if context.too_big else PROCEED


def newlines_are_whole(context: MessageContext) -> Verdict:
    """Refuse a message with a bare CR or LF (RFC 5321 2.3.8): such octets are how messages are smuggled."""
    if context.bare_newline:
        cause = context.cause(context.rules.bare_newline)
        return Refuse(replies.BARE_NEWLINE_IN_MESSAGE, Reason.BARE_NEWLINE, cause=cause)
    return PROCEED


def header_is_there(context: MessageContext) -> Verdict:
    """Refuse what has no header field at all, and a first line that would continue the last field put above it."""
    # RFC 5322 2.2.3: a line that begins with white space belongs to the field before it.
    if context.header.block.startswith((b" ", b"\t")):
        return Refuse(replies.NO_HEADER, Reason.NO_HEADER, detail="the first line continues a field, and there is none")
    if context.header.names:
        return PROCEED
    return Refuse(
        replies.NO_HEADER, Reason.NO_HEADER, detail=f"no field name among {len(context.header.block)} octets of header"
    )


async def message_does_not_loop(context: MessageContext) -> Verdict:
    """Refuse for now what has passed more hosts than `session.data.limits.received-headers`."""
    # RFC 5321 6.3: count Received fields to detect loops.
    limit = await context.rules.data.limits.received_headers.value(context)
    if isinstance(limit, Unknown):
        return unanswered(limit, context.cause(context.rules.data.limits.received_headers))
    if context.header.count(b"received") > limit:
        facts = (("limit", limit), ("Received fields", context.header.count(b"received")))
        cause = context.cause(context.rules.data.limits.received_headers, *facts)
        return Refuse(replies.MAIL_LOOP, Reason.MAIL_LOOP, cause=cause)
    return PROCEED


IDLE: Idle[DataContext] = {chunking_is_offered: lambda known: known.rules.extensions.chunking.is_always(True)}

BEFORE: tuple[Policy[DataContext], ...] = (there_is_a_recipient, body_may_come_this_way, messages_are_left)

# Where BDAT is not offered nothing else about it matters.
BEFORE_CHUNK: tuple[Policy[DataContext], ...] = (chunking_is_offered, *BEFORE)

POLICIES: tuple[Policy[MessageContext], ...] = (
    size_is_within_limit,
    newlines_are_whole,
    header_is_there,
    message_does_not_loop,
)
