import os
import re

import pytest

from mailgate.admin.sendmail.dialogue import Dialogue
from mailgate.queue.drop import HEAD_OCTETS, DropHead, read_envelope


@pytest.fixture
def client(tmp_path):
    (tmp_path / "drop").mkdir()
    return Dialogue(str(tmp_path / "drop"), "gw.test")


def drops(tmp_path):
    found = []
    for path in sorted((tmp_path / "drop").iterdir()):
        octets = path.read_bytes()
        head = DropHead.of(octets[:HEAD_OCTETS], len(octets))
        rest = octets[HEAD_OCTETS:]
        found.append((read_envelope(rest[: head.envelope_octets]), rest[head.envelope_octets :]))
    return found


def codes(octets):
    return [int(code) for code in re.findall(rb"(?m)^([0-9]{3}) ", octets)]


SESSION = (
    b"EHLO me\r\nMAIL FROM:<a@b.test> RET=HDRS ENVID=i+2B1 SMTPUTF8\r\nRCPT TO:<x@y.test> NOTIFY=SUCCESS,DELAY\r\n"
    b"RCPT TO:<z@y.test> ORCPT=rfc822;o@y.test\r\nDATA\r\nSubject: x\r\n\r\n..dot\r\nbody\r\n.\r\n"
    b"MAIL FROM:<>\r\nRCPT TO:<x@y.test>\r\nDATA\r\nSubject: 2\r\n\r\n.\r\nQUIT\r\n"
)


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("newline", [b"\r\n", b"\n"])
def test_a_session_puts_each_message_into_the_maildrop(client, tmp_path, size, newline):
    session = SESSION.replace(b"\r\n", newline)
    out, ended = b"", False
    for at in range(0, len(session), size):
        said, ended = client.receive(session[at : at + size])
        out += said
    assert ended
    assert codes(out) == [250, 250, 250, 250, 354, 250, 250, 250, 354, 250, 221]
    # Within a millisecond the names have no order.
    second, first = sorted(drops(tmp_path), key=lambda drop: drop[0].sender)
    envelope, octets = first
    assert (envelope.sender, envelope.ret, envelope.envid, envelope.smtputf8) == ("a@b.test", "HDRS", "i+1", True)
    assert envelope.recipients == (("x@y.test", "SUCCESS,DELAY", ""), ("z@y.test", "", "o@y.test"))
    assert octets == b"Subject: x\r\n\r\n.dot\r\nbody\r\n"
    assert second[0].sender == ""


def test_250_comes_after_the_message_is_kept(client, tmp_path):
    end = SESSION.index(b"MAIL FROM:<>")
    out, _ = client.receive(SESSION[: end - 3])
    assert codes(out)[-1] == 354
    out, _ = client.receive(b".\r\n")
    (name,) = os.listdir(tmp_path / "drop")
    assert out == f"250 2.0.0 Message kept as {name}.\r\n".encode()


def test_what_was_not_finished_leaves_nothing(client, tmp_path):
    client.receive(SESSION[: SESSION.index(b"body")])
    assert len(os.listdir(tmp_path / "drop")) == 1
    client.end()
    assert os.listdir(tmp_path / "drop") == []


def test_text_of_a_client_that_knows_cr_lf_never_becomes_commands(client, tmp_path):
    client.receive(b"EHLO me\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<x@y.test>\r\nDATA\r\n")
    out, _ = client.receive(b"Subject: x\r\n\r\n\n.\nMAIL FROM:<evil@b.test>\nRCPT TO:<v@y.test>\r\n.\r\n")
    assert codes(out) == [250]
    ((envelope, octets),) = drops(tmp_path)
    assert envelope.sender == "a@b.test"
    assert b"MAIL FROM:<evil@b.test>" in octets


@pytest.mark.parametrize(
    ("commands", "code"),
    [
        (b"RCPT TO:<x@y.test>\r\n", 503),
        (b"DATA\r\n", 503),
        (b"MAIL FROM:<a@b.test>\r\nMAIL FROM:<a@b.test>\r\n", 503),
        (b"MAIL FROM:<a@b.test>\r\nDATA\r\n", 503),
        (b"MAIL FROM:<a@b.test> HOLDFOR=60\r\n", 501),
        (b"AUTH PLAIN\r\n", 502),
        (b"STARTTLS\r\n", 502),
        (b"BDAT 3 LAST\r\nabc", 502),
        (b"EXPN x\r\n", 502),
        (b"VRFY x\r\n", 252),
        (b"NOOP\r\n", 250),
        (b"HELP\r\n", 250),
        (b"LHLO x\r\n", 502),
        (b"nonsense\r\n", 500),
        (b"RSET\r\n", 250),
    ],
)
def test_what_else_a_client_may_say(client, commands, code):
    out, ended = client.receive(commands)
    assert codes(out)[-1] == code
    assert not ended


def test_without_a_maildrop_the_client_is_to_come_back(tmp_path, capsys):
    client = Dialogue(str(tmp_path / "none"), "gw.test")
    out, _ = client.receive(SESSION[: SESSION.index(b"Subject")])
    assert codes(out)[-1] == 451
    assert "there is no directory" in capsys.readouterr().err
    assert codes(client.receive(b"RSET\r\n")[0]) == [250]


def test_a_disk_that_fills_while_the_message_comes(client, tmp_path, monkeypatch):
    client.receive(SESSION[: SESSION.index(b"Subject")])

    def full(fd, octets):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    out, _ = client.receive(b"Subject: x\r\n\r\nbody\r\n.\r\n")
    assert codes(out) == [451]
    assert os.listdir(tmp_path / "drop") == []
