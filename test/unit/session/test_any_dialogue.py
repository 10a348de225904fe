"""Dialogues drawn at random, against a short model of what each command must be answered.

The model is written from RFC 5321, RFC 1870, RFC 2033 and RFC 3030 alone. Every dialogue is sent as
segments cut anywhere; replies have to be the model's, one for each command, and LMTP's at the end of data.
"""

import random

import pytest
from support.baseline import baseline
from support.listener import SMTP_AND_LMTP, ListenerInMemory

SIZE = 60
RECIPIENTS = 3
SEEDS = range(120)
CONFIG = f"""
[session.data.limits]
size = {SIZE}
messages = 1000
[session.rcpt]
max-recipients = {RECIPIENTS}
errors.total = 1000
errors.wait = "1ms"
"""
KNOWN = (b"john", b"jane", b"bill", b"mike")
TEXTS = (
    b"Subject: x\r\n",
    b"\r\n",
    b".\r\n",
    b"..\r\n",
    b"a.\r\n",
    b"\0\xff\r\n",
    b"0123456789\r\n",
    b"RSET\r\n",
    b".",
)


def is_bare(text):
    """Whether a CR or LF stands alone."""
    rest = text.replace(b"\r\n", b"")
    return b"\r" in rest or b"\n" in rest


class Model:
    """What a server has to answer: `heard` are the codes, `kept` the messages with the number of their recipients."""

    def __init__(self, lmtp):
        self.lmtp = lmtp
        self.greeted = False
        self.heard = [220]
        self.kept = []
        self.end()

    def end(self):
        self.open = self.binary = self.chunked = self.spoilt = False
        self.recipients, self.due, self.text = set(), 0, b""

    def say(self, code, times=1):
        self.heard += [code] * times

    def hello(self):
        self.end()
        self.greeted = True
        self.say(250)

    def mail(self, size, binary):
        if not self.greeted or self.open:
            code = 503
        elif size is not None and size > SIZE:
            code = 552
        else:
            code = 250
            self.open, self.binary = True, binary
        self.say(code)

    def rcpt(self, name):
        if not self.open:
            code = 503
        elif len(self.recipients) == RECIPIENTS:
            code = 455
        elif name.lower() not in KNOWN:
            code = 550
        else:
            code = 250
            self.recipients.add(name.lower())
            self.due += 1
        self.say(code)

    def data(self):
        """True where the text follows."""
        refused = not self.recipients or self.chunked or self.binary
        self.say(503 if refused else 354)
        return not refused

    def message(self, text):
        """The end of data."""
        times = self.due if self.lmtp else 1
        if len(text) > SIZE:
            code = 552
        elif is_bare(self.lines(text)) or b":" not in (b"\r\n" + text).partition(b"\r\n\r\n")[0]:
            code = 550
        else:
            code = 250
            self.kept.append((text, len(self.recipients)))
        self.say(code, times)
        self.end()

    def lines(self, text):
        """What is made of lines: with BODY=BINARYMIME only the header."""
        return (b"\r\n" + text).partition(b"\r\n\r\n")[0] if self.binary else text

    def bdat(self, octets, last):
        """True where the chunk was taken."""
        times = self.due if self.lmtp and last and self.due else 1
        if not self.open or not self.recipients or self.spoilt:
            self.spoilt = self.chunked = self.open
            self.say(503, times)
            return False
        self.chunked = True
        if len(self.text) + len(octets) > SIZE:
            self.spoilt = True
            self.say(552, times)
            return False
        self.text += octets
        if last:
            self.message(self.text)
        else:
            self.say(250)
        return True


def drawn(chance, model):
    """The octets of a dialogue; the model hears them as they are made."""
    out = []
    for _ in range(chance.randrange(10, 40)):
        match chance.randrange(15):
            case 0:
                out.append(b"LHLO c.test\r\n" if model.lmtp else b"EHLO c.test\r\n")
                model.hello()
            case 1 | 2 | 3:
                size = chance.choice((None, None, 0, SIZE, SIZE + 1))
                binary = chance.random() < 0.2
                words = (b"" if size is None else b" SIZE=%d" % size) + (b" BODY=BINARYMIME" if binary else b"")
                out.append(b"MAIL FROM:<a@client.test>" + words + b"\r\n")
                model.mail(size, binary)
            case 4 | 5 | 6 | 7:
                name = chance.choice((*KNOWN, b"JANE", b"nobody"))
                out.append(b"RCPT TO:<%s@foobar.org>\r\n" % name)
                model.rcpt(name)
            case 8 | 9:
                out.append(b"DATA\r\n")
                if model.data():
                    lines = [chance.choice(TEXTS[:-3]) for _ in range(chance.randrange(9))]
                    if chance.random() < 0.7:
                        lines.insert(0, TEXTS[0])
                    out += [b"." * line.startswith(b".") + line for line in lines] + [b".\r\n"]
                    model.message(b"".join(lines))
            case 10 | 11 | 12:
                refused = False
                for last in [False] * chance.randrange(4) + [True]:
                    octets = b"".join(chance.choices(TEXTS, k=chance.randrange(4)))
                    if chance.random() < 0.3:
                        # Cut anywhere, also between CR and LF.
                        octets = octets[: chance.randrange(len(octets) + 1)]
                    octets = (b"" if model.text or chance.random() < 0.2 else TEXTS[0]) + octets
                    out.append(b"BDAT %d%s\r\n%b" % (len(octets), b" LAST" if last else b"", octets))
                    refused = not model.bdat(octets, last)
                    if chance.random() < 0.2:
                        out.append(b"AUTH PLAIN =\r\nNOOP\r\n")
                        model.say(503)
                        model.say(250)
                if refused:
                    # RFC 3030 2: what is left of the transaction is for RSET to clear.
                    out.append(b"RSET\r\n")
                    model.end()
                    model.say(250)
            case _:
                out.append(b"RSET\r\n")
                model.end()
                model.say(250)
    out.append(b"QUIT\r\n")
    model.say(221)
    return b"".join(out)


def pieces(chance, octets):
    """The same octets in segments of any length, at times one by one."""
    at = 0
    while at < len(octets):
        end = at + chance.choice((1, 1, 2, 3, 7, 50, 400, len(octets)))
        yield octets[at:end]
        at = end


@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_command_has_the_reply_that_the_rfcs_ask_for(protocol, seed):
    chance = random.Random(seed)
    model = Model(protocol == "lmtp")
    octets = drawn(chance, model)
    listener = ListenerInMemory(baseline("B1", SMTP_AND_LMTP, CONFIG))
    connection = listener.connect(protocol)
    for piece in pieces(chance, octets):
        connection.send(piece)
        while any(call.getTime() < listener.clock.seconds() + 1 for call in listener.clock.getDelayedCalls()):
            connection.advance(0.001)
            if connection.closed:
                break
    lines = connection.received().split(b"\r\n")[:-1]
    assert [int(line[:3]) for line in lines if line[3:4] == b" "] == model.heard
    assert [(each.content, len(each.recipients)) for each in connection.queued()] == model.kept
    assert connection.closed
    connection.leave()
    kept = [spool for spool in listener.store.spools if not spool.discarded]
    assert len(kept) == len(model.kept)
    traces = [each.message.trace for each in connection.queued()]
    assert len(set(traces)) == len(traces)
