"""Settings that are evaluated at one moment of a session and kept from then on.

What is evaluated when the connection is accepted (and again after STARTTLS)
and what after MAIL was accepted. A value that could not be found out is kept
as `Unknown`: the command that needs it gets the temporary refusal, and one
that does not need it goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NamedTuple

from mailgate.config.schema.session import SessionSettings
from mailgate.expr.choice import Rule
from mailgate.expr.scope import Scope
from mailgate.mail.unknown import Unknown


class Unanswered(NamedTuple):
    """A rule without which there is no session, and why it has no value."""

    rule: Rule
    unknown: Unknown


@dataclass(frozen=True, slots=True)
class ConnectionParameters:
    """Evaluated at connect: the session's own limits are known, the rest may be `Unknown`."""

    timeout: timedelta
    duration: timedelta
    transfer_limit: int
    """Octets received, commands and data alike."""
    normalize_newlines: bool
    ehlo_require: bool | Unknown
    reject_non_fqdn: bool | Unknown
    auth_directory: str | Unknown | None
    auth_require: bool | Unknown
    auth_errors_total: int | Unknown
    auth_errors_wait: timedelta | Unknown
    vrfy: bool | Unknown
    expn: bool | Unknown


@dataclass(frozen=True, slots=True)
class TransactionParameters:
    """Evaluated after MAIL was accepted."""

    max_recipients: int | Unknown
    errors_total: int | Unknown
    errors_wait: timedelta | Unknown
    dsn: bool | Unknown
    size: int | Unknown
    """Octets a message may have."""


async def connection_parameters(rules: SessionSettings, scope: Scope) -> ConnectionParameters | Unanswered:
    """Evaluate what a connection starts with; `Unanswered` when one of its own limits is unknown."""
    timeout = await rules.timeout.value(scope)
    if isinstance(timeout, Unknown):
        return Unanswered(rules.timeout, timeout)
    duration = await rules.duration.value(scope)
    if isinstance(duration, Unknown):
        return Unanswered(rules.duration, duration)
    transfer_limit = await rules.transfer_limit.value(scope)
    if isinstance(transfer_limit, Unknown):
        return Unanswered(rules.transfer_limit, transfer_limit)
    newlines = await rules.bare_newline.value(scope)
    if isinstance(newlines, Unknown):
        return Unanswered(rules.bare_newline, newlines)
    return ConnectionParameters(
        timeout=timeout,
        duration=duration,
        transfer_limit=transfer_limit,
        normalize_newlines=newlines == "normalize",
        ehlo_require=await rules.ehlo.require.value(scope),
        reject_non_fqdn=await rules.ehlo.reject_non_fqdn.value(scope),
        auth_directory=await rules.auth.directory.value(scope),
        auth_require=await rules.auth.require.value(scope),
        auth_errors_total=await rules.auth.errors.total.value(scope),
        auth_errors_wait=await rules.auth.errors.wait.value(scope),
        vrfy=await rules.extensions.vrfy.value(scope),
        expn=await rules.extensions.expn.value(scope),
    )


async def authenticated_parameters(
    rules: SessionSettings, scope: Scope, before: ConnectionParameters
) -> ConnectionParameters:
    """What a successful AUTH changes: whether VRFY and EXPN are offered. The limits of the session stay."""
    return replace(before, vrfy=await rules.extensions.vrfy.value(scope), expn=await rules.extensions.expn.value(scope))


async def transaction_parameters(rules: SessionSettings, scope: Scope) -> TransactionParameters:
    """Evaluate what holds for one transaction, in the scope of its MAIL command."""
    return TransactionParameters(
        max_recipients=await rules.rcpt.max_recipients.value(scope),
        errors_total=await rules.rcpt.errors.total.value(scope),
        errors_wait=await rules.rcpt.errors.wait.value(scope),
        dsn=await rules.extensions.dsn.value(scope),
        size=await rules.data.limits.size.value(scope),
    )
