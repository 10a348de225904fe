"""Listeners of a running daemon: addresses, TLS, certificates, what a login needs, rules that ask DNS."""

import re
import smtplib
import socket
import ssl

import pytest
from cryptography import x509
from support.daemon import IMPLICIT_TLS, SMTP, Gateway
from support.dns_server import DnsServer
from support.ports import free_port, wait_until
from support.zone import Zone

LISTENERS = {
    "smtp": SMTP,
    "submission": SMTP,
    "submissions": IMPLICIT_TLS,
    "modern": IMPLICIT_TLS + 'tls.disable-protocols = ["TLSv1.2"]\n',
    "narrow": SMTP + "max-connections = 1\n",
    "two": SMTP,
}

CHANGES = """
[session.auth]
mechanisms = [ { if = "is_tls", then = "[plain, login]" }, { else = false } ]

[session.mail]
is-allowed = [
    { if = "sender = 'present@client.test'", then = "!is_empty(dns_query('x.test', 'mx'))" },
    { if = "sender = 'broken@client.test'", then = "!is_empty(dns_query('broken.test', 'mx'))" },
    { if = "sender = 'silent@client.test'", then = "!is_empty(dns_query('silent.test', 'mx'))" },
    { if = "sender = 'absent@client.test'", then = "!is_empty(dns_query('absent.test', 'mx'))" },
    { else = true },
]

[resolver]
timeout = "200ms"
attempts = 1
"""


@pytest.fixture(scope="module")
def second_port():
    """Where listener `two` listens as well."""
    return free_port()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, authority, second_port):
    """The daemon, and a name server."""
    zone = Zone().mx_set("x.test", (10, "mx.x.test")).fail("broken.test").fail("silent.test", reason="timeout")
    folder = tmp_path_factory.mktemp("listeners")
    certificates = ""
    for name, subject in (("one", "a.test"), ("many", "*.b.test")):
        made = authority.issue(subject)
        certificates += (
            f'[certificate.{name}]\ncert = "%{{file:{made.cert}}}%"\nprivate-key = "%{{file:{made.key}}}%"\n'
        )
    with DnsServer(zone) as server:
        daemon = Gateway(
            folder,
            authority,
            base="B2",
            listeners=LISTENERS,
            second_ports={"two": second_port},
            changes=(
                CHANGES,
                certificates,
                f'[resolver]\ntype = "custom"\ncustom = ["udp://127.0.0.1:{server.port}"]\n',
            ),
        )
        with daemon:
            yield daemon


def client(gateway, listener="smtp"):
    """A client on a listener, greeted."""
    made = smtplib.SMTP("localhost", gateway.port(listener), timeout=20)
    made.ehlo("client.test")
    return made


def secured(gateway, listener, context, name="localhost"):
    """A TLS connection."""
    plain = socket.create_connection(("127.0.0.1", gateway.port(listener)), timeout=20)
    return context.wrap_socket(plain, server_hostname=name)


def explained(gateway, reply):
    """What `mailgate explain` says of the id a refusal ends with."""
    trace_id = reply.decode().rpartition("[")[2].rstrip("]")

    def found():
        done = gateway.command("--config", str(gateway.config), "explain", trace_id)
        return done.stdout if done.returncode == 0 else None

    return trace_id, wait_until(found, 10, f"a record of {trace_id}")


# --- addresses and connections -----------------------------------------------------------
@pytest.mark.spec("IN-040")
def test_a_listener_with_two_addresses_answers_on_both(gateway, second_port):
    for port in (gateway.port("two"), second_port):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            assert connection.recv(1000).startswith(b"220 ")


@pytest.mark.spec("IN-041")
def test_one_connection_more_than_allowed_is_closed_without_octets(gateway):
    address = ("127.0.0.1", gateway.port("narrow"))

    def opened():
        # Whether the listener is up was asked with a connection, which may not have ended yet.
        connection = socket.create_connection(address, timeout=20)
        if connection.recv(1000).startswith(b"220 "):
            return connection
        connection.close()
        return None

    with wait_until(opened, 10, "a greeting"):
        with socket.create_connection(address, timeout=20) as second:
            assert second.recv(1000) == b""
        with socket.create_connection(("127.0.0.1", gateway.port("smtp")), timeout=20) as elsewhere:
            assert elsewhere.recv(1000).startswith(b"220 ")


# --- TLS ------------------------------------------------------------------------------------
@pytest.mark.spec("IN-047")
def test_implicit_tls_greets_inside_tls_and_offers_no_starttls(gateway, authority):
    with secured(gateway, "submissions", authority.client_context()) as connection:
        assert connection.recv(1000).startswith(b"220 ")
        connection.sendall(b"EHLO client.test\r\n")
        said = b""
        while b"\r\n250 " not in said:
            said += connection.recv(1000)
        assert b"STARTTLS" not in said


@pytest.mark.spec("IN-048")
@pytest.mark.parametrize(("asked", "shown"), [("a.test", "a.test"), ("x.b.test", "*.b.test"), (None, "mx.test")])
def test_the_certificate_is_chosen_by_name(gateway, authority, asked, shown):
    context = authority.client_context()
    context.check_hostname = False
    with secured(gateway, "submissions", context, asked) as connection:
        certificate = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert shown in names.get_values_for_type(x509.DNSName)


@pytest.mark.spec("IN-049")
def test_a_tls_version_that_is_switched_off_gets_no_handshake(gateway, authority):
    old = authority.client_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with secured(gateway, "submissions", old) as connection:
        assert connection.version() == "TLSv1.2"
    with pytest.raises(ssl.SSLError):
        secured(gateway, "modern", old)
    with secured(gateway, "modern", authority.client_context()) as connection:
        assert connection.version() == "TLSv1.3"


@pytest.mark.spec("IN-100")
def test_starttls_is_offered_and_taken_once(gateway, authority):
    with client(gateway) as made:
        assert made.has_extn("starttls")
        made.starttls(context=authority.client_context())
        made.ehlo("client.test")
        assert not made.has_extn("starttls")
        code, text = made.docmd("STARTTLS")
        assert (code, text[:5]) == (504, b"5.7.4")


@pytest.mark.spec("IN-101")
def test_what_was_said_before_starttls_is_forgotten(gateway, authority):
    with client(gateway) as made:
        made.starttls(context=authority.client_context())
        code, text = made.docmd("MAIL FROM:<a@client.test>")
        assert (code, text[:5]) == (503, b"5.5.1")


@pytest.mark.spec("IN-102")
def test_a_command_injected_behind_starttls_is_never_executed(gateway, authority):
    with socket.create_connection(("127.0.0.1", gateway.port("smtp")), timeout=20) as plain:
        plain.recv(1000)
        plain.sendall(b"EHLO client.test\r\n")
        said = b""
        while b"\r\n250 " not in said:
            said += plain.recv(1000)
        plain.sendall(b"STARTTLS\r\nNOOP\r\n")
        said = b""
        while not said.endswith(b"\r\n"):
            said += plain.recv(1)
        assert said.startswith(b"220 ")
        with authority.client_context().wrap_socket(plain, server_hostname="localhost") as inside:
            inside.sendall(b"QUIT\r\n")
            said = b""
            while octets := inside.recv(1000):
                said += octets
        # One reply: the one to QUIT.
        assert said.startswith(b"221 2.0.0")
        assert said.count(b"\r\n") == 1


@pytest.mark.spec("IN-153")
def test_a_login_that_needs_tls_is_offered_in_tls_only(gateway, authority):
    with client(gateway, "submission") as made:
        assert not made.has_extn("auth")
        made.starttls(context=authority.client_context())
        made.ehlo("client.test")
        assert made.esmtp_features["auth"].split() == ["PLAIN", "LOGIN"]


# --- rules that ask DNS --------------------------------------------------------------------------
def mail(gateway, sender):
    """MAIL from a sender, and RCPT after it."""
    with client(gateway) as made:
        return made.docmd(f"MAIL FROM:<{sender}@client.test>"), made.docmd("RCPT TO:<jane@foobar.org>")


@pytest.mark.spec("IN-071")
def test_a_failure_of_dns_is_no_verdict_and_is_named_in_the_log_only(gateway):
    (code, text), (after, _) = mail(gateway, "broken")
    assert (code, text[:5], after) == (451, b"4.4.3", 503)
    assert b"dns" not in text.lower()
    trace_id, told = explained(gateway, text)
    assert "dns" in told.lower()
    (line,) = [line for line in gateway.log_text().splitlines() if trace_id in line and "broken.test" in line]
    assert "dns" in line


@pytest.mark.spec("IN-072")
def test_silence_of_dns_is_no_verdict(gateway):
    (code, text), (after, _) = mail(gateway, "silent")
    assert (code, text[:5], after) == (451, b"4.4.3", 503)


def test_what_dns_says_decides(gateway):
    (code, text), (after, _) = mail(gateway, "absent")
    assert (code, text[:5], after) == (550, b"5.7.1", 503)
    (code, _), (after, _) = mail(gateway, "present")
    assert (code, after) == (250, 250)


# --- what was decided ----------------------------------------------------------------------------
@pytest.mark.spec("IN-197")
def test_each_refusal_has_the_id_of_its_transaction(gateway):
    with client(gateway) as made:
        _, session_text = made.docmd("MAIL FROM:<a@@x>")
        made.docmd("MAIL FROM:<a@client.test>")
        made.docmd("RSET")
        made.docmd("MAIL FROM:<second@client.test>")
        _, rcpt_text = made.docmd("RCPT TO:<a@@b>")
    session_id, _ = explained(gateway, session_text)
    rcpt_id, told = explained(gateway, rcpt_text)
    assert session_id != rcpt_id
    assert "second@client.test" in told
    assert "a@client.test" not in told.replace("second@client.test", "")


@pytest.mark.spec("IN-278")
def test_explain_tells_why_a_message_was_refused(gateway):
    said = []
    with client(gateway) as made:
        for body in (b"no header at all\r\n", b"another without\r\n"):
            made.docmd("MAIL FROM:<a@client.test>")
            made.docmd("RCPT TO:<jane@foobar.org>")
            assert made.docmd("DATA")[0] == 354
            made.send(body + b".\r\n")
            code, text = made.getreply()
            assert (code, text[:5]) == (550, b"5.7.7")
            said.append(text)
    first, second = (explained(gateway, text) for text in said)
    assert first[0] != second[0]
    for _, told in (first, second):
        assert re.search(
            r"^ +data +header_is_there \(built-in\) -> 550 5\.7\.7 \(no-header\)( +\[\d+ us\])?$", told, re.M
        ), told
    assert "no field name among 18 octets of header" in first[1]
    assert "no field name among 17 octets of header" in second[1]
