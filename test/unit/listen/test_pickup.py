"""What becomes of drops: the rules of live sessions, each message once, and nothing lost in between."""

import email
import os

import pytest
from support.baseline import baseline
from support.handed_in import CONTENT, HandedInMemory

from mailgate.mail.envelope import Body
from mailgate.queue.drop import DropRecipient
from mailgate.queue.item import Source
from mailgate.queue.store import StoreFailed

OPEN = "[session.auth]\nmust-match-sender = \"listener != 'sendmail'\"\n"
DAY = 24 * 3600


@pytest.fixture
def make(tmp_path):
    made = []

    def handed_in(*changes, base="B1"):
        it = HandedInMemory(tmp_path, baseline(base, SMTP, *(changes or (OPEN,))))
        made.append(it)
        it.start()
        return it

    yield handed_in
    for it in made:
        it.stop()


SMTP = '[server.listener.smtp]\nbind = "127.0.0.1:2525"\nprotocol = "smtp"\n'


def login():
    return os.popen("id -un").read().strip()


def test_a_drop_goes_through_the_stages_of_the_listener_sendmail(make):
    it = make()
    it.hand_in("john@foobar.org", sender="who@ever.test", content="Subject: ü\r\n\r\n.dot\r\n..\r\n".encode())
    it.knock()
    (kept,) = it.store.messages
    assert (kept.sender, kept.recipients) == ("who@ever.test", ["john@foobar.org"])
    assert kept.content == "Subject: ü\r\n\r\n.dot\r\n..\r\n".encode()
    assert kept.message.body is Body.EIGHT_BIT
    assert kept.message.source is Source.AUTHENTICATED
    assert (kept.message.from_ip, kept.message.via_port) == ("127.0.0.1", 0)
    assert it.names == []


def test_names_alone_are_addresses_of_this_host(make):
    it = make(OPEN, "[session.rcpt]\nrelay = true")
    it.hand_in("root", sender="joe")
    it.knock()
    (kept,) = it.store.messages
    assert (kept.sender, kept.recipients) == ("joe@mx.test", ["root@mx.test"])


def test_what_expressions_see(make):
    rule = (
        "listener = 'sendmail' && remote_ip = '127.0.0.1' && protocol = 'smtp' && "
        f"authenticated_as = '{login()}' && !is_tls"
    )
    it = make(OPEN, f'[session.mail]\nis-allowed = "{rule}"')
    it.hand_in("john@foobar.org")
    it.knock()
    assert len(it.store.messages) == 1
    assert it.store.messages[0].sender == "john@foobar.org"


def test_the_parameters_of_delivery_status_arrive(make):
    it = make()
    recipient = DropRecipient("john@foobar.org", "SUCCESS,FAILURE", "o+=rig@x.test")
    it.hand_in(recipient, ret="HDRS", envid="a+b=c")
    it.knock()
    message = it.store.messages[0].message
    assert (message.env_id, message.ret.value) == ("a+b=c", "hdrs")
    assert message.recipients[0].orcpt == "o+=rig@x.test"
    assert message.recipients[0].notify.name == "SUCCESS|FAILURE"


def test_what_is_there_at_the_start_is_taken(make, tmp_path):
    it = make()
    it.stop()
    it.hand_in("john@foobar.org")
    again = make()
    again.wait(0.1)
    assert len(again.store.messages) == 1
    assert it.names == []


def test_without_a_knock_it_looks_every_poll(make):
    it = make()
    it.hand_in("john@foobar.org")
    it.wait(4)
    assert it.store.messages == []
    it.wait(2)
    assert len(it.store.messages) == 1


@pytest.mark.spec("OUT-281")
def test_a_drop_that_is_in_the_record_is_only_removed(make):
    it = make()
    name = it.hand_in("john@foobar.org")
    it.store.recorded[name] = 5
    it.knock()
    assert it.store.messages == []
    assert it.names == []


@pytest.mark.spec("OUT-281")
def test_the_name_is_recorded_in_the_transaction_of_the_message(make):
    it = make()
    name = it.hand_in("john@foobar.org")
    it.knock()
    assert it.store.messages[0].message.drops == (name,)


def test_a_file_that_cannot_be_removed_is_not_taken_twice(make, monkeypatch):
    it = make()
    name = it.hand_in("john@foobar.org")
    unlink = os.unlink

    def denied(path, *arguments, **named):
        if path == name:
            raise PermissionError(13, "Permission denied")
        unlink(path, *arguments, **named)

    monkeypatch.setattr(os, "unlink", denied)
    it.knock()
    assert it.names == [name]
    it.wait(60)
    monkeypatch.undo()
    it.wait(100)
    assert it.names == []
    assert len(it.store.messages) == 1


def test_a_temporary_refusal_leaves_the_file_and_tries_it_again_later_and_later(make):
    it = make()
    it.store.fail_with = StoreFailed("no space")
    name = it.hand_in("john@foobar.org")
    it.knock()
    assert it.names == [name]
    tried = len(it.store.spools)
    assert tried == 1
    it.knock()
    it.wait(25)
    assert len(it.store.spools) == tried
    it.wait(10)
    assert len(it.store.spools) == tried + 1
    it.wait(40)
    assert len(it.store.spools) == tried + 1
    it.store.fail_with = None
    it.wait(30)
    assert len(it.store.messages) == 1
    assert it.names == []


def test_a_temporary_refusal_that_lasts_five_days_is_told(make):
    it = make(OPEN, "[session.data.limits]\nreceived-headers = 1")
    it.hand_in("john@foobar.org", content=b"Received: 1\r\nReceived: 2\r\n" + CONTENT)
    it.knock()
    assert it.store.messages == []
    it.ahead_seconds += 4 * DAY
    it.wait(60)
    assert it.store.messages == []
    it.ahead_seconds += DAY
    it.wait(100)
    (dsn,) = it.store.messages
    assert dsn.message.source is Source.DSN
    assert "450 (4.4.6)" in dsn_of(dsn)[1][0]
    assert it.names == []


def dsn_of(kept):
    parsed = email.message_from_bytes(kept.content)
    return parsed, [str(part) for part in parsed.get_payload()]


def test_a_refused_recipient_becomes_a_notification_and_the_others_get_the_message(make):
    it = make()
    name = it.hand_in("john@foobar.org", "nobody@foobar.org", DropRecipient("never@foobar.org", "NEVER"))
    it.knock()
    it.wait(10)
    kept, dsn = it.store.messages
    assert kept.recipients == ["john@foobar.org"]
    assert (dsn.sender, dsn.recipients, dsn.message.source) == ("", ["john@foobar.org"], Source.DSN)
    parsed, (text, status, original) = dsn_of(dsn)
    assert parsed["Subject"] == "Failed to deliver message"
    assert "RCPT TO:<nobody@foobar.org>" in text
    assert "550" in status
    assert "5.1.2" in status
    assert "never@foobar.org" not in status
    assert "Subject: x" in original
    assert kept.message.drops == (f"{name}#0",)
    assert dsn.message.drops == (f"{name}#1", f"{name}#2")
    assert it.names == []


def test_what_was_settled_before_a_crash_is_not_done_again(make):
    it = make()
    name = it.hand_in("john@foobar.org", "nobody@foobar.org")
    it.store.recorded[f"{name}#0"] = 1
    it.knock()
    it.wait(10)
    (dsn,) = it.store.messages
    assert dsn.message.source is Source.DSN
    it.store.recorded |= {f"{name}#0": 1}
    assert it.names == []


@pytest.mark.parametrize(
    ("change", "sender", "told"),
    [
        ("[session.mail]\nis-allowed = false", "victim@other.test", "{login}@mx.test"),
        ("", "victim@other.test", "{login}@mx.test"),
        ("[session.data.limits]\nsize = 10", "{login}@mx.test", "{login}@mx.test"),
    ],
)
def test_a_sender_that_was_refused_is_not_written_to(make, change, sender, told):
    it = make(change)
    it.hand_in("john@foobar.org", sender=sender.format(login=login()))
    it.knock()
    (dsn,) = it.store.messages
    assert dsn.recipients == [told.format(login=login())]
    assert it.names == []


def test_by_default_a_user_may_only_be_himself(make):
    it = make("")
    it.hand_in("john@foobar.org", sender=login())
    it.knock()
    assert [kept.sender for kept in it.store.messages] == [f"{login()}@mx.test"]


def test_of_the_null_sender_nobody_is_told(make):
    it = make()
    it.hand_in("nobody@foobar.org", sender="")
    it.knock()
    it.wait(10)
    assert it.store.messages == []
    assert it.names == []


def test_more_recipients_than_a_transaction_takes_get_several(make):
    it = make(OPEN, "[session.rcpt]\nrelay = true\nmax-recipients = 3")
    name = it.hand_in(*(f"r{number}@x.test" for number in range(8)))
    it.knock()
    assert [len(kept.recipients) for kept in it.store.messages] == [3, 3, 2]
    assert sorted(address for kept in it.store.messages for address in kept.recipients) == [
        f"r{number}@x.test" for number in range(8)
    ]
    assert it.store.messages[0].message.drops == tuple(f"{name}#{number}" for number in range(3))
    assert it.names == []


def test_too_many_errors_do_not_keep_the_others_from_the_message(make):
    it = make(OPEN, '[session.rcpt]\nerrors.total = 2\nerrors.wait = "1s"')
    it.hand_in("n1@foobar.org", "n2@foobar.org", "n3@foobar.org", "john@foobar.org")
    it.knock()
    for _ in range(30):
        it.wait(1.1)
    kinds = sorted(kept.message.source.value for kept in it.store.messages)
    assert "authenticated" in kinds
    kept = next(kept for kept in it.store.messages if kept.message.source is Source.AUTHENTICATED)
    assert kept.recipients == ["john@foobar.org"]


def test_where_the_first_error_ends_the_session_the_others_still_get_the_message(make):
    it = make(OPEN, '[session.rcpt]\nerrors.total = 1\nerrors.wait = "1s"')
    name = it.hand_in("john@foobar.org", "n1@foobar.org")
    it.knock()
    for _ in range(5):
        it.wait(1.1)
    (kept,) = it.store.messages
    assert kept.recipients == ["john@foobar.org"]
    assert it.names == [name]
    it.ahead_seconds += 6 * DAY
    for _ in range(5):
        it.wait(20)
    assert it.store.messages[-1].message.source is Source.DSN
    assert it.names == []


def test_who_keeps_it_waiting_keeps_nobody_else_waiting(make):
    it = make(OPEN, '[session.rcpt]\nerrors.wait = "1h"')
    taken = []
    take = it.maildrop.take
    it.maildrop.take = lambda name, now_ms: taken.append(name) or take(name, now_ms)
    for _ in range(50):
        it.hand_in("nobody@foobar.org")
    it.knock()
    for _ in range(10):
        it.wait(0.1)
    assert len(taken) == 10
    it.wait(3600)
    assert len(taken) == 20


@pytest.mark.parametrize("content", [b"", b"no line end", b"Subject: x\r\n\r\nbare\nnewline\r\n"])
def test_content_that_sendmail_would_not_write_is_judged_like_any_clients(make, content):
    it = make()
    it.hand_in("john@foobar.org", content=content)
    it.knock()
    (dsn,) = it.store.messages
    assert dsn.message.source is Source.DSN
    assert it.names == []


def test_a_large_message_is_read_in_blocks(make):
    it = make()
    line = b"." * 70 + b"\r\n"
    content = CONTENT + line * 20_000
    it.hand_in("john@foobar.org", content=content)
    it.knock()
    assert it.store.messages[0].content == content


def test_what_is_no_drop_is_set_aside_and_the_rest_goes_on(make, tmp_path):
    it = make()
    (tmp_path / "secret").write_bytes(b"top secret")
    (it.path / "foreign").write_bytes(b"x")
    (it.path / f"{1:012x}-{1:024x}").symlink_to(tmp_path / "secret")
    (it.path / f"{1:012x}-{2:024x}").write_bytes(b"torn")
    os.mkfifo(it.path / f"{1:012x}-{3:024x}")
    it.hand_in("john@foobar.org")
    it.knock()
    assert len(it.aside) == 4
    assert len(it.store.messages) == 1
    assert it.names == []


def test_a_file_that_is_cut_while_it_is_read_leaves_nothing_in_the_queue(make):
    it = make()
    name = it.hand_in("john@foobar.org", content=CONTENT + b"x" * 600_000)
    it.blocked = []
    it.knock()
    while it.blocked:
        waiting, work = it.blocked.pop(0)
        if "read" in repr(work):
            os.truncate(it.path / name, 1000)
        try:
            result = work()
        except Exception as error:
            waiting.errback(error)
        else:
            waiting.callback(result)
    assert it.store.messages == []
    assert it.aside == [name]


def test_a_stop_waits_for_the_commit_and_nothing_else(make):
    it = make()
    it.store.committing = []
    it.hand_in("john@foobar.org")
    it.knock()
    stopped = it.stop()
    assert not stopped.called
    _, done = it.store.committing.pop()
    done()
    assert stopped.called
    assert not it.maildrop.is_open


def test_a_stop_does_not_wait_for_a_decision(make):
    it = make(OPEN, '[session.rcpt]\nerrors.wait = "1h"')
    name = it.hand_in("nobody@foobar.org")
    it.knock()
    assert it.stop().called
    assert it.names == [name]


def test_a_knock_without_end_costs_one_look_in_a_while(make):
    it = make()
    looks = []
    look = it.maildrop.look
    it.maildrop.look = lambda *arguments: looks.append(1) or look(*arguments)
    for _ in range(100):
        for _, knock in it.readers[:1]:
            knock()
        it.clock.advance(0.01)
    assert len(looks) <= 20


def test_more_than_can_be_taken_at_once_are_all_taken(make):
    it = make()
    for _ in range(70):
        it.hand_in("john@foobar.org")
    it.knock()
    for _ in range(20):
        it.wait(0.1)
    assert len(it.store.messages) == 70
    assert it.names == []


def test_places_that_become_free_during_a_look_are_filled_at_once(make):
    it = make()
    it.store.committing = []
    for _ in range(12):
        it.hand_in("john@foobar.org")
    it.knock()
    assert len(it.store.committing) == 10
    it.blocked = []
    it.knock()
    ((waiting, work),) = it.blocked
    result, it.blocked = work(), None
    committing, it.store.committing = it.store.committing, None
    for _, done in committing:
        done()
    waiting.callback(result)
    it.wait(0.1)
    assert len(it.store.messages) == 12
    assert it.names == []


def test_a_maildrop_that_cannot_be_opened_is_tried_again(tmp_path):
    it = HandedInMemory(tmp_path / "none", baseline("B1", SMTP, OPEN))
    it.start()
    assert not it.maildrop.is_open
    (tmp_path / "none").mkdir()
    it.wait(6)
    assert it.maildrop.is_open
    it.hand_in("john@foobar.org")
    it.knock()
    assert len(it.store.messages) == 1
    it.stop()


def test_once_an_hour_old_names_are_forgotten(make):
    it = make()
    first = len(it.store.forgotten)
    assert first == 1
    it.wait(1800)
    it.wait(6)
    assert len(it.store.forgotten) == 1
    it.wait(1900)
    it.wait(6)
    assert len(it.store.forgotten) == 2


def test_other_rules_hold_from_the_next_drop_on(make, tmp_path):
    it = make()
    other = HandedInMemory(tmp_path / "other", baseline("B1", SMTP, "[session.data.limits]\nsize = 5"))
    other.store = it.store
    it.pickup.use(other.rules())
    it.hand_in("john@foobar.org", sender=login())
    it.knock()
    assert [kept.message.source for kept in it.store.messages] == [Source.DSN]
