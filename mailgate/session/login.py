"""The dialogue of AUTH: its turns, who the client turns out to be, and how many errors it may make (RFC 4954).

Whether an exchange may begin is decided by `stages/auth.py`; the mechanisms
are `wire/smtp/sasl.py`. Nothing is answered or counted here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from mailgate.lookup.directory import Denied
from mailgate.mail import replies
from mailgate.mail.session import Identity
from mailgate.mail.unknown import Unknown
from mailgate.mail.verdict import Cause, Reason, Refuse
from mailgate.session.context import ConnectContext
from mailgate.session.parameters import ConnectionParameters
from mailgate.session.stages import auth
from mailgate.wire.smtp.command import Auth, AuthResponse
from mailgate.wire.smtp.sasl import Broken, Credentials, Exchange, Step, exchange


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The directory knows the client."""

    identity: Identity
    cause: Cause
    """Which directory that was."""


@dataclass(frozen=True, slots=True)
class NotLoggedIn:
    """An exchange that led to nobody."""

    refusal: Refuse
    check: str
    """What was not fulfilled."""
    login: str = ""
    is_error: bool = False
    """The client's error: it counts."""


class Login:
    """The exchange of one AUTH command, while there is one."""

    __slots__ = ("_exchange",)

    def __init__(self) -> None:
        self._exchange: Exchange | None = None

    def begin(self, event: Auth) -> Step | None:
        """The first turn; None where the mechanism is not known."""
        self._exchange = begun = exchange(event.mechanism)
        return begun.start(event.initial) if begun is not None else None

    def go_on(self, event: AuthResponse) -> Step:
        """The next turn."""
        begun = self._exchange
        return Broken.MALFORMED if begun is None or event.too_long else begun.respond(event.line)

    def end(self) -> None:
        """Forget the exchange, whatever it has come to."""
        self._exchange = None


async def outcome(
    last: Credentials | Broken, context: ConnectContext, parameters: ConnectionParameters
) -> LoggedIn | NotLoggedIn:
    """Who the client is, after the last turn of its exchange."""
    if last is Broken.CANCELLED:
        return NotLoggedIn(Refuse(replies.AUTH_CANCELLED, Reason.AUTH_FAILED), "exchange_is_whole")
    if not isinstance(last, Credentials):
        refusal = Refuse(replies.AUTH_MALFORMED, Reason.AUTH_FAILED)
        return NotLoggedIn(refusal, "exchange_is_whole", is_error=True)
    name = parameters.auth_directory
    directory = context.ports.directories.find(name) if isinstance(name, str) else None
    cause = context.cause(context.rules.auth.directory)
    if directory is None or isinstance(directory, Unknown):
        return NotLoggedIn(auth.not_available(cause), "directory_is_there")
    identity = await directory.authenticate(last.login, last.secret)
    if isinstance(identity, Unknown):
        return NotLoggedIn(auth.cannot_authenticate(identity, cause), "credentials")
    if not isinstance(identity, Denied):
        return LoggedIn(identity, cause)
    # The secret stays out of it.
    cause = replace(cause, reads=(*cause.reads, ("directory", directory.id), ("login", last.login)))
    if identity is Denied.MAY_NOT_SEND:
        refusal = Refuse(replies.AUTH_MAY_NOT_SEND, Reason.AUTH_FAILED, cause=cause)
        return NotLoggedIn(refusal, "credentials", last.login)
    reply = replies.AUTH_CODE_MISSING if identity is Denied.CODE_MISSING else replies.AUTH_FAILED
    refusal = Refuse(reply, Reason.AUTH_FAILED, detail=identity.value, cause=cause)
    return NotLoggedIn(refusal, "credentials", last.login, is_error=True)


def errors_allowed(context: ConnectContext, parameters: ConnectionParameters) -> tuple[timedelta, int] | Refuse:
    """How long an error is left unanswered, and the how many-th of them is the last (`session.auth.errors`)."""
    wait, total = parameters.auth_errors_wait, parameters.auth_errors_total
    errors = context.rules.auth.errors
    if isinstance(wait, Unknown):
        return auth.cannot_authenticate(wait, context.cause(errors.wait))
    if isinstance(total, Unknown):
        return auth.cannot_authenticate(total, context.cause(errors.total))
    return wait, total


def too_many_errors(context: ConnectContext, errors: int, limit: int) -> Refuse:
    """What follows the last error that is allowed."""
    cause = context.cause(context.rules.auth.errors.total, ("errors", errors), ("limit", limit))
    return Refuse(replies.AUTH_TOO_MANY_ERRORS, Reason.TOO_MANY_ERRORS, cause=cause)
