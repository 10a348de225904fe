"""The capability list of the reply to EHLO."""

from datetime import timedelta

from mailgate.wire.smtp.extension import Capabilities, ehlo_reply, helo_reply


def test_what_is_always_there():
    assert ehlo_reply("mx.test", Capabilities(size=104857600), 0).wire("k3v7q2mzcb4d") == (
        b"250-mx.test at your service\r\n"
        b"250-SMTPUTF8\r\n"
        b"250-SIZE 104857600\r\n"
        b"250-ENHANCEDSTATUSCODES\r\n"
        b"250 8BITMIME\r\n"
    )


def test_everything_in_its_order():
    capabilities = Capabilities(
        size=1024,
        vrfy=True,
        expn=True,
        starttls=True,
        requiretls=True,
        pipelining=True,
        no_soliciting="a:b",
        mt_priority="nsep",
        future_release=timedelta(hours=1),
        dsn=True,
        deliver_by=timedelta(hours=2),
        chunking=True,
        auth=("PLAIN", "LOGIN"),
    )
    assert capabilities.lines(1000) == [
        "VRFY",
        "EXPN",
        "STARTTLS",
        "SMTPUTF8",
        "SIZE 1024",
        "REQUIRETLS",
        "PIPELINING",
        "NO-SOLICITING a:b",
        "MT-PRIORITY NSEP",
        "FUTURERELEASE 3600 4600",
        "ENHANCEDSTATUSCODES",
        "DSN",
        "DELIVERBY 7200",
        "CHUNKING",
        "BINARYMIME",
        "AUTH PLAIN LOGIN",
        "8BITMIME",
    ]


def test_no_soliciting_without_keywords():
    assert "NO-SOLICITING" in Capabilities(no_soliciting="").lines(0)
    assert "NO-SOLICITING" not in " ".join(Capabilities(no_soliciting=None).lines(0))


def test_helo_gets_one_line():
    assert helo_reply("mx.test").wire() == b"250 mx.test at your service\r\n"
