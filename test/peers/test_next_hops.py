"""Mail leaves for Postfix and for Dovecot's LMTP server over TLS, and only where the certificate is right."""

import smtplib
import uuid

import pytest
from support.daemon import Gateway
from support.ports import wait_until
from support.sink import NextHop

RELAY = """
[session.rcpt]
relay = true

[queue.strategy]
route = "'hop'"
tls = "'checked'"

[queue.tls.checked]
starttls = "require"
"""


def hop_config(port, authority, **more):
    """Everything goes to 127.0.0.1 on `port`; its certificate has to come from `authority`."""
    keys = {"protocol": '"smtp"', "tls.implicit": "false", **more}
    lines = "\n".join(f"{key} = {value}" for key, value in keys.items())
    return (
        f'[queue.route.hop]\ntype = "relay"\naddress = "127.0.0.1"\nport = {port}\n{lines}\n'
        f'[queue.tls.checked]\ntrust-file = "{authority.trust}"\n'
    )


def send(gateway, token, *recipients, body="hi"):
    """Hand a message to the gateway."""
    with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=20) as client:
        client.sendmail("a@client.test", recipients, f"Subject: {token}\r\n\r\n{body}\r\n")


@pytest.fixture
def token():
    """A word that only one message has."""
    return uuid.uuid4().hex


def with_token(messages, token):
    """The messages that hold `token`."""
    return [octets for octets in messages if token.encode() in octets]


@pytest.mark.peer("postfix")
@pytest.mark.parametrize("way", ["smtp", "strict", "smtps"])
def test_relay_to_postfix(tmp_path, authority, postfix, token, way):
    implicit = {"tls.implicit": "true"} if way == "smtps" else {}
    config = hop_config(postfix.ports[way], authority, **implicit)
    with Gateway(tmp_path, authority, changes=(RELAY, config)) as gateway:
        send(gateway, token, "alice@lab.example", "bob@lab.example", body=".one\r\n..two")
        for user in ("alice", "bob"):
            (octets,) = wait_until(lambda user=user: with_token(postfix.mailbox(user), token), 20, f"mail for {user}")
            assert octets.endswith(b"\n\n.one\n..two\n")
            assert b"using TLSv1.3" in octets
        gateway.wait_queue_empty()


@pytest.mark.peer("dovecot")
def test_relay_to_dovecot_by_lmtp(tmp_path, authority, dovecot, token):
    config = hop_config(dovecot.port, authority, protocol='"lmtp"')
    with Gateway(tmp_path, authority, changes=(RELAY, config)) as gateway:
        send(gateway, token, "alice@lab.example", "bob@lab.example", body=".one\r\n..two")
        for user in ("alice", "bob"):
            (octets,) = wait_until(lambda user=user: with_token(dovecot.mailbox(user), token), 20, f"mail for {user}")
            assert octets.endswith(b"\n\n.one\n..two\n")
            assert b"with LMTPS" in octets
        gateway.wait_queue_empty()


@pytest.mark.peer("dovecot")
def test_a_recipient_dovecot_does_not_know_comes_back_as_a_report(tmp_path, authority, dovecot, token):
    config = hop_config(dovecot.port, authority, protocol='"lmtp"')
    with Gateway(tmp_path, authority, changes=(RELAY, config)) as gateway:
        with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=20) as client:
            client.sendmail(
                "bob@lab.example", ["nobody@lab.example", "alice@lab.example"], f"Subject: {token}\r\n\r\nhi\r\n"
            )
        wait_until(lambda: with_token(dovecot.mailbox("alice"), token), 20, "mail for alice")
        (report,) = wait_until(lambda: with_token(dovecot.mailbox("bob"), token), 20, "a report for bob")
        assert b"Final-Recipient: rfc822;nobody@lab.example" in report.replace(b"rfc822; ", b"rfc822;")
        assert b"Action: failed" in report
        gateway.wait_queue_empty()


def test_a_certificate_for_another_name_gets_nothing(tmp_path, authority, token):
    with NextHop(certificate=authority.issue("elsewhere.test")) as hop:
        config = hop_config(hop.port, authority)
        with Gateway(tmp_path, authority, changes=(RELAY, config)) as gateway:
            send(gateway, token, "alice@lab.example")
            hop.wait_dialogues(1)
            wait_until(lambda: [row for row in gateway.queue() if row.state == "temp_fail"], 20, "a delayed recipient")
        assert hop.messages == []
        assert not any(command.upper().startswith("MAIL") for d in hop.dialogues for command in d.commands)


def test_a_hop_without_starttls_gets_nothing_where_tls_is_required(tmp_path, authority, token):
    with NextHop() as hop:
        config = hop_config(hop.port, authority)
        with Gateway(tmp_path, authority, changes=(RELAY, config)) as gateway:
            send(gateway, token, "alice@lab.example")
            hop.wait_dialogues(1)
            # The failure is final; the null-sender report about it goes the same way and ends there.
            gateway.wait_log("STARTTLS not advertised by host")
        assert hop.messages == []
