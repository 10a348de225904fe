"""Changes to the envelope, applied in order of arrival; nothing else changes a transaction's envelope."""

from __future__ import annotations

from dataclasses import replace

from mailgate.mail.change import Change, ExpandRecipient, SetForwardPath, SetReversePath
from mailgate.mail.envelope import NOTIFY_DEFAULT, RcptParameters, Recipient
from mailgate.mail.path import Path
from mailgate.mail.transaction import Transaction


def reverse_path(path: Path, changes: tuple[Change, ...]) -> Path:
    """The reverse-path after the changes a MAIL chain asked for."""
    for change in changes:
        if isinstance(change, SetReversePath):
            path = change.path
    return path


def with_recipient(
    transaction: Transaction, path: Path, parameters: RcptParameters, changes: tuple[Change, ...]
) -> Transaction:
    """The transaction with one more accepted RCPT: one recipient, or the members of the list it is.

    Members that are there already, and the list itself, are left out; each
    inherits the NOTIFY flags and names the list in ORCPT.
    """
    members: tuple[Path, ...] | None = None
    for change in changes:
        if isinstance(change, SetForwardPath):
            path = change.path
        elif isinstance(change, ExpandRecipient):
            members = change.members
    notify = NOTIFY_DEFAULT if parameters.notify is None else parameters.notify
    if members is None:
        return Transaction(
            transaction.trace_id,
            transaction.reverse_path,
            transaction.parameters,
            (*transaction.recipients, Recipient(path, notify, parameters.orcpt)),
            transaction.recipient_keys | {path.key},
            transaction.replies_due + 1,
            transaction.hold_seconds,
        )
    recipients = list(transaction.recipients)
    keys = set(transaction.recipient_keys)
    for member in members:
        if member.key not in keys and member.key != path.key:
            keys.add(member.key)
            recipients.append(Recipient(member, notify, path.text))
    return replace(
        transaction,
        recipients=tuple(recipients),
        recipient_keys=frozenset(keys),
        replies_due=transaction.replies_due + 1,
    )
