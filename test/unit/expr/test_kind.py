"""What keys make of values, known at load or only at evaluation."""

from datetime import timedelta

import pytest
from support.expressions import Table, compiled, errors, evaluated

from mailgate.expr.kind import (
    BOOLEAN,
    DURATION,
    INTEGER,
    MECHANISMS,
    MT_PRIORITY,
    NAME,
    NAMES,
    RATE,
    SIZE,
    STRING,
    STRING_OR_TRUTH,
    STRINGS,
    VERIFY,
    WORD,
    boolean,
)
from mailgate.expr.value import Rate

MINUTE = timedelta(minutes=1)
NEWLINE = WORD("reject", "normalize")

# Written in the file as `raw`; as long as it is accepted, a scope that gives the value says the same.
ACCEPTED = [
    (STRING, "'x'", "x"),
    (STRING, "''", ""),
    (STRING, "", None),
    (STRING, False, None),
    (STRING, 0, None),
    (STRING, "false", None),
    (STRING, "disable", None),
    (STRING, "never", None),
    (STRING.fallback("y"), False, "y"),
    (STRING.fallback("y"), "'disable'", "disable"),
    (STRINGS, "['a', 'b']", ("a", "b")),
    (STRINGS, "'a'", ("a",)),
    (STRINGS, ["'a'", "'b'"], ("a", "b")),
    (STRINGS, "[]", ()),
    (STRINGS, [], ()),
    (STRINGS, False, None),
    (BOOLEAN, True, True),
    (BOOLEAN, "true", True),
    (BOOLEAN, "'0'", True),
    (BOOLEAN, 0.0, False),
    (BOOLEAN, "[]", False),
    (BOOLEAN, "5m", True),
    (INTEGER, 10, 10),
    (INTEGER, "10", 10),
    (INTEGER, "10.9", 10),
    (INTEGER, 10.9, 10),
    (INTEGER, "'12'", 12),
    (INTEGER, 0, 0),
    (INTEGER, -3, -3),
    (INTEGER, "10 * 1024", 10240),
    (INTEGER.fallback(100), "''", 100),
    (SIZE, 262144000, 262144000),
    (SIZE, "25mb", 25 * 1024 * 1024),
    (SIZE, "10m", 10 * 1024 * 1024),
    (SIZE, "25 * 1024", 25600),
    (DURATION, "5m", 5 * MINUTE),
    (DURATION, "'5m'", 5 * MINUTE),
    (DURATION, "5 m", 5 * MINUTE),
    (DURATION, 300000, 5 * MINUTE),
    (DURATION, "300000", 5 * MINUTE),
    (DURATION, "4m + 60s", 5 * MINUTE),
    (DURATION, 0.5, timedelta(microseconds=500)),
    (DURATION, False, None),
    (DURATION, 0, None),
    (DURATION, "disabled", None),
    (DURATION.fallback(MINUTE), False, MINUTE),
    (RATE, "[25, 1h]", Rate(25, 60 * MINUTE)),
    (RATE, "'25/1h'", Rate(25, 60 * MINUTE)),
    (RATE, "[2, 5]", Rate(2, timedelta(seconds=1))),
    (RATE, False, None),
    (MECHANISMS, "[login, plain]", ("PLAIN", "LOGIN")),
    (MECHANISMS, ["plain", "scram_sha_256"], ("PLAIN", "SCRAM-SHA-256")),
    (MECHANISMS, "plain", ("PLAIN",)),
    (MECHANISMS, "'plain'", ("PLAIN",)),
    (MECHANISMS, False, ()),
    (MECHANISMS, "[]", ()),
    (MECHANISMS, "", ()),
    (VERIFY, "strict", "strict"),
    (VERIFY, "'strict'", "strict"),
    (VERIFY, "relaxed", "relaxed"),
    (VERIFY, "never", "disable"),
    (VERIFY, "none", "disable"),
    (VERIFY, False, "disable"),
    (MT_PRIORITY, "mixer", "mixer"),
    (MT_PRIORITY, "'nsep'", "nsep"),
    (MT_PRIORITY, False, None),
    (NEWLINE, "reject", "reject"),
    (NEWLINE.fallback("reject"), "normalize", "normalize"),
    (NEWLINE.fallback("reject"), False, "reject"),
    (NAME("script"), "connect_filter", "connect_filter"),
    (NAME("script"), "'data'", "data"),
    (NAME("script"), "list/of-things.2", "list/of-things.2"),
    (NAME("script"), "''", None),
    (NAME("script"), "", None),
    (NAME("script"), False, None),
    (NAME("route").fallback("mx"), False, "mx"),
    (NAME(), "Sieve Daemon", "Sieve Daemon"),
    (NAME(), "a (b) 'c", "a (b) 'c"),
    (NAMES("signature"), ["rsa", "ed25519"], ("rsa", "ed25519")),
    (NAMES("signature"), "rsa", ("rsa",)),
    (STRING_OR_TRUTH, True, True),
    (STRING_OR_TRUTH, "'x'", "x"),
    (STRING_OR_TRUTH, "''", False),
    (STRING_OR_TRUTH, False, False),
]


@pytest.mark.parametrize(("kind", "raw", "value"), ACCEPTED)
def test_accepted(kind, raw, value):
    choice = compiled(raw, kind)
    assert choice.is_constant
    found = evaluated(raw, kind)
    assert (type(found), found) == (type(value), value)


REFUSED = [
    (STRING, 5, "5 is not a text"),
    (STRING, True, "1 is not a text"),
    (STRING, "5m", "the duration 5m is not a text"),
    (STRING, "['a']", "['a'] is not a text"),
    (STRING, "is_tls", "a number is not a text"),
    (STRING, "recipients", "an array is not a text"),
    (STRING, "split(sender, '@')", "an array is not a text"),
    (STRING, "if_then(is_tls, sender, 5)", "5 is not a text"),
    (STRING, "x", "no variable or constant x"),
    (STRING.fallback("y"), "", "an empty expression"),
    (STRINGS, "[1]", "[1] is not a list of texts"),
    (STRINGS, "5", "5 is not a list of texts"),
    (BOOLEAN, "", "an empty expression"),
    (BOOLEAN, None, "None is no expression"),
    (BOOLEAN, 2**63, "9223372036854775808 is no expression"),
    (BOOLEAN, float("nan"), "nan is no expression"),
    (BOOLEAN, {"if": "1"}, "a table is no expression"),
    (INTEGER, "'ten'", "'ten' is not a number"),
    (INTEGER, "[1]", "[1] is not a number"),
    (INTEGER, "10m", "the duration 10m is not a number"),
    (INTEGER, "if_then(is_tls, 10, 10m)", "the duration 10m is not a number"),
    (SIZE, "'25mb'", "'25mb' is not a size"),
    (SIZE, "10s", "the duration 10s is not a size"),
    (DURATION, "[1, 2]", "[1, 2] is not a duration"),
    (DURATION, [1, 2], "[1, 2] is not a duration"),
    (STRINGS, ["'a'", ["'b'"]], "an array within an array"),
    (DURATION, "-5m", "-300000 is not a duration"),
    (DURATION, "0s", "0s is no duration"),
    (DURATION, "'soon'", "'soon' is not a duration"),
    (DURATION, "recipients", "an array is not a duration"),
    (DURATION, "999999d", "is not a duration"),
    (DURATION, "100m d", "an operator is missing before d"),
    (RATE, "[1]", "[1] is not a rate"),
    (RATE, "5", "5 is not a rate"),
    (MECHANISMS, "[plain, cram_md5]", "no variable or constant cram_md5"),
    (MECHANISMS, "['cram_md5']", "['cram_md5'] is not a list of SASL mechanisms"),
    (MECHANISMS, 5, "5 is not a list of SASL mechanisms"),
    (VERIFY, "'stric'", "'stric' is not a verification policy; did you mean strict?"),
    (VERIFY, True, "1 is not a verification policy"),
    (MT_PRIORITY, "mixr", "no variable or constant mixr; did you mean mixer?"),
    (NEWLINE, "'rejct'", "'rejct' is not one of reject, normalize; did you mean reject?"),
    (NEWLINE, "if_then(is_tls, reject, 'normal')", "'normal' is not one of reject, normalize"),
    (NEWLINE, "sender + 5m * [1]", None),
    (NAME("script"), 5, "5 is not the name of a script"),
    (NAME("script"), "if_then(is_tls, 'a', 'b'", ") is missing"),
    (NAME("script"), "key_get('s', sendr)", "no variable or constant sendr"),
    (NAMES("signature"), ["rsa", 5], "is not a list of names of a signature"),
]


@pytest.mark.parametrize(("kind", "raw", "problem"), REFUSED)
def test_refused_at_load(kind, raw, problem):
    told = errors(raw, kind)
    if problem is None:
        assert told == []
    else:
        assert len(told) == 1
        assert problem in told[0]


STORE = "key_get('s', 'k')"


@pytest.mark.parametrize(
    ("kind", "answer", "value"),
    [
        (INTEGER, "ten", None),
        (INTEGER.fallback(3), "ten", 3),
        (INTEGER, "10", 10),
        (DURATION, "", None),
        (DURATION, "2h", 120 * MINUTE),
        (DURATION, "-5", None),
        (DURATION, "99999999d", None),
        (RATE, "5/1m", Rate(5, MINUTE)),
        (RATE, "5", None),
        (MECHANISMS, "plain", ("PLAIN",)),
        (MECHANISMS, "cram_md5", ()),
        (VERIFY, "", "relaxed"),
        (VERIFY, "x", "relaxed"),
        (VERIFY, "disable", "disable"),
        (NEWLINE.fallback("reject"), "x", "reject"),
        (NAME("route").fallback("default"), "", "default"),
        (NAME("route"), "relay", "relay"),
        (boolean(True), "", False),
    ],
)
def test_no_value_shows_at_evaluation(kind, answer, value):
    found = evaluated(STORE, kind, outside=Table({("key_get", "s", "k"): answer}))
    assert (type(found), found) == (type(value), value)


def test_a_number_of_milliseconds_may_come_from_a_variable():
    assert evaluated("remote_port * 1000", DURATION, remote_port=60) == MINUTE
    assert evaluated("remote_port * 1000", DURATION, remote_port=0) is None


def test_a_truth_is_a_number():
    assert evaluated("is_tls + 1", INTEGER, is_tls=True) == 2
    assert evaluated("'' + is_tls + 'x'", STRING, is_tls=True) == "1x"
