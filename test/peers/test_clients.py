"""Mail from clients people use, over each listener, arrives: swaks, curl, msmtp, smtplib, Postfix, our own BDAT."""

import contextlib
import smtplib
import socket
import ssl
import subprocess
import uuid

import pytest
from support import needs
from support.daemon import IMPLICIT_TLS, LMTP, SMTP, Gateway
from support.peers import Postfix
from support.ports import wait_until
from support.sink import NextHop

pytestmark = pytest.mark.peer("clients")

USER, SECRET = "john@foobar.org", "secret"
LOGIN = "john"
MIB = 1024 * 1024

LISTENERS = {"smtp": SMTP, "submission": SMTP, "submissions": IMPLICIT_TLS, "lmtp": LMTP}

CHANGES = """
[session.auth]
require = "listener = 'submission' || listener = 'submissions'"

[session.rcpt]
relay = "rcpt_domain = 'relay.test'"
max-recipients = 1000

[session.data.limits]
messages = 100
"""


def relay_to(port):
    """Mail for relay.test goes to a next hop on this port, without TLS."""
    return f"""
    [queue.strategy]
    route = [ {{ if = "rcpt_domain = 'relay.test'", then = "'hop'" }}, {{ else = "'local'" }} ]

    [queue.route.hop]
    type = "relay"
    address = "127.0.0.1"
    port = {port}
    tls.implicit = false
    """


@pytest.fixture(scope="module")
def hop():
    """Where mail for relay.test goes."""
    with NextHop() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, authority, hop):
    """The daemon with its four listeners."""
    with Gateway(
        tmp_path_factory.mktemp("clients"),
        authority,
        base="B2",
        listeners=LISTENERS,
        changes=(CHANGES, relay_to(hop.port)),
    ) as daemon:
        yield daemon


@pytest.fixture
def token():
    """A word that only one message has."""
    return uuid.uuid4().hex


def arrived(gateway, token, user="jane", seconds=20):
    """The message with `token` in a Maildir, once it is there; exactly one must be."""

    def there():
        return [octets for octets in gateway.maildir(user, "foobar.org") if token.encode() in octets]

    found = wait_until(there, seconds, f"a message with {token} for {user}")
    assert len(found) == 1
    return found[0]


def run(*arguments, text=None, environment=None):
    """Run a client; its output is in the report when it fails."""
    done = subprocess.run(
        [str(argument) for argument in arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, (
        f"{arguments[0]} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    )
    return done.stdout + done.stderr


# --- swaks ---------------------------------------------------------------------------
SWAKS = {
    "smtp": ("smtp", []),
    "smtp-starttls": ("smtp", ["--tls"]),
    "smtp-pipelined": ("smtp", ["--pipeline"]),
    "submission-plain": ("submission", ["--tls", "--auth", "PLAIN"]),
    "submission-login": ("submission", ["--tls", "--auth", "LOGIN"]),
    "submissions-plain": ("submissions", ["--tls-on-connect", "--auth", "PLAIN"]),
    "submissions-login": ("submissions", ["--tls-on-connect", "--auth", "LOGIN"]),
    "lmtp": ("lmtp", ["--protocol", "LMTP"]),
    "lmtp-starttls": ("lmtp", ["--protocol", "LMTP", "--tls"]),
}


@pytest.mark.parametrize("way", SWAKS)
def test_swaks(gateway, authority, token, way):
    swaks = needs.program("swaks")
    listener, options = SWAKS[way]
    if "--auth" in options:
        options = [*options, "--auth-user", LOGIN, "--auth-password", SECRET]
    if "--tls" in options or "--tls-on-connect" in options:
        options = [*options, "--tls-verify", "--tls-ca-path", authority.trust]
    run(
        *(swaks, "--server", "localhost", "--port", gateway.port(listener), "--helo", "client.test"),
        *("--from", USER, "--to", "jane@foobar.org", "--header", f"Subject: {token}", *options),
    )
    assert f"Subject: {token}".encode() in arrived(gateway, token)


def test_swaks_with_a_wrong_password_is_refused(gateway):
    swaks = needs.program("swaks")
    done = subprocess.run(
        [
            *(swaks, "--server", "localhost", "--port", str(gateway.port("submission")), "--tls"),
            *("--auth", "PLAIN", "--auth-user", LOGIN, "--auth-password", "wrong"),
            *("--from", USER, "--to", "jane@foobar.org", "--quit-after", "AUTH"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 28
    assert "535 5.7.8" in done.stdout


# --- curl ------------------------------------------------------------------------------
@pytest.mark.parametrize("listener", ["smtp", "submission", "submissions"])
def test_curl(gateway, authority, token, tmp_path, listener):
    curl = needs.program("curl")
    message = tmp_path / "message"
    message.write_text(f"From: {USER}\nTo: jane@foobar.org\nSubject: {token}\n\nhello\n", encoding="ascii")
    scheme = "smtps" if listener == "submissions" else "smtp"
    login = [] if listener == "smtp" else ["--user", f"{LOGIN}:{SECRET}"]
    tls = ["--ssl-reqd", "--cacert", authority.trust]
    run(
        *(curl, "--silent", "--show-error", "--crlf", *tls, *login),
        f"{scheme}://localhost:{gateway.port(listener)}/client.test",
        *("--mail-from", USER, "--mail-rcpt", "jane@foobar.org", "--upload-file", message),
    )
    assert arrived(gateway, token).endswith(b"\n\nhello\n")


def test_50_mib_in_bounded_memory(gateway, token, tmp_path):
    curl = needs.program("curl")
    message = tmp_path / "message"
    line = b"0123456789abcdef" * 4 + b"\r\n"
    with open(message, "wb") as file:
        file.write(f"From: {USER}\r\nSubject: {token}\r\n\r\n".encode())
        for _ in range(50):
            file.write((line * (MIB // len(line) + 1))[: MIB - 2] + b"\r\n")
    before = gateway.resident_octets()
    run(
        *(curl, "--silent", "--show-error", f"smtp://localhost:{gateway.port('smtp')}/client.test"),
        *("--mail-from", USER, "--mail-rcpt", "bill@foobar.org", "--upload-file", message),
    )
    octets = arrived(gateway, token, "bill", 60)
    body = message.read_bytes().partition(b"\r\n\r\n")[2].replace(b"\r\n", b"\n")
    assert octets.partition(b"\n\n")[2] == body
    assert gateway.peak_octets() - before < 16 * MIB


# --- msmtp -------------------------------------------------------------------------------
@pytest.mark.parametrize("listener", ["smtp", "submission", "submissions", "lmtp"])
def test_msmtp(gateway, authority, token, tmp_path, listener):
    msmtp = needs.program("msmtp")
    config = tmp_path / "msmtprc"
    login = f"auth on\nuser {LOGIN}\npassword {SECRET}\n" if listener.startswith("submission") else ""
    config.write_text(
        f"account default\nhost localhost\nport {gateway.port(listener)}\nfrom {USER}\n"
        f"protocol {'lmtp' if listener == 'lmtp' else 'smtp'}\n"
        f"tls on\ntls_starttls {'off' if listener == 'submissions' else 'on'}\n"
        f"tls_trust_file {authority.trust}\n{login}",
        encoding="ascii",
    )
    config.chmod(0o600)
    run(msmtp, "-C", config, "jane@foobar.org", text=f"Subject: {token}\n\nhello\n")
    arrived(gateway, token)


# --- smtplib -------------------------------------------------------------------------------
def test_smtplib_starttls_and_login(gateway, authority, token):
    context = authority.client_context()
    with smtplib.SMTP("localhost", gateway.port("submission"), timeout=20) as client:
        client.starttls(context=context)
        client.login(LOGIN, SECRET)
        refused = client.sendmail(USER, ["jane@foobar.org", "nobody@foobar.org"], f"Subject: {token}\r\n\r\n.dot\r\n")
        assert refused["nobody@foobar.org"][0] == 550
    assert arrived(gateway, token).endswith(b"\n\n.dot\n")


def test_smtplib_implicit_tls(gateway, authority, token):
    with smtplib.SMTP_SSL("localhost", gateway.port("submissions"), context=authority.client_context()) as client:
        client.login(LOGIN, SECRET)
        client.sendmail(USER, ["jane@foobar.org"], f"Subject: {token}\r\n\r\nhi\r\n")
    arrived(gateway, token)


def test_smtplib_utf8_addresses(gateway, token, hop):
    with smtplib.SMTP("localhost", gateway.port("smtp"), timeout=20) as client:
        client.ehlo("client.test")
        client.mail("jörg@client.test", ["SMTPUTF8", "BODY=8BITMIME"])
        assert client.rcpt("grün@relay.test")[0] == 250
        assert client.data(f"Subject: {token}\r\n\r\nhällo\r\n".encode())[0] == 250
    found = wait_until(lambda: [m for m in hop.messages if token.encode() in m.octets], 20)
    assert found[0].recipients == ["grün@relay.test"]
    assert "SMTPUTF8" in found[0].mail


def test_chunks_with_and_without_tls(gateway, authority, token):
    for context in (None, authority.client_context()):
        word = f"{token}{'tls' if context else 'clear'}"
        with smtplib.SMTP("localhost", gateway.port("smtp"), timeout=20) as client:
            if context:
                client.starttls(context=context)
            client.ehlo("client.test")
            assert client.has_extn("chunking")
            client.mail("a@client.test")
            client.rcpt("jane@foobar.org")
            first = f"Subject: {word}\r\n\r\n.one\r\n".encode()
            second = b"..\r\n.\r\n" * 1000
            # All chunks in one go: CHUNKING with PIPELINING.
            client.send(b"BDAT %d\r\n%bBDAT %d\r\n%bBDAT 0 LAST\r\n" % (len(first), first, len(second), second))
            assert [client.getreply()[0] for _ in range(3)] == [250, 250, 250]
        assert arrived(gateway, word).endswith(b"\n\n.one\n" + b"..\n.\n" * 1000)


def test_lmtp_answers_for_each_recipient(gateway, token):
    with contextlib.closing(smtplib.LMTP("localhost", gateway.port("lmtp"))) as client:
        client.ehlo("client.test")
        client.mail("a@client.test")
        codes = [client.rcpt(f"{user}@foobar.org")[0] for user in ("jane", "nobody", "mike")]
        assert codes == [250, 550, 250]
        client.putcmd("data")
        assert client.getreply()[0] == 354
        client.send(f"Subject: {token}\r\n\r\nhi\r\n.\r\n".encode())
        assert [client.getreply()[0] for _ in range(2)] == [250, 250]
        client.quit()
    arrived(gateway, token, "jane")
    arrived(gateway, token, "mike")


def test_a_thousand_recipients(gateway, token, hop):
    addresses = [f"u{number}@relay.test" for number in range(1000)]
    with smtplib.SMTP("localhost", gateway.port("smtp"), timeout=60) as client:
        assert client.sendmail("a@client.test", addresses, f"Subject: {token}\r\n\r\nhi\r\n") == {}

    def at_the_hop():
        got = [address for m in list(hop.messages) if token.encode() in m.octets for address in m.recipients]
        return sorted(got) if len(got) >= 1000 else None

    assert wait_until(at_the_hop, 60, "1,000 recipients at the next hop") == sorted(addresses)


def test_a_certificate_others_can_check_is_shown(gateway, authority):
    context = authority.client_context()
    with (
        socket.create_connection(("localhost", gateway.port("submissions")), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        assert secured.version() in ("TLSv1.2", "TLSv1.3")
        assert secured.recv(100).startswith(b"220 ")
    with (
        pytest.raises(ssl.SSLCertVerificationError),
        socket.create_connection(("localhost", gateway.port("submissions")), timeout=20) as plain,
    ):
        ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")


# --- Postfix ----------------------------------------------------------------------------------
def test_postfix_as_sender_checks_our_certificate(gateway, authority, token):
    sender = Postfix(
        authority,
        f"relayhost = [localhost]:{gateway.port('smtp')}\n"
        "default_transport = smtp\n"
        "smtp_tls_security_level = verify\n"
        "smtp_tls_verify_cert_match = hostname\n",
    )
    try:
        sender.start()
        with smtplib.SMTP("127.0.0.1", sender.ports["smtp"], timeout=20) as client:
            client.sendmail("a@client.test", ["jane@foobar.org", "bill@foobar.org"], f"Subject: {token}\r\n\r\nhi\r\n")
        try:
            arrived(gateway, token, "jane")
            arrived(gateway, token, "bill")
        finally:
            log = sender.log_text()
            print(log)
        assert "Verified TLS connection established" in log
        assert "status=sent (250 2.0.0" in log
    finally:
        sender.stop()
