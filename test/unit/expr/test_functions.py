"""Each function, by what it gives."""

import hashlib

import pytest
from support.expressions import DOWN, Table, compiled, errors, evaluated

from mailgate.expr.functions.registry import FUNCTIONS
from mailgate.expr.resolve import static_type
from mailgate.expr.value import Type, type_of

CALLS = [
    ("trim('  a b \t')", "a b"),
    ("trim([' a', 'b '])", ("a", "b")),
    ("trim_start(' a ')", "a "),
    ("trim_end(' a ')", " a"),
    ("to_lowercase('ABC')", "abc"),
    ("to_lowercase(['A', 'B'])", ("a", "b")),
    ("to_uppercase('abc')", "ABC"),
    ("is_uppercase('AB1')", 1),
    ("is_uppercase('Ab')", 0),
    ("is_uppercase('12')", 1),
    ("is_lowercase('ab')", 1),
    ("is_lowercase(['a', 'B'])", (1, 0)),
    ("has_digits('a1')", 1),
    ("has_digits('a')", 0),
    ("count_spaces('a b  c')", 3),
    ("count_uppercase('aBC')", 2),
    ("count_lowercase('aBc')", 2),
    ("count_chars('hi there')", 8),
    ("count_chars('\u00e9')", 1),
    ("len('\u00e9')", 2),
    ("len('abc')", 3),
    ("len([1, 2])", 2),
    ("len(100)", 3),
    ("contains('abc', 'b')", 1),
    ("contains(['a', 'b'], 'b')", 1),
    ("contains(['ab'], 'b')", 0),
    ("contains([1, 2], '2')", 1),
    ("contains_ignore_case('ABC', 'b')", 1),
    ("contains_ignore_case(['A'], 'a')", 1),
    ("contains_ignore_case(['AB'], 'a')", 0),
    ("eq_ignore_case('Ab', 'aB')", 1),
    ("eq_ignore_case('\u00c9', '\u00e9')", 0),
    ("starts_with('abc', 'ab')", 1),
    ("ends_with('abc', 'ab')", 0),
    ("lines('a\\r\\nb\\n\\nc')", ("a", "b", "", "c")),
    ("lines('a\\n')", ("a",)),
    ("lines('')", ()),
    ("substring('hello', 1, 3)", "ell"),
    ("substring('hello', 4, 9)", "o"),
    ("substring('hello', 9, 1)", ""),
    ("substring('hello', -2, 2)", "he"),
    ("substring('hello', 1, -1)", ""),
    ("strip_prefix('abc', 'ab')", "c"),
    ("strip_prefix('abc', 'x')", ""),
    ("strip_suffix('abc', 'bc')", "a"),
    ("strip_suffix('abc', '')", "abc"),
    ("strip_suffix(['a.x', 'b'], '.x')", ("a", "")),
    ("split('a,b,,c', ',')", ("a", "b", "", "c")),
    ("split('abc', '')", ("abc",)),
    ("rsplit('a,b', ',')", ("a", "b")),
    ("split_once('k=v=w', '=')", ("k", "v=w")),
    ("rsplit_once('k', '=')", ""),
    ("rsplit_once('k', '')", ""),
    ("split_n('a,b,c', ',', 0)", ("a,b,c",)),
    ("split_n('a,b', ',', 9)", ("a", "b")),
    ("split_words('a b2 c! d')", ("a", "b2", "d")),
    ("hash('x', 'md5')", hashlib.md5(b"x", usedforsecurity=False).hexdigest()),
    ("hash('x', 'sha1')", hashlib.sha1(b"x", usedforsecurity=False).hexdigest()),
    ("hash('x', 'sha256')", hashlib.sha256(b"x").hexdigest()),
    ("hash('x', 'sha512')", hashlib.sha512(b"x").hexdigest()),
    ("hash('x', 'crc')", ""),
    ("count(['a', ''])", 2),
    ("count(0)", 1),
    ("sort(['b', 'a', 'c'], 1)", ("a", "b", "c")),
    ("sort([3, 10, 2], false)", (10, 3, 2)),
    ("sort(['b', 10, ['x'], 'a', 2.5], true)", (2.5, 10, "a", "b", ("x",))),
    ("dedup(['b', 'a', 'b'])", ("b", "a")),
    ("dedup([1, '1', 1.0])", (1, "1")),
    ("winnow(['a', '', [], 0])", ("a", 0)),
    ("is_intersect(['a', 'b'], ['b', 'c'])", 1),
    ("is_intersect(['a', 'b'], 'b')", 1),
    ("is_intersect('c', ['b'])", 0),
    ("is_email('a@b.c')", 1),
    ("is_email('\"a b@c\"@d.e')", 1),
    ("is_email('a@b')", 0),
    ("is_email('@b.c')", 0),
    ("is_email('a@b..c')", 0),
    ("is_email('a@.b')", 0),
    ("is_email('a@b@c.d')", 0),
    ("is_email('a b@c.d')", 0),
    ("email_part('a@b.c', 'domain')", "b.c"),
    ("email_part(' a @ b.c ', 'local')", "a"),
    ("email_part(['a@b', 'c'], 'local')", ("a", "")),
    ("email_part('a@b', 'host')", ""),
    ("is_empty('')", 1),
    ("is_empty([])", 1),
    ("is_empty(0)", 0),
    ("is_empty('0')", 0),
    ("is_number('123')", 1),
    ("is_number('1.5')", 1),
    ("is_number('x')", 0),
    ("is_number('')", 0),
    ("is_number(5)", 1),
    ("is_number([5])", 0),
    ("is_ip_addr('192.0.2.1')", 1),
    ("is_ip_addr('2001:db8::1')", 1),
    ("is_ip_addr('192.0.2')", 0),
    ("is_ip_addr('fe80::1%eth0')", 0),
    ("is_ipv4_addr('192.0.2.1')", 1),
    ("is_ipv4_addr('::1')", 0),
    ("is_ipv6_addr('::1')", 1),
    ("ip_reverse_name('192.0.2.1')", "1.2.0.192"),
    ("ip_reverse_name('2001:db8::1')", ".".join(reversed("20010db8000000000000000000000001"))),
    ("ip_reverse_name('x')", ""),
    ("if_then(1, 'a', 'b')", "a"),
    ("if_then('', 'a', 'b')", "b"),
    ("config_get('server.hostname')", "mx.test"),
    ("config_get('server.max-connections')", 8192),
    ("config_get('storage.directory')", ""),
]


QUESTIONS = [
    ("is_local_domain('*', rcpt)", ("is_local_domain", "*", "r"), True, 1),
    ("is_local_domain('local', rcpt)", ("is_local_domain", "local", "r"), False, 0),
    ("is_local_address('', rcpt)", ("is_local_address", "", "r"), True, 1),
    ("key_get('s', rcpt)", ("key_get", "s", "r"), "v", "v"),
    ("key_exists('s', 5)", ("key_exists", "s", "5"), True, 1),
    ("dns_query(rcpt, 'mx')", ("dns_query", "r", "mx"), ("a", "b"), ("a", "b")),
    ("dns_query(rcpt, 'txt')", ("dns_query", "r", "txt"), "v=spf1", "v=spf1"),
    ("dns_query('192.0.2.1', 'ptr')", ("dns_query", "192.0.2.1", "ptr"), ("h",), ("h",)),
    ("dns_query('down', 'mx')", ("dns_query", "down", "mx"), None, DOWN),
    ("is_local_domain('down', rcpt)", ("is_local_domain", "down", "r"), None, DOWN),
    ("key_set('s', rcpt, 1.5)", ("key_set", "s", "r", "1.5"), None, 1),
    ("key_set('down', rcpt, 1)", ("key_set", "down", "r", "1"), None, DOWN),
    ("counter_get('s', rcpt)", ("counter_get", "s", "r"), 7, 7),
    ("counter_incr('s', rcpt, '2')", ("counter_incr", "s", "r", 2), 9, 9),
    ("counter_incr('s', rcpt, -2.7)", ("counter_incr", "s", "r", -2), 7, 7),
    ("counter_incr('down', rcpt, 1)", ("counter_incr", "down", "r", 1), None, DOWN),
    ("sql_query('s', 'select 1', [])", ("sql_query", "s", "select 1", ()), 1, 1),
    ("sql_query('s', 'select 1', '')", ("sql_query", "s", "select 1", ()), 1, 1),
    ("sql_query('s', 'select ?', rcpt)", ("sql_query", "s", "select ?", ("r",)), "r", "r"),
    (
        "sql_query('s', '? ?', [rcpt, 2])",
        ("sql_query", "s", "? ?", ("r", 2)),
        (("r", 2), ("x", 3)),
        (("r", 2), ("x", 3)),
    ),
    ("sql_query('down', 'select 1', [])", ("sql_query", "down", "select 1", ()), None, DOWN),
]


@pytest.mark.parametrize(("call", "value"), CALLS)
def test_call(call, value):
    found = evaluated(call)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(("call", "value"), CALLS)
def test_its_type_is_as_declared(call, value):
    name = call.partition("(")[0]
    declared = FUNCTIONS[name].returns | (Type.ARRAY if FUNCTIONS[name].maps else Type.NOTHING)
    assert type_of(value) & declared


def test_every_function_that_computes_is_called_here():
    called = {call.partition("(")[0] for call, _ in CALLS}
    asked = {name for name, function in FUNCTIONS.items() if function.ask is not None}
    assert set(FUNCTIONS) == called | asked | {"matches"}
    assert asked == {question.partition("(")[0] for question, *_ in QUESTIONS}


@pytest.mark.parametrize(("call", "question", "answer", "value"), QUESTIONS)
@pytest.mark.parametrize("waits", [False, True])
def test_question(call, question, answer, value, waits):
    outside = Table({question: answer}, waits)
    found = evaluated(call, outside=outside, rcpt="r")
    assert (type(found), found, outside.asked) == (type(value), value, [question])


@pytest.mark.parametrize(("call", "value"), [("dns_query('x', 'mxx')", ""), ("dns_query('x', 'ptr')", ())])
def test_question_that_nobody_need_answer(call, value):
    outside = Table()
    assert evaluated(call, outside=outside) == value
    assert outside.asked == []


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_arity(name):
    function = FUNCTIONS[name]
    arguments = ["'a'"] * (len(function.parameters) + 1)
    (told,) = errors(f"{name}({', '.join(arguments)})")
    assert f"{name} takes {len(function.parameters)} argument" in told
    assert told.endswith(f"write {function.signature}")


def test_static_type_of_a_mapped_function_follows_its_argument():
    def of(written):
        return static_type(compiled(written)._branches[0].value)

    assert of("trim(sender)") == Type.STRING
    assert of("trim(recipients)") == Type.ARRAY
    assert of("trim(key_get('s', sender) + dns_query(sender, 'mx'))") & Type.ARRAY


def test_unknown_function():
    assert errors("is_empy(sender)") == ["column 1: no function is_empy; did you mean is_empty(x)?"]
    assert errors("count_foo_bar_baz_quux(1)")
