"""Command lines: verbs, arguments, paths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.mail import replies
from mailgate.mail.envelope import Body, MailParameters
from mailgate.mail.path import NULL_PATH, Path
from mailgate.wire.smtp.command import (
    Auth,
    Bdat,
    Data,
    Ehlo,
    Expn,
    Help,
    Mail,
    Noop,
    Quit,
    Rcpt,
    Rejected,
    Rset,
    StartTls,
    Vrfy,
)
from mailgate.wire.smtp.parse import parse

UNKNOWN = Rejected(replies.UNKNOWN_COMMAND, unknown_verb=True)


def refusal(line):
    """Code and enhanced code of the refusal of a line."""
    event = parse(line.encode() if isinstance(line, str) else line)
    assert isinstance(event, Rejected), event
    assert not event.close
    return f"{event.reply.code} {event.reply.enhanced}"


@pytest.mark.parametrize(
    "line, event",
    [
        (b"EHLO mx.test", Ehlo("EHLO", "mx.test")),
        (b"helo mx.test", Ehlo("HELO", "mx.test")),
        (b"LHLO [192.0.2.1]", Ehlo("LHLO", "[192.0.2.1]")),
        (b"EHLO  Mx.Test ", Ehlo("EHLO", "Mx.Test")),
        (b"EHLO", Ehlo("EHLO", "")),
        (b"EHLO ", Ehlo("EHLO", "")),
        ("EHLO büro.test".encode(), Ehlo("EHLO", "büro.test")),
        (b"StartTls", StartTls()),
        (b"AUTH plain", Auth("PLAIN")),
        (b"AUTH PLAIN AGpvaG4Ac2VjcmV0", Auth("PLAIN", b"AGpvaG4Ac2VjcmV0")),
        (b"AUTH PLAIN =", Auth("PLAIN", b"=")),
        (b"DATA", Data()),
        (b"data  ", Data()),
        (b"BDAT 0", Bdat(0)),
        (b"BDAT 10", Bdat(10)),
        (b"bdat 10 last", Bdat(10, last=True)),
        (b"BDAT  10  LAST ", Bdat(10, last=True)),
        (b"BDAT 99999999999999999999", Bdat(99999999999999999999)),
        (b"RSET", Rset()),
        (b"NOOP", Noop()),
        (b"NOOP x y z", Noop()),
        (b"HELP QUIT", Help()),
        (b"QUIT", Quit()),
        (b"VRFY john", Vrfy("john")),
        (b"VRFY <john@foobar.org>", Vrfy("john@foobar.org")),
        (b'VRFY "john doe"', Vrfy("john doe")),
        (b"VRFY john SMTPUTF8", Vrfy("john")),
        (b"VRFY SMTPUTF8", Vrfy("SMTPUTF8")),
        (b"EXPN sales@foobar.org", Expn("sales@foobar.org")),
    ],
)
def test_commands(line, event):
    assert parse(line) == event


@pytest.mark.spec("IN-109")
@pytest.mark.parametrize("line", [b"XYZZY", b"DATA_", b""])
def test_unknown_verbs(line):
    assert parse(line) == UNKNOWN
    assert UNKNOWN.reply.code == 500
    assert UNKNOWN.reply.enhanced == "5.5.1"


@pytest.mark.parametrize(
    "line",
    [
        b" NOOP",
        b"NOOP\tx",
        b"MAILFROM:<a@b.test>",
        b"SEND FROM:<a@b.test>",
        b"\xff\xfe",
        b"XYZZY \xff",
        "ſet".encode(),
        "RſET".encode(),
        "MAıL FROM:<a@b.test>".encode(),
        b"NOOP\0",
    ],
)
def test_more_unknown_verbs(line):
    assert parse(line) == UNKNOWN


@pytest.mark.spec("IN-110")
@pytest.mark.parametrize("line", ["ETRN x", "ATRN d.test", "BURL imap://x LAST"])
def test_commands_known_by_name_only(line):
    assert refusal(line) == "502 5.5.1"


@pytest.mark.spec("IN-152", "IN-253", "IN-293")
@pytest.mark.parametrize("line", ["AUTH", "BDAT", "BDAT LAST", "BDAT 12x", "VRFY", 'EXPN ""'])
def test_arguments_that_must_be_there(line):
    assert refusal(line) == "501 5.5.2"


@pytest.mark.parametrize(
    "line",
    [
        "ETRN",
        "ATRN ",
        "BURL",
        "BDAT -1",
        "BDAT +1",
        "BDAT 1 LAST x",
        "BDAT 1 FIRST",
        "BDAT 1LAST",
        "BDAT ١",
        "BDAT 100000000000000000000",
        "AUTH PLAIN a b",
        "DATA x",
        "RSET x",
        "QUIT x",
        "STARTTLS x",
        "VRFY  ",
        "EXPN <>",
        "VRFY a\x01b",
        "EHLO a b",
        "EHLO a\x00",
        "EHLO a\x85b",
        "EHLO " + "a" * 256,
        "MAIL",
        "MAIL FROM",
        "MAIL FROM:",
        "MAIL TO:<a@b.test>",
        "MAIL <a@b.test>",
        "MAIL FROM:Sender <a@b.test>",
        "MAIL FROM:<a@b.test",
        'MAIL FROM:<"a@b.test>',
        'MAIL FROM:<a"@b.test>',
        "MAIL FROM:a@b.test>",
        "MAIL FROM:<a@b.test>SIZE=10",
        "MAIL FROM:<a@b.test>,<c@d.test>",
        "RCPT TO:",
        "RCPT FROM:<a@b.test>",
        "RCPT TO:<a@b.test>x",
        "RCPT TO:<a@b.test",
    ],
)
def test_syntax(line):
    assert refusal(line) == "501 5.5.2"


@pytest.mark.spec("IN-178")
@pytest.mark.parametrize("line", ["MAIL FROM:a@b", "MAIL FROM:<a@b.test>>>"])
def test_brackets_that_are_missing_or_too_many(line):
    assert refusal(line) == "501 5.5.2"


@pytest.mark.parametrize("verb", [b"MAIL", b"rcpt", b"AUTH", b"EHLO", b"VRFY", b"NOOP", b"BDAT"])
def test_a_known_verb_with_undecodable_octets_is_a_syntax_error(verb):
    event = parse(verb + b" FROM:<s\xebnder@client.test>")
    assert event == Rejected(replies.SYNTAX, verb=verb.decode().upper())


def test_a_refusal_names_its_verb():
    assert parse(b"mail from:<a@@b>") == Rejected(replies.BAD_REVERSE_PATH, verb="MAIL")
    assert parse(b"RCPT TO:<a@@b>") == Rejected(replies.BAD_FORWARD_PATH, verb="RCPT")
    assert parse(b"RCPT TO:<a@b> X") == Rejected(replies.UNKNOWN_PARAMETER, verb="RCPT")


def test_secrets_are_not_printed():
    assert "AGpvaG4A" not in repr(parse(b"AUTH PLAIN AGpvaG4Ac2VjcmV0"))


# --- paths ----------------------------------------------------------------------

PATHS = [
    ("<a@b.test>", Path("a", "b.test")),
    ("<A.b+c@B.Test>", Path("A.b+c", "B.Test")),
    ("<!#$%&'*+-/=?^_`{|}~@client.test>", Path("!#$%&'*+-/=?^_`{|}~", "client.test")),
    ("<a@123.4a.client.test>", Path("a", "123.4a.client.test")),
    ("<a@a-b--c.client.test>", Path("a", "a-b--c.client.test")),
    ("<a@my_host.test>", Path("a", "my_host.test")),
    ("<a@localhost>", Path("a", "localhost")),
    ('<"hi there"@b.test>', Path("hi there", "b.test")),
    ('<" hi there! "@d.test>', Path(" hi there! ", "d.test")),
    ('<"john\\"doe"@b.test>', Path('john"doe', "b.test")),
    ('<"a\\\\b\\c"@b.test>', Path("a\\bc", "b.test")),
    ('<"john@doe"@b.test>', Path("john@doe", "b.test")),
    ('<"<john>"@b.test>', Path("<john>", "b.test")),
    ('<"a..b"@b.test>', Path("a..b", "b.test")),
    ('<"postmaster"@b.test>', Path("postmaster", "b.test")),
    ("<a@[192.0.2.1]>", Path("a", "[192.0.2.1]")),
    ("<a@[IPv6:2001:db8::1]>", Path("a", "[IPv6:2001:db8::1]")),
    ("<a@[ipv6:::ffff:192.0.2.1]>", Path("a", "[ipv6:::ffff:192.0.2.1]")),
    ("<@a,@b:user@d.test>", Path("user", "d.test")),
    ("<@[192.0.2.1]:user@d.test>", Path("user", "d.test")),
    ("<  a@b.test>", Path("a", "b.test")),
    ("<jörg@bücher.test>", Path("jörg", "bücher.test")),
    ("<用户@例え.test>", Path("用户", "例え.test")),
    ('<"jörg x"@bücher.test>', Path("jörg x", "bücher.test")),
    (f"<{'a' * 100}@b.test>", Path("a" * 100, "b.test")),
    (f"<a@{'b' * 63}.test>", Path("a", "b" * 63 + ".test")),
    (f"<{'a' * 249}@b.test>", Path("a" * 249, "b.test")),
]


@pytest.mark.parametrize("text, path", PATHS)
def test_paths(text, path):
    assert parse(f"MAIL FROM:{text}".encode()) == Mail(path)
    assert parse(f"RCPT TO:{text}".encode()) == Rcpt(path)


@pytest.mark.parametrize(
    "text", ["MAIL FROM:{}", "mail from : {}", "MAIL   FROM:   {}", "MAIL FROM:{} ", "MaIl fRoM:{}"]
)
def test_spaces_around_the_keyword(text):
    assert parse(text.format("<a@b.test>").encode()) == Mail(Path("a", "b.test"))
    assert parse(text.format("<>").encode()) == Mail(NULL_PATH)


BAD_PATHS = [
    "<@x>",
    "<@>",
    "<a>",
    "<a@>",
    "<a@b@c>",
    "<a@b..c>",
    "<a@b.test.>",
    "<a.@b.test>",
    "<a@-b.test>",
    "<a@b-.test>",
    "<a@b/c.test>",
    "<a@b%c.test>",
    "<a(b)c@d.test>",
    "<a(c)@d.test>",
    "<a,b@c.test>",
    "<a\\b@c.test>",
    "<a b@c.test>",
    "<a@b.test >",
    "<a\tb@c.test>",
    "<a\x00b@c.test>",
    "<a@c.test\x00.evil.test>",
    "<a\x01b@c.test>",
    "<a\x7fb@c.test>",
    "<a\x85b@c.test>",
    "<a\u2028b@c.test>",
    '<"a\x01b"@c.test>',
    '<"a\\\x00b"@c.test>',
    '<""@c.test>',
    '<"a"b@c.test>',
    '<a."b"@c.test>',
    "<<a@c.test>",
    "<a@[300.1.2.3]>",
    "<a@[1.2.3.4.5]>",
    "<a@[1.2.3]>",
    "<a@[01.2.3.4]>",
    "<a@[127.0.0.1>",
    "<a@[]>",
    "<a@[IPv6:gggg::1]>",
    "<a@[IPv6:fe80::1%eth0]>",
    "<a@[2001:db8::1]>",
    "<a@[foo:bar]>",
    "<@a.test,b.test:a@c.test>",
    "<@a.test>",
    "<@a.test:>",
    "<@a.test:postmaster>",
    f"<a@{'b' * 64}.test>",
    f"<{'a' * 250}@b.test>",
    f"<{'ü' * 130}@b.test>",
]


@pytest.mark.spec("IN-174")
@pytest.mark.parametrize("text", ["<hi@@x>", "<hi..a@x>", "<.a@x>", "<@x>", "<a@.x>"])
def test_reverse_paths_that_are_not_valid(text):
    assert refusal(f"MAIL FROM:{text}") == "501 5.1.8"


@pytest.mark.parametrize("text", BAD_PATHS)
def test_paths_that_are_not_valid(text):
    assert refusal(f"MAIL FROM:{text}") == "501 5.1.8"
    assert refusal(f"RCPT TO:{text}") == "501 5.1.3"


@pytest.mark.spec("IN-217", "IN-218")
@pytest.mark.parametrize("text", ["<a@@b>", "<>", "< >"])
def test_forward_paths_that_are_not_valid(text):
    assert refusal(f"RCPT TO:{text}") == "501 5.1.3"


@pytest.mark.parametrize("text", ["<>", "< >", "<postmaster>", "<Postmaster>", "< POSTMASTER>"])
def test_null_reverse_paths(text):
    assert parse(f"MAIL FROM:{text}".encode()) == Mail(NULL_PATH)


@pytest.mark.parametrize("text", ["<postmaster>", "<PostMaster>", "< postmaster>"])
def test_postmaster_needs_no_domain(text):
    assert parse(f"RCPT TO:{text}".encode()) == Rcpt(Path("postmaster", ""))


# --- the short way says what the long way says --------------------------------------


@pytest.mark.parametrize(
    "parameters, expected",
    [
        ("", MailParameters()),
        (" SIZE=4096", MailParameters(size_octets=4096)),
        (" size=4096 body=8bitmime", MailParameters(size_octets=4096, body=Body.EIGHT_BIT)),
        (" BODY=7BIT", MailParameters(body=Body.SEVEN_BIT)),
        (" BODY=7BIT SIZE=1", MailParameters(size_octets=1, body=Body.SEVEN_BIT)),
        ("  SIZE=4096", MailParameters(size_octets=4096)),
        (" SIZE=4096 ", MailParameters(size_octets=4096)),
    ],
)
def test_common_parameters(parameters, expected):
    assert parse(f"MAIL FROM:<a@b.test>{parameters}".encode()) == Mail(Path("a", "b.test"), expected)
    assert parse(f"MAIL FROM:<>{parameters}".encode()) == Mail(NULL_PATH, expected)


MAILBOX = st.text('aB1.@-_+" \\[]ü:,', max_size=12)


@given(MAILBOX, st.sampled_from(["", " SIZE=1", " BODY=8BITMIME"]))
def test_short_and_long_way_agree(mailbox, parameters):
    # A space before the colon takes the long way.
    short = parse(f"MAIL FROM:<{mailbox}>{parameters}".encode())
    assert short == parse(f"MAIL FROM :<{mailbox}>{parameters}".encode())


@given(
    st.one_of(
        st.binary(max_size=80),
        st.builds(
            lambda verb, rest: verb + b" " + rest,
            st.sampled_from([b"MAIL", b"RCPT", b"AUTH", b"BDAT", b"EHLO", b"VRFY"]),
            st.binary(max_size=60),
        ),
        st.builds(
            lambda head, path, rest: (head + path + ">" + rest).encode(),
            st.sampled_from(["MAIL FROM:<", "RCPT TO:<"]),
            st.text(max_size=20),
            st.text(max_size=30),
        ),
    )
)
def test_nothing_raises(line):
    parse(line.replace(b"\r", b"").replace(b"\n", b""))


@pytest.mark.parametrize(
    "line",
    [
        "MAIL FROM:<" + "a." * 2000 + "@b>",
        "MAIL FROM:<a@" + "b-" * 2000 + ">",
        "MAIL FROM:<@" + "a,@" * 1300 + ":",
        'MAIL FROM:<"' + "\\a" * 2000,
        'MAIL FROM:<"' + '"' * 4000,
        "MAIL FROM:<" + '"a"' * 1300 + "x",
        "MAIL" + " " * 4000 + "x",
        "BDAT" + " " * 4000 + "x",
        "MAIL FROM:<a@b.test> " + "A " * 2000,
        "MAIL FROM:<a@b.test> ENVID=" + "+" * 4000,
        "RCPT TO:<a@b.test> NOTIFY=" + "DELAY," * 600,
        "VRFY " + "\\" * 4000 + "\x00",
    ],
)
def test_no_line_hangs_a_pattern(line):
    assert isinstance(parse(line.encode()), Rejected)
