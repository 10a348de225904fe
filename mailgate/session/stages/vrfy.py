"""VRFY and EXPN: `session.extensions.vrfy`, `.expn`; RFC 5321 3.5.

What cannot be found out is answered 252, SMTP's own word for "unknown".
"""

from __future__ import annotations

from mailgate.mail import replies
from mailgate.mail.reply import Reply
from mailgate.mail.unknown import Unknown
from mailgate.mail.verdict import Cause, Reason, Refuse
from mailgate.session.context import VrfyContext
from mailgate.session.unanswered import unanswered


async def answer(context: VrfyContext) -> Reply | Refuse:
    """The addresses that match, one a line; 252 where this is switched off or cannot be told; 550 for none."""
    switch = context.connection.expn if context.expand else context.connection.vrfy
    extensions = context.rules.extensions
    rule = extensions.expn if context.expand else extensions.vrfy
    if isinstance(switch, Unknown):
        return _cannot_tell(switch, context.cause(rule))
    name = await context.rules.rcpt.directory.value(context)
    if isinstance(name, Unknown):
        return _cannot_tell(name, context.cause(context.rules.rcpt.directory))
    directory = context.ports.directories.find(name) if name is not None else None
    if isinstance(directory, Unknown):
        return _cannot_tell(directory, context.cause(context.rules.rcpt.directory))
    if not switch or directory is None:
        return replies.VRFY_DISABLED
    found = await (directory.expand(context.text) if context.expand else directory.verify(context.text))
    if isinstance(found, Unknown):
        return _cannot_tell(found, context.cause(context.rules.rcpt.directory, ("directory", directory.id)))
    if not found:
        cause = context.cause(context.rules.rcpt.directory, ("directory", directory.id), ("asked", context.text))
        return Refuse(replies.VRFY_NOTHING, Reason.MAILBOX_UNKNOWN, cause=cause)
    return Reply(250, "", found)


def _cannot_tell(unknown: Unknown, cause: Cause) -> Refuse:
    return unanswered(unknown, cause, temporary=replies.VRFY_UNKNOWN, rejected=replies.VRFY_DISABLED)
