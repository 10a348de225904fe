"""Stored secrets, and whether a password is the right one.

A stored secret is a hash in one of the usual spellings, `$app$NAME$` and such
a hash (an application password), an `otpauth://` address (a second factor,
RFC 6238), or the password itself. The hashes of Unix are computed by the
system's crypt(3), Argon2 by `cryptography`, the rest by `hashlib`; all of them
give up the interpreter lock while they work. They are slow on purpose: never
call `verify` on the reactor's thread.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography.exceptions import InvalidKey, UnsupportedAlgorithm
from cryptography.hazmat.primitives.kdf.argon2 import Argon2d, Argon2i, Argon2id

from mailgate.lookup.libcrypt import crypt, knows

_Check = Callable[[bytes], bool]
"""Tells whether a password is the right one; made once for each stored secret."""


class BadSecret(ValueError):
    """A stored secret begins like a hash and is none; the text never shows the secret."""


class CannotVerify(Exception):
    """A hash could not be computed here, so nobody knows whether the password is right."""


def _equal(computed: bytes, stored: bytes) -> bool:
    return hmac.compare_digest(computed, stored)


def _plain(stored: str) -> _Check:
    octets = stored.encode()
    return lambda password: _equal(password, octets)


# --- {SCHEME}value (RFC 2307 and what grew from it) -------------------------------


def _octets(text: str, sizes: Callable[[int], bool]) -> bytes:
    """The octets of a digest written in base64 or hexadecimal."""
    try:
        octets = base64.b64decode(text, validate=True)
        if sizes(len(octets)):
            return octets
    except ValueError:
        pass
    try:
        octets = bytes.fromhex(text)
    except ValueError:
        octets = b""
    if not sizes(len(octets)):
        raise BadSecret("the digest is not as long as its scheme makes it")
    return octets


def _digest(algorithm: str) -> Callable[[str], _Check]:
    size = hashlib.new(algorithm).digest_size

    def make(text: str) -> _Check:
        digest = _octets(text, lambda length: length == size)
        return lambda password: _equal(hashlib.new(algorithm, password).digest(), digest)

    return make


def _salted(algorithm: str) -> Callable[[str], _Check]:
    size = hashlib.new(algorithm).digest_size

    def make(text: str) -> _Check:
        octets = _octets(text, lambda length: length > size)
        digest, salt = octets[:size], octets[size:]
        return lambda password: _equal(hashlib.new(algorithm, password + salt).digest(), digest)

    return make


def _md5(text: str) -> _Check:
    """`{MD5}` is a plain digest for LDAP servers and MD5-crypt for Dovecot."""
    return _crypt(text) if text.startswith("$1$") else _digest("md5")(text)


# --- $scheme$... ------------------------------------------------------------------


# How long the digest at the end of a hash is; a shorter one is a hash that was cut while it was copied.
_CRYPT_SHAPES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("$2", re.compile(r"\$2[aby]\$(0[4-9]|[12]\d|3[01])\$[./0-9A-Za-z]{53}")),
    ("$6$", re.compile(r"\$6\$(rounds=\d+\$)?[^$]{0,16}\$[./0-9A-Za-z]{86}")),
    ("$5$", re.compile(r"\$5\$(rounds=\d+\$)?[^$]{0,16}\$[./0-9A-Za-z]{43}")),
    ("$1$", re.compile(r"\$1\$[^$]{0,8}\$[./0-9A-Za-z]{22}")),
    ("$sha1", re.compile(r"\$sha1\$\d+\$[^$]{0,64}\$[./0-9A-Za-z]{28}")),
    ("_", re.compile(r"_[./0-9A-Za-z]{19}")),
    ("$", re.compile(r"\$(y|gy|7)\$.*\$[./0-9A-Za-z]{43}")),
    ("", re.compile(r"[./0-9A-Za-z]{13}")),
)


def _crypt(stored: str) -> _Check:
    octets = stored.encode()
    shape = next(shape for prefix, shape in _CRYPT_SHAPES if stored.startswith(prefix))
    if not shape.fullmatch(stored) or not knows(octets):
        raise BadSecret("this is no hash the system's crypt(3) knows")

    def check(password: bytes) -> bool:
        if b"\0" in password:
            return False
        hashed = crypt(password, octets)
        if hashed is None:
            raise CannotVerify("the system's crypt(3) does not compute this hash")
        return _equal(hashed, octets)

    return check


_ARGON2: dict[str, type[Argon2id] | type[Argon2i] | type[Argon2d]] = {"id": Argon2id, "i": Argon2i, "d": Argon2d}
_ARGON2_SHAPE = re.compile(
    r"\$argon2(id|i|d)\$v=19\$m=[1-9]\d{0,9},t=[1-9]\d{0,9},p=[1-9]\d{0,8}\$[A-Za-z0-9+/]{11,}=*\$[A-Za-z0-9+/]{6,}=*"
)


def _argon2(stored: str) -> _Check:
    found = _ARGON2_SHAPE.fullmatch(stored)
    if found is None:
        raise BadSecret("this is no hash of Argon2, version 19")
    kind = _ARGON2[found[1]]
    # Padding is not part of the format, yet some write it.
    head, salt, digest = stored.rsplit("$", 2)
    text = f"{head}${salt.rstrip('=')}${digest.rstrip('=')}"

    def check(password: bytes) -> bool:
        try:
            kind.verify_phc_encoded(password, text)
        except InvalidKey:
            return False
        except (ValueError, MemoryError, UnsupportedAlgorithm):
            raise CannotVerify("OpenSSL does not compute this Argon2 hash") from None
        return True

    return check


def _b64(text: str) -> bytes:
    """Base64 as these formats write it: without padding, `.` for `+` in some."""
    try:
        return base64.b64decode(text.rstrip("=").replace(".", "+") + "=" * (-len(text.rstrip("=")) % 4), validate=True)
    except binascii.Error:
        raise BadSecret("salt or digest is not base64") from None


_PBKDF2 = re.compile(r"\$pbkdf2(?:-(sha1|sha256|sha512))?\$(?:i=)?(\d{1,9})(?:,l=\d+)?\$([^$]+)\$([^$]+)")


def _pbkdf2(stored: str) -> _Check:
    """`$pbkdf2-sha256$ROUNDS$SALT$DIGEST`, or `i=ROUNDS,l=LENGTH` as the PHC format has it."""
    found = _PBKDF2.fullmatch(stored)
    if found is None or int(found[2]) < 1:
        raise BadSecret("this is no PBKDF2 hash")
    algorithm, rounds, salt, digest = found[1] or "sha1", int(found[2]), _b64(found[3]), _b64(found[4])
    return lambda password: _equal(hashlib.pbkdf2_hmac(algorithm, password, salt, rounds, len(digest)), digest)


_SCRYPT = re.compile(r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,4}),p=(\d{1,4})\$([^$]+)\$([^$]+)")


def _scrypt(stored: str) -> _Check:
    found = _SCRYPT.fullmatch(stored)
    if found is None:
        raise BadSecret("this is no scrypt hash")
    n, r, p, salt, digest = 1 << int(found[1]), int(found[2]), int(found[3]), _b64(found[4]), _b64(found[5])
    memory = 128 * r * (n + p + 2) + 65536
    # OpenSSL's own bounds; RFC 7914 2 for the rest.
    if n < 2 or not r or not p or r * p >= 1 << 30 or memory >= 1 << 31:
        raise BadSecret("scrypt cannot have these parameters")

    def check(password: bytes) -> bool:
        try:
            computed = hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=memory, dklen=len(digest))
        except (ValueError, MemoryError):
            raise CannotVerify("OpenSSL does not compute this scrypt hash") from None
        return _equal(computed, digest)

    return check


_SCHEMES: dict[str, Callable[[str], _Check]] = {
    "PLAIN": _plain,
    "CLEAR": _plain,
    "SHA": _digest("sha1"),
    "SHA256": _digest("sha256"),
    "SHA512": _digest("sha512"),
    "SSHA": _salted("sha1"),
    "SSHA256": _salted("sha256"),
    "SSHA512": _salted("sha512"),
    "MD5": _md5,
    "PLAIN-MD5": _digest("md5"),
    "CRYPT": _crypt,
}

_PREFIXES: tuple[tuple[str, Callable[[str], _Check]], ...] = (
    ("$argon2", _argon2),
    ("$pbkdf2", _pbkdf2),
    ("$scrypt", _scrypt),
    *((prefix, _crypt) for prefix in ("$2a$", "$2b$", "$2y$", "$6$", "$5$", "$1$", "$sha1", "$y$", "$gy$", "$7$")),
)

_BRACED = re.compile(r"\{([A-Za-z0-9-]+)\}(.*)", re.DOTALL)
# A password may well begin with "_": only the exact form of extended DES is a hash.
_EXTENDED_DES = re.compile(r"_[./0-9A-Za-z]{19}")


def _check_for(stored: str) -> _Check:
    """What verifies this secret. Raises `BadSecret`."""
    if braced := _BRACED.fullmatch(stored):
        scheme = _SCHEMES.get(braced[1].upper())
        if scheme is not None:
            return scheme(braced[2])
    for prefix, make in _PREFIXES:
        if stored.startswith(prefix):
            return make(stored)
    return _crypt(stored) if _EXTENDED_DES.fullmatch(stored) else _plain(stored)


# --- second factor (RFC 6238) -------------------------------------------------------

_HASHES = {"SHA1": "sha1", "SHA256": "sha256", "SHA512": "sha512"}


@dataclass(frozen=True, slots=True)
class OneTimeCode:
    """A second factor as an `otpauth://totp/` address describes it."""

    key: bytes
    algorithm: str
    digits: int
    period_seconds: int

    @classmethod
    def read(cls, uri: str) -> OneTimeCode:
        """Read an `otpauth://totp/LABEL?secret=BASE32&...` address. Raises `BadSecret`."""
        parts = urlsplit(uri)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        algorithm = _HASHES.get(query.get("algorithm", "SHA1").upper())
        digits, period = query.get("digits", "6"), query.get("period", "30")
        if (
            parts.netloc != "totp"
            or algorithm is None
            or digits not in ("6", "7", "8")
            or not _PERIOD.fullmatch(period)
        ):
            raise BadSecret("this otpauth address is not one of TOTP")
        text = re.sub(r"[\s=-]", "", unquote(query.get("secret", ""))).upper()
        try:
            key = base64.b32decode(text + "=" * (-len(text) % 8))
        except binascii.Error:
            key = b""
        if not key:
            raise BadSecret("the otpauth address has no base32 secret")
        return cls(key, algorithm, int(digits), int(period))

    def code(self, step: int) -> str:
        """The code of one time step (RFC 4226 5.3)."""
        digest = hmac.digest(self.key, step.to_bytes(8, "big"), self.algorithm)
        offset = digest[-1] & 15
        number = int.from_bytes(digest[offset : offset + 4], "big") & 0x7FFFFFFF
        return f"{number % 10**self.digits:0{self.digits}d}"

    def step_of(self, code: str, epoch_seconds: float) -> int | None:
        """The time step a code belongs to: this one or, for slow typists and clocks, a neighbour; else None."""
        now = int(epoch_seconds // self.period_seconds)
        found = None
        for step in (now - 1, now, now + 1):
            if hmac.compare_digest(self.code(step).encode(), code.encode()):
                found = step
        return found


_PERIOD = re.compile(r"[1-9][0-9]{0,3}")


# --- all secrets of one account -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verified:
    """What a password turned out to be."""

    right: bool
    code_missing: bool = False
    """The password is right and a code should have followed it."""
    code: str = ""
    """The code that followed a right password; not yet compared."""


WRONG = Verified(False)


def _matches(checks: list[_Check], password: bytes) -> bool:
    """Whether any check says yes; all are asked, so that the time does not tell which."""
    right = False
    for check in checks:
        right = check(password) or right
    return right


class Secrets:
    """The stored secrets of one account, read once."""

    __slots__ = ("_app", "_checks", "codes")

    def __init__(self, stored: tuple[str, ...]) -> None:
        """Raises `BadSecret` for one that begins like a hash and is none. Quick: nothing is hashed."""
        self._checks: list[_Check] = []
        self._app: list[_Check] = []
        codes: list[OneTimeCode] = []
        for secret in stored:
            if secret.startswith("otpauth://"):
                codes.append(OneTimeCode.read(secret))
            elif secret.startswith("$app$"):
                name, dollar, rest = secret.removeprefix("$app$").partition("$")
                if not name or not dollar or not rest:
                    raise BadSecret("an application password is written $app$NAME$HASH")
                self._app.append(_check_for(rest))
            elif secret:
                self._checks.append(_check_for(secret))
        self.codes = tuple(codes)

    def __bool__(self) -> bool:
        return bool(self._checks or self._app)

    def verify(self, password: str) -> Verified:
        """Compare with every secret, also after one has matched: the time says nothing.

        An application password needs no second factor. Slow; for a thread.
        Raises `CannotVerify`.
        """
        octets = password.encode("utf-8", "surrogateescape")
        if _matches(self._app, octets):
            return Verified(True)
        if not self.codes:
            return Verified(_matches(self._checks, octets))
        # One-time codes are separated from the password by the last "$".
        before, dollar, code = password.rpartition("$")
        if dollar and code.isascii() and code.isdigit():
            start = before.encode("utf-8", "surrogateescape")
            if _matches(self._checks, start):
                return Verified(True, code=code)
            return WRONG
        if _matches(self._checks, octets):
            return Verified(False, code_missing=True)
        return WRONG
