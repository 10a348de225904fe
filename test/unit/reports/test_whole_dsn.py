"""Whole notifications, octet for octet: each file in `dsn/` is one, with every CRLF as LF."""

from pathlib import Path

import pytest
from support.work_store import message, recipient

from mailgate.mail.envelope import Notify, Ret
from mailgate.mail.status import ErrorKind, RecipientStatus, RemoteReply
from mailgate.queue.item import ExpiresBy, Expiry, State
from mailgate.reports.dsn import Reporter, compose, kind_due

FOLDER = Path(__file__).parent / "dsn"
REPORTER = Reporter("mx.example.net", "Mail Delivery Subsystem", "MAILER-DAEMON@example.net")
CREATED_MS = 1_767_225_600_000
NOW_MS = CREATED_MS + 86_400_000
HEADER = b"From: Joe <joe@sender.example>\r\nTo: jane@example.org\r\nSubject: the report\r\n\r\n"
WHOLE = HEADER + b"Dear Jane,\r\n\r\nhere it is.\r\n"


def refused(address="jane@example.org", host="mx1.example.org", **facts):
    reply = RemoteReply(550, "5.1.1", "No such user here\nask postmaster")
    status = RecipientStatus(host, ErrorKind.UNEXPECTED_REPLY, command=f"RCPT TO:<{address}>", reply=reply)
    return recipient(address, state=State.PERM_FAIL, status=status, retry_num=0, **facts)


def unreachable(address="bob@example.org", **facts):
    status = RecipientStatus("mx2.example.org", ErrorKind.CONNECTION, "Connection timeout")
    return recipient(
        address, state=State.TEMP_FAIL, status=status, notify_due_ms=CREATED_MS + 14_400_000, retry_num=7, **facts
    )


def expired(address="old@nowhere.example", **facts):
    status = RecipientStatus("nowhere.example", ErrorKind.DNS, "SERVFAIL")
    return recipient(address, state=State.PERM_FAIL, status=status, retry_num=30, **facts)


def taken(address="ann@example.org", **facts):
    facts = {"notify": Notify.SUCCESS} | facts
    relayed = facts.pop("relayed", False)
    status = RecipientStatus("mx1.example.org", reply=RemoteReply(250, "2.1.5", "Recipient ok"), relayed=relayed)
    return recipient(address, state=State.COMPLETED, status=status, **facts)


DSNS = {
    "failure": ((refused(), expired()), HEADER, {}),
    "failure-with-all-parameters": (
        (refused(orcpt="Jane.Doe@example.com"),),
        WHOLE,
        {"env_id": "QQ314159", "ret": Ret.FULL, "is_whole": True},
    ),
    "delay": ((unreachable(expiry=Expiry(ExpiresBy.TTL, 3 * 86_400_000)),), HEADER, {}),
    "delay-without-an-end": ((unreachable(expiry=Expiry(ExpiresBy.ATTEMPTS, 10)),), HEADER, {}),
    "success": ((taken(orcpt="ann@example.org"), taken("eve@example.org")), HEADER, {"env_id": "42"}),
    "relayed": ((taken(relayed=True),), HEADER, {}),
    "mixed": ((refused(), taken(), unreachable()), HEADER, {}),
    "delays-and-failures": ((refused(), unreachable()), HEADER, {}),
    "smtputf8": (
        (refused("jürgen@bücher.example", orcpt="jürgen@bücher.example"),),
        "Subject: Bücher\r\n\r\n".encode(),
        {"smtputf8": True, "return_path": "jo@größe.example"},
    ),
    "smtputf8-whole": (
        (refused("jürgen@bücher.example"),),
        "Subject: Bücher\r\n\r\nhin\r\n".encode(),
        {"smtputf8": True, "ret": Ret.FULL, "is_whole": True},
    ),
    "utf8-to-who-cannot-read-it": ((refused("jürgen@bücher.example"),), HEADER, {}),
    "eight-bit-header": ((refused(),), b"Subject: caf\xe9\r\n\r\n", {}),
    "content-missing": ((refused(),), b"", {}),
}


@pytest.mark.spec("OUT-153", "OUT-155", "OUT-156", "OUT-157", "OUT-158", "OUT-162")
@pytest.mark.parametrize("name", DSNS)
def test_whole(name):
    recipients, original, facts = DSNS[name]
    facts = {"created_ms": CREATED_MS} | facts
    is_whole = facts.pop("is_whole", False)
    item, _ = message(*recipients, **facts)
    told = [(one, kind_due(one, NOW_MS)) for one in item.recipients]
    dsn = compose(item, told, original, REPORTER, "000000000000d001", NOW_MS, is_whole)
    assert dsn.octets.replace(b"\r\n", b"\n") == (FOLDER / f"{name}.eml").read_bytes()
    assert b"\n" not in dsn.octets.replace(b"\r\n", b"")
    assert dsn.eight_bit is not dsn.octets.isascii()


def test_each_file_is_a_notification_that_is_made():
    assert {path.stem for path in FOLDER.glob("*.eml")} == set(DSNS)
