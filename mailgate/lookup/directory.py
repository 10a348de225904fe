"""The directory port: which domains and mailboxes are here, and who may log in.

A directory that cannot be asked answers `Unknown`; "no such user" is a known
answer. Addresses are compared in lower case.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from mailgate.mail.path import Path
from mailgate.mail.session import Identity
from mailgate.mail.unknown import Unknown


class Denied(Enum):
    """Why credentials were not accepted."""

    WRONG = "wrong"
    """No such user, wrong secret, or a disabled account: the client learns no difference."""
    MAY_NOT_SEND = "may-not-send"
    CODE_MISSING = "code-missing"
    """The password is right; the account also wants a one-time code, as `password$123456`."""


@dataclass(frozen=True, slots=True)
class Mailbox:
    """An address that takes mail itself."""


@dataclass(frozen=True, slots=True)
class MailingList:
    """An address that stands for others: `members` are primary addresses."""

    members: tuple[Path, ...]


class Directory(Protocol):
    """One directory, by the id it has in the configuration."""

    @property
    def id(self) -> str:
        """The id under `directory.<id>`."""
        ...

    async def authenticate(self, login: str, secret: str) -> Identity | Denied | Unknown:
        """Check a password; the comparison takes the same time for every wrong one."""
        ...

    async def is_local_domain(self, domain: str) -> bool | Unknown:
        """Whether any account has an address in `domain` (lower case)."""
        ...

    async def find(self, address: str) -> Mailbox | MailingList | Unknown | None:
        """What exactly this address (lower case) is; None when there is none.

        Sub-addressing and catch-all are the caller's (`lookup/recipient.py`);
        `@domain` asks for the catch-all.
        """
        ...

    async def verify(self, text: str) -> tuple[str, ...] | Unknown:
        """VRFY: every primary address that contains `text` (lower case)."""
        ...

    async def expand(self, address: str) -> tuple[str, ...] | Unknown:
        """EXPN: the members of the list with exactly this address; empty when there is none."""
        ...
