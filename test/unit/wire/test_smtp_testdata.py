"""Command lines and octets of the shared test data, as far as the protocol core decides about them."""

import base64
import json
import os
from pathlib import Path

import pytest
from support.smtp_core import play, ways

from mailgate.wire.smtp.command import DataEnd, Noop, Rejected
from mailgate.wire.smtp.data import BareNewline
from mailgate.wire.smtp.parse import parse
from mailgate.wire.smtp.server import ServerConnection

REPOSITORY = Path(__file__).resolve().parents[3]
TESTDATA = Path(os.environ.get("MAILGATE_TESTDATA", REPOSITORY.parent / "shared" / "testdata")) / "smtp"

# Our grammar is wider on purpose: spaces around FROM and the colon; an escape
# of xtext that is none is dropped.
RELAXED = {
    "mail.space-after-colon",
    "mail.space-before-colon",
    "mail.two-spaces",
    "param.dsn-envid-bad-xtext",
    "param.auth-bad-xtext",
    "rcpt.orcpt-bad-xtext",
}


def cases(name):
    path = TESTDATA / name
    if not path.is_file():
        return [pytest.param(None, marks=pytest.mark.skip(f"no test data: {path}; set MAILGATE_TESTDATA"))]
    return [pytest.param(case, id=case.get("id") or case["name"]) for case in json.loads(path.read_text("utf-8"))]


def octets(case):
    if case["line"] is None:
        return base64.b64decode(case["line_base64"])
    line = case["line"].replace("%RCPT%", "rcpt@mx.test").replace("%DOMAIN%", "mx.test")
    return line.replace("%BAD%", "bad@mx.test").encode()


@pytest.mark.parametrize("case", cases("lines.json"))
def test_lines(case):
    event = parse(octets(case))
    allowed = case["allowed"].split("|")
    if isinstance(event, Rejected):
        assert {"5xx", str(event.reply.code)} & set(allowed), event
        return
    if case["id"] in RELAXED:
        return
    # What needs a limit, a directory or an extension that is off is refused later.
    later = {"limit", "norelay", "badrcpt", "!SMTPUTF8", "DELIVERBY"} & set(case["needs"])
    assert "250" in allowed or later, f"{event} must be one of {case['allowed']}"


@pytest.mark.parametrize("mode", BareNewline)
@pytest.mark.parametrize("case", cases("end-of-data.json"))
def test_what_does_not_end_a_message(case, mode):
    odd = bytes.fromhex(case["octets_hex"])
    for pieces in ways(b"DATA\r\nA: b\r\n\r\nx" + odd + b"MAIL FROM:<a@b.test>\r\nDATA\r\n\r\n.\r\nNOOP\r\n"):
        connection = ServerConnection()
        connection.bare_newline = mode
        assert play(connection, pieces)[2:] == [DataEnd(bare_newline=mode is BareNewline.REJECT), Noop()]
