import os
import signal

import pytest

from mailgate.admin.sendmail.main import main
from mailgate.queue.drop import HEAD_OCTETS, DropHead, read_envelope


@pytest.fixture
def maildrop(tmp_path, monkeypatch):
    directory = tmp_path / "drop"
    directory.mkdir()
    config = tmp_path / "mailgate.toml"
    config.write_text(f'server.hostname = "gw.test"\n[queue]\nmaildrop = "{directory}"\n')
    monkeypatch.setenv("MAILGATE_CONFIG", str(config))
    monkeypatch.delenv("NAME", raising=False)
    monkeypatch.setattr("sys.argv", ["sendmail"])
    return directory


@pytest.fixture
def sendmail(maildrop, tmp_path):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    standard = os.dup(0)

    def run(text, *arguments):
        (tmp_path / "input").write_bytes(text)
        fd = os.open(tmp_path / "input", os.O_RDONLY)
        os.dup2(fd, 0)
        os.close(fd)
        return main(arguments)

    yield run
    os.dup2(standard, 0)
    os.close(standard)
    for number, action in before.items():
        signal.signal(number, action)


def drop(maildrop):
    (path,) = maildrop.iterdir()
    octets = path.read_bytes()
    head = DropHead.of(octets[:HEAD_OCTETS], len(octets))
    rest = octets[HEAD_OCTETS:]
    return read_envelope(rest[: head.envelope_octets]), rest[head.envelope_octets :]


def test_a_message_is_put_into_the_maildrop(maildrop, sendmail):
    assert sendmail(b"Subject: x\n\nbody\n.\nnot any more", "-f", "J <me@x.test>", "a@b.test,root", "a@b.test") == 0
    envelope, octets = drop(maildrop)
    assert envelope.sender == "me@x.test"
    assert [recipient.address for recipient in envelope.recipients] == ["a@b.test", "root"]
    assert octets.startswith(b"Subject: x\r\nDate: ")
    assert b"\r\nFrom: me@x.test\r\n" in octets
    assert octets.endswith(b"\r\n\r\nbody\r\n")


@pytest.mark.spec("OUT-282")
def test_t_takes_the_recipients_of_the_header_and_removes_bcc(maildrop, sendmail):
    assert sendmail(b"To: a@b.test\nCc: c@d.test\nBcc: e@f.test\n\nbody\n", "-t", "-i", "more@x.test") == 0
    envelope, octets = drop(maildrop)
    assert {each.address for each in envelope.recipients} == {"a@b.test", "c@d.test", "e@f.test", "more@x.test"}
    assert b"e@f.test" not in octets
    assert b"Bcc" not in octets


def test_without_f_the_sender_is_the_user(maildrop, sendmail):
    assert sendmail(b"x", "-F", "Some One", "a@b.test") == 0
    envelope, octets = drop(maildrop)
    assert envelope.sender
    assert f"From: Some One <{envelope.sender}@gw.test>\r\n".encode() in octets


def test_the_null_sender(maildrop, sendmail):
    assert sendmail(b"x", "-f", "<>", "a@b.test") == 0
    envelope, octets = drop(maildrop)
    assert envelope.sender == ""
    assert b"From: MAILER-DAEMON@gw.test\r\n" in octets


def test_parameters_go_with_the_envelope(maildrop, sendmail):
    assert sendmail(b"x", "-N", "never", "-R", "full", "-V", "id", "jörg@b.test") == 0
    envelope, _ = drop(maildrop)
    assert (envelope.recipients[0].notify, envelope.ret, envelope.envid) == ("NEVER", "FULL", "id")
    assert envelope.smtputf8


@pytest.mark.spec("OUT-282")
@pytest.mark.parametrize(
    ("text", "arguments", "status"),
    [
        (b"x", [], 65),
        (b"x", ["foo bar"], 65),
        (b"x", [""], 65),
        (b"x", ["-f", "a@b, c@d", "x@y"], 65),
        (b"x", ["-f", "a@", "x@y"], 65),
        (b"Subject: x\n\nbody", ["-t"], 65),
        (b"To: nobody at all\n\nbody", ["-t"], 65),
        (b"X: " + b"y" * 2_000_000, ["x@y"], 65),
        (b"x", ["\udcff@b.test"], 65),
        (b"x", ["-z"], 64),
        (b"x", ["-bt"], 64),
    ],
)
def test_what_cannot_be_taken_has_its_status_and_leaves_nothing(maildrop, sendmail, capsys, text, arguments, status):
    assert sendmail(text, *arguments) == status
    assert capsys.readouterr().err.startswith("sendmail: ")
    assert not list(maildrop.iterdir())


@pytest.mark.spec("OUT-282")
def test_without_a_maildrop_it_is_to_be_tried_again(maildrop, sendmail):
    maildrop.rmdir()
    assert sendmail(b"x", "a@b.test") == 75


@pytest.mark.spec("OUT-282")
def test_a_configuration_that_does_not_say_where_is_78(sendmail, tmp_path):
    (tmp_path / "mailgate.toml").write_text("[queue\n")
    assert sendmail(b"x", "a@b.test") == 78


def test_newaliases_has_nothing_to_do(sendmail):
    assert sendmail(b"", "-bi") == 0


def test_a_signal_leaves_nothing_behind(maildrop, sendmail, monkeypatch):
    read = os.read

    def interrupted(fd, octets):
        if fd == 0:
            block = read(fd, 10)
            if not block:
                assert len(list(maildrop.iterdir())) == 1
                os.kill(os.getpid(), signal.SIGTERM)
            return block
        return read(fd, octets)

    monkeypatch.setattr(os, "read", interrupted)
    assert sendmail(b"Subject: x\n\nbody\n", "a@b.test") == 75
    assert not list(maildrop.iterdir())
