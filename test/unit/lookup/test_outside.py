"""Rules that ask stores, from their text to a real SQLite database in memory."""

import asyncio

import pytest
from support.configuration import settings
from support.expressions import VALUE, Facts, compiled
from support.lookup_stores import DEAD_STORE, in_place

from mailgate.lookup.lists import Lists, from_lookup
from mailgate.lookup.opening import stores
from mailgate.lookup.outside import Answers, Directories
from mailgate.mail.unknown import Unknown

DOWN = Unknown("store down", "connection refused")
SQLITE = '[store.s]\ntype = "sqlite"\npath = ":memory:"\n'
REDIS = '[store.r]\ntype = "redis"\nurls = "redis://h"\n'


async def no_dns(name, type):
    return Unknown("dns", "not here")


def outside(text=SQLITE + DEAD_STORE, *named):
    return Answers(Directories([]), Lists(named), no_dns, None, stores(settings(text), in_place))


def value(rule, asked, **facts):
    return asyncio.run(compiled(rule, VALUE).value(Facts(asked, **facts)))


@pytest.mark.spec("IN-058")
@pytest.mark.parametrize("store", ["s", ""])
def test_the_vectors_of_stores(store):
    asked = outside()

    def rule(calls):
        return " + '-' + ".join(calls.split("; ")).replace("(s,", f"('{store}',")

    hello = "key_get(s,'hello'); key_exists(s,'hello'); key_set(s,'hello','world'); "
    hello += "key_get(s,'hello'); key_exists(s,'hello')"
    assert value(rule(hello), asked) == "-0-1-world-1"
    count = "counter_get(s,'c'); counter_incr(s,'c',1); counter_incr(s,'c',1); counter_get(s,'c')"
    assert value(rule(count), asked) == "0-1-2-2"


def test_what_a_rule_changes_is_there_for_the_next():
    asked = outside()
    assert value("key_set('s', rcpt, 'x')", asked, rcpt="a@b.test") == 1
    assert value("key_get('s', rcpt)", asked, rcpt="a@b.test") == "x"
    assert [value("counter_incr('s', 'n', 2)", asked) for _ in range(3)] == [2, 4, 6]


def test_a_call_that_waits_has_its_effect_once():
    class Slow:
        """Suspends every question once."""

        def __init__(self, store):
            self._store = store

        def find(self, name):
            return self

        async def increase(self, key, by):
            await asyncio.sleep(0)
            return await self._store.increase(key, by)

        async def counter(self, key):
            await asyncio.sleep(0)
            return await self._store.counter(key)

    store = stores(settings(SQLITE), in_place).find("s")
    asked = Answers(Directories([]), Lists([]), no_dns, None, Slow(store))
    assert value("counter_incr('s','c',1) + counter_incr('s','c',10) + counter_get('s','c')", asked) == 1 + 11 + 11
    assert value("counter_get('s','c')", asked) == 11


def test_statements():
    asked = outside()
    assert value("sql_query('s', 'CREATE TABLE friends (address TEXT, level INTEGER)', [])", asked) == 0
    add = "sql_query('s', 'INSERT INTO friends VALUES (?, ?)', [rcpt, 3])"
    assert value(add, asked, rcpt="a@b.test") == 1
    select = "sql_query('s', 'SELECT level FROM friends WHERE address = ?', rcpt)"
    assert value(select, asked, rcpt="a@b.test") == 3
    assert value(select, asked, rcpt="x' OR '1'='1") == ""
    assert value("sql_query('s', 'SELECT * FROM friends', '')[0]", asked) == "a@b.test"


@pytest.mark.parametrize(
    "rule",
    [
        "key_get('down', 'x')",
        "key_exists('down', 'x')",
        "key_set('down', 'x', 'y')",
        "counter_get('down', 'x')",
        "counter_incr('down', 'x', 1)",
        "key_set('s', 'n', key_get('down', 'x'))",
        "counter_incr('s', 'n', key_exists('down', 'x'))",
    ],
)
def test_a_dead_store_is_unknown_and_changes_nothing(rule):
    asked = outside()
    assert value(rule, asked) == DOWN
    assert value("key_exists('s', 'n')", asked) == 0


def test_what_a_store_cannot_do_is_unknown_where_its_name_was_computed():
    asked = outside(SQLITE + REDIS, from_lookup("l", {"a": ""}))
    assert value("sql_query('' + 'r', 'SELECT 1', [])", asked) == Unknown("store r", "the store is not asked in SQL")
    assert value("key_set('' + 'l', 'a', 'b')", asked) == Unknown("store l", "a list keeps no keys for rules")
    assert value("key_set('s' + 'x', 'a', 'b')", asked) == Unknown("store sx", "no store or list has this name")


def test_a_value_that_does_not_parse_is_unknown():
    asked = outside()
    value("key_set('s', 'k', 'many')", asked)
    assert value("counter_get('s', 'k')", asked) == Unknown("store s", "the value of the key is no whole number")
    assert value("sql_query('s', 'SELEKT', [])", asked).dependency == "store s"


def test_lists_know_keys_in_any_case_and_stores_as_written():
    asked = outside(SQLITE, from_lookup("l", {"k": "v"}))
    value("key_set('s', 'K', 'upper')", asked)
    assert value("key_get('l', 'K') + key_get('s', 'K') + key_get('s', 'k')", asked) == "vupper"
