"""Who takes mail for an address: sub-addressing, then the address, then the catch-all.

One procedure for RCPT, VRFY and `is_local_address`. It only answers whether
somebody is there: the envelope keeps the address the client gave. A step that
is unknown makes the answer unknown; no later step is tried in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mailgate.expr.choice import Choice
from mailgate.expr.outside import Outside
from mailgate.lookup.directory import Directory, Mailbox, MailingList
from mailgate.mail.unknown import Unknown


class Note(Protocol):
    """Takes down one evaluation (`Scope.note`)."""

    def __call__(self, choice_key: str, place: str, reads: tuple[tuple[str, object], ...], result: object) -> None:
        """Take it down."""
        ...


def unnoted(choice_key: str, place: str, reads: tuple[tuple[str, object], ...], result: object) -> None:
    """A `Note` that keeps nothing."""


@runtime_checkable
class ByRules(Protocol):
    """An `Outside` whose `is_local_address` follows the rules of this file."""

    @property
    def plain(self) -> Outside:
        """The same for addresses exactly as they are."""
        ...


@dataclass(frozen=True, slots=True)
class AddressScope:
    """What the two keys are evaluated against: the address being looked up, nothing of the session."""

    rcpt: str
    asked: Outside
    note: Note

    @property
    def outside(self) -> Outside:
        """Who answers what the two keys ask themselves: their own rules are no part of that."""
        return self.asked.plain if isinstance(self.asked, ByRules) else self.asked


@dataclass(frozen=True, slots=True)
class AddressRules:
    """`session.rcpt.sub-addressing` and `.catch-all`."""

    sub_addressing: Choice[bool | str]
    catch_all: Choice[bool | str]

    async def find(
        self, directory: Directory, address: str, outside: Outside, note: Note = unnoted
    ) -> Mailbox | MailingList | Unknown | None:
        """What takes mail for `address` (lower case) in `directory`; None when nothing does.

        `outside` answers what the two expressions ask, `is_local_address` for
        addresses exactly as they are.
        """
        wanted = await self._without_detail(address, outside, note)
        if isinstance(wanted, Unknown):
            return wanted
        found = await directory.find(wanted)
        if found is not None:
            return found
        catch_all = await self._catch_all(address, outside, note)
        if catch_all is None or isinstance(catch_all, Unknown):
            return catch_all
        return await directory.find(catch_all)

    async def split(self, address: str, outside: Outside) -> tuple[str, str] | Unknown:
        """The local part of `address` without its detail, and the detail without its `+`; both in lower case.

        A rule that gives an address of its own leaves no detail.
        """
        address = address.lower()
        wanted = await self._without_detail(address, outside, unnoted)
        if isinstance(wanted, Unknown):
            return wanted
        local, user = address.rpartition("@")[0], wanted.rpartition("@")[0]
        detail = local[len(user) + 1 :] if local.startswith(f"{user}+") else ""
        return user, detail

    async def _without_detail(self, address: str, outside: Outside, note: Note) -> str | Unknown:
        rule = await self.sub_addressing.value(AddressScope(address, outside, note))
        if isinstance(rule, (Unknown, str)):
            return rule.lower() if isinstance(rule, str) else rule
        local, _, domain = address.rpartition("@")
        # A "+" at the very beginning leaves no name: such an address has no detail.
        if not rule or "+" not in local[1:]:
            return address
        return f"{local[0]}{local[1:].partition('+')[0]}@{domain}"

    async def _catch_all(self, address: str, outside: Outside, note: Note) -> str | Unknown | None:
        rule = await self.catch_all.value(AddressScope(address, outside, note))
        if isinstance(rule, (Unknown, str)):
            return rule.lower() if isinstance(rule, str) else rule
        return "@" + address.rpartition("@")[2] if rule else None
