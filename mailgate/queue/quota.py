"""Which quotas a new message falls under, and the buckets it is charged to (`queue.quota`).

A quota limits what may be in the queue at one time. It counts messages, or
domains of a message, or recipients, whichever is the finest thing its `key` or
its `match` names. A bucket is one value of the key. The limits are no part of
it: who lowers them has what is queued counted from the first moment.

Pure but for what a `match` asks outside. Whether there is room is decided where
it can be known: in the transaction that stores the message (`ledger.py`).
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256

from mailgate.config.schema.queue import QuotaSettings
from mailgate.expr.choice import Choice
from mailgate.expr.outside import Outside
from mailgate.mail.unknown import Unknown
from mailgate.mail.verdict import Cause
from mailgate.queue.charge import MESSAGE_SCOPE, Charge, QuotaLimit, domain_scope, recipient_scope
from mailgate.queue.enqueue import Arrival
from mailgate.queue.item import QueuedRecipient
from mailgate.queue.scope import HostScope, MessageFacts, Note, ignore_note

_NULL_SENDER = "<>"


class Counts(Enum):
    """What a quota counts; the value is the word of its event."""

    MESSAGES = "Sender"
    DOMAINS = "Domain"
    RECIPIENTS = "Recipient"


@dataclass(frozen=True, slots=True)
class QuotaUnknown:
    """Whether a quota applies could not be found out; `cause` is its `match` with what it asked."""

    unknown: Unknown
    cause: Cause


class Quota:
    """One `queue.quota.<id>` that is switched on."""

    def __init__(self, id: str, settings: QuotaSettings) -> None:
        named = {*settings.key_, *settings.match.variables}
        if "rcpt" in named:
            self.counts = Counts.RECIPIENTS
        elif "rcpt_domain" in named:
            self.counts = Counts.DOMAINS
        else:
            self.counts = Counts.MESSAGES
        self._id = id
        self._key = tuple(sorted(set(settings.key_)))
        self.match = settings.match
        self._limit = QuotaLimit(id, self.counts.value, settings.place, settings.messages, settings.size)
        self.of_all: Charge | None = None
        """What every message is charged, where nothing need be known of it."""
        if not self._key and self.match.is_always(True):
            self.of_all = Charge(self._limit, id)

    def charge(self, scope: HostScope, ends_with: str) -> Charge:
        """The bucket of what `scope` shows."""
        return Charge(self._limit, self._bucket(scope), ends_with)

    def _bucket(self, scope: HostScope) -> str:
        if not self._key:
            return self._id
        values = (f"{name}={getattr(scope, name) or _NULL_SENDER}" for name in self._key)
        digest = sha256("\0".join(values).encode("utf-8", "surrogateescape")).digest()[:12]
        return f"{self._id}:{urlsafe_b64encode(digest).decode('ascii')}"


class Quotas:
    """The quotas of one generation, those that count messages first, then domains, then recipients."""

    def __init__(self, settings: Mapping[str, QuotaSettings], outside: Outside) -> None:
        self._outside = outside
        enabled = [Quota(id, one) for id, one in settings.items() if one.enable and not one.match.is_always(False)]
        self._quotas = sorted(enabled, key=lambda quota: list(Counts).index(quota.counts))
        fixed = tuple(quota.of_all for quota in self._quotas if quota.of_all is not None)
        self.of_all = fixed if len(fixed) == len(self._quotas) else None
        """What every message is charged, where that is always the same; None: ask `charges`."""

    async def charges(
        self, arrival: Arrival, recipients: Sequence[QueuedRecipient], note: Note = ignore_note
    ) -> tuple[Charge, ...] | QuotaUnknown:
        """What a message that comes in now would be charged."""
        if self.of_all is not None:
            return self.of_all
        message = arrival.facts(tuple([recipient.address for recipient in recipients]))
        found: dict[tuple[str, str], Charge] = {}
        for quota in self._quotas:
            if quota.of_all is not None:
                found[quota.of_all.bucket, MESSAGE_SCOPE] = quota.of_all
                continue
            for recipient, ends_with in _counted(quota.counts, recipients):
                scope = self._scope(message, recipient, note)
                applies = await _applies(quota.match, scope)
                if isinstance(applies, Unknown):
                    # The note just taken has what was asked; the variables are read again for the refusal.
                    return QuotaUnknown(applies, Cause(quota.match.key, quota.match.place, quota.match.reads(scope)))
                if applies:
                    charge = quota.charge(scope, ends_with)
                    found.setdefault((charge.bucket, ends_with), charge)
        return tuple(found.values())

    def _scope(self, message: MessageFacts, recipient: QueuedRecipient, note: Note) -> HostScope:
        return HostScope(
            message,
            recipient.address,
            self._outside,
            message.created_ms,
            queue_name=recipient.queue,
            expiry=recipient.expiry,
            notes=note,
        )


async def _applies(match: Choice[bool], scope: HostScope) -> bool | Unknown:
    return await (match.unrecorded(scope) if scope.notes is ignore_note else match.value(scope))


def _counted(counts: Counts, recipients: Sequence[QueuedRecipient]) -> Iterator[tuple[QueuedRecipient, str]]:
    """Each thing that is counted: the recipient that stands for it, and the scope of its charge."""
    if counts is Counts.MESSAGES:
        yield recipients[0], MESSAGE_SCOPE
    elif counts is Counts.RECIPIENTS:
        for recipient in recipients:
            yield recipient, recipient_scope(recipient.index)
    else:
        first: dict[str, QueuedRecipient] = {}
        for recipient in recipients:
            first.setdefault(recipient.domain, recipient)
        for domain, recipient in first.items():
            yield recipient, domain_scope(domain)
