"""Regular expressions: what RE2 has works, what it has not is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.expressions import errors, evaluated

from mailgate.expr.regex import LONGEST_SUBJECT, compile_pattern
from mailgate.expr.value import BadValue
from mailgate.mail.unknown import Unknown


@pytest.mark.parametrize(
    ("written", "subject", "groups"),
    [
        ("b", "abc", ("b",)),
        ("^b", "abc", None),
        ("B", "abc", None),
        ("(?i)B", "abc", ("b",)),
        ("a(?i)B", "ab", ("ab",)),
        ("x|a(?i)B|c", "C", ("C",)),
        ("(a(?i)b)C", "aBC", ("aBC", "aB")),
        ("(a(?i)b)C", "aBc", None),
        ("(?i:a)b", "Ab", ("Ab",)),
        ("(?i)a(?-i)b", "AB", None),
        ("(?i)a(?-i)b", "Ab", ("Ab",)),
        ("^a$", "a\n", None),
        (r"^a\z", "a", ("a",)),
        ("(?m)^b$", "a\nb\nc", ("b",)),
        ("(?m:^b$)|^c$", "a\nc", None),
        ("a.b", "a\nb", None),
        ("(?s)a.b", "a\nb", ("a\nb",)),
        ("(?P<x>a)(?<y>b)", "ab", ("ab", "a", "b")),
        ("[[:alpha:]]+", "12ab", ("ab",)),
        ("[^[:space:]x]+", " xab", ("ab",)),
        ("[]a]+", "]a", ("]a",)),
        ("[^]a]+", "b]", ("b",)),
        ("[[a&&b]+", "[&b", ("[&b",)),
        ("[a--]+", "a-", None),
        (r"[\]\-]+", "]-", ("]-",)),
        (r"\x{e9}", "\u00e9", ("\u00e9",)),
        (r"[\x{41}-C]+", "ABC", ("ABC",)),
        ("a{2}", "aaa", ("aa",)),
        ("a{,2}", "a{,2}", ("a{,2}",)),
        ("a{x}", "a{x}", ("a{x}",)),
        ("a*?b", "aab", ("aab",)),
        ("(a)|(b)", "b", ("b", None, "b")),
        ("(?:a|b)+", "abab", ("abab",)),
        ("([a-z]+[.])+com", "a.b.com", ("a.b.com", "b.")),
        (r"\$\(", "$(", ("$(",)),
        (r"\bfoo\b", "a foo b", ("foo",)),
        ("", "", ("",)),
    ],
)
def test_match(written, subject, groups):
    if written == "[a--]+":
        # A range from a down to the dash.
        with pytest.raises(BadValue):
            compile_pattern(written)
        return
    found = compile_pattern(written).search(subject)
    assert (None if found is None else (found[0], *found.groups())) == groups


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("(?=a)", "look-ahead"),
        ("(?!a)", "look-ahead"),
        ("(?<=a)b", "look-behind"),
        ("(?<!a)b", "look-behind"),
        (r"(a)\1", "back-reference"),
        ("(?P<x>a)(?P=x)", "back-reference"),
        (r"(?P<x>a)\k<x>", r"\k is not supported"),
        ("(?>a)", "atomic"),
        ("(a)(?(1)b)", "conditional"),
        ("(?#x)", "comment"),
        ("(?x)a b", "flag x"),
        ("(?L)a", "flag L"),
        ("(?i-i)a", "sets and clears"),
        ("(?", "a group of an unknown kind"),
        ("(?P>a)", "a group of an unknown kind"),
        ("a*+", "possessive"),
        ("a++", "possessive"),
        ("a{1,2}+", "possessive"),
        ("a**", "multiple repeat"),
        ("*a", "nothing to repeat"),
        ("(", "unterminated"),
        (")", "a ) without its ("),
        ("[", "a [ without its ]"),
        ("[a", "a [ without its ]"),
        ("[[:foo:]]", "is no class"),
        ("a\\", "ends with a backslash"),
        (r"\pL", r"\p is not supported"),
        (r"[\pL]", r"\p is not supported"),
        (r"\Z", r"\Z is not supported"),
        (r"\y", "bad escape"),
        (r"\x{110000}", "is no character"),
        ("a{2000}", "repeats more than 1000 times"),
        ("a{3,2}", "min repeat greater than max"),
        ("(a+)+", "repeats a group"),
        ("^(a*)*$", "repeats a group"),
        ("(?:[a-z]+)*x", "repeats a group"),
        ("((a+))+", "repeats a group"),
        (r"(b|\w+){2,}", "repeats a group"),
        ("(" * 200 + ")" * 200, "too deep"),
        ("a" * 5000, "5000 characters"),
    ],
)
def test_refused(written, problem):
    if written.startswith("(((((("):
        # How deep is too deep is the engine's.
        try:
            compile_pattern(written)
        except BadValue:
            pass
        return
    with pytest.raises(BadValue) as wrong:
        compile_pattern(written)
    assert problem in wrong.value.problem
    assert wrong.value.advice


@given(st.text(alphabet="ab(){}[]|*+?^$\\-:,.<>=!Pimsx12&~ \n", max_size=24))
@settings(max_examples=500, deadline=None)
def test_any_text_compiles_or_is_refused(written):
    try:
        compile_pattern(written)
    except BadValue as bad:
        refused = bad
    else:
        return
    assert refused.problem


def test_the_pattern_must_be_written_out():
    (told,) = errors("matches(sender, rcpt)")
    assert "the first argument of matches is not a text" in told
    assert errors("matches(5m, rcpt)")
    assert errors("matches('a' + 'b', rcpt)")


def test_an_invalid_pattern_is_found_at_load():
    (told,) = errors("matches('(', rcpt)")
    assert told.startswith("column 1: '(' is no regular expression")


def test_a_text_that_is_too_long_is_not_searched():
    found = evaluated("matches('a$', sender)", sender="a" * (LONGEST_SUBJECT + 1))
    assert isinstance(found, Unknown)
    assert evaluated("matches('a$', sender)", sender="a" * LONGEST_SUBJECT) == 1
    constant = f"matches('a$', '{'a' * (LONGEST_SUBJECT + 1)}')"
    assert isinstance(evaluated(constant), Unknown)
    assert isinstance(evaluated([{"if": constant, "then": "$0"}, {"else": False}]), Unknown)
