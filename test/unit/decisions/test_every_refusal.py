"""Whatever id stands at the end of a 4xx or 5xx reply, explain finds it and says what decided, where and why."""

import re
from datetime import timedelta

import pytest
from support.baseline import baseline
from support.listener import ListenerInMemory
from support.memory_store import MemoryStore
from support.zone import Zone

from mailgate.decisions.explain import Question, as_json, find, told
from mailgate.decisions.ring import Ring
from mailgate.queue.store import StoreFailed, StoreFull

LISTENER = "server.listener.smtp = { bind = '127.0.0.1:2525', protocol = 'smtp' }"
EHLO = "EHLO mx.client.test\r\n"
MAIL = "MAIL FROM:<a@client.test>\r\n"
RCPT = "RCPT TO:<r@relay.test>\r\n"
START = EHLO + MAIL + RCPT
MESSAGE = "Subject: x\r\n\r\nhello\r\n.\r\n"
ID = re.compile(rb"^[45]\d\d .*\[([a-z2-7]{12})\]\r$", re.MULTILINE)


@pytest.fixture
def play(tmp_path):
    """Play octets against a listener; the ids in its refusals, and what explain says of each."""

    def played(octets, *changes, advance=0, store=None, zone=None):
        ring = Ring(str(tmp_path), size_octets=1 << 22, age=timedelta(days=1), now=lambda: 1_767_225_600.0)
        listener = ListenerInMemory(baseline("B0", LISTENER, *changes), zone, store=store, ring=ring)
        client = listener.connect()
        for line in octets.splitlines(keepends=True):
            client.send(line.encode("latin-1"))
            client.advance(10)
        client.advance(advance)
        answers = client.received()
        client.leave()
        ring.drain()
        ids = [id.decode() for id in ID.findall(answers)]
        assert ids, answers
        return [as_json(find(str(tmp_path), Question(id=id), 1)[0]) for id in ids]

    return played


DEAD = """{ if = "is_empty(dns_query('dead.test', 'txt'))", then = 5 }"""

CASES = {
    "syntax": ("FOO\r\n", "syntax"),
    "MAIL with a bad path": (EHLO + "MAIL FROM:a b\r\n", "syntax"),
    "no EHLO": (MAIL, "session.ehlo.require", "session.ehlo.require = true"),
    "second MAIL": (EHLO + MAIL + MAIL, "mail_is_first"),
    "RCPT first": (EHLO + RCPT, "mail_was_said"),
    "DATA first": (EHLO + "DATA\r\n", "there_is_a_recipient"),
    "LHLO": ("LHLO x.test\r\n", "protocol_is_right"),
    "STARTTLS that is not offered": (EHLO + "STARTTLS\r\n", "tls_is_offered", "server.tls.enable = false"),
    "AUTH that is not offered": (
        EHLO + "AUTH PLAIN AGEAYg==\r\n",
        "session.auth.directory",
        "session.auth.directory = false",
    ),
    "relay": (EHLO + MAIL + RCPT, "session.rcpt.relay", "session.rcpt.relay = false"),
    "no header": (START + "DATA\r\n\r\nhello\r\n.\r\n", "header_is_there"),
    "bare newline": (START + "DATA\r\nSubject: x\r\n\r\na\nb\r\n.\r\n", "session.bare-newline"),
    "loop": (
        START + "DATA\r\nReceived: a\r\nReceived: b\r\n\r\nx\r\n.\r\n",
        "session.data.limits.received-headers",
        "session.data.limits.received-headers = 1",
    ),
    "too big": (START + "DATA\r\n" + MESSAGE, "session.data.limits.size", "session.data.limits.size = 10"),
    "chunk too big": (
        START + "BDAT 100 LAST\r\n" + "x" * 98 + "\r\n",
        "session.data.limits.size",
        "session.data.limits.size = 10",
    ),
    "BDAT switched off": (
        START + "BDAT 4 LAST\r\nab\r\n",
        "session.extensions.chunking",
        "session.extensions.chunking = false",
    ),
    "unknown rule at DATA": (
        START + "DATA\r\n",
        "session.data.limits.messages",
        f"session.data.limits.messages = [ {DEAD}, {{ else = 6 }} ]",
    ),
    "unknown header rule": (
        START + "DATA\r\n" + MESSAGE,
        "session.data.add-headers.date",
        """session.data.add-headers.date = "is_empty(dns_query('dead.test', 'txt'))\"""",
    ),
    "unknown session": (
        "",
        "session.duration",
        f"session.duration = [ {DEAD}, {{ else = '6m' }} ]",
    ),
    "VRFY of nobody": (EHLO + "VRFY nobody\r\n", "session.rcpt.directory", "session.extensions.vrfy = true"),
    "transfer limit": (START, "session.transfer-limit", "session.transfer-limit = 60"),
}


@pytest.mark.spec("IN-278")
@pytest.mark.parametrize("name", CASES)
def test_the_id_of_a_refusal_leads_to_its_rule(play, name):
    octets, rule, *changes = CASES[name]
    if rule == "session.rcpt.directory":
        changes.append("session.rcpt.directory = \"'*'\"\nstorage.directory = 'local'\ndirectory.local.type = 'memory'")
    entry = play(octets, *changes, zone=Zone().fail("dead.test"))[-1]
    why = entry["decided_by"]
    assert why["rule"] == rule
    assert why["place"] == "built-in" or re.fullmatch(r".+\.toml:\d+", why["place"])
    assert why["said"][0] in "45"
    assert entry["replies"] or entry["recipients"] or entry["kind"] == "transaction"


@pytest.mark.parametrize("failure", (StoreFailed("disk"), StoreFull("full")))
def test_a_message_that_cannot_be_kept(play, failure):
    (entry,) = play(START + "DATA\r\n" + MESSAGE, store=MemoryStore(fail_with=failure))
    assert entry["decided_by"]["rule"] == "message_is_kept"
    assert entry["decided_by"]["reads"] == [{"name": "detail", "value": str(failure)}]


def test_a_fault_of_our_own(play, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(MemoryStore, "spool", broken)
    entry = play(START + "DATA\r\n")[-1]
    assert entry["decided_by"]["rule"] == "unexpected"
    assert "secret detail" not in str(entry)


def test_the_deciding_rule_stands_on_top_for_people(tmp_path, play):
    (entry,) = play(EHLO + MAIL + RCPT, "session.rcpt.relay = false")
    text = told(find(str(tmp_path), Question(id=entry["trace"]), 1)[0])
    assert re.search(r"because   session\.rcpt\.relay \(.+:\d+\) -> 550 5\.1\.2 \(relay-denied\)", text)
