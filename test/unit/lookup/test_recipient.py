import asyncio

import pytest

from mailgate.config.load import load_text
from mailgate.expr.choice import compile_choice
from mailgate.expr.kind import STRING_OR_TRUTH
from mailgate.expr.resolve import Environment
from mailgate.expr.scope import Context
from mailgate.lookup.accounts import MemoryDirectory, Principal
from mailgate.lookup.configured import lists
from mailgate.lookup.directory import Mailbox, MailingList
from mailgate.lookup.lists import Lists, from_lookup
from mailgate.lookup.outside import Answers, Directories
from mailgate.lookup.recipient import AddressRules
from mailgate.mail.path import Path
from mailgate.mail.unknown import Unknown

DOWN = Unknown("dns", "timed out")
NEWS = [
    {"if": "matches('^([^.]+)[.]([^.]+)@(.+)$', rcpt)", "then": "$2 + '@' + $3"},
    {"else": False},
]


def choice(raw):
    return compile_choice(
        raw,
        key="session.rcpt.catch-all",
        place="t.toml:1",
        context=Context.ADDR,
        kind=STRING_OR_TRUTH,
        environment=Environment(lambda key: None),
    )


def rules(sub_addressing=True, catch_all=True):
    return AddressRules(choice(sub_addressing), choice(catch_all))


async def inline(work):
    return work()


async def no_dns(name, type):
    return DOWN


def directory(*principals, id="local"):
    return MemoryDirectory(id, principals, run_blocking=inline)


JANE = Principal("jane", emails=("jane@foobar.org",), lists=("sales@foobar.org",))
MIKE = Principal("mike", emails=("mike@foobar.org", "@foobar.org"))


class Broken:
    """A directory that cannot be asked."""

    id = "broken"

    async def is_local_domain(self, domain):
        return DOWN

    async def find(self, address):
        return DOWN


def answers(here, address_rules, named=()):
    return Answers(Directories([here], here.id), Lists(named), no_dns, address_rules)


def found(here, address, address_rules=None):
    address_rules = address_rules or rules()
    return asyncio.run(address_rules.find(here, address, answers(here, address_rules)))


def test_the_address_itself():
    assert found(directory(JANE), "jane@foobar.org") == Mailbox()
    assert found(directory(JANE), "sales@foobar.org") == MailingList((Path("jane", "foobar.org"),))
    assert found(directory(JANE), "nobody@foobar.org") is None


@pytest.mark.parametrize(
    "address", ["jane+x@foobar.org", "jane+@foobar.org", "jane+a+b@foobar.org", "sales+x@foobar.org"]
)
def test_a_detail_is_left_out_of_the_search(address):
    assert found(directory(JANE), address) is not None
    assert found(directory(JANE), address, rules(sub_addressing=False)) is None


def test_a_plus_in_front_is_no_detail():
    here = directory(Principal("plus", emails=("+x@foobar.org",)))
    assert found(here, "+x@foobar.org", rules(catch_all=False)) == Mailbox()
    assert found(directory(MIKE), "+x@foobar.org", rules(catch_all=False)) is None


def test_an_expression_says_what_is_looked_up_instead():
    assert found(directory(JANE), "news.jane@foobar.org", rules(sub_addressing=NEWS)) == Mailbox()
    assert found(directory(JANE), "jane@foobar.org", rules(sub_addressing=NEWS)) == Mailbox()
    assert found(directory(JANE), "news.bill@foobar.org", rules(sub_addressing=NEWS)) is None


def test_catch_all():
    assert found(directory(MIKE), "nobody@foobar.org") == Mailbox()
    assert found(directory(MIKE), "nobody@foobar.org", rules(catch_all=False)) is None
    assert found(directory(JANE), "nobody@foobar.org", rules(catch_all="'Jane@' + email_part(address, 'domain')"))
    assert found(directory(JANE), "nobody@foobar.org", rules(catch_all="'bill@foobar.org'")) is None


def test_an_unknown_step_is_the_answer_and_no_later_step_is_tried():
    asks = "dns_query('x.test', 'txt')"
    assert found(directory(MIKE), "nobody@foobar.org", rules(sub_addressing=asks)) == DOWN
    assert found(directory(MIKE), "nobody@foobar.org", rules(catch_all=asks)) == DOWN
    assert found(directory(MIKE), "mike@foobar.org", rules(catch_all=asks)) == Mailbox()
    assert found(Broken(), "nobody@foobar.org") == DOWN


def test_what_the_expressions_ask_is_noted_for_the_trace():
    notes = []
    here, address_rules = directory(JANE), rules(sub_addressing=NEWS)

    def note(choice_key, place, reads, result):
        notes.append((choice_key, place, dict(reads)["rcpt"], result))

    asyncio.run(address_rules.find(here, "news.jane@foobar.org", answers(here, address_rules), note))
    assert notes == [("session.rcpt.catch-all", "t.toml:1", "news.jane@foobar.org", "jane@foobar.org")]


def test_is_local_address_uses_the_same_rules():
    here = directory(JANE, MIKE)
    ask = answers(here, rules())
    for name in ("", "*", "local"):
        assert asyncio.run(ask.is_local_address(name, "Jane+X@foobar.org")) is True
        assert asyncio.run(ask.is_local_address(name, "nobody@foobar.org")) is True
        assert asyncio.run(ask.is_local_address(name, "nobody@example.net")) is False
        assert asyncio.run(ask.plain.is_local_address(name, "jane+x@foobar.org")) is False


def test_a_rule_that_asks_for_local_addresses_comes_to_an_end():
    asks = "if_then(is_local_address('', rcpt), rcpt, 'jane@foobar.org')"
    assert found(directory(JANE), "nobody@foobar.org", rules(sub_addressing=asks, catch_all=asks)) == Mailbox()


def test_domains():
    ask = answers(directory(JANE), rules())
    assert asyncio.run(ask.is_local_domain("*", "FooBar.org")) is True
    assert asyncio.run(ask.is_local_domain("local", "example.net")) is False
    assert asyncio.run(answers(Broken(), rules()).is_local_domain("", "x")) == DOWN


def test_without_a_default_directory_nothing_is_local():
    ask = Answers(Directories([]), Lists([]), no_dns, rules())
    assert asyncio.run(ask.is_local_domain("", "foobar.org")) is False
    assert asyncio.run(ask.is_local_address("*", "jane@foobar.org")) is False


def test_names_that_nothing_defines_are_unknown():
    ask = Answers(Directories([]), Lists([]), no_dns, rules())
    for answer in (
        ask.is_local_domain("nosuch", "x"),
        ask.is_local_address("nosuch", "x"),
        ask.key_get("nosuch", "x"),
        ask.key_exists("nosuch", "x"),
    ):
        result = asyncio.run(answer)
        assert isinstance(result, Unknown)
        assert "nosuch" in result.dependency


def lookup_value(raw, *named):
    here = directory(JANE)
    return asyncio.run(choice(raw).value(Scope(answers(here, rules(), named))))


class Scope:
    rcpt = "jane@foobar.org"

    def __init__(self, outside):
        self.outside = outside

    def note(self, choice_key, place, reads, result):
        pass


def configured(text):
    here = Answers(Directories([]), lists(load_text(text).settings), no_dns, rules())
    return lambda raw: asyncio.run(choice(raw).value(Scope(here)))


@pytest.mark.spec("IN-007")
def test_key_exists_in_a_list():
    ask = configured("""[lookup]\nx = ["a", "b"]""")
    assert ask("key_exists('x','a')") is True
    assert ask("key_exists('x','c')") is False


@pytest.mark.spec("IN-008")
def test_key_exists_with_a_glob():
    ask = configured("""[lookup]\nx = ["spamtrap@*"]""")
    assert ask("key_exists('x','spamtrap@q')") is True
    assert ask("key_exists('x','other@q')") is False


def test_tables_and_stores_of_the_configuration():
    ask = configured(
        """
        [lookup."domains"]
        "example.com" = true
        "*.example.com" = true
        "k" = "v"
        [store."list/blocked-domains"]
        type = "memory"
        format = "list"
        values = ["mail.spammer.test", "mail.spammer.example"]
        """
    )
    assert ask("key_exists('domains', 'a.example.com')") is True
    assert ask("key_get('domains', 'K')") == "v"
    assert ask("key_exists('list/blocked-domains', 'mail.spammer.test')") is True
    assert ask("key_exists('blocked-domains', 'mail.spammer.test')") is False


def test_key_get():
    x = from_lookup("x", {"k": "v"})
    assert lookup_value("key_get('x', 'K')", x) == "v"
    assert lookup_value("key_get('x', 'none')", x) is False
    assert lookup_value("key_exists('blocked-domains', 'a')") is False
    assert lookup_value("key_exists('', 'a')") == Unknown("store", "no store or list has this name")
    assert lookup_value("key_exists('x' + 'y', 'a')", x) == Unknown("store xy", "no store or list has this name")
