"""What a message is charged to: the buckets of quotas, and what ends each charge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MESSAGE_SCOPE = "message"
"""The charge ends with the message."""


def domain_scope(domain: str) -> str:
    """The charge ends with the last open recipient of a domain."""
    return f"domain {domain}"


def recipient_scope(index: int) -> str:
    """The charge ends with one recipient."""
    return f"recipient {index}"


@dataclass(frozen=True, slots=True)
class QuotaLimit:
    """How much one bucket of a quota may hold; at least one of the limits is set."""

    id: str
    """As in `queue.quota.<id>`."""
    kind: str
    """`Sender`, `Domain` or `Recipient`: what is charged, by the word of the event."""
    place: str
    """Where the quota is written."""
    max_messages: int | None = None
    max_octets: int | None = None


@dataclass(frozen=True, slots=True)
class Charge:
    """One message in one bucket, with the size of the message."""

    limit: QuotaLimit
    bucket: str
    scope: str = MESSAGE_SCOPE

    @property
    def is_of_all(self) -> bool:
        """Whether the bucket is the only one of its quota and stays until the message goes."""
        return self.bucket == self.limit.id and self.scope == MESSAGE_SCOPE


@dataclass(frozen=True, slots=True)
class Usage:
    """What a bucket holds."""

    messages: int = 0
    octets: int = 0

    def with_one(self, octets: int) -> Usage:
        """The same with one more message."""
        return Usage(self.messages + 1, self.octets + octets)


EMPTY = Usage()


def is_over(limit: QuotaLimit, used: Usage, size_octets: int) -> bool:
    """Whether one more message of this size has no place in a bucket."""
    return (limit.max_messages is not None and used.messages + 1 > limit.max_messages) or (
        limit.max_octets is not None and used.octets + size_octets > limit.max_octets
    )


def take(charges: Iterable[Charge], size_octets: int, used: dict[str, Usage]) -> Charge | None:
    """Add a message to all its buckets; the first charge without room, where there is one: nothing is added then."""
    after: dict[str, Usage] = {}
    for charge in charges:
        before = after.get(charge.bucket) or used.get(charge.bucket, EMPTY)
        if is_over(charge.limit, before, size_octets):
            return charge
        after[charge.bucket] = before.with_one(size_octets)
    used.update(after)
    return None
