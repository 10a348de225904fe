"""Lexing and precedence, and that whatever an operator types ends in a tree or in an error with a place."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.expressions import errors, evaluated

from mailgate.expr.error import ExpressionError
from mailgate.expr.functions.registry import FUNCTIONS
from mailgate.expr.kind import BOOLEAN, NAME
from mailgate.expr.node import Binary, Call, Index, Literal, Logic, Unary, Word
from mailgate.expr.parse import parse
from mailgate.expr.scope import NAMES
from mailgate.expr.token import Kind, tokens
from mailgate.expr.value import Type


def shape(node):
    """A tree as nested brackets."""
    match node:
        case Word():
            return node.name
        case Literal():
            return repr(node.value) if isinstance(node.value, str) else str(node.value)
        case Binary():
            return f"({shape(node.left)} {node.operator} {shape(node.right)})"
        case Logic():
            return "(" + f" {node.operator} ".join(map(shape, node.operands)) + ")"
        case Unary():
            return f"{node.operator}{shape(node.operand)}"
        case Index():
            return f"{shape(node.base)}[{shape(node.at)}]"
        case Call():
            return f"{node.name}({', '.join(map(shape, node.arguments))})"
        case _:
            return "[" + ", ".join(map(shape, node.elements)) + "]"


@pytest.mark.parametrize(
    ("written", "tree"),
    [
        ("a * b / c", "((a * b) / c)"),
        ("a + b * c - d", "((a + (b * c)) - d)"),
        ("a + b > c + d", "((a + b) > (c + d))"),
        ("a > b = c < d", "((a > b) = (c < d))"),
        ("a = b ^ c = d", "((a = b) ^ (c = d))"),
        ("a ^ b & c ^ d", "((a ^ b) & (c ^ d))"),
        ("a & b | c & d", "((a & b) | (c & d))"),
        ("a | b | c", "(a | b | c)"),
        ("a | (b | c)", "(a | (b | c))"),
        ("a & b & c | d", "((a & b & c) | d)"),
        ("!a & b", "(!a & b)"),
        ("!a = b", "(!a = b)"),
        ("-a * b", "(-a * b)"),
        ("a - -b", "(a - -b)"),
        ("!!a", "!!a"),
        ("!a[0]", "!a[0]"),
        ("a[0][1]", "a[0][1]"),
        ("f(a, b + c)[1]", "f(a, (b + c))[1]"),
        ("f()", "f()"),
        ("[a, [b], []]", "[a, [b], []]"),
        ("(a)", "a"),
        ("a == b", "(a = b)"),
        ("a && b || c", "((a & b) | c)"),
        ("a => b", "(a >= b)"),
        ("a =< b", "(a <= b)"),
        ("a=-1", "(a = -1)"),
        ("a=!b", "(a = !b)"),
        ("a\t=\r\n b", "(a = b)"),
        ("true | false", "(1 | 0)"),
        ("5m", "300000"),
        ("body.words", "body.words"),
        ("authenticated-as", "authenticated_as"),
        ("a-b", "(a - b)"),
        ("rcpt-domain-x", "((rcpt - domain) - x)"),
        ("sender - domain", "(sender - domain)"),
    ],
)
def test_tree(written, tree):
    assert shape(parse(written)) == tree


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("'a'", "a"),
        ('"a"', "a"),
        ("'it\\'s'", "it's"),
        ('"\\"q\\""', '"q"'),
        (r"'\n\r\t\\'", "\n\r\t\\"),
        (r"'\d\.'", r"\d\."),
        (r"'\\'", "\\"),
        (r"'\\\''", "\\'"),
        ("'\"'", '"'),
        ("'a\nb'", "a\nb"),
    ],
)
def test_text_literal(written, value):
    (token, end) = tokens(written)
    assert (token.value, token.type, end.kind) == (value, Type.STRING, Kind.END)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (r"matches('^\w+\'s$', sender)", 1),
        (r'matches("^\w+\'s$", sender)', 1),
        (r"matches('\x6f', sender)", 1),
        (r"matches('\\', sender)", 0),
    ],
)
def test_a_regular_expression_gets_its_backslashes_unchanged(written, value):
    assert evaluated(written, sender="bob's") == value


@pytest.mark.parametrize(
    ("written", "column", "problem"),
    [
        ("", 1, "a value is missing before the end"),
        ("a +", 4, "a value is missing before the end"),
        ("a b", 3, "an operator is missing before b"),
        ("a and b", 3, "an operator is missing before and"),
        ("f(a", 4, ") is missing for the ( in column 2 before the end"),
        ("f(a b)", 5, ") is missing for the ( in column 2 before b"),
        ("[a", 3, "] is missing for the [ in column 1 before the end"),
        ("[a,]", 4, "a value is missing before ]"),
        ("a)", 2, "an operator is missing before )"),
        ("a ** b", 4, "a value is missing before *"),
        ("'abc", 1, "a text without its closing quote"),
        ("a } b", 3, "unexpected character }"),
        ("a % b", 3, "unexpected character %"),
        ("10x", 1, "10x is neither a number nor a duration"),
        ("1.2.3", 1, "1.2.3 is neither a number nor a duration"),
        ("1.", 1, "1. is neither a number nor a duration"),
        ("1 + 0s", 5, "0s is no duration: it must be more than zero"),
        ("99999999999999999999", 1, "99999999999999999999 is too large a number"),
        ("9223372036854775807d", 1, "9223372036854775807d is too long a duration"),
        ("$", 1, "$ is no capture"),
        ("$1x", 1, "$1x is no capture"),
        ("(" * 100, 41, "the expression is nested too deep"),
        ("!" * 100 + "a", 41, "the expression is nested too deep"),
        ("a" + " + a" * 150, None, "the expression is nested too deep"),
        ("a" * 20000, None, "the expression is longer than 16384 characters"),
    ],
)
def test_error_has_a_place_and_an_advice(written, column, problem):
    with pytest.raises(ExpressionError) as wrong:
        parse(written)
    assert (wrong.value.column, wrong.value.problem) == (column, problem)
    assert wrong.value.advice


def test_words_of_other_languages_are_translated():
    assert errors("is_tls and asn > 5") == ["column 8: an operator is missing before and; write &&"]


def test_a_long_list_of_alternatives_is_not_deep():
    written = " | ".join(f"sender_domain = 'd{number}.example'" for number in range(300))
    assert evaluated(written, sender_domain="d299.example") == 1


def test_the_mark_of_a_spam_tag_is_off():
    assert evaluated("$SPAM_TRAP | 0") == 0


VOCABULARY = st.sampled_from(
    [
        *sorted(NAMES), *sorted(FUNCTIONS), "authenticated-as", "(", ")", "[", "]", ",", "'", '"', "\\", "!", "-", "+",
        "*", "/", "<", "<=", "=<", ">", ">=", "=", "==", "!=", "^", "&", "&&", "|", "||", "$1", "$", "1", "2.5", "5m",
        "0s", "'a'", "'(a+)+'", "'(?=a)'", "matches(", "if_then(1,", " ", "\n", "\x00", "\ud800", "9" * 30, "e",
        "true", "{", "}",
    ]
)  # fmt: skip


@given(st.one_of(st.text(max_size=40), st.lists(VOCABULARY, max_size=25).map("".join)))
@example("(" * 5000)
@example("-" * 5000)
@example("[" * 5000 + "]" * 5000)
@example("f(" * 3000)
@example("a" + "[0" * 3000)
@example("a|" * 5000 + "a")
@settings(max_examples=400, deadline=None)
def test_any_text_parses_or_is_an_expression_error(written):
    error = refused(written)
    if error is not None:
        assert error.problem
        assert error.column is None or 1 <= error.column <= len(written) + 1


def refused(written):
    try:
        parse(written)
    except ExpressionError as error:
        return error
    return None


@given(
    st.recursive(
        st.one_of(
            st.lists(VOCABULARY, max_size=12).map(" ".join),
            st.text(max_size=10),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.none(),
        ),
        lambda below: st.one_of(
            st.lists(below, max_size=3),
            st.dictionaries(st.sampled_from(["if", "then", "else", "on-error", "on_error"]), below, max_size=3),
        ),
        max_leaves=6,
    ),
    st.sampled_from([BOOLEAN, NAME("script")]),
)
@settings(max_examples=300, deadline=None)
def test_any_toml_value_compiles_or_is_refused_with_reasons(raw, kind):
    for told in errors(raw, kind):
        assert told
