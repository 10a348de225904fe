"""A short run of every fuzzer with a fixed seed; `make fuzz` runs them for as long as one likes."""

import random
from pathlib import Path

import pytest
from fuzz import fuzz_attempt, fuzz_client, fuzz_config, fuzz_server, fuzz_session
from support import smtp_core

from mailgate.wire.smtp.data import BareNewline
from mailgate.wire.smtp.server import ServerConnection

# Everything a session may hold, for one client.
SESSION = (
    b"NOOP\r\nEHLO client.test\r\nAUTH LOGIN\r\n*\r\nFOO\r\nMAIL FROM:<a@client.test> SIZE=20\r\n"
    b"RCPT TO:<x@foobar.org>\r\nRCPT TO:<jane@foobar.org>\r\nDATA\r\nA: b\r\n\r\n..\r\n.c\r\n.\r\nMAIL FROM:<>\r\n"
    b"RCPT TO:<john@foobar.org>\r\nBDAT 7\r\nA: b\r\n\rBDAT 4 LAST\r\n\n.\r\nDATA\r\nRSET\r\n"
    b"MAIL FROM:<a@client.test> BODY=BINARYMIME\r\nRCPT TO:<sales@foobar.org>\r\nBDAT 14 LAST\r\nA: b\r\n\r\n\n.\n\r.\r"
    b"HELP\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<jane@foobar.org>\r\nDATA\r\nA: b\r\n\r\nx\n.\nQUIT\r\n.\r\n"
    b"QUIT\r\nNOOP\r\n"
)


def test_every_fuzzer_has_one():
    here = Path(__file__).parent
    runs = "".join(path.read_text("utf-8") for path in here.glob("test_*.py"))
    assert [path.stem for path in here.glob("fuzz_*.py") if f"{path.stem}." not in runs] == []


def test_attempts():
    for number in range(150):
        fuzz_attempt.check(random.Random(f"1/{number}"))


def test_client_core():
    choose = random.Random(1)
    for _ in range(400):
        fuzz_client.check(fuzz_client.mutated(choose), choose)


def test_10_000_configuration_files():
    choose = random.Random(7)
    configurations = [fuzz_config.cases(choose) for _ in range(500)]
    loaded = sum(map(fuzz_config.check, configurations))
    assert 20 < loaded < 480
    files = sum(map(len, configurations))
    for _ in range(4000):
        fuzz_config.check(["".join(choose.choices(fuzz_config.PARTS, k=choose.randint(0, 40)))])
    while files + 4000 < 10_000:
        fuzz_config.check_octets(choose.randbytes(choose.randint(0, 60)))
        files += 1


def test_server_core():
    choose = random.Random(1)
    for _ in range(600):
        fuzz_server.check(fuzz_server.mutated(choose), choose)


def test_whole_sessions():
    choose = random.Random(1)
    with fuzz_session.Listeners() as listeners:
        for _ in range(600):
            fuzz_session.check(choose.randbytes(choose.randint(17, 200)), listeners)


@pytest.mark.parametrize("octets", fuzz_client.SEEDS)
@pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
def test_client_core_in_every_cut(octets, lmtp):
    whole = fuzz_client.play([octets], lmtp)
    for pieces in smtp_core.ways(octets):
        assert fuzz_client.play(pieces, lmtp) == whole


@pytest.mark.parametrize("mode", BareNewline)
@pytest.mark.parametrize("octets", [*fuzz_server.SEEDS, SESSION])
def test_server_core_in_every_cut(octets, mode):
    heard = []
    for pieces in smtp_core.ways(octets):
        core = ServerConnection()
        core.bare_newline = mode
        heard.append((smtp_core.play(core, pieces, fuzz_server.in_clear), core.state))
    assert all(each == heard[0] for each in heard)


@pytest.mark.parametrize("name", ["smtp", "lmtp"])
@pytest.mark.parametrize("strict", [False, True], ids=["normalize", "reject"])
def test_a_whole_session_in_every_cut(name, strict):
    octets = SESSION.replace(b"EHLO", b"LHLO") if name == "lmtp" else SESSION
    with fuzz_session.Listeners() as listeners:
        listener = listeners.strict if strict else listeners.lenient
        heard = []
        for pieces in smtp_core.ways(octets):
            listener.store.messages.clear()
            speaker = fuzz_session.Speaker(listener, name)
            for piece in pieces:
                speaker.send(piece)
            kept = [(message.sender, message.recipients, message.content) for message in listener.store.messages]
            heard.append((speaker.heard(), speaker.connection.closed, kept))
            speaker.leave()
        assert not listeners.wrong
    assert all(each == heard[0] for each in heard)
    lines, closed, kept = heard[0]
    assert closed
    # The lenient listener takes two messages: of the fourth only the commands are left, and a bare newline in them.
    assert lines[-2].startswith(b"221 2.0.0" if strict else b"500 5.5.2")
    assert len(kept) == (3 if strict else 2)
