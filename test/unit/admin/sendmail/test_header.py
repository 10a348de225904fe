import pytest

from mailgate.admin.sendmail.header import Author, Header, HeaderTooLong, date_time, from_field, split
from mailgate.mail.address_list import BadAddress

AUTHOR = Author("Jane Doe", "jane@gw.test", "gw.test")


def of(text, size=None):
    octets = text.replace("\n", "\r\n").encode()
    blocks = [octets] if size is None else [octets[at : at + size] for at in range(0, len(octets), size)]
    blocks = iter(blocks)
    header, begun = split(blocks)
    return header, begun + b"".join(blocks)


def kept(text, author=AUTHOR):
    header, body = of(text)
    return header.kept(author, 1_700_000_000).decode(), body


def names(header):
    return [line.partition(":")[0] for line in header.split("\r\n") if line and line[0] not in " \t"]


def test_what_is_missing_is_added_and_the_rest_stays_as_it_is():
    header, body = kept("subject:  As it\n\tis \nX: 1\n\nbody\n")
    assert header.startswith("subject:  As it\r\n\tis \r\nX: 1\r\n")
    assert names(header) == ["subject", "X", "Date", "From", "Message-ID"]
    assert "From: Jane Doe <jane@gw.test>\r\n" in header
    assert header.rstrip().endswith("@gw.test>")
    assert body == b"body\r\n"


def test_what_is_there_is_not_added():
    given = "from: x@y.test\nDATE: then\nMessage-Id: <1@y.test>\n\nbody\n"
    assert kept(given)[0] == "from: x@y.test\r\nDATE: then\r\nMessage-Id: <1@y.test>\r\n"


@pytest.mark.spec("OUT-282")
def test_bcc_and_return_path_are_taken_out_with_their_continuations():
    header, _ = kept("To: a@b.test\nBcc: c@d.test,\n e@f.test\nReturn-Path: <x@y.test>\nResent-Bcc: z@y.test\nX: 1\n\n")
    assert "c@d.test" not in header
    assert "e@f.test" not in header
    assert names(header)[:2] == ["To", "X"]


@pytest.mark.spec("OUT-282")
def test_recipients_are_those_of_to_cc_and_bcc():
    header, _ = of(
        "To: A <a@b.test>,\n\t(x) c@d.test\nCc: team: e@f.test, g@h.test;\n"
        'bcc: "y" <i@j.test>\nReply-To: k@l.test\nTo: m@n.test\n\nTo: body@b.test\n'
    )
    assert header.recipients() == ["a@b.test", "c@d.test", "e@f.test", "g@h.test", "i@j.test", "m@n.test"]


def test_a_message_that_is_sent_again_goes_to_the_resent_recipients_only():
    header, _ = of("Resent-To: new@b.test\nResent-Bcc: too@b.test\nTo: old@b.test\n\n")
    assert header.recipients() == ["new@b.test", "too@b.test"]


@pytest.mark.parametrize("text", ["To: foo bar\n\n", "Cc: <a@b.test\n\n"])
def test_a_bad_recipient_is_told(text):
    with pytest.raises(BadAddress):
        of(text)[0].recipients()


def test_octets_that_are_no_utf8_are_no_recipients():
    with pytest.raises(BadAddress):
        Header([b"To: a\xff@b.test\r\n"]).recipients()


@pytest.mark.parametrize(
    ("text", "fields", "body"),
    [
        ("hello world\nmore\n", [], b"hello world\r\nmore\r\n"),
        ("\nbody\n", [], b"body\r\n"),
        ("Subject: x\nno field\nbody\n", ["Subject"], b"no field\r\nbody\r\n"),
        ("From jane Mon Nov 30\nSubject: x\n\nbody\n", ["Subject"], b"body\r\n"),
        (">From jane Mon Nov 30\nSubject: x\n\nbody\n", ["Subject"], b"body\r\n"),
        (" indented\n", [], b" indented\r\n"),
        ("Subject: x\n", ["Subject"], b""),
        ("", [], b""),
    ],
)
@pytest.mark.parametrize("size", [None, 1, 7])
def test_where_the_header_ends(text, fields, body, size):
    header, rest = of(text, size)
    assert names(header.kept(AUTHOR, 0).decode()) == [*fields, "Date", "From", "Message-ID"]
    assert rest == body


def test_a_header_without_end_is_not_collected_for_ever():
    with pytest.raises(HeaderTooLong):
        split(iter([b"X: " + b"y" * 60_000 + b"\r\n"] * 1000))


@pytest.mark.parametrize(
    ("name", "address", "field"),
    [
        ("", "a@b.test", "From: a@b.test"),
        ("Jane Doe", "a@b.test", "From: Jane Doe <a@b.test>"),
        ('J. "D" Doe, (x)', "a@b.test", 'From: "J. \\"D\\" Doe, (x)" <a@b.test>'),
        ("x\r\nBcc: y", "a@b.test", 'From: "x Bcc: y" <a@b.test>'),
        ("Jörg", "a@b.test", "From: =?utf-8?b?SsO2cmc=?= <a@b.test>"),
        ("", "a b@c.test", 'From: "a b"@c.test'),
        ("", "a.@c.test", 'From: "a."@c.test'),
        ("", "root", "From: root"),
    ],
)
def test_the_from_field(name, address, field):
    assert from_field(Author(name, address, "gw.test")) == field.encode() + b"\r\n"


def test_a_long_name_becomes_several_encoded_words():
    lines = from_field(Author("ü" * 60, "a@b.test", "")).split(b"\r\n")
    assert len(lines) > 2
    assert all(len(line) <= 78 for line in lines[:-2])


def test_the_date_does_not_depend_on_the_locale(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    __import__("time").tzset()
    assert date_time(1_700_000_000) == "Tue, 14 Nov 2023 22:13:20 +0000"
