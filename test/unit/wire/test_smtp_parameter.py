"""The parameters of MAIL and RCPT, one by one."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.mail.envelope import (
    Body,
    DeliverBy,
    HoldUntil,
    MailParameters,
    Notify,
    RcptParameters,
    Ret,
)
from mailgate.wire.smtp.command import Mail, Rcpt, Rejected
from mailgate.wire.smtp.error import RemoteError
from mailgate.wire.smtp.parameter import mail_parameters, rcpt_parameters, timestamp, xtext
from mailgate.wire.smtp.parse import parse


def refusal(line):
    event = parse(line.encode())
    assert isinstance(event, Rejected), event
    return f"{event.reply.code} {event.reply.enhanced}"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", {}),
        ("   ", {}),
        ("SIZE=0", {"size_octets": 0}),
        ("size=1000", {"size_octets": 1000}),
        ("SIZE=99999999999999999999", {"size_octets": 99999999999999999999}),
        ("BODY=7bit", {"body": Body.SEVEN_BIT}),
        ("BODY=8BITMIME", {"body": Body.EIGHT_BIT}),
        ("BODY=BinaryMime", {"body": Body.BINARY}),
        ("BODY=8BITMIME BODY=BINARYMIME", {"body": Body.BINARY}),
        ("BODY=BINARYMIME BODY=7BIT", {"body": Body.BINARY}),
        ("SMTPUTF8", {"smtputf8": True}),
        ("requiretls", {"requiretls": True}),
        ("CONPERM", {"conperm": True}),
        ("SMTPUTF8 SMTPUTF8", {"smtputf8": True}),
        ("RET=FULL", {"ret": Ret.FULL}),
        ("RET=hdrs", {"ret": Ret.HDRS}),
        ("ENVID=abc", {"envid": "abc"}),
        ("ENVID=hi+20there", {"envid": "hi there"}),
        ("ENVID=" + "a" * 100, {"envid": "a" * 100}),
        ("BY=120;R", {"deliver_by": DeliverBy(120, "R")}),
        ("BY=120;RT", {"deliver_by": DeliverBy(120, "R", trace=True)}),
        ("BY=-456;n", {"deliver_by": DeliverBy(-456, "N")}),
        ("BY=+456;nt", {"deliver_by": DeliverBy(456, "N", trace=True)}),
        ("BY=0;R", {"deliver_by": DeliverBy(0, "R")}),
        ("HOLDFOR=0", {"hold_seconds": 0}),
        ("HOLDFOR=86400", {"hold_seconds": 86400}),
        ("HOLDUNTIL=49374347", {"hold_until": HoldUntil(49374347.0)}),
        ("HOLDUNTIL=2001-09-09T01:46:40Z", {"hold_until": HoldUntil(1000000000.0)}),
        ("HOLDUNTIL=2001-09-09t03:46:40.5+02:00", {"hold_until": HoldUntil(1000000000.5)}),
        ("HOLDFOR=1 HOLDUNTIL=2", {"hold_seconds": 1, "hold_until": HoldUntil(2.0)}),
        ("MT-PRIORITY=3", {"priority": 3}),
        ("MT-PRIORITY=-6", {"priority": -6}),
        ("MT-PRIORITY=+7", {"priority": 7}),
        ("SOLICIT=org.example:ADV:ADLT", {"solicit": "org.example:ADV:ADLT"}),
        ("TRANSID=<12345@client.test>", {"transid": "12345@client.test"}),
        ("MTRK=some-certifier", {"mtrk": "some-certifier"}),
        ("MTRK=c2VjcmV0:86400", {"mtrk": "c2VjcmV0:86400"}),
        ("AUTH=<>", {"auth": "<>"}),
        ("AUTH=e+3Dmc2@example.test", {"auth": "e=mc2@example.test"}),
        (
            "  SIZE=1   BODY=8BITMIME  SMTPUTF8 ",
            {"size_octets": 1, "body": Body.EIGHT_BIT, "smtputf8": True},
        ),
    ],
)
def test_mail_parameters(text, expected):
    assert mail_parameters(text) == MailParameters(**expected)


@pytest.mark.spec("IN-180")
@pytest.mark.parametrize(
    "parameter",
    ["SIZE=ABC", "SIZE=-100", "BODY=OTHER", "RET=X", "ENVID=", "BY=120", "BY=120;T", "HOLDFOR=X", "MT-PRIORITY=ab"],
)
def test_values_that_are_not_valid(parameter):
    assert refusal(f"MAIL FROM:<a@b.test> {parameter}") == "501 5.5.4"


@pytest.mark.parametrize(
    "parameter",
    [
        "SIZE",
        "SIZE=",
        "SIZE=+10",
        "SIZE=1=0",
        "SIZE=1.0",
        "SIZE=1_0",
        "SIZE=١٢",
        "SIZE=999999999999999999999",
        "SIZE=10 SIZE=20",
        "BODY",
        "BODY=",
        "BODY=8BITMıME",
        "RET",
        "RET=FULL RET=FULL",
        "ENVID",
        "ENVID=+0A",
        "ENVID=+FF",
        "ENVID=+",
        "ENVID=a\x01b",
        "ENVID=" + "a" * 101,
        "BY=;R",
        "BY=x;R",
        "BY=12",
        "BY=1000000000;R",
        "BY=1;RN",
        "BY=1;TR",
        "BY=1;R;T",
        "BY=--1;N",
        "HOLDFOR=-1",
        "HOLDFOR=1000000000",
        "HOLDUNTIL=x",
        "HOLDUNTIL=2001-09-09",
        "HOLDUNTIL=2001-09-09T01:46:40",
        "HOLDUNTIL=2001-13-09T01:46:40Z",
        "HOLDUNTIL=2001-02-30T01:46:40Z",
        "HOLDUNTIL=2001-09-09T24:46:40Z",
        "HOLDUNTIL=2001-09-09T01:46:61Z",
        "HOLDUNTIL=2001-09-09T01:46:40+24:00",
        "HOLDUNTIL=2001-09-09T01:46:40+01:60",
        "HOLDUNTIL=0000-01-01T00:00:00Z",
        "MT-PRIORITY=",
        "MT-PRIORITY=1.5",
        "MT-PRIORITY=1000",
        "SOLICIT",
        "SOLICIT=",
        "TRANSID=abc",
        "TRANSID=<>",
        "TRANSID=<abc",
        "MTRK=:1",
        "MTRK=a:",
        "MTRK=a:x",
        "MTRK=a:1:2",
        "AUTH=",
        "AUTH=+00",
        "AUTH=" + "a" * 257,
    ],
)
def test_more_values_that_are_not_valid(parameter):
    assert refusal(f"MAIL FROM:<a@b.test> {parameter}") == "501 5.5.4"
    assert refusal(f"MAIL FROM:<> {parameter}") == "501 5.5.4"


@pytest.mark.spec("IN-179")
@pytest.mark.parametrize("parameter", ["HELLO=WORLD", "SMTPUTF8=YES"])
def test_parameters_not_known_or_without_value(parameter):
    assert refusal(f"MAIL FROM:<a@b.test> {parameter}") == "504 5.5.4"


@pytest.mark.parametrize(
    "parameter",
    [
        "FROB",
        "=10",
        "SI*ZE=10",
        "ſIZE=10",
        "SMTPUTF8=",
        "REQUIRETLS=1",
        "CONPERM=1",
        "CONNEG",
        "NOTIFY=NEVER",
        "ORCPT=rfc822;a@b",
        "(hi)",
        "<b@client.test>",
        "SIZE=10\tBODY=7BIT\x00 X",
    ],
)
def test_more_parameters_not_known(parameter):
    event = parse(f"MAIL FROM:<a@b.test> {parameter}".encode())
    assert isinstance(event, Rejected)
    assert event.reply.enhanced == "5.5.4"
    assert event.reply.code == (501 if "\t" in parameter else 504)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", {}),
        ("NOTIFY=NEVER", {"notify": Notify.NEVER}),
        ("notify=success", {"notify": Notify.SUCCESS}),
        ("NOTIFY=SUCCESS,FAILURE,DELAY", {"notify": Notify.SUCCESS | Notify.FAILURE | Notify.DELAY}),
        ("NOTIFY=DELAY,DELAY", {"notify": Notify.DELAY}),
        ("ORCPT=rfc822;Jane.Doe@Foobar.org", {"orcpt": "Jane.Doe@Foobar.org"}),
        ("ORCPT=RFC822;jane+2Bdoe@foobar.org", {"orcpt": "jane+doe@foobar.org"}),
        ("ORCPT=rfc822;" + "a" * 256, {"orcpt": "a" * 256}),
        ("RRVS=2014-04-03T23:01:00Z", {"rrvs": "2014-04-03T23:01:00Z"}),
        ("RRVS=2014-04-03T23:01:00+01:00;C", {"rrvs": "2014-04-03T23:01:00+01:00;C"}),
        ("RRVS=2014-04-03T23:01:00Z;r", {"rrvs": "2014-04-03T23:01:00Z;r"}),
        ("CONNEG", {"conneg": True}),
        (" NOTIFY=DELAY  CONNEG ", {"notify": Notify.DELAY, "conneg": True}),
    ],
)
def test_rcpt_parameters(text, expected):
    assert rcpt_parameters(text) == RcptParameters(**expected)
    assert parse(f"RCPT TO:<a@b.test> {text}".encode()) == Rcpt(
        parse(b"MAIL FROM:<a@b.test>").path, RcptParameters(**expected)
    )


@pytest.mark.spec("IN-216")
@pytest.mark.parametrize("parameter", ["NOTIFY=FAILURE,NEVER", "NOTIFY=", "ORCPT=rfc822;", "RRVS=ABC"])
def test_rcpt_values_that_are_not_valid(parameter):
    assert refusal(f"RCPT TO:<a@b.test> {parameter}") == "501 5.5.4"


@pytest.mark.parametrize(
    "parameter",
    [
        "NOTIFY",
        "NOTIFY=SOMETIMES",
        "NOTIFY=NEVER,NEVER",
        "NOTIFY=DELAY,",
        "NOTIFY=NEVER NOTIFY=NEVER",
        "NOTIFY=ſUCCESS",
        "ORCPT=a@b.test",
        "ORCPT=x400;a@b.test",
        "ORCPT=rfc822;a+0D+0Ab",
        "ORCPT=rfc822;" + "a" * 257,
        "RRVS=2014-04-03T23:01:00",
        "RRVS=2014-04-03T23:01:00Z;X",
        "RRVS=2014-04-03T23:01:00Z;",
    ],
)
def test_more_rcpt_values_that_are_not_valid(parameter):
    assert refusal(f"RCPT TO:<a@b.test> {parameter}") == "501 5.5.4"


@pytest.mark.spec("IN-219")
def test_rcpt_parameter_not_known():
    assert refusal("RCPT TO:<a@b.test> FOO=1") == "504 5.5.4"


@pytest.mark.parametrize("parameter", ["SIZE=1", "CONNEG=1", "SMTPUTF8", "FOO"])
def test_more_rcpt_parameters_not_known(parameter):
    assert refusal(f"RCPT TO:<a@b.test> {parameter}") == "504 5.5.4"


@pytest.mark.parametrize(
    "value, text",
    [
        ("abc", "abc"),
        ("a+20b", "a b"),
        ("a+2bb", "a+b"),
        ("+C3+BC", "ü"),
        ("ü", "ü"),
        ("a+", "a"),
        ("a+4", "a"),
        ("a+ZZb", "ab"),
        ("a+4Zb", "ab"),
        ("a++41", "aA"),
    ],
)
def test_xtext_drops_what_is_no_escape(value, text):
    assert xtext(value, 100) == text


@pytest.mark.parametrize(
    "value, seconds",
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("1969-12-31T23:00:00-01:00", 0.0),
        ("1970-01-01T00:00:00.250Z", 0.25),
        ("2016-12-31T23:59:60Z", 1483228800.0),
        ("0001-01-01T00:00:00+23:59", -62135683140.0),
        ("9999-12-31T23:59:59-23:59", 253402387139.0),
    ],
)
def test_timestamps(value, seconds):
    expected = -62135596800.0 - 86340 if value.startswith("0001") else seconds
    assert timestamp(value) == expected


@given(
    st.lists(
        st.sampled_from(["SIZE=", "BODY=", "8BITMIME", "BY=", ";R", "+4", "+", "HOLDUNTIL=", *"1\xfc\x00= "]),
        max_size=12,
    )
)
def test_nothing_but_a_remote_error(parts):
    for read in (mail_parameters, rcpt_parameters):
        with suppress(RemoteError):
            read("".join(parts))


def test_the_envelope_gets_what_mail_said():
    event = parse(b"MAIL FROM:<a@b.test> RET=HDRS ENVID=hi+20there SMTPUTF8")
    assert isinstance(event, Mail)
    assert event.parameters == MailParameters(ret=Ret.HDRS, envid="hi there", smtputf8=True)
