"""The server's half of PLAIN and LOGIN."""

from base64 import b64encode

import pytest

from mailgate.wire.smtp.sasl import MECHANISMS, Broken, Challenge, Credentials, exchange

JOHN = Credentials("john", "secret")


def b64(octets):
    return b64encode(octets)


def test_plain_with_initial_response():
    assert exchange("PLAIN").start(b"AGpvaG4Ac2VjcmV0") == JOHN


def test_plain_after_an_empty_challenge():
    plain = exchange("PLAIN")
    assert plain.start(None) == Challenge("")
    assert plain.respond(b"AGpvaG4Ac2VjcmV0") == JOHN


def test_the_authorization_identity_is_not_used():
    assert exchange("PLAIN").start(b64(b"admin\0john\0secret")) == JOHN


@pytest.mark.parametrize(
    "octets",
    [
        b"!!!",
        b"=",
        b"*",
        b"AGpvaG4Ac2VjcmV0=",
        b"AGpvaG4Ac2VjcmV0==",
        b"AGpvaG4Ac2VjcmV0====",
        b"AGpvaG4Ac2VjcmV",
        b"AGpv aG4Ac2VjcmV0",
        b"",
        b64(b"john"),
        b64(b"\0john"),
        b64(b"\0john\0"),
        b64(b"\0\0secret"),
        b64(b"\0john\0secret\0"),
        b64(b"\0jo\xffhn\0secret"),
        b"\xff\xfe",
    ],
)
def test_plain_malformed(octets):
    assert exchange("PLAIN").start(octets) is Broken.MALFORMED
    if octets != b"*":
        assert exchange("PLAIN").respond(octets) is Broken.MALFORMED


def test_login():
    login = exchange("LOGIN")
    assert login.start(None) == Challenge("VXNlcm5hbWU6")
    assert login.respond(b"amFuZQ==") == Challenge("UGFzc3dvcmQ6")
    assert login.respond(b"cDRzc3cwcmQ=") == Credentials("jane", "p4ssw0rd")


def test_login_with_initial_response():
    login = exchange("LOGIN")
    assert login.start(b"amFuZQ==") == Challenge("UGFzc3dvcmQ6")
    assert login.respond(b"cDRzc3cwcmQ=") == Credentials("jane", "p4ssw0rd")


@pytest.mark.parametrize("octets", [b"", b"=", b"!!!", b64(b"\xff"), b64(b"a\0b")])
def test_login_malformed(octets):
    assert exchange("LOGIN").start(octets) is Broken.MALFORMED
    login = exchange("LOGIN")
    login.start(b"amFuZQ==")
    assert login.respond(octets) is Broken.MALFORMED


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_cancelled(mechanism):
    begun = exchange(mechanism)
    assert isinstance(begun.start(None), Challenge)
    assert begun.respond(b"*") is Broken.CANCELLED


def test_mechanisms_not_known_here():
    assert MECHANISMS == ("PLAIN", "LOGIN")
    assert exchange("CRAM-MD5") is None


def test_secrets_are_not_printed():
    assert "secret" not in repr(JOHN)
    assert "john" in repr(JOHN)
