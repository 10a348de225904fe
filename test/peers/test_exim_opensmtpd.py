"""Mail leaves for Exim and for OpenSMTPD: TLS, chunks, logins, refusals, and a STARTTLS that never works."""

import smtplib
import tomllib
import uuid
from pathlib import Path

import pytest
from support.baseline import toml_text
from support.daemon import Gateway
from support.ports import wait_until

INSTALLED = Path(__file__).parents[2] / "etc" / "mailgate.toml"

SETTINGS = """
[session.rcpt]
relay = true

[queue]
poll = "200ms"

[queue.strategy]
route = [ { if = "rcpt_domain = 'foobar.org'", then = "'local'" }, { else = "'hop'" } ]
schedule = "'quick'"

[queue.schedule.quick]
queue-name = "remote"
retry = "1s"
expire = "1h"
"""


@pytest.fixture
def token():
    """A word that only one message has."""
    return uuid.uuid4().hex


def hop_config(port, authority, tls="starttls = 'require'\n", **more):
    """Everything but local mail goes to 127.0.0.1 on `port`; its certificate has to come from `authority`."""
    keys = {"tls.implicit": "false", **more}
    lines = "\n".join(f"{key} = {value}" for key, value in keys.items())
    return (
        f'[queue.route.hop]\ntype = "relay"\naddress = "127.0.0.1"\nport = {port}\n{lines}\n'
        f'[queue.tls.default]\ntrust-file = "{authority.trust}"\n{tls}'
    )


def send(gateway, token, *recipients, sender="john@foobar.org", body="hi", subject="", options=()):
    """Hand a message to the gateway."""
    with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=20) as client:
        text = f"Subject: {token}{subject}\r\n\r\n{body}\r\n".encode()
        client.sendmail(sender, recipients, text, mail_options=options)


def with_token(messages, token):
    """The messages that hold `token`."""
    return [octets for octets in messages if token.encode() in octets]


@pytest.mark.peer("exim")
@pytest.mark.parametrize("way", ["smtp", "smtps"])
def test_relay_to_exim(tmp_path, authority, exim, token, way):
    implicit = {"tls.implicit": "true"} if way == "smtps" else {}
    config = hop_config(exim.ports[way], authority, **implicit)
    with Gateway(tmp_path, authority, changes=(SETTINGS, config)) as gateway:
        send(gateway, token, "a@exim.lab.example", "b@exim.lab.example", body=".one\r\n..two\r\nö")
        (octets,) = wait_until(lambda: with_token(exim.messages(), token), 20, "the message")
        assert octets.endswith("\n\n.one\n..two\nö\n".encode())
        assert b"Envelope-to: a@exim.lab.example, b@exim.lab.example" in octets.replace(b",\n", b",").replace(
            b"\t", b" "
        )
        assert b"(TLS1.3)" in octets
        # K: it came in chunks.
        wait_until(lambda: " K " in exim.log_text() or "K S=" in exim.log_text(), 5, "a chunk in the log")
        gateway.wait_queue_empty()


@pytest.mark.peer("exim")
def test_each_recipient_gets_its_own_answer_of_exim(tmp_path, authority, exim, token):
    config = hop_config(exim.ports["smtp"], authority)
    with Gateway(tmp_path, authority, changes=(SETTINGS, config)) as gateway:
        send(gateway, token, *(f"{name}@exim.lab.example" for name in ("ok", "defer", "deny")))
        wait_until(lambda: with_token(exim.messages(), token), 20, "the message")
        (report,) = gateway.wait_mail("john", "foobar.org")
        assert b"Final-Recipient: rfc822;deny@exim.lab.example\n" in report
        assert b"Diagnostic-Code: smtp;550 refused\n" in report
        assert b"Status: 5.7.1\n" in report
        assert [(row.address, row.state) for row in gateway.queue() if row.state == "temp_fail"] == [
            ("defer@exim.lab.example", "temp_fail")
        ]
        assert len(with_token(exim.messages(), token)) == 1


@pytest.mark.peer("exim")
def test_content_that_exim_refuses_comes_back(tmp_path, authority, exim, token):
    config = hop_config(exim.ports["smtp"], authority)
    with Gateway(tmp_path, authority, changes=(SETTINGS, config)) as gateway:
        send(gateway, token, "ok@exim.lab.example", subject=" rejectme")
        (report,) = gateway.wait_mail("john", "foobar.org")
        assert b"Diagnostic-Code: smtp;550 content refused\n" in report
        gateway.wait_queue_empty()
    assert not with_token(exim.messages(), token)


@pytest.mark.peer("exim")
@pytest.mark.parametrize(("secret", "arrives"), [("secret1", True), ("wrong", False)])
def test_a_login_at_exim(tmp_path, authority, exim, token, secret, arrives):
    login = {"auth": f'{{ username = "alice", secret = "{secret}" }}'}
    config = hop_config(exim.ports["smtp"], authority, **login)
    with Gateway(tmp_path, authority, changes=(SETTINGS, config)) as gateway:
        send(gateway, token, "ok@exim.lab.example", sender="in@client.test")
        if arrives:
            wait_until(lambda: with_token(exim.messages(), token), 20, "the message")
            assert b"esmtpsa" in with_token(exim.messages(), token)[0]
            gateway.wait_queue_empty()
        else:
            wait_until(lambda: [row for row in gateway.queue() if row.state == "temp_fail"], 20, "a delayed recipient")
            gateway.wait_log("delivery.auth-failed")
            assert not with_token(exim.messages(), token)


@pytest.mark.peer("exim")
def test_an_address_outside_ascii_reaches_exim(tmp_path, authority, exim, token):
    config = hop_config(exim.ports["smtp"], authority)
    with Gateway(tmp_path, authority, changes=(SETTINGS, config)) as gateway:
        with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=20) as client:
            client.ehlo("client.test")
            client.command_encoding = "utf-8"
            client.sendmail(
                "jöhn@client.test",
                ["jürgen@exim.lab.example"],
                f"Subject: {token} ä\r\n\r\nhi\r\n".encode(),
                mail_options=["SMTPUTF8", "BODY=8BITMIME"],
            )
        (octets,) = wait_until(lambda: with_token(exim.messages(), token), 20, "the message")
        assert "Envelope-to: jürgen@exim.lab.example".encode() in octets
        assert "Return-path: <jöhn@client.test>".encode() in octets
        gateway.wait_queue_empty()


@pytest.mark.peer("exim")
def test_a_large_message_for_exim_arrives_whole(tmp_path, authority, exim, token):
    config = hop_config(exim.ports["smtp"], authority)
    body = "\r\n".join(f".{number:070}" for number in range(60_000))
    with Gateway(tmp_path, authority, changes=(SETTINGS, config)) as gateway:
        send(gateway, token, "a@exim.lab.example", body=body)
        (octets,) = wait_until(lambda: with_token(exim.messages(), token), 30, "the message")
        assert octets.endswith(body.replace("\r\n", "\n").encode() + b"\n")
        gateway.wait_queue_empty()


@pytest.mark.peer("opensmtpd")
def test_relay_to_opensmtpd(tmp_path, authority, opensmtpd, token):
    config = hop_config(opensmtpd.ports["plain"], authority, tls="")
    with Gateway(tmp_path, authority, changes=(SETTINGS, config)) as gateway:
        send(gateway, token, "alice@smtpd.lab.example", "bob@smtpd.lab.example", body=".one\r\n..two")
        for user in ("alice", "bob"):
            (octets,) = wait_until(lambda user=user: with_token(opensmtpd.mailbox(user), token), 20, f"mail for {user}")
            assert octets.endswith(b"\n\n.one\n..two\n")
        send(gateway, token, "carol@elsewhere.example")
        (report,) = gateway.wait_mail("john", "foobar.org")
        assert b"Final-Recipient: rfc822;carol@elsewhere.example\n" in report
        gateway.wait_queue_empty()


@pytest.mark.peer("opensmtpd")
def test_a_starttls_that_never_works_is_a_delay_and_never_a_message_in_clear(tmp_path, authority, opensmtpd, token):
    config = hop_config(opensmtpd.ports["tls"], authority, tls="starttls = 'optional'\n")
    with Gateway(tmp_path, authority, changes=(SETTINGS, config)) as gateway:
        send(gateway, token, "alice@smtpd.lab.example")
        wait_until(lambda: gateway.log_text().count("delivery.start-tls-error") >= 3, 20, "three attempts")
        (row,) = gateway.queue()
        assert row.state == "temp_fail"
    assert not with_token(opensmtpd.mailbox("alice"), token)


LADDER = """
[queue.strategy]
tls = [ { if = "retry_num > 0 && last_error == 'tls'", then = "'none'" }, { else = "'default'" } ]

[queue.tls.none]
starttls = "disable"
"""


@pytest.mark.peer("opensmtpd")
def test_a_ladder_of_tls_strategies_delivers_at_the_next_attempt(tmp_path, authority, opensmtpd, token):
    config = hop_config(opensmtpd.ports["tls"], authority, tls="starttls = 'optional'\n")
    with Gateway(tmp_path, authority, changes=(SETTINGS, config, LADDER)) as gateway:
        send(gateway, token, "alice@smtpd.lab.example")
        wait_until(lambda: with_token(opensmtpd.mailbox("alice"), token), 20, "the message")
        gateway.wait_queue_empty()
        log = gateway.log_text()
    assert log.count("delivery.start-tls-error") == 1
    assert "delivery.start-tls-disabled" in log


@pytest.mark.peer("opensmtpd")
def test_the_ladder_of_the_installed_file_delivers_at_the_third_attempt(tmp_path, authority, opensmtpd, token):
    queue = tomllib.loads(INSTALLED.read_text("utf-8"))["queue"]
    installed = toml_text({"queue": {"strategy": {"tls": queue["strategy"]["tls"]}, "tls": queue["tls"]}})
    port = opensmtpd.ports["tls"]
    with Gateway(tmp_path, authority, changes=(SETTINGS, hop_config(port, authority, tls=""), installed)) as gateway:
        send(gateway, token, "alice@smtpd.lab.example")
        wait_until(lambda: with_token(opensmtpd.mailbox("alice"), token), 20, "the message")
        gateway.wait_queue_empty()
        log = gateway.log_text()
    assert log.count("delivery.start-tls-error") == 2
    assert "delivery.start-tls-disabled" in log
