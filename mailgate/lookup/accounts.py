"""A directory kept in the configuration: accounts, their addresses, lists and secrets.

A domain is local when any account or list has an address in it. An address
`@domain` among an account's addresses makes it the catch-all of that domain.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from mailgate.lookup.directory import Denied, Mailbox, MailingList
from mailgate.lookup.secret import BadSecret, CannotVerify, Secrets, Verified
from mailgate.mail.path import Path
from mailgate.mail.session import Identity
from mailgate.mail.unknown import Unknown

T = TypeVar("T")


class RunBlocking(Protocol):
    """Runs work that takes its time in a thread."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """Answer what the work returned, or raise what it raised."""
        ...


@dataclass(frozen=True, slots=True)
class Principal:
    """One account as the configuration has it; the first of `emails` is the primary address."""

    name: str
    secrets: tuple[str, ...] = ()
    emails: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    """Addresses of the lists it is a member of."""
    may_log_in: bool = True
    """False for a group: it has addresses and nobody logs in as it."""


class BadDirectory(ValueError):
    """A directory that cannot be used; `problems` are for the operator and show no secret."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class _Account:
    identity: Identity
    secrets: Secrets


_MAILBOX = Mailbox()


class MemoryDirectory:
    """A `Directory` whose answers come from plain values; it knows everything it is asked."""

    def __init__(
        self,
        id: str,
        principals: Iterable[Principal],
        *,
        run_blocking: RunBlocking,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Raises `BadDirectory` with everything that is wrong. `run_blocking` is for hashing passwords."""
        self._id = id
        self._run_blocking = run_blocking
        self._now = now
        self._accounts: dict[str, _Account] = {}
        self._found: dict[str, Mailbox | MailingList] = {}
        self._primaries: list[str] = []
        members: dict[str, list[Path]] = {}
        mailboxes: set[str] = set()
        problems: list[str] = []
        for principal in principals:
            emails = tuple(email.lower() for email in principal.emails)
            if principal.name in self._accounts:
                problems.append(f'directory "{id}": two principals are called "{principal.name}"')
            for address in (*principal.emails, *principal.lists):
                if "@" not in address[:-1]:
                    problems.append(f'directory "{id}": "{address}" of "{principal.name}" is not an address')
            try:
                verifier = Secrets(principal.secrets if principal.may_log_in else ())
            except BadSecret as bad:
                problems.append(f'directory "{id}": a secret of "{principal.name}": {bad}')
                verifier = Secrets(())
            self._accounts[principal.name] = _Account(Identity(principal.name, emails), verifier)
            mailboxes.update(emails)
            primary = next((email for email in principal.emails if not email.startswith("@")), None)
            if principal.lists and primary is None:
                problems.append(f'directory "{id}": "{principal.name}" is on a list and has no address')
            if primary is not None:
                self._primaries.append(primary.lower())
                for address in principal.lists:
                    # A member is written as it was configured, not in lower case: a mailbox may care.
                    members.setdefault(address.lower(), []).append(Path.parse(primary))
        problems.extend(
            f'directory "{id}": "{address}" is both a mailbox and a list'
            for address in sorted(mailboxes & set(members))
        )
        if problems:
            raise BadDirectory(tuple(problems))
        self._found.update((address, _MAILBOX) for address in mailboxes)
        self._found.update((address, MailingList(tuple(dict.fromkeys(paths)))) for address, paths in members.items())
        self._domains = frozenset(address.rpartition("@")[2] for address in self._found)
        # Somebody who is not here is compared with somebody who is: always the
        # same one for the same name, so that asking again shows nothing.
        self._decoys = tuple(account for account in self._accounts.values() if account.secrets)
        self._salt = secrets.token_bytes(16)
        # The last one-time code of each account that was used (RFC 6238 5.2: once only).
        self._used_steps: dict[tuple[str, int], int] = {}

    @property
    def id(self) -> str:
        """The id under `directory.<id>`."""
        return self._id

    async def authenticate(self, login: str, secret: str) -> Identity | Denied | Unknown:
        """Check a password; a name that does not exist takes as long as one that does."""
        account = self._accounts.get(login)
        if account is None or not account.secrets:
            return await self._pretend(login, secret)
        try:
            verified = await self._run_blocking(partial(account.secrets.verify, secret))
        except CannotVerify as failure:
            return Unknown(f"directory {self._id}", str(failure))
        if verified.code_missing:
            return Denied.CODE_MISSING
        return account.identity if self._is_right(account, verified) else Denied.WRONG

    async def _pretend(self, login: str, secret: str) -> Denied:
        """Take the time of an account for a name that has none."""
        if self._decoys:
            digest = hashlib.blake2b(login.encode("utf-8", "surrogateescape"), key=self._salt, digest_size=8).digest()
            decoy = self._decoys[int.from_bytes(digest, "big") % len(self._decoys)]
            with contextlib.suppress(CannotVerify):
                await self._run_blocking(partial(decoy.secrets.verify, secret))
        return Denied.WRONG

    def _is_right(self, account: _Account, verified: Verified) -> bool:
        if not verified.right or not verified.code:
            return verified.right
        for number, code in enumerate(account.secrets.codes):
            step = code.step_of(verified.code, self._now())
            used = self._used_steps.get((account.identity.login, number))
            if step is not None and (used is None or step > used):
                self._used_steps[account.identity.login, number] = step
                return True
        return False

    async def is_local_domain(self, domain: str) -> bool | Unknown:
        """Whether any account or list has an address in `domain` (lower case)."""
        return domain in self._domains

    async def find(self, address: str) -> Mailbox | MailingList | Unknown | None:
        """What exactly this address (lower case) is; None when there is none."""
        return self._found.get(address)

    async def verify(self, text: str) -> tuple[str, ...] | Unknown:
        """VRFY: every primary address that contains `text` (lower case)."""
        return tuple(address for address in self._primaries if text in address)

    async def expand(self, address: str) -> tuple[str, ...] | Unknown:
        """EXPN: the members of the list with exactly this address; empty when there is none."""
        found = self._found.get(address)
        return tuple(member.text for member in found.members) if isinstance(found, MailingList) else ()
