"""`directory.<id>.*`: accounts, their secrets and addresses."""

from __future__ import annotations

from dataclasses import dataclass

from mailgate.config.key import key, table_list
from mailgate.config.kind import LINE, NAME, SIZE, TEXT, listed, optional, word


@dataclass(frozen=True, slots=True, kw_only=True)
class PrincipalSettings:
    """One account, group or owner of addresses."""

    name: str = key(NAME, doc="Login name.")
    class_: str = key(
        word("individual", "admin", "group"),
        default="individual",
        doc="`individual`, `admin` or `group`; a group cannot log in.",
    )
    description: str | None = key(LINE, default=None, doc="For people.")
    secret: tuple[str, ...] = key(
        listed(TEXT), default=[], secret=True, doc="Passwords, hashed (`$6$...`, `{SSHA}...`) or plain; any may match."
    )
    email: tuple[str, ...] = key(
        listed(NAME),
        default=[],
        doc="Addresses, the first is the primary one; `@domain` takes the domain's other mail.",
    )
    email_list: tuple[str, ...] = key(listed(NAME), default=[], doc="Addresses of lists this account is a member of.")
    member_of: tuple[str, ...] = key(listed(NAME), default=[], doc="Names of groups this account belongs to.")
    quota: int | None = key(
        optional(SIZE), default=None, unit="bytes", doc="For the mail store behind; mailgate does not enforce it."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryDirectorySettings:
    """Accounts that are listed in the configuration."""

    principals: tuple[PrincipalSettings, ...] = table_list(PrincipalSettings)


DirectorySettings = MemoryDirectorySettings
