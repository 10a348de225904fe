"""The shared test data against a whole listener: every line has an allowed reply, nothing odd ends a message."""

import pytest
from support.baseline import baseline
from support.listener import ListenerInMemory
from support.testdata import RELAXED, cases, is_allowed, line_of

DOMAIN = "foobar.org"
CONFIG = """
[server.listener.smtp]
bind = "127.0.0.1:2525"
protocol = "smtp"

[session.extensions]
dsn = true
deliver-by = "15d"

[[directory."local".principals]]
name = "rcpt"
secret = "secret"
email = ["rcpt@foobar.org", "postmaster@foobar.org"]
"""
OFFERED = {"SIZE", "8BITMIME", "SMTPUTF8", "DSN", "DELIVERBY", "AUTH", "CHUNKING"}
"""What EHLO offers with this configuration; `test_what_is_offered` holds it against the reply."""

# True of this configuration: it relays for nobody, knows its mailboxes, and has a limit to SIZE.
TRUE_HERE = {"norelay", "badrcpt", "limit"}


class Dialogue:
    """One client; each reply is looked at on its own."""

    def __init__(self, bytewise=False, config=""):
        self.connection = ListenerInMemory(baseline("B2", CONFIG, config)).connect()
        self.bytewise = bytewise
        self.codes()

    def codes(self):
        """The codes of the replies since the last call, without continuation lines."""
        self.connection.advance(1)
        said = self.connection.received()
        assert said.endswith(b"\r\n") or not said
        return [int(line[:3]) for line in said.split(b"\r\n") if line[3:4] == b" "]

    def say(self, octets):
        pieces = [octets[at : at + 1] for at in range(len(octets))] if self.bytewise else [octets]
        for piece in pieces:
            self.connection.send(piece)
        return self.codes()


def missing(needs):
    """What of the needs of a row does not hold with this configuration."""
    return [
        need
        for need in needs
        if (need[1:] in OFFERED if need.startswith("!") else need not in OFFERED and need not in TRUE_HERE)
    ]


def test_what_is_offered():
    dialogue = Dialogue()
    dialogue.connection.send(b"EHLO client.test\r\n")
    words = {line[4:].split(b" ")[0].decode() for line in dialogue.connection.received().split(b"\r\n")[1:-1]}
    assert words >= OFFERED


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize("case", cases("lines.json"))
def test_lines(case, bytewise):
    if absent := missing(case["needs"]):
        pytest.skip(f"asks for a server {' '.join(absent)}")
    dialogue = Dialogue(bytewise)
    if case["after"] in ("ehlo", "mail"):
        assert dialogue.say(b"EHLO client.test\r\n") == [250]
    if case["after"] == "mail":
        assert dialogue.say(b"MAIL FROM:<sender@client.test>\r\n") == [250]
    assert case["after"] in ("banner", "ehlo", "mail"), "a step this test does not know"
    codes = dialogue.say(line_of(case, DOMAIN) + b"\r\n")
    assert len(codes) == 1 or (dialogue.connection.closed and not codes)
    code = codes[0] if codes else None
    if case["id"] in RELAXED:
        assert code == 250, "no longer relaxed"
        assert not is_allowed(case, code)
    else:
        assert is_allowed(case, code), f"{code}, not {case['allowed']} ({case['ground']})"
    if not dialogue.connection.closed:
        # One line, one reply: nothing of it is left in the air.
        assert dialogue.say(b"NOOP\r\n") == [250]


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize("mode", ["reject", "normalize"])
@pytest.mark.parametrize("case", cases("end-of-data.json"))
def test_what_does_not_end_a_message(case, mode, bytewise):
    odd = bytes.fromhex(case["octets_hex"])
    dialogue = Dialogue(bytewise, f"[session]\nbare-newline = \"'{mode}'\"\n")
    opening = b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<rcpt@foobar.org>\r\n"
    assert dialogue.say(opening) == [250, 250, 250]
    assert dialogue.say(b"DATA\r\n") == [354]
    inner = b"MAIL FROM:<evil@client.test>\r\nRCPT TO:<jane@foobar.org>\r\nDATA\r\nSubject: inner\r\n\r\nhi"
    assert dialogue.say(b"Subject: outer\r\n\r\nx" + odd + inner) == []
    assert dialogue.say(b"\r\n.\r\n") == [550 if mode == "reject" else 250]
    assert dialogue.say(b"NOOP\r\n") == [250]
    queued = dialogue.connection.queued()
    assert [message.sender for message in queued] == ([] if mode == "reject" else ["a@client.test"])
