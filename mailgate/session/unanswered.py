"""What follows from an answer nobody could give: a temporary refusal, never a 5xx of our own making (I5).

Only a rule that says `on-error = "reject"` turns an outage into a 5xx.
"""

from __future__ import annotations

from mailgate.mail import replies
from mailgate.mail.reply import Reply
from mailgate.mail.unknown import Unknown
from mailgate.mail.verdict import Reason, Refuse


def unanswered(
    unknown: Unknown,
    key: str,
    *,
    temporary: Reply = replies.UNKNOWN_ANSWER,
    rejected: Reply = replies.NOT_ALLOWED,
    close: bool = False,
) -> Refuse:
    """The refusal that an unknown value of `key` leads to; its dependency goes to log and trace only."""
    detail = f"{key}: {unknown.dependency}: {unknown.reason}"
    if unknown.reject:
        return Refuse(rejected, Reason.ON_ERROR, close, detail)
    return Refuse(temporary, Reason.UNKNOWN_ANSWER, close, detail)
