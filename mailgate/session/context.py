"""What a policy may look at: one frozen context per stage (DESIGN D2).

A context is also the scope its stage's expressions are evaluated in: each
variable of the language is an attribute of it. What a stage does not know
yet has no attribute there, and the configuration is checked for that when it
is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from mailgate.config.schema.session import SessionSettings
from mailgate.decisions.entry import Reads, Trail, is_refusal
from mailgate.expr.choice import Rule
from mailgate.expr.outside import Outside
from mailgate.mail.change import Change, ExpandRecipient, SetForwardPath, SetReversePath
from mailgate.mail.envelope import MailParameters, RcptParameters
from mailgate.mail.header import Header
from mailgate.mail.lean import lean
from mailgate.mail.path import Path
from mailgate.mail.session import Session, Stage
from mailgate.mail.transaction import Transaction
from mailgate.mail.unknown import Unknown
from mailgate.mail.verdict import Cause, Discard, Refuse, Verdict
from mailgate.session.parameters import ConnectionParameters, TransactionParameters
from mailgate.session.ports import Ports

NO_HEADER = Header(b"")

BUILT_IN = "built-in"
"""The place of what no configuration decides."""


def decided(trail: Trail, stage: str, check: str, verdict: Refuse | Discard) -> None:
    """Record a verdict: the key that decided, or `check` where no key has a say in it."""
    if isinstance(verdict, Discard):
        said, cause = f"discard ({verdict.reason.value})", None
    else:
        said, cause = f"{verdict.reply.code} {verdict.reply.enhanced} ({verdict.reason.value})", verdict.cause
    detail: Reads = (("detail", verdict.detail),) if verdict.detail else ()
    if cause is None:
        trail.decided(stage, check, BUILT_IN, detail, said)
    else:
        trail.decided(stage, cause.rule, cause.place, cause.reads + detail, said)


@lean
@dataclass(frozen=True, slots=True)
class Context:
    """What every stage sees: the connection's facts, the rules of its listener, the ports."""

    session: Session
    rules: SessionSettings
    ports: Ports
    trail: Trail
    stage: Stage

    # --- variables of the expression language ---

    @property
    def listener(self) -> str:
        """The id of the listener."""
        return self.session.listener

    @property
    def protocol(self) -> str:
        """`smtp` or `lmtp`."""
        return self.session.protocol

    @property
    def remote_ip(self) -> str:
        """The client's address."""
        return self.session.remote_ip

    @property
    def remote_port(self) -> int:
        """The client's port."""
        return self.session.remote_port

    @property
    def local_ip(self) -> str:
        """The address the client connected to."""
        return self.session.local_ip

    @property
    def local_port(self) -> int:
        """The port the client connected to."""
        return self.session.local_port

    @property
    def is_tls(self) -> int:
        """1 inside TLS."""
        return 1 if self.session.tls is not None else 0

    @property
    def asn(self) -> int:
        """The client's autonomous system: 0, none is looked up."""
        return 0

    @property
    def country(self) -> str:
        """The client's country: empty, none is looked up."""
        return ""

    @property
    def helo_domain(self) -> str:
        """The name of the last accepted greeting, as given."""
        return self.session.helo or ""

    @property
    def authenticated_as(self) -> str:
        """The login name; empty when not authenticated."""
        identity = self.session.identity
        return identity.login if identity is not None else ""

    # Keys of later stages are also evaluated early, to advertise their values:
    # there the facts of a transaction are empty.

    @property
    def sender(self) -> str:
        """The reverse-path in lower case; empty when null and outside a transaction."""
        return ""

    @property
    def sender_domain(self) -> str:
        """The domain of `sender`."""
        return ""

    @property
    def recipients(self) -> tuple[str, ...]:
        """All accepted recipients, and the one being checked, lower case."""
        return ()

    @property
    def rcpt(self) -> str:
        """The last recipient, lower case."""
        return ""

    @property
    def rcpt_domain(self) -> str:
        """The domain of `rcpt`."""
        return ""

    @property
    def priority(self) -> str:
        """MT-PRIORITY of the transaction as text; `0` where none was given."""
        return "0"

    # --- what evaluation and chaining ask for ---

    @property
    def outside(self) -> Outside:
        """What expressions may ask of directories, lists and DNS."""
        return self.ports.outside

    def note(self, choice_key: str, place: str, reads: tuple[tuple[str, object], ...], result: object) -> None:
        """Record the evaluation of one expression in the trace."""
        said = f"unknown ({result.dependency}: {result.reason})" if type(result) is Unknown else str(result)
        self.trail.decided(self.stage._value_, choice_key, place, reads, said)

    def changed(self, changes: tuple[Change, ...]) -> Self:
        """The context after these changes: nothing in it can be changed at this stage."""
        return self

    def decided(self, policy: str, verdict: Verdict) -> None:
        """Record what ended the chain: the key the verdict names, else the policy, and what it said."""
        if isinstance(verdict, (Refuse, Discard)):
            decided(self.trail, self.stage._value_, policy, verdict)

    def cause(self, rule: Rule, *facts: tuple[str, object]) -> Cause:
        """Why a verdict follows from `rule`: the variables it names, what it asked, and further facts.

        For refusals alone: it reads again what the rule has read.
        """
        named = rule.reads(self)
        names = {name for name, _ in named}
        asked: Reads = ()
        for _, key, place, reads, said, _ in reversed(self.trail.steps):
            # Earlier refusals by the same rule have evidence of their own: it must not grow from one to the next.
            if key == rule.key and place == rule.place and not is_refusal(said):
                asked = tuple(each for each in reads if each[0] not in names)
                break
        return Cause(rule.key, rule.place, (*named, *asked, *facts))


@lean
@dataclass(frozen=True, slots=True)
class ConnectContext(Context):
    """The connect stage, and everything that is evaluated when a connection is accepted."""


@lean
@dataclass(frozen=True, slots=True)
class EhloContext(Context):
    """EHLO, HELO or LHLO with the name the client gave; "" for none."""

    connection: ConnectionParameters
    verb: str
    name: str


@lean
@dataclass(frozen=True, slots=True)
class AuthContext(Context):
    """AUTH with the mechanism the client chose, upper case."""

    connection: ConnectionParameters
    mechanism: str
    in_transaction: bool


@lean
@dataclass(frozen=True, slots=True)
class VrfyContext(Context):
    """VRFY or EXPN with its argument in lower case."""

    connection: ConnectionParameters
    text: str
    expand: bool


@lean
@dataclass(frozen=True, slots=True)
class TransactionContext(Context):
    """What the stages inside a transaction share; None while no transaction is open."""

    transaction: Transaction | None

    @property
    def sender(self) -> str:
        """The reverse-path in lower case; empty when null."""
        return self.transaction.reverse_path.key if self.transaction is not None else ""

    @property
    def sender_domain(self) -> str:
        """The domain of the reverse-path in lower case; empty when null."""
        return self.transaction.reverse_path.domain.lower() if self.transaction is not None else ""

    @property
    def recipients(self) -> tuple[str, ...]:
        """All recipients accepted so far, lower case."""
        accepted = self.transaction.recipients if self.transaction is not None else ()
        return tuple(recipient.path.key for recipient in accepted)

    @property
    def rcpt(self) -> str:
        """The last recipient, lower case."""
        recipients = self.recipients
        return recipients[-1] if recipients else ""

    @property
    def rcpt_domain(self) -> str:
        """The domain of the last recipient, lower case."""
        return self.rcpt.rpartition("@")[2]

    @property
    def priority(self) -> str:
        """MT-PRIORITY of the transaction as text; `0` where none was given."""
        given = self.transaction.parameters.priority if self.transaction is not None else None
        return "0" if given is None else str(given)


@lean
@dataclass(frozen=True, slots=True)
class MailContext(TransactionContext):
    """MAIL: `path` is the reverse-path, as rewritten so far; `transaction` the one already open, if any."""

    connection: ConnectionParameters
    path: Path
    parameters: MailParameters
    hold_seconds: int
    """HOLDFOR, or HOLDUNTIL counted from now; 0 for the past and where neither was given."""

    @property
    def sender(self) -> str:
        """The reverse-path in lower case; empty when null."""
        return self.path.key

    @property
    def sender_domain(self) -> str:
        """The domain of the reverse-path in lower case; empty when null."""
        return self.path.domain.lower()

    def changed(self, changes: tuple[Change, ...]) -> Self:
        """The context with the reverse-path as rewritten."""
        for change in changes:
            if isinstance(change, SetReversePath):
                return replace(self, path=change.path)
        return self


@lean
@dataclass(frozen=True, slots=True)
class RcptContext(TransactionContext):
    """RCPT: `path` is the forward-path, as rewritten so far."""

    limits: TransactionParameters | None
    path: Path
    parameters: RcptParameters
    members: tuple[Path, ...] = ()
    """What the recipient stands for when it is a list."""

    @property
    def rcpt(self) -> str:
        """The recipient being checked, lower case."""
        return self.path.key

    @property
    def rcpt_domain(self) -> str:
        """The domain of the recipient being checked, lower case."""
        return self.path.domain.lower()

    @property
    def recipients(self) -> tuple[str, ...]:
        """All accepted recipients and the one being checked, lower case."""
        accepted = self.transaction.recipients if self.transaction is not None else ()
        return (*(recipient.path.key for recipient in accepted), self.path.key)

    def changed(self, changes: tuple[Change, ...]) -> Self:
        """The context with the recipient as rewritten or expanded."""
        context = self
        for change in changes:
            if isinstance(change, SetForwardPath):
                context = replace(context, path=change.path)
            elif isinstance(change, ExpandRecipient):
                context = replace(context, members=change.members)
        return context


@lean
@dataclass(frozen=True, slots=True)
class DataContext(TransactionContext):
    """DATA or BDAT, before the message; `chunking` for BDAT."""

    limits: TransactionParameters | None
    messages: int
    """Messages this session has sent so far: accepted, or discarded."""
    chunking: bool = False
    chunks_before: bool = False
    """BDAT has been used in this transaction."""


@lean
@dataclass(frozen=True, slots=True)
class MessageContext(DataContext):
    """The end of data: the message is complete, and what becomes of it is decided.

    `queue_id` names it from here on; `header` is that of the message as
    received.
    """

    queue_id: int = 0
    size_octets: int = 0
    header: Header = NO_HEADER
    bare_newline: bool = False
    """The message holds a bare CR or LF and the listener rejects those."""
    too_big: bool = False
    """The message went over the limit; its octets are gone."""
