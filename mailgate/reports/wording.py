"""A recipient's status in one line, as DSNs and the log put it.

The shapes are interface facts: operators and programs match on them. The
shapes of expressions and lists are in `mailgate.queue.scope`.
"""

from __future__ import annotations

from mailgate.mail.status import ErrorKind, RecipientStatus, RemoteReply
from mailgate.queue.item import QueuedRecipient, State

_LINES = {
    ErrorKind.DNS: "failed to lookup '{entity}': {detail}",
    ErrorKind.CONNECTION: "connection to '{entity}' failed: {detail}",
    ErrorKind.TLS: "TLS error from '{entity}': {detail}",
    ErrorKind.DANE: "DANE failed to authenticate '{entity}': {detail}",
    ErrorKind.MTA_STS: "MTA-STS failed to authenticate '{entity}': {detail}",
    ErrorKind.RATE: "rate limited",
    ErrorKind.CONCURRENCY: "too many concurrent connections to remote server",
    ErrorKind.SUSPENDED: "delivery suspended: {detail}",
    ErrorKind.DEPENDENCY: "dependency '{entity}' unavailable: {detail}",
    ErrorKind.IO: "queue error: {detail}",
}

_NOT_TRIED = RecipientStatus("", ErrorKind.IO, "No delivery attempt has been made yet.")

# The kinds where a named host is to blame.
_REMOTE = frozenset({ErrorKind.UNEXPECTED_REPLY, ErrorKind.CONNECTION, ErrorKind.TLS, ErrorKind.DANE})


def one_line(text: str) -> str:
    """`text` without line ends, every other control character a space."""
    return "".join(c if c >= " " and c != "\x7f" else " " for c in text.replace("\r", "").replace("\n", ""))


def dsn_line(recipient: QueuedRecipient) -> str:
    """The line about one recipient in the text of a DSN, without its end."""
    status = recipient.status or _NOT_TRIED
    return one_line(f"<{recipient.address}> ({_shape(recipient.state, status)})")


def _shape(state: State, status: RecipientStatus) -> str:
    if state is State.COMPLETED:
        return f"delivered to '{status.entity}' with code {_reply(status.reply)}"
    if status.kind is ErrorKind.UNEXPECTED_REPLY:
        what = f"command '{status.command}'" if status.command else "transaction"
        return f"host '{status.entity}' rejected {what} with code {_reply(status.reply)}"
    return _LINES.get(status.kind, "{detail}").format(entity=status.entity, detail=status.detail)


def _reply(reply: RemoteReply | None) -> str:
    reply = reply or RemoteReply(250, "2.0.0", "OK")
    return f"{reply.code} ({reply.enhanced}) '{reply.text}'"


def remote_host(recipient: QueuedRecipient) -> str | None:
    """The host `Remote-MTA` names; None where no host is to blame."""
    status = recipient.status
    if status is None:
        return None
    return status.entity if recipient.state is State.COMPLETED or status.kind in _REMOTE else None
