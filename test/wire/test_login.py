"""Logins on a whole listener in memory."""

import base64

import pytest
from support.baseline import baseline
from support.listener import ListenerInMemory

SECRETS = {
    "ssha": ("{SSHA}gVK8WC9YyFT1gMsQHTGCgT3sSv5zYWx0", "secret"),
    "sha512": (
        "$6$saltstring$AIsRs/Ee56G/tC8MEHhvReZTfx8u3rXXMl6eYrjCG9ibix19DxoMBLogdTET5Ukw9Sf7eZTITsuk0Ry5qulYz.",
        "secret",
    ),
    "bcrypt": ("$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW", "secret"),
    "argon2": ("$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4", "password"),
}


@pytest.mark.spec("IN-160")
@pytest.mark.parametrize("scheme", SECRETS)
def test_hashed_secrets(scheme):
    stored, right = SECRETS[scheme]
    principal = f'[[directory.local.principals]]\nname = "john"\nemail = "john@foobar.org"\nsecret = "{stored}"\n'
    listener = '[server.listener.smtp]\nbind = "127.0.0.1:2525"\nprotocol = "smtp"\n'
    connection = ListenerInMemory(baseline("B2", listener, principal)).connect()
    connection.send(b"EHLO client.test\r\n")
    for password, code in (("wrong", b"535 5.7.8"), (right, b"235 2.7.0")):
        connection.received()
        connection.send(b"AUTH PLAIN " + base64.b64encode(f"\0john\0{password}".encode()) + b"\r\n")
        connection.advance(0.01)
        assert connection.received().startswith(code)
