"""The server's half of SASL mechanisms in AUTH (RFC 4954, RFC 4616): PLAIN and LOGIN.

An exchange is started with the initial response of AUTH and then fed one
line after the other, each as it came. It answers with a challenge to send,
the credentials it was for, or what is wrong. It decides nothing: which
mechanisms are offered, and whether the credentials are good, is asked
elsewhere.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Challenge:
    """What to send after 334, already in base64; empty for an empty challenge."""

    text: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the client claims to be, and its proof; neither is empty."""

    login: str
    secret: str = field(repr=False)


class Broken(Enum):
    """Why an exchange ended without credentials."""

    CANCELLED = "cancelled"
    """The client sent `*` (RFC 4954 4)."""
    MALFORMED = "malformed"
    """Not base64, not UTF-8, not of the mechanism's form, or empty where something is due."""


Step = Challenge | Credentials | Broken


class Exchange(Protocol):
    """One AUTH command from its start to credentials or failure."""

    def start(self, initial: bytes | None) -> Step:
        """Begin, with the initial response as it came in the AUTH command."""
        ...

    def respond(self, line: bytes) -> Step:
        """Go on with the client's answer to the last challenge, as it came."""
        ...


class _Plain:
    """RFC 4616: one message, `[authzid] NUL authcid NUL password`."""

    def start(self, initial: bytes | None) -> Step:
        return Challenge("") if initial is None else self._credentials(_initial(initial))

    def respond(self, line: bytes) -> Step:
        return Broken.CANCELLED if line == b"*" else self._credentials(_decoded(line))

    def _credentials(self, message: str | None) -> Step:
        if message is None:
            return Broken.MALFORMED
        # The authorization identity is not used: one sends as who one is.
        fields = message.split("\0")
        if len(fields) != 3 or not fields[1] or not fields[2]:
            return Broken.MALFORMED
        return Credentials(fields[1], fields[2])


class _Login:
    """The user name, then the password, each after its prompt (never standardised, still in use)."""

    def __init__(self) -> None:
        self._login = ""

    def start(self, initial: bytes | None) -> Step:
        return _USER_PROMPT if initial is None else self._next(_initial(initial))

    def respond(self, line: bytes) -> Step:
        return Broken.CANCELLED if line == b"*" else self._next(_decoded(line))

    def _next(self, text: str | None) -> Step:
        # A directory could take a NUL for the end of a name.
        if not text or "\0" in text:
            return Broken.MALFORMED
        if not self._login:
            self._login = text
            return _PASSWORD_PROMPT
        return Credentials(self._login, text)


_USER_PROMPT = Challenge("VXNlcm5hbWU6")
_PASSWORD_PROMPT = Challenge("UGFzc3dvcmQ6")

_MECHANISMS: dict[str, type[_Plain] | type[_Login]] = {"PLAIN": _Plain, "LOGIN": _Login}

MECHANISMS = tuple(_MECHANISMS)
"""The mechanisms known here, in the order they are listed in the reply to EHLO."""


def exchange(mechanism: str) -> Exchange | None:
    """A new exchange for a mechanism (upper case); None for one not known here."""
    found = _MECHANISMS.get(mechanism)
    return found() if found is not None else None


def _initial(octets: bytes) -> str | None:
    # RFC 4954 4: "=" is the empty initial response.
    return "" if octets == b"=" else _decoded(octets)


def _decoded(octets: bytes) -> str | None:
    """Text from base64, None when it is neither."""
    # The strict decoder still takes padding after a last group that is whole.
    if len(octets) % 4 or octets.endswith(b"==="):
        return None
    try:
        return binascii.a2b_base64(octets, strict_mode=True).decode("utf-8")
    except ValueError:
        return None
