"""What a listener's rules come to before any client has connected.

A listener's id and protocol never change, and until a client has logged in
`authenticated_as` is empty: with these worked in, most rules are constants.
What a session starts with, what MAIL starts with and the reply to EHLO are then
the same for every client, and are made once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TypeVar

from mailgate.config.schema.session import SessionSettings
from mailgate.expr.choice import Choice
from mailgate.expr.outside import Outside
from mailgate.expr.value import Value
from mailgate.mail.reply import Reply
from mailgate.session.chain import settle
from mailgate.session.chains import Chains, chains
from mailgate.session.idle import Known
from mailgate.session.parameters import (
    ConnectionParameters,
    TransactionParameters,
    connection_parameters,
    transaction_parameters,
)

T = TypeVar("T")


class _NeedsAClient(Exception):
    """A rule looks at something that only a session knows."""


class _Nobody:
    """The scope of no session: every look at it says so."""

    def __getattr__(self, name: str) -> object:
        raise _NeedsAClient(name)

    @property
    def outside(self) -> Outside:
        raise _NeedsAClient("outside")

    def note(
        self, choice_key: str, place: str, reads: tuple[tuple[str, object], ...], result: object, /
    ) -> None:  # pragma: no cover - a constant is never noted
        raise _NeedsAClient(choice_key)


@dataclass(frozen=True, slots=True)
class Prepared:
    """The rules of one listener for clients that have not logged in, in clear or in TLS.

    `connection` and `transaction` are None where a rule of theirs depends on
    the session.
    """

    rules: SessionSettings
    chains: Chains
    connection: ConnectionParameters | None
    transaction: TransactionParameters | None
    ehlo_is_fixed: bool
    """The capabilities are the same for every client."""
    ehlo_replies: dict[str, Reply] = field(default_factory=dict)
    """The reply to EHLO by host name, once it was made."""
    helo_replies: dict[str, Reply] = field(default_factory=dict)
    greetings: dict[str, Reply] = field(default_factory=dict)
    """The greeting by host name, likewise."""

    @property
    def hostname(self) -> str:
        """The name of a session where it is always the same; `localhost` where that has to be found out."""
        fixed = self.rules.connect.hostname.fixed
        return (fixed[0] if fixed is not None else None) or "localhost"


def prepare(settings: SessionSettings, listener: str, protocol: str, is_tls: bool) -> Prepared:
    """Work out what can be known of a listener's sessions."""
    known: dict[str, Value] = {
        "listener": listener,
        "protocol": protocol,
        "authenticated_as": "",
        "is_tls": int(is_tls),
    }
    rules = specialised(settings, known)
    advertised = (
        *(getattr(rules.extensions, each.name) for each in fields(rules.extensions)),
        rules.data.limits.size,
        rules.auth.mechanisms,
        rules.auth.directory,
    )
    return Prepared(
        rules,
        chains(Known(rules, is_logged_in=False)),
        _connection(rules),
        _transaction(rules),
        all(isinstance(choice, Choice) and choice.is_constant for choice in advertised),
    )


def _connection(rules: SessionSettings) -> ConnectionParameters | None:
    try:
        found = settle(connection_parameters(rules, _Nobody()))
    except _NeedsAClient:
        return None
    return found if isinstance(found, ConnectionParameters) else None


def _transaction(rules: SessionSettings) -> TransactionParameters | None:
    try:
        found = settle(transaction_parameters(rules, _Nobody()))
    except _NeedsAClient:
        return None
    return found if isinstance(found, TransactionParameters) else None


def specialised(settings: T, known: Mapping[str, Value]) -> T:
    """The settings with every rule worked out that depends on nothing but `known` variables."""
    if not is_dataclass(settings) or isinstance(settings, type):
        return settings
    changed: dict[str, object] = {}
    for each in fields(settings):
        value = getattr(settings, each.name)
        if isinstance(value, Choice):
            changed[each.name] = value.specialise(known)
        elif is_dataclass(value) and not isinstance(value, type):
            changed[each.name] = specialised(value, known)
    return replace(settings, **changed)
