"""What one session may ask of what lies outside."""

from support.baseline import baseline
from support.listener import ListenerInMemory
from support.zone import Zone

from mailgate.dns.budget import QUESTIONS, QUESTIONS_PER_RECIPIENT

LISTENER = '[server.listener.smtp]\nbind = "127.0.0.1:2525"\nprotocol = "smtp"\n'


def rule(stage, key, questions):
    """A rule that asks so many questions before it says yes."""
    asked = ",\n".join(
        f"""{{ if = "len(dns_query('d{number}.test', 'mx')) > 0", then = false }}""" for number in range(questions)
    )
    return f"[session.{stage}]\n{key} = [\n{asked},\n{{ else = true }},\n]\n"


def connected(*changes):
    zone = Zone()
    connection = ListenerInMemory(baseline("B0", LISTENER, *changes), zone).connect()
    connection.send(b"EHLO client.test\r\n")
    connection.received()
    return connection, zone


def says(connection, line):
    connection.send(line)
    return connection.received()[:3]


def test_each_message_has_its_questions():
    connection, zone = connected(rule("mail", "is-allowed", QUESTIONS))
    for _ in range(3):
        assert says(connection, b"MAIL FROM:<a@client.test>\r\n") == b"250"
        assert says(connection, b"RSET\r\n") == b"250"
    assert sum(zone.asked.values()) == 3 * QUESTIONS


def test_a_message_that_asks_too_much_is_put_off():
    connection, zone = connected(rule("mail", "is-allowed", QUESTIONS + 1))
    assert says(connection, b"MAIL FROM:<a@client.test>\r\n")[:1] == b"4"
    assert sum(zone.asked.values()) == QUESTIONS


def test_each_recipient_makes_room_for_the_rules_about_it():
    connection, _ = connected(rule("mail", "is-allowed", QUESTIONS), rule("rcpt", "relay", QUESTIONS_PER_RECIPIENT))
    says(connection, b"MAIL FROM:<a@client.test>\r\n")
    for number in range(20):
        assert says(connection, b"RCPT TO:<u%d@elsewhere.test>\r\n" % number) == b"250"
