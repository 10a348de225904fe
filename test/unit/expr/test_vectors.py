"""The language by its published vectors, each as a constant, with facts, and with facts known beforehand."""

from datetime import timedelta

import pytest
from support.expressions import DOWN, VALUE, Facts, Table, compiled, drive, evaluated

from mailgate.expr.kind import DURATION, STRING, STRINGS
from mailgate.expr.scope import Context
from mailgate.mail.unknown import Unknown

FACTS = {
    "rcpt": "user@example.org",
    "rcpt_domain": "example.org",
    "sender": "bill@foo.net",
    "sender_domain": "foo.net",
    "local_ip": "192.168.9.3",
    "authenticated_as": "john@foobar.org",
    "priority": "-4",
    "listener": "smtp",
    "helo_domain": "hi-domain.net",
    "mx": "mx.somedomain.com",
}

EXPRESSIONS = [
    ("rcpt_domain = 'example.org'", 1),
    ("listener = 'smtps'", 0),
    ("!is_empty(authenticated_as)", 1),
    ("starts_with(mx, 'mx.some')", 1),
    ("matches('^(.+)@(.+)$', sender)", 1),
    (r"matches('^\S+@\S+$', mx)", 0),
    ("authenticated_as != 'x' & rcpt_domain = 'example.org' & listener = 'smtp'", 1),
    ("!(rcpt_domain = 'example.org' | listener = 'smtp')", 0),
    ("priority = -4", 1),
    ("1 + 2 * 3", 7),
    ("(1 + 2) * 3", 9),
    ("7 / 2", 3.5),
    ("1 / 0", 0.0),
    ("'a' + 1 + 2", "a12"),
    ("1 + 2 + 'a'", "3a"),
    ("'' + 5", 5),
    ("-3 + 5", 2),
    ("1 = 1 ^ 1 = 1", 0),
    ("0 & rcpt", 0),
    ("['a','b'] + 'c'", ("a", "b", "c")),
    ("['a','b','a'] - 'a'", ("b",)),
    ("[10, 20, 30][1]", 20),
    ("[1][5]", ""),
    ("split_n('a,b,c,d', ',', 2)", ("a", "b", "c,d")),
    ("rsplit_once('key=value=extra', '=')", ("key=value", "extra")),
    ("split_once('abc', '=')", ""),
    ("substring('hello world', 6, 3)", "wor"),
    ("email_part('a@b@c.org', 'local')", "a@b"),
    ("count('')", 0),
    ("count('x')", 1),
    ("count([])", 0),
    ("5m", 300000),
    ("1d", 86400000),
    ("500ms", 500),
]


def context_of(expression):
    return Context.HOST if "mx" in expression.split("'")[0] or ", mx" in expression else Context.RCPT


def same(left, right):
    return type(left) is type(right) and left == right


@pytest.mark.spec("IN-058")
@pytest.mark.parametrize(("expression", "value"), EXPRESSIONS)
def test_expression(expression, value):
    assert same(evaluated(expression, context=context_of(expression), **FACTS), value)


@pytest.mark.parametrize(("expression", "value"), EXPRESSIONS)
def test_expression_with_its_facts_known_at_load(expression, value):
    choice = compiled(expression, context=context_of(expression)).specialise(FACTS)
    assert choice.is_constant
    assert same(drive(choice.value(Facts())), value)


@pytest.mark.spec("IN-058")
def test_captures_of_the_vector():
    block = [{"if": "matches('^(.+)@(.+)$', sender)", "then": "[$0, $1, $2, $3]"}, {"else": False}]
    assert evaluated(block, **FACTS) == ("bill@foo.net", "bill", "foo.net", "")


@pytest.mark.spec("IN-058")
def test_a_side_that_cannot_matter_is_not_evaluated():
    choice = compiled("0 & rcpt")
    assert choice.variables == ()
    assert drive(choice.value(Facts())) == 0


BLOCKS = [
    ([{"if": "sender = 'bill@foo.net'", "then": "sender"}, {"else": False}], STRING, "bill@foo.net"),
    (
        [{"if": "starts_with(rcpt_domain, 'foo')", "then": "'mx.' + rcpt_domain"}, {"else": False}],
        STRING,
        "mx.foo.example.org",
    ),
    (
        [
            {"if": r"matches('^([^.]+)@([^.]+)\.(.+)$', rcpt)", "then": "$1 + '+' + $2 + '@' + $3"},
            {"else": False},
        ],
        STRING,
        "user+foo@example.org",
    ),
    (
        [
            {
                "if": "matches('^([^.]+)@(.+)$', authenticated_as)",
                "then": "'rcpt ' + rcpt + ' listener ' + listener + ' ip ' + local_ip + ' priority ' + priority",
            },
            {"else": False},
        ],
        STRING,
        "rcpt user@foo.example.org listener smtp ip 192.168.9.3 priority -4",
    ),
    ([{"if": "sender = 'nobody'", "then": "'x'"}, {"else": False}], STRING, None),
]


@pytest.mark.spec("IN-058")
@pytest.mark.parametrize(("block", "kind", "value"), BLOCKS)
def test_block(block, kind, value):
    facts = FACTS | {"rcpt": "user@foo.example.org", "rcpt_domain": "foo.example.org"}
    assert evaluated(block, kind, **facts) == value
    assert drive(compiled(block, kind).specialise(facts).value(Facts())) == value


@pytest.mark.spec("IN-058")
@pytest.mark.parametrize(
    ("rcpt", "value"), [("jane@x", timedelta(hours=1)), ("john@x", None), ("user@foo.example.org", None)]
)
def test_block_of_durations(rcpt, value):
    block = [
        {"if": "sender = 'jdoe'", "then": "5d"},
        {"if": "priority = -1 | starts_with(rcpt, 'jane')", "then": "1h"},
        {"else": False},
    ]
    assert evaluated(block, DURATION, **(FACTS | {"rcpt": rcpt})) == value


@pytest.mark.spec("IN-058")
@pytest.mark.parametrize(("listener", "value"), [("a", ("From", "To", "Date")), ("b", ("Other-ID",)), ("c", ())])
def test_block_of_lists(listener, value):
    block = [
        {"if": "listener = 'a'", "then": "['From', 'To', 'Date']"},
        {"if": "listener = 'b'", "then": "'Other-ID'"},
        {"else": "[]"},
    ]
    assert (evaluated(block, STRINGS, listener=listener) or ()) == value


# --- three-valued logic ----------------------------------------------------------

U = "key_exists('down', 'x')"

WITH_UNKNOWN = [
    ("!U", DOWN),
    ("-U", DOWN),
    ("U + 1", DOWN),
    ("'a' + U", DOWN),
    ("[1, U]", DOWN),
    ("len(U)", DOWN),
    ("is_empty(U)", DOWN),
    ("1 | U", 1),
    ("U | 1", 1),
    ("0 & U", 0),
    ("U & 0", 0),
    ("1 & U", DOWN),
    ("U & 1", DOWN),
    ("0 | U", DOWN),
    ("U | 0", DOWN),
    ("U & U", DOWN),
    ("U | U", DOWN),
    ("1 ^ U", DOWN),
    ("U = U", DOWN),
    ("U != 1", DOWN),
    ("U < 2", DOWN),
    ("!(U & 0)", 1),
    ("!(U | 1)", 0),
    ("if_then(1, 'a', U)", "a"),
    ("if_then(U, 'a', 'a')", "a"),
    ("if_then(0, 'a', U)", DOWN),
    ("if_then(U, 'a', 'b')", DOWN),
    # The tables.
    ("!1", 0),
    ("!0", 1),
    ("1 & 1", 1),
    ("1 & 0", 0),
    ("0 & 1", 0),
    ("0 & 0", 0),
    ("1 | 1", 1),
    ("1 | 0", 1),
    ("0 | 1", 1),
    ("0 | 0", 0),
    # The rest of the operations.
    ("U ^ 0", DOWN),
    ("U == 0", DOWN),
    ("U <= 1", DOWN),
    ("1 > U", DOWN),
    ("U >= 1", DOWN),
    ("U - 1", DOWN),
    ("2 * U", DOWN),
    ("U / 0", DOWN),
    ("[1, 2][U]", DOWN),
    ("[U][1]", DOWN),
    ("if_then(U, 1, '1')", DOWN),
    ("substring('abc', 1, U)", DOWN),
    ("matches('a', U)", DOWN),
]


def is_same(found, value):
    """`Unknown` is a tuple, and equal unknowns must not pass for equal values."""
    return type(found) is type(value) and found == value


@pytest.mark.spec("IN-070")
@pytest.mark.parametrize(("expression", "value"), WITH_UNKNOWN)
def test_unknown_from_a_store(expression, value):
    assert is_same(evaluated(expression.replace("U", U)), value)


@pytest.mark.parametrize(("expression", "value"), WITH_UNKNOWN)
def test_unknown_from_a_variable(expression, value):
    assert is_same(evaluated(expression.replace("U", "asn"), asn=DOWN), value)


@pytest.mark.parametrize(("expression", "value"), WITH_UNKNOWN)
def test_unknown_beside_facts_that_are_no_constants(expression, value):
    written = expression.replace("U", U)
    for digit, name in (("0", "remote_port"), ("1", "local_port")):
        if "'" not in written.replace(U, "") and "[" not in written:
            written = written.replace(digit, name)
    assert is_same(evaluated(written, remote_port=0, local_port=1), value)


BLOCKS_WITH_UNKNOWN = [
    ([{"if": "1 = 1", "then": "'a'"}, {"if": "U", "then": "'b'"}, {"else": "'c'"}], "a", 0),
    ([{"if": "U", "then": "'a'"}, {"if": "1 = 1", "then": "'b'"}, {"else": "'c'"}], DOWN, 1),
    ([{"if": "0", "then": "U"}, {"else": "'b'"}], "b", 0),
    ([{"if": "1", "then": "U"}, {"else": "'b'"}], DOWN, 1),
    ([{"if": "U", "then": "'a'"}, {"else": "'a'"}], DOWN, 1),
]


@pytest.mark.spec("IN-070")
@pytest.mark.parametrize(("block", "value", "questions"), BLOCKS_WITH_UNKNOWN)
def test_block_with_unknown(block, value, questions):
    written = [{name: text.replace("U", U) for name, text in element.items()} for element in block]
    outside = Table()
    assert is_same(evaluated(written, outside=outside), value)
    assert len(outside.asked) == questions


@pytest.mark.spec("IN-070")
def test_an_unknown_argument_stops_the_call():
    outside = Table()
    found = evaluated("key_get('s', 'a' + key_get('down', 'x'))", outside=outside)
    assert is_same(found, DOWN)
    assert outside.asked == [("key_get", "down", "x")]


@pytest.mark.spec("IN-070")
def test_an_unknown_subject_clears_the_captures():
    block = [
        {"if": "matches('(a)', listener) & (matches('(b)', country) | $1 = '')", "then": "'empty'"},
        {"else": "'kept'"},
    ]
    assert evaluated(block, listener="a", country=DOWN) == "empty"


@pytest.mark.spec("IN-070")
def test_of_two_unknowns_the_left_one_is_reported_and_the_other_is_in_the_trace():
    facts = Facts(asn=Unknown("asn", "no table"), country=Unknown("country", "no table"))
    for operator in "&|^=+-*/<":
        facts.notes.clear()
        found = drive(compiled(f"asn {operator} country", VALUE).value(facts))
        assert found.dependency == "asn"
        ((_, _, reads, noted),) = facts.notes
        assert [value.dependency for _, value in reads] == ["asn", "country"]
        assert noted.dependency == "asn"


@pytest.mark.spec("IN-061")
def test_the_second_operand_is_not_asked_when_the_first_is_true():
    outside = Table()
    assert (
        evaluated("listener = 'smtp' || key_exists('down', sender)", outside=outside, listener="smtp", sender="") == 1
    )
    assert outside.asked == []
    unknown = evaluated("listener = 'smtp' || key_exists('down', sender)", outside=outside, listener="in", sender="")
    assert unknown == DOWN


@pytest.mark.spec("IN-068")
def test_a_variable_spelled_with_dashes():
    for name in ("authenticated-as", "authenticated_as"):
        choice = compiled(f"is_empty({name})")
        assert choice.variables == ("authenticated_as",)
        assert [drive(choice.value(Facts(authenticated_as=login))) for login in ("", "john")] == [1, 0]


@pytest.mark.spec("IN-069")
def test_captures_are_those_of_the_winning_condition():
    block = [
        {"if": "matches('^(.+)@x$', rcpt)", "then": "$1"},
        {"if": "listener = 'smtp'", "then": "'[' + $1 + ']'"},
        {"else": "$1"},
    ]
    assert evaluated(block, rcpt="a@y", listener="smtp") == "[]"
    assert evaluated(block, rcpt="a@y", listener="in") == ""
    assert evaluated(block, rcpt="a@x", listener="in") == "a"


def test_captures_of_a_condition_that_did_not_win_are_gone():
    block = [
        {"if": "matches('^(.+)@x$', rcpt) & listener = 'in'", "then": "'no'"},
        {"if": "1 = 1 & listener != 'in'", "then": "'[' + $1 + ']'"},
        {"else": "$1"},
    ]
    assert evaluated(block, rcpt="a@x", listener="smtp") == "[]"
