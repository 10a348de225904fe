"""The chains of the stages inside a transaction, for one listener's clients."""

from __future__ import annotations

from dataclasses import dataclass

from mailgate.session.chain import Policy
from mailgate.session.context import DataContext, MailContext, MessageContext, RcptContext
from mailgate.session.idle import Known, needed
from mailgate.session.stages import data, mail, rcpt


@dataclass(frozen=True, slots=True)
class Chains:
    """What is asked of every client: the stages' policies without those that have nothing to say here."""

    plain_mail: tuple[Policy[MailContext], ...]
    """For a MAIL without parameters."""
    mail: tuple[Policy[MailContext], ...]
    rcpt: tuple[Policy[RcptContext], ...]
    before_data: tuple[Policy[DataContext], ...]
    before_chunk: tuple[Policy[DataContext], ...]
    message: tuple[Policy[MessageContext], ...]


def chains(known: Known) -> Chains:
    """Work out the chains."""
    return Chains(
        plain_mail=needed(mail.PLAIN_POLICIES, mail.IDLE, known),
        mail=needed(mail.POLICIES, mail.IDLE, known),
        rcpt=needed(rcpt.POLICIES, rcpt.IDLE, known),
        before_data=needed(data.BEFORE, data.IDLE, known),
        before_chunk=needed(data.BEFORE_CHUNK, data.IDLE, known),
        message=data.POLICIES,
    )
