"""Delivery status notifications: who is told, and every field of what tells it."""

from __future__ import annotations

import email
import email.policy

import pytest
from support.work_store import message, recipient

from mailgate.mail.envelope import NOTIFY_DEFAULT, Notify
from mailgate.mail.status import ErrorKind, RecipientStatus, RemoteReply
from mailgate.queue.item import ExpiresBy, Expiry, State
from mailgate.reports.dsn import HEADER_OCTETS, Kind, Reporter, compose, header_block, is_wanted, kind_due
from mailgate.reports.wording import dsn_line

REPORTER = Reporter("mx.example.net", "Mail Delivery Subsystem", "MAILER-DAEMON@example.net")
REJECTED = RecipientStatus(
    "mx.example.org",
    ErrorKind.UNEXPECTED_REPLY,
    command="RCPT TO:<jane@example.org>",
    reply=RemoteReply(550, "5.1.1", "No such user"),
)
TAKEN = RecipientStatus("mx.example.org", reply=RemoteReply(250, "2.1.5", "OK"))
ORIGINAL = b"From: joe@sender.example\r\nSubject: x\r\n\r\n"


def failed(address="jane@example.org", status=REJECTED, **facts):
    return recipient(address, state=State.PERM_FAIL, status=status, **facts)


def delayed(address="bob@example.org", status=None, **facts):
    status = status or RecipientStatus("mx.example.org", ErrorKind.CONNECTION, "Connection timeout")
    facts.setdefault("notify_due_ms", 0)
    return recipient(address, state=State.TEMP_FAIL, status=status, **facts)


def completed(address="ann@example.org", **facts):
    facts.setdefault("notify", Notify.SUCCESS)
    return recipient(address, state=State.COMPLETED, status=TAKEN, **facts)


def make(*recipients, original=ORIGINAL, now_ms=1000, reporter=REPORTER, **facts):
    item, _ = message(*recipients, **facts)
    told = [(one, kind_due(one, now_ms)) for one in item.recipients]
    dsn = compose(item, told, original, reporter, "000000000000d001", now_ms)
    return dsn, email.message_from_bytes(dsn.octets, policy=email.policy.SMTP.clone(utf8=True))


def status_fields(parsed):
    """The delivery-status part as a list of blocks, each a list of (name, value)."""
    part = parsed.get_payload()[1]
    return [[(name, str(value)) for name, value in block.items()] for block in part.get_payload()]


# --- who is told ------------------------------------------------------------------------------


def test_what_there_is_to_tell():
    assert kind_due(completed(), 0) is Kind.SUCCESS
    assert kind_due(failed(), 0) is Kind.FAILURE
    assert kind_due(delayed(notify_due_ms=10), 10) is Kind.DELAY
    assert kind_due(delayed(notify_due_ms=11), 10) is None
    assert kind_due(delayed(notify_due_ms=None), 10) is None
    assert kind_due(recipient(notify_due_ms=0), 10) is Kind.DELAY
    assert kind_due(failed(dsn_sent=True), 0) is None
    assert kind_due(delayed(notify_due_ms=10, held=True), 10) is None


@pytest.mark.parametrize(
    "flags, wanted",
    [
        (NOTIFY_DEFAULT, {Kind.FAILURE, Kind.DELAY}),
        (Notify.SUCCESS, {Kind.SUCCESS}),
        (Notify.SUCCESS | Notify.FAILURE, {Kind.SUCCESS, Kind.FAILURE}),
        (Notify.NEVER, set()),
        (Notify.NONE, set()),
    ],
)
def test_flags_decide_who_hears_what(flags, wanted):
    assert {kind for kind in Kind if is_wanted(recipient(notify=flags), kind)} == wanted


# --- the message ------------------------------------------------------------------------------


@pytest.mark.spec("OUT-153")
def test_header_and_the_three_parts():
    dsn, parsed = make(failed())
    assert parsed["From"] == "Mail Delivery Subsystem <MAILER-DAEMON@example.net>"
    assert parsed["To"] == "joe@sender.example"
    assert parsed["Subject"] == "Failed to deliver message"
    assert parsed["Auto-Submitted"] == "auto-generated"
    assert parsed["Message-ID"] == "<000000000000d001.3e8@mx.example.net>"
    assert parsed["Date"] == "Thu, 01 Jan 1970 00:00:01 +0000"
    assert parsed["MIME-Version"] == "1.0"
    assert parsed.get_content_type() == "multipart/report"
    assert parsed.get_param("report-type") == "delivery-status"
    assert [part.get_content_type() for part in parsed.get_payload()] == [
        "text/plain",
        "message/delivery-status",
        "message/rfc822",
    ]
    assert not parsed.defects
    assert not dsn.eight_bit
    assert not dsn.smtputf8
    assert b"\n" not in dsn.octets.replace(b"\r\n", b"")


@pytest.mark.spec("OUT-154")
@pytest.mark.parametrize(
    "recipients, subject",
    [
        ([completed()], "Successfully delivered message"),
        ([delayed()], "Warning: Delay in message delivery"),
        ([failed()], "Failed to deliver message"),
        ([completed(), failed()], "Partially delivered message"),
        ([completed(), delayed()], "Partially delivered message"),
        ([completed(), delayed(), failed()], "Partially delivered message"),
        ([delayed(), failed()], "Warning: Temporary and permanent failures during message delivery"),
    ],
)
def test_subject_of_each_mix(recipients, subject):
    _, parsed = make(*recipients)
    assert parsed["Subject"] == subject


def test_text_has_a_block_for_each_outcome_and_names_the_queue_id():
    _, parsed = make(failed("a@x.example"), delayed("b@x.example"), completed("c@x.example"))
    text = parsed.get_payload()[0].get_content()
    assert text.index("<c@x.example> (delivered to 'mx.example.org' with code 250 (2.1.5) 'OK')") < text.index(
        "<b@x.example> (connection to 'mx.example.org' failed: Connection timeout)"
    )
    assert text.index("<b@x.example>") < text.index(
        "<a@x.example> (host 'mx.example.org' rejected command 'RCPT TO:<jane@example.org>' with code 550 (5.1.1)"
        " 'No such user')"
    )
    assert text.rstrip().endswith("The queue id of the message is 0000000000001234.")


@pytest.mark.parametrize(
    "kind, line",
    [
        (ErrorKind.DNS, "failed to lookup 'E': D"),
        (ErrorKind.CONNECTION, "connection to 'E' failed: D"),
        (ErrorKind.TLS, "TLS error from 'E': D"),
        (ErrorKind.DANE, "DANE failed to authenticate 'E': D"),
        (ErrorKind.MTA_STS, "MTA-STS failed to authenticate 'E': D"),
        (ErrorKind.RATE, "rate limited"),
        (ErrorKind.CONCURRENCY, "too many concurrent connections to remote server"),
        (ErrorKind.SUSPENDED, "delivery suspended: D"),
        (ErrorKind.DEPENDENCY, "dependency 'E' unavailable: D"),
        (ErrorKind.IO, "queue error: D"),
    ],
)
def test_the_line_of_each_kind_of_error(kind, line):
    assert dsn_line(delayed("a@b.example", RecipientStatus("E", kind, "D"))) == f"<a@b.example> ({line})"


def test_a_rejected_transaction_has_no_command():
    status = RecipientStatus("E", ErrorKind.UNEXPECTED_REPLY, reply=RemoteReply(554, "5.7.1", "no\r\nthanks"))
    assert dsn_line(failed("a@b.example", status)) == (
        "<a@b.example> (host 'E' rejected transaction with code 554 (5.7.1) 'nothanks')"
    )


# --- the machine-readable part ----------------------------------------------------------------


@pytest.mark.spec("OUT-155")
def test_what_the_submitter_gave_comes_back_and_nothing_else():
    _, parsed = make(failed(orcpt="Jane+x@old.example"), env_id="QQ314159")
    message_block, recipient_block = status_fields(parsed)
    assert ("Original-Envelope-Id", "QQ314159") in message_block
    assert recipient_block[0] == ("Original-Recipient", "rfc822;Jane+x@old.example")
    _, parsed = make(failed())
    names = {name for block in status_fields(parsed) for name, _ in block}
    assert not names & {"Original-Envelope-Id", "Original-Recipient"}


def test_fields_stand_in_their_order():
    _, parsed = make(failed(orcpt="x@y.example"), delayed(), env_id="E", now_ms=1000)
    blocks = status_fields(parsed)
    assert [name for name, _ in blocks[0]] == [
        "Reporting-MTA",
        "Arrival-Date",
        "Original-Envelope-Id",
        "X-Mailgate-Queue-ID",
    ]
    assert blocks[0][0] == ("Reporting-MTA", "dns;mx.example.net")
    assert blocks[0][3] == ("X-Mailgate-Queue-ID", "0000000000001234")
    assert blocks[1] == [
        ("Original-Recipient", "rfc822;x@y.example"),
        ("Final-Recipient", "rfc822;jane@example.org"),
        ("Action", "failed"),
        ("Status", "5.1.1"),
        ("Diagnostic-Code", "smtp;550 No such user"),
        ("Remote-MTA", "dns;mx.example.org"),
    ]
    assert [name for name, _ in blocks[2]] == ["Final-Recipient", "Action", "Status", "Remote-MTA", "Will-Retry-Until"]
    assert len(blocks) == 3


@pytest.mark.parametrize("one, action", [(completed(), "delivered"), (failed(), "failed"), (delayed(), "delayed")])
def test_action(one, action):
    _, parsed = make(one)
    assert dict(status_fields(parsed)[1])["Action"] == action


@pytest.mark.spec("OUT-156")
@pytest.mark.parametrize(
    "one, status",
    [
        (failed(), "5.1.1"),
        (failed(status=RecipientStatus("h", ErrorKind.UNEXPECTED_REPLY, reply=RemoteReply(554, "0.0.0", ""))), "5.5.4"),
        (delayed(status=RecipientStatus("h", ErrorKind.UNEXPECTED_REPLY, reply=RemoteReply(451, "", ""))), "4.5.1"),
        (failed(status=RecipientStatus("h", ErrorKind.DNS, "none")), "5.0.0"),
        (delayed(), "4.0.0"),
    ],
)
def test_status_code(one, status):
    _, parsed = make(one)
    assert dict(status_fields(parsed)[1])["Status"] == status


@pytest.mark.spec("OUT-157")
@pytest.mark.parametrize(
    "kind, remote",
    [
        (ErrorKind.DNS, False),
        (ErrorKind.CONNECTION, True),
        (ErrorKind.TLS, True),
        (ErrorKind.DANE, True),
        (ErrorKind.MTA_STS, False),
        (ErrorKind.RATE, False),
        (ErrorKind.CONCURRENCY, False),
        (ErrorKind.SUSPENDED, False),
        (ErrorKind.DEPENDENCY, False),
        (ErrorKind.IO, False),
    ],
)
def test_diagnostic_code_and_remote_mta_appear_where_they_should(kind, remote):
    _, parsed = make(delayed(status=RecipientStatus("mx.example.org", kind, "x")))
    fields = dict(status_fields(parsed)[1])
    assert "Diagnostic-Code" not in fields
    assert ("Remote-MTA" in fields) is remote
    fields = dict(status_fields(make(failed())[1])[1])
    assert {"Diagnostic-Code", "Remote-MTA"} <= set(fields)
    fields = dict(status_fields(make(completed())[1])[1])
    assert "Diagnostic-Code" not in fields
    assert fields["Remote-MTA"] == "dns;mx.example.org"


@pytest.mark.spec("OUT-158")
def test_will_retry_until_appears_on_delays_with_a_ttl_in_the_future():
    hour = Expiry(ExpiresBy.TTL, 3_600_000)
    assert dict(status_fields(make(delayed(expiry=hour))[1])[1])["Will-Retry-Until"] == (
        "Thu, 01 Jan 1970 01:00:00 +0000"
    )
    for one in (delayed(expiry=Expiry(ExpiresBy.ATTEMPTS, 5)), failed(expiry=hour)):
        assert "Will-Retry-Until" not in dict(status_fields(make(one)[1])[1])
    assert "Will-Retry-Until" not in dict(status_fields(make(delayed(expiry=hour), now_ms=3_600_000)[1])[1])


def test_a_long_diagnostic_stays_on_one_line_of_bounded_length():
    status = RecipientStatus("h", ErrorKind.UNEXPECTED_REPLY, reply=RemoteReply(550, "5.1.1", "é\r\nx" * 2000))
    dsn, parsed = make(failed(status=status))
    assert max(map(len, dsn.octets.split(b"\r\n"))) <= 998
    assert dsn.octets.isascii()
    assert "éx" * 2000 in parsed.get_payload()[0].get_content().replace("\r\n", "")


# --- the third part ---------------------------------------------------------------------------


def test_header_block_ends_with_the_blank_line_or_at_its_limit():
    assert header_block(b"A: b\r\n\r\nbody") == b"A: b\r\n\r\n"
    assert header_block(b"A: b\r\n") == b"A: b\r\n"
    long = b"A: b\r\n" * 1000
    assert header_block(long + b"\r\nbody") == b"A: b\r\n" * (HEADER_OCTETS // 6)
    assert header_block(b"A: b\r\n" + b"x" * (HEADER_OCTETS - 7) + b"\r\n\r\n") == b"A: b\r\n"
    assert header_block(b"x" * (HEADER_OCTETS - 1) + b"\r\n\r\n") == b"x" * (HEADER_OCTETS - 1)


def test_the_third_part_is_what_was_given_octet_for_octet():
    for original in (ORIGINAL, ORIGINAL + b"body\r\n--mailgate-000000000000d001\r\nno newline at the end", b""):
        dsn, parsed = make(failed(), original=original)
        boundary = parsed.get_boundary().encode()
        third = dsn.octets.split(b"--" + boundary + b"\r\n")[3].removesuffix(b"\r\n--" + boundary + b"--\r\n")
        assert third.partition(b"\r\n\r\n")[2] == original
        assert len(parsed.get_payload()) == 3


def test_octets_above_ascii_travel_as_8bit():
    dsn, parsed = make(failed(), original="Subject: é\r\n\r\n".encode())
    assert dsn.eight_bit
    assert not dsn.smtputf8
    assert parsed["Content-Transfer-Encoding"] == "8bit"
    assert parsed.get_payload()[2]["Content-Transfer-Encoding"] == "8bit"
    assert parsed.get_payload()[2].get_content_type() == "message/rfc822"


# --- addresses outside ASCII (RFC 6533) ---------------------------------------------------------


def test_who_spoke_smtputf8_gets_the_utf8_forms():
    dsn, parsed = make(failed("jäne@example.org"), smtputf8=True)
    assert dsn.smtputf8
    assert dsn.eight_bit
    assert [part.get_content_type() for part in parsed.get_payload()] == [
        "text/plain",
        "message/global-delivery-status",
        "message/global-headers",
    ]
    assert "Final-Recipient: utf-8;jäne@example.org\r\n".encode() in dsn.octets


def test_smtputf8_without_need_stays_plain():
    dsn, _ = make(failed(), smtputf8=True)
    assert not dsn.smtputf8
    assert dsn.octets.isascii()


def test_without_smtputf8_addresses_are_escaped():
    dsn, _ = make(failed("jäne@example.org"))
    assert b"Final-Recipient: utf-8;j\\x{E4}ne@example.org\r\n" in dsn.octets
    assert dsn.octets.isascii()


def test_a_display_name_outside_ascii_is_encoded():
    _, parsed = make(failed(), reporter=Reporter("mx.example.net", "Zustellung für alle", "a@example.net"))
    assert parsed["From"] == "Zustellung für alle <a@example.net>"


def test_nothing_from_outside_can_begin_a_line():
    evil = "x\r\nBcc: all@example.org\r\n\r\nbody"
    status = RecipientStatus(evil, ErrorKind.UNEXPECTED_REPLY, command=evil, reply=RemoteReply(550, "5.0.0", evil))
    dsn, parsed = make(
        failed(status=status, orcpt=evil), env_id=evil, reporter=Reporter(evil, evil, evil), return_path="joe@x.example"
    )
    assert b"\r\nBcc" not in dsn.octets
    assert len(parsed.get_payload()) == 3
    assert len(status_fields(parsed)) == 2
