"""The connect stage: `[session.connect]`; RFC 5321 3.1.

No filter runs here yet that could refuse: what is decided is the name
mailgate goes by and the greeting it gives.
"""

from __future__ import annotations

from mailgate.mail import replies
from mailgate.mail.reply import Reply
from mailgate.mail.unknown import Unknown
from mailgate.mail.verdict import Cause, Refuse
from mailgate.session.chain import Policy
from mailgate.session.context import ConnectContext
from mailgate.session.unanswered import unanswered

POLICIES: tuple[Policy[ConnectContext], ...] = ()


def cannot_serve(unknown: Unknown, cause: Cause) -> Refuse:
    """The refusal of a connection for which the key in `cause` is unknown: 421 and closed."""
    return unanswered(unknown, cause, temporary=replies.CONNECT_UNKNOWN, rejected=replies.CONNECT_REFUSED, close=True)


async def hostname(context: ConnectContext, configured: str | None) -> str | Refuse:
    """The name of this session: the listener's own, else `session.connect.hostname`, else `localhost`."""
    if configured:
        return configured
    name = await context.rules.connect.hostname.value(context)
    if isinstance(name, Unknown):
        return cannot_serve(name, context.cause(context.rules.connect.hostname))
    return name or "localhost"


async def greeting(context: ConnectContext, configured: str | None) -> Reply | Refuse:
    """The 220 line: the listener's own text, else `session.connect.greeting`, else the default one."""
    if configured:
        return replies.greeting(configured)
    text = await context.rules.connect.greeting.value(context)
    if isinstance(text, Unknown):
        return cannot_serve(text, context.cause(context.rules.connect.greeting))
    return replies.greeting(text or f"{context.session.hostname} mailgate ESMTP at your service")
