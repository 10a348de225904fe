"""The client's half of SASL mechanisms in SMTP AUTH (RFC 4954, RFC 4616, RFC 2195).

Strongest first: CRAM-MD5, PLAIN, LOGIN. Nothing here decides whether a
mechanism may be used on a connection without TLS.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import Protocol

MECHANISMS = ("CRAM-MD5", "PLAIN", "LOGIN")

IN_CLEAR = frozenset({"PLAIN", "LOGIN"})
"""Mechanisms that show the secret to everybody on the path."""


class BadChallenge(Exception):
    """The server asked something the mechanism does not know."""


class Exchange(Protocol):
    """One login: the initial response, then an answer per challenge."""

    @property
    def initial(self) -> bytes | None:
        """The initial response, None where the mechanism waits for a challenge."""
        ...

    def respond(self, challenge: bytes) -> bytes:
        """Answer a challenge (decoded). Raises `BadChallenge`."""
        ...


class _Plain:
    def __init__(self, username: str, secret: str) -> None:
        self.initial: bytes | None = f"\0{username}\0{secret}".encode()

    def respond(self, challenge: bytes) -> bytes:
        """Send it again where the server did not look at the initial response."""
        if challenge or self.initial is None:
            raise BadChallenge("PLAIN knows no challenge")
        answer, self.initial = self.initial, None
        return answer


class _Login:
    initial: bytes | None = None

    def __init__(self, username: str, secret: str) -> None:
        self._username = username
        self._secret = secret

    def respond(self, challenge: bytes) -> bytes:
        """Recognise the customary prompts without regard to case."""
        prompt = challenge.lower().strip(b" :\0")
        if prompt in (b"username", b"user name"):
            return self._username.encode()
        if prompt == b"password":
            return self._secret.encode()
        raise BadChallenge("LOGIN asked for something else than a user name or a password")


class _CramMd5:
    initial: bytes | None = None

    def __init__(self, username: str, secret: str) -> None:
        self._username = username
        self._secret = secret
        self._answered = False

    def respond(self, challenge: bytes) -> bytes:
        """RFC 2195 2: the user name, a space, and the keyed digest in hexadecimal."""
        if not challenge or self._answered:
            raise BadChallenge("CRAM-MD5 has exactly one challenge")
        self._answered = True
        return f"{self._username} {hmac.digest(self._secret.encode(), challenge, 'md5').hex()}".encode()


def begin(mechanism: str, username: str, secret: str) -> Exchange:
    """Begin a login by one of `MECHANISMS`."""
    if mechanism == "PLAIN":
        return _Plain(username, secret)
    if mechanism == "LOGIN":
        return _Login(username, secret)
    return _CramMd5(username, secret)


def encode(octets: bytes) -> bytes:
    """Base64 for the wire; an empty initial response is `=` (RFC 4954 4)."""
    return base64.b64encode(octets)


def decode(text: str) -> bytes:
    """A challenge from the wire. Raises `BadChallenge` when it is not base64."""
    try:
        return base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadChallenge("a challenge that is not base64") from error
