import base64
import hashlib

import pytest

from mailgate.lookup.libcrypt import crypt
from mailgate.lookup.secret import BadSecret, OneTimeCode, Secrets

PASSWORD = "correct horse ü"
OCTETS = PASSWORD.encode()


def b64(octets):
    return base64.b64encode(octets).decode()


def ab64(octets):
    return b64(octets).rstrip("=").replace("+", ".")


def digest(name, salt=b""):
    return hashlib.new(name, OCTETS + salt).digest() + salt


def crypted(setting):
    hashed = crypt(OCTETS, setting.encode())
    assert hashed is not None
    return hashed.decode()


SCRYPT = hashlib.scrypt(OCTETS, salt=b"saltsalt", n=16, r=8, p=1, dklen=32)
PBKDF2 = hashlib.pbkdf2_hmac("sha256", OCTETS, b"saltsalt", 10, 32)

STORED = [
    PASSWORD,
    "{PLAIN}" + PASSWORD,
    "{CLEAR}" + PASSWORD,
    "{clear}" + PASSWORD,
    "{SHA}" + b64(digest("sha1")),
    "{SHA}" + digest("sha1").hex(),
    "{SSHA}" + b64(digest("sha1", b"pepper")),
    "{SHA256}" + b64(digest("sha256")),
    "{SSHA256}" + b64(digest("sha256", b"pepper")),
    "{SHA512}" + b64(digest("sha512")),
    "{SSHA512}" + b64(digest("sha512", b"pepper")),
    "{MD5}" + b64(digest("md5")),
    "{MD5}" + crypted("$1$saltsalt$"),
    "{PLAIN-MD5}" + digest("md5").hex(),
    "{CRYPT}" + crypted("$6$rounds=1000$saltsalt$"),
    crypted("$6$rounds=1000$saltsalt$"),
    crypted("$5$rounds=1000$saltsalt$"),
    crypted("$1$saltsalt$"),
    crypted("$sha1$100$saltsalt$"),
    crypted("_J9..rasm"),
    crypted("$2a$04$abcdefghijklmnopqrstuu"),
    crypted("$2b$04$abcdefghijklmnopqrstuu"),
    crypted("$2y$04$abcdefghijklmnopqrstuu"),
    crypted("$y$j75$......"),
    f"$pbkdf2-sha256$10${ab64(b'saltsalt')}${ab64(PBKDF2)}",
    f"$pbkdf2-sha256$i=10,l=32${b64(b'saltsalt').rstrip('=')}${b64(PBKDF2).rstrip('=')}",
    f"$pbkdf2$10${ab64(b'saltsalt')}${ab64(hashlib.pbkdf2_hmac('sha1', OCTETS, b'saltsalt', 10, 20))}",
    f"$scrypt$ln=4,r=8,p=1${b64(b'saltsalt').rstrip('=')}${b64(SCRYPT).rstrip('=')}",
]


@pytest.mark.parametrize("stored", STORED, ids=[f"{n}-{s[:9]}" for n, s in enumerate(STORED)])
def test_each_form_accepts_its_password_and_no_other(stored):
    secrets = Secrets((stored,))
    assert secrets.verify(PASSWORD).right
    for wrong in ("", PASSWORD + "x", PASSWORD[:-1], PASSWORD + "\0x", stored if stored != PASSWORD else "x"):
        assert not secrets.verify(wrong).right


def test_the_oldest_crypt_looks_at_eight_characters_only():
    secrets = Secrets(("{CRYPT}" + crypted("ab"),))
    assert secrets.verify(PASSWORD[:8]).right
    assert not secrets.verify(PASSWORD[:7]).right


# Published test vectors of each scheme, so that agreement with ourselves is not all we have.
@pytest.mark.parametrize(
    ("stored", "password"),
    [
        ("$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5", "Hello world!"),
        (
            "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1",
            "Hello world!",
        ),
        ("$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", "U*U"),
        (
            "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
            "password",
        ),
        ("$argon2i$v=19$m=256,t=2,p=1$c29tZXNhbHQ$iekCn0Y3spW+sCcFanM2xBT63UP2sghkUoHLIUpWRS8", "password"),
        ("{SSHA}gVK8WC9YyFT1gMsQHTGCgT3sSv5zYWx0", "secret"),
    ],
)
def test_published_hashes(stored, password):
    secrets = Secrets((stored,))
    assert secrets.verify(password).right
    assert not secrets.verify(password + "!").right


@pytest.mark.parametrize(
    "stored",
    [
        "$6$saltsalt$tooshort",
        "$2b$03$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a",
        "$2b$99$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a",
        "$argon2id$v=16$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
        "$argon2xx$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
        "$pbkdf2-md4$10$c2FsdA$c2FsdA",
        "$scrypt$ln=62,r=8,p=1$c2FsdA$c2FsdA",
        "$scrypt$ln=4,r=0,p=1$c2FsdA$c2FsdA",
        "{SSHA}" + b64(b"short"),
        "{SHA256}!!",
        "{CRYPT}",
        "$app$phone$",
        "otpauth://hotp/x?secret=GEZDGNBVGY3TQOJQ",
        "otpauth://totp/x?secret=",
        "otpauth://totp/x?secret=GEZDGNBVGY3TQOJQ&digits=12",
    ],
)
def test_a_damaged_hash_is_refused_and_never_shown(stored):
    with pytest.raises(BadSecret) as refused:
        Secrets((stored,))
    assert stored not in str(refused.value)


def test_what_only_looks_like_a_scheme_is_a_password():
    for stored in ("{FOO}bar", "$money$", "_underscore", "{"):
        assert Secrets((stored,)).verify(stored).right


def test_any_of_several_secrets_may_match():
    secrets = Secrets(("one", crypted("$5$rounds=1000$saltsalt$")))
    assert secrets.verify("one").right
    assert secrets.verify(PASSWORD).right
    assert not secrets.verify("two").right


# RFC 6238 Appendix B: the SHA-1 vectors, eight digits.
@pytest.mark.parametrize(
    ("moment", "code"),
    [(59, "94287082"), (1111111109, "07081804"), (1234567890, "89005924"), (20000000000, "65353130")],
)
def test_time_based_codes(moment, code):
    totp = OneTimeCode.read("otpauth://totp/a?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&digits=8")
    assert totp.step_of(code, moment) == moment // 30
    assert totp.step_of(code, moment + 120) is None


def test_an_account_with_a_second_factor():
    secrets = Secrets(("pass$word", "otpauth://totp/a?secret=GEZDGNBVGY3TQOJQ", "$app$phone${PLAIN}abcd"))
    assert secrets.verify("pass$word").code_missing
    assert not secrets.verify("pass$word").right
    verified = secrets.verify("pass$word$123456")
    assert verified.right
    assert verified.code == "123456"
    assert not secrets.verify("wrong$123456").right
    assert not secrets.verify("wrong").code_missing
    # A program with a password of its own cannot type codes.
    assert secrets.verify("abcd").right
    assert secrets.verify("abcd").code == ""


def test_empty_secrets_match_nothing():
    for secrets in (Secrets(()), Secrets(("",))):
        assert not secrets
        assert not secrets.verify("").right
