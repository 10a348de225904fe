"""Command lines and octets of the shared test data, as far as the protocol core decides about them."""

import pytest
from support.smtp_core import play, ways
from support.testdata import RELAXED, cases, is_allowed, line_of

from mailgate.wire.smtp.command import DataEnd, Noop, Rejected
from mailgate.wire.smtp.data import BareNewline
from mailgate.wire.smtp.parse import parse
from mailgate.wire.smtp.server import ServerConnection

# Decided by the stages: limits, the directory, extensions that are off.
LATER = {"limit", "norelay", "badrcpt", "!SMTPUTF8", "DELIVERBY"}


@pytest.mark.parametrize("case", cases("lines.json"))
def test_lines(case):
    event = parse(line_of(case, "mx.test"))
    if isinstance(event, Rejected):
        assert is_allowed(case, event.reply.code), event
    elif case["id"] not in RELAXED and not LATER & set(case["needs"]):
        assert is_allowed(case, 250), event


@pytest.mark.parametrize("mode", BareNewline)
@pytest.mark.parametrize("case", cases("end-of-data.json"))
def test_what_does_not_end_a_message(case, mode):
    odd = bytes.fromhex(case["octets_hex"])
    for pieces in ways(b"DATA\r\nA: b\r\n\r\nx" + odd + b"MAIL FROM:<a@b.test>\r\nDATA\r\n\r\n.\r\nNOOP\r\n"):
        connection = ServerConnection()
        connection.bare_newline = mode
        assert play(connection, pieces)[2:] == [DataEnd(bare_newline=mode is BareNewline.REJECT), Noop()]
