"""What follows from an answer nobody could give: a temporary refusal, never a 5xx of our own making (I5).

Only a rule that says `on-error = "reject"` turns an outage into a 5xx.
"""

from __future__ import annotations

from mailgate.mail import replies
from mailgate.mail.reply import Reply
from mailgate.mail.unknown import Unknown
from mailgate.mail.verdict import Cause, Reason, Refuse


def unanswered(
    unknown: Unknown,
    cause: Cause,
    *,
    temporary: Reply = replies.UNKNOWN_ANSWER,
    rejected: Reply = replies.NOT_ALLOWED,
    close: bool = False,
) -> Refuse:
    """The refusal that an unknown value of the key in `cause` leads to; its dependency goes to log and trace only."""
    detail = f"{cause.rule}: {unknown.dependency}: {unknown.reason}"
    if unknown.reject:
        return Refuse(rejected, Reason.ON_ERROR, close, detail, cause)
    return Refuse(temporary, Reason.UNKNOWN_ANSWER, close, detail, cause)
