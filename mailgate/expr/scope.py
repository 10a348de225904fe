"""Which variable exists where, its type and its one sentence for the operator.

Each key declares the `Context` its expression is evaluated in. Whoever
evaluates supplies a `Scope`: an object that has each variable of that context
as an attribute. Nothing else is known here about where the values come from.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from mailgate.expr.outside import Outside
from mailgate.expr.value import Type


class Context(Enum):
    """The moments at which expressions are evaluated, by what is known then."""

    CONN = "CONN"
    """A connection was accepted."""
    EHLO = "EHLO"
    """A client has said EHLO, HELO or LHLO."""
    MAIL = "MAIL"
    """A client gives the sender."""
    RCPT = "RCPT"
    """A client gives a recipient, or anything later in the transaction."""
    ADDR = "ADDR"
    """An address is looked up in a directory."""
    RECIPIENT = "RECIPIENT"
    """Delivery: one recipient of a queued message."""
    HOST = "HOST"
    """Delivery: one host that a queued message is sent to."""


class Scope(Protocol):
    """What an expression is evaluated against.

    The variables of the key's context are attributes of the same object, read
    by name: a text, an integer, a truth value or a tuple of texts; or an
    `Unknown`, where a fact itself could not be found out.
    """

    @property
    def outside(self) -> Outside:
        """Who answers the functions that ask something outside."""
        ...

    def note(self, choice_key: str, place: str, reads: tuple[tuple[str, object], ...], result: object, /) -> None:
        """Take down one evaluation of a choice that is not constant, once it has its result.

        `reads` are the variables the choice names with their values, then each
        question asked outside with its answer, then `on-error` where it decided.
        """
        ...


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable as operators know it."""

    name: str
    type: Type
    contexts: frozenset[Context]
    doc: str
    attribute: str
    """The attribute of the scope that holds it; only synonyms differ from `name`."""


_CONN = frozenset({Context.CONN, Context.EHLO, Context.MAIL, Context.RCPT})
_SENDER = frozenset({Context.MAIL, Context.RCPT, Context.RECIPIENT, Context.HOST})
_RCPT = frozenset({Context.RCPT, Context.RECIPIENT, Context.HOST})
_QUEUED = frozenset({Context.RECIPIENT, Context.HOST})
_ADDR = frozenset({Context.ADDR})
_HOST = frozenset({Context.HOST})


def _variable(name: str, type: Type, contexts: frozenset[Context], doc: str, attribute: str = "") -> Variable:
    return Variable(name, type, contexts, doc, attribute or name)


VARIABLES: tuple[Variable, ...] = (
    _variable("listener", Type.STRING, _CONN, "Id of the listener the client came through."),
    _variable("protocol", Type.STRING, _CONN, "`smtp` or `lmtp`."),
    _variable("remote_ip", Type.STRING, _CONN | _HOST, "Address of the peer; `0.0.0.0` when not known."),
    _variable("remote_port", Type.INTEGER, _CONN, "Port of the client."),
    _variable("local_ip", Type.STRING, _CONN | _HOST, "Our own address; `0.0.0.0` when none is configured."),
    _variable("local_port", Type.INTEGER, _CONN, "Port the client connected to."),
    _variable("is_tls", Type.INTEGER, _CONN, "1 when the connection is encrypted, else 0."),
    _variable("asn", Type.INTEGER, _CONN, "Autonomous system of the client; 0 when not known."),
    _variable("country", Type.STRING, _CONN, "ISO code of the client's country; empty when not known."),
    _variable(
        "helo_domain",
        Type.STRING,
        frozenset({Context.EHLO, Context.MAIL, Context.RCPT}),
        "Name given in EHLO, HELO or LHLO, as the client wrote it.",
    ),
    _variable(
        "authenticated_as",
        Type.STRING,
        frozenset({Context.MAIL, Context.RCPT}),
        "Login name; empty when not authenticated.",
    ),
    _variable("sender", Type.STRING, _SENDER, "Reverse-path, lower case; empty for `<>`."),
    _variable("sender_domain", Type.STRING, _SENDER, "Domain of the reverse-path; empty for `<>`."),
    _variable(
        "rcpt",
        Type.STRING,
        _RCPT | _ADDR,
        "The last recipient given, the recipient being delivered, or the address looked up; lower case.",
    ),
    _variable("rcpt_domain", Type.STRING, _RCPT, "Domain of that recipient."),
    _variable(
        "recipients",
        Type.ARRAY,
        _RCPT,
        "All accepted recipients and the one being checked; in delivery all of the message.",
    ),
    _variable("priority", Type.STRING, _RCPT, "MT-PRIORITY of the message; `0` by default."),
    _variable("address", Type.STRING, _ADDR, "Synonym of `rcpt`.", "rcpt"),
    _variable("email", Type.STRING, _ADDR, "Synonym of `rcpt`.", "rcpt"),
    _variable("retry_num", Type.INTEGER, _QUEUED, "Failed attempts so far."),
    _variable("notify_num", Type.INTEGER, _QUEUED, "Delay notices sent so far."),
    _variable("expires_in", Type.INTEGER, _QUEUED, "Seconds left, or attempts left where attempts are counted."),
    _variable("last_status", Type.STRING, _QUEUED, "What became of the last attempt."),
    _variable("last_error", Type.STRING, _QUEUED, "Kind of the last failure, for example `tls`; empty before one."),
    _variable("queue_name", Type.STRING, _QUEUED, "Virtual queue the recipient is in."),
    _variable("queue_age", Type.INTEGER, _QUEUED, "Seconds since the message was queued."),
    _variable("received_from_ip", Type.STRING, _QUEUED, "Address the message came from."),
    _variable("received_via_port", Type.INTEGER, _QUEUED, "Local port the message came through."),
    _variable(
        "source", Type.STRING, _QUEUED, "`authenticated`, `unauthenticated`, `dsn`, `report` or `autogenerated`."
    ),
    _variable("size", Type.INTEGER, _QUEUED, "Size of the message in octets."),
    _variable("mx", Type.STRING, _HOST, "Host being tried, no final dot; empty before one is known."),
)

NAMES: frozenset[str] = frozenset(variable.name for variable in VARIABLES)
"""Every variable name of any context."""

_BY_CONTEXT: dict[Context, dict[str, Variable]] = {
    context: {variable.name: variable for variable in VARIABLES if context in variable.contexts} for context in Context
}


def available(context: Context) -> dict[str, Variable]:
    """The variables of a context by name, in the order of the documentation."""
    return dict(_BY_CONTEXT[context])


def find(name: str, context: Context) -> Variable | None:
    """The variable `name` if `context` has it."""
    return _BY_CONTEXT[context].get(name)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, if any is like it at all."""
    found = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return found[0] if found else None
