"""Rules of a session that ask stores; most of it is in the dialogues `store-*.txt`."""

import pytest
from support.baseline import baseline
from support.listener import ListenerInMemory
from support.lookup_stores import DEAD_STORE

SMTP = '[server.listener.smtp]\nbind = "127.0.0.1:2525"\nprotocol = "smtp"\n'
U = "key_exists('down', 'x')"


def listener(*changes):
    return ListenerInMemory(baseline("B0", SMTP, DEAD_STORE, *changes))


def said(connection, line):
    connection.received()
    connection.send(line.encode() + b"\r\n")
    return connection.received().decode()


def client(of):
    connection = of.connect()
    said(connection, "EHLO mx.client.test")
    return connection


@pytest.mark.spec("IN-076")
def test_a_store_is_not_asked_when_an_earlier_condition_decides():
    here = listener(
        f"""[session.mail]
is-allowed = [ {{ if = "sender_domain = 'client.test'", then = true }},
               {{ if = "{U}", then = true }},
               {{ else = false }} ]
"""
    )
    connection = client(here)
    down = here.stores.find("down")._connections
    assert said(connection, "MAIL FROM:<a@client.test>").startswith("250 2.1.0")
    assert down.uses == 0
    said(connection, "RSET")
    assert said(connection, "MAIL FROM:<a@x.test>").startswith("451 4.4.3")
    assert down.uses == 1


@pytest.mark.spec("IN-079")
def test_an_unknown_argument_moves_no_counter():
    here = listener(
        f"""[session.mail]
is-allowed = [ {{ if = "sender = 'read@client.test'", then = "counter_get('', 'n') = 1" }},
               {{ if = "sender = 'one@client.test'", then = "counter_incr('', 'n', 1) = 1" }},
               {{ else = "counter_incr('', 'n', {U}) > 0" }} ]
"""
    )
    assert said(client(here), "MAIL FROM:<one@client.test>").startswith("250")
    assert said(client(here), "MAIL FROM:<a@client.test>").startswith("451 4.4.3")
    assert said(client(here), "MAIL FROM:<read@client.test>").startswith("250")


def test_a_counter_goes_from_session_to_session():
    here = listener("[session.mail]\nis-allowed = \"counter_incr('', remote_ip, 1) <= 2\"\n")
    replies = [said(client(here), "MAIL FROM:<a@client.test>")[:3] for _ in range(3)]
    assert replies == ["250", "250", "550"]
