import asyncio

import pytest

from mailgate.lookup.accounts import BadDirectory, MemoryDirectory, Principal
from mailgate.lookup.directory import Denied, Mailbox, MailingList
from mailgate.lookup.secret import OneTimeCode
from mailgate.mail.path import Path
from mailgate.mail.session import Identity

JOHN = Principal("john", ("secret",), ("John@Foobar.org", "j@foobar.org"), ("Sales@foobar.org",))
JANE = Principal("jane", ("p4ssw0rd",), ("jane@foobar.org",), ("sales@foobar.org",))
MIKE = Principal("mike", ("p4ssw0rd",), ("mike@foobar.org", "@foobar.org"))
ROOT = Principal("root", (), ("root@example.net",))


class Clock:
    def __init__(self):
        self.now = 1_700_000_000.0

    def __call__(self):
        return self.now


def answer(coroutine):
    return asyncio.run(coroutine)


class Threads:
    def __init__(self):
        self.calls = 0

    async def __call__(self, work):
        self.calls += 1
        return work()


def directory(*principals, threads=None, now=None):
    return MemoryDirectory("local", principals, run_blocking=threads or Threads(), now=now or Clock())


def test_addresses_are_found_whole_and_in_lower_case():
    d = directory(JOHN, JANE, ROOT)
    assert answer(d.find("john@foobar.org")) == Mailbox()
    assert answer(d.find("j@foobar.org")) == Mailbox()
    assert answer(d.find("ohn@foobar.org")) is None
    assert answer(d.find("@foobar.org")) is None
    assert answer(d.find("john")) is None


def test_a_list_stands_for_the_primary_addresses_of_its_members():
    found = answer(directory(JOHN, JANE, MIKE).find("sales@foobar.org"))
    assert found == MailingList((Path("John", "Foobar.org"), Path("jane", "foobar.org")))


def test_a_domain_is_local_when_an_address_is_in_it():
    d = directory(JOHN, MIKE)
    assert answer(d.is_local_domain("foobar.org")) is True
    assert answer(d.is_local_domain("example.net")) is False
    assert answer(directory(Principal("x", emails=("@only.test",))).is_local_domain("only.test")) is True


def test_an_address_of_a_whole_domain_is_its_catch_all():
    assert answer(directory(MIKE).find("@foobar.org")) == Mailbox()


def test_verify_and_expand():
    d = directory(JOHN, JANE, MIKE)
    assert answer(d.verify("john")) == ("john@foobar.org",)
    assert answer(d.verify("foobar")) == ("john@foobar.org", "jane@foobar.org", "mike@foobar.org")
    assert answer(d.verify("robert")) == ()
    assert answer(d.expand("sales@foobar.org")) == ("John@Foobar.org", "jane@foobar.org")
    assert answer(d.expand("john@foobar.org")) == ()


def test_login():
    d = directory(JOHN, JANE, ROOT)
    assert answer(d.authenticate("john", "secret")) == Identity("john", ("john@foobar.org", "j@foobar.org"))
    assert answer(d.authenticate("john", "p4ssw0rd")) is Denied.WRONG
    assert answer(d.authenticate("nobody", "secret")) is Denied.WRONG
    assert answer(d.authenticate("root", "")) is Denied.WRONG
    assert answer(d.authenticate("root", "secret")) is Denied.WRONG


@pytest.mark.parametrize("login", ["john", "nobody", "root", ""])
def test_every_wrong_login_costs_one_comparison_in_a_thread(login):
    threads = Threads()
    answer(directory(JOHN, ROOT, threads=threads).authenticate(login, "wrong"))
    assert threads.calls == 1


def test_a_group_has_addresses_and_no_login():
    d = directory(Principal("team", ("secret",), ("team@foobar.org",), may_log_in=False))
    assert answer(d.find("team@foobar.org")) == Mailbox()
    assert answer(d.authenticate("team", "secret")) is Denied.WRONG


def test_a_one_time_code_is_wanted_and_good_for_one_use():
    uri = "otpauth://totp/a?secret=GEZDGNBVGY3TQOJQ"
    clock = Clock()
    d = directory(Principal("ann", ("pw", uri), ("ann@foobar.org",)), now=clock)
    code = OneTimeCode.read(uri).code(int(clock.now // 30))
    assert answer(d.authenticate("ann", "pw")) is Denied.CODE_MISSING
    assert answer(d.authenticate("ann", "wrong")) is Denied.WRONG
    assert answer(d.authenticate("ann", f"wrong${code}")) is Denied.WRONG
    assert answer(d.authenticate("ann", f"pw${code}")).login == "ann"
    assert answer(d.authenticate("ann", f"pw${code}")) is Denied.WRONG
    clock.now += 30
    assert answer(d.authenticate("ann", "pw$" + OneTimeCode.read(uri).code(int(clock.now // 30)))).login == "ann"


def test_everything_wrong_is_told_at_once_and_no_secret_with_it():
    with pytest.raises(BadDirectory) as refused:
        directory(
            JOHN,
            Principal("john"),
            Principal("a", ("$6$broken",), ("sales@foobar.org",)),
            Principal("b", emails=("no-address", "b@foobar.org")),
            Principal("c", lists=("sales@foobar.org",)),
        )
    assert len(refused.value.problems) == 5
    assert all('"local"' in problem for problem in refused.value.problems)
    assert "$6$broken" not in str(refused.value)
