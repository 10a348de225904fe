"""The edits a policy or filter may ask for; applied only in `session/apply.py`.

Header fields are exact octets (DESIGN D6): a value is what follows the colon,
folding included, without the final CRLF.
"""

from __future__ import annotations

from dataclasses import dataclass

from mailgate.mail.path import Path


@dataclass(frozen=True, slots=True)
class AddHeader:
    """Add a field above (`last=False`) or below the present header."""

    name: bytes
    value: bytes
    last: bool = False


@dataclass(frozen=True, slots=True)
class SetReversePath:
    """Replace the envelope's sender."""

    path: Path


@dataclass(frozen=True, slots=True)
class SetForwardPath:
    """Replace the recipient that RCPT is about."""

    path: Path


@dataclass(frozen=True, slots=True)
class ExpandRecipient:
    """Put a list's members in the place of the recipient that RCPT is about."""

    members: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class AddRecipient:
    """Add a forward-path to the envelope."""

    path: Path


@dataclass(frozen=True, slots=True)
class RemoveRecipient:
    """Take a forward-path out of the envelope, compared without regard to case."""

    path: Path


Change = AddHeader | SetReversePath | SetForwardPath | ExpandRecipient | AddRecipient | RemoveRecipient
