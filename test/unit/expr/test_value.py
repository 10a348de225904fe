from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.expr.value import (
    INTEGER_MAX,
    INTEGER_MIN,
    BadValue,
    Rate,
    Type,
    duration_text,
    number,
    parsed,
    read_duration,
    read_rate,
    read_size,
    saturated,
    text,
)


@pytest.mark.parametrize(
    ("raw", "duration"),
    [
        ("5m", timedelta(minutes=5)),
        ("500ms", timedelta(milliseconds=500)),
        (" 1 d ", timedelta(days=1)),
        ("2h", timedelta(hours=2)),
        ("10s", timedelta(seconds=10)),
        ("1500", timedelta(milliseconds=1500)),
        (1500, timedelta(milliseconds=1500)),
        (1500.9, timedelta(milliseconds=1500)),
    ],
)
def test_duration(raw, duration):
    assert read_duration(raw) == duration


@pytest.mark.parametrize(
    "raw", ["", "0s", "0", 0, -1, "5x", "5 minutes", "m5", "-5m", "1h30m", "99999d", True, None, [5], float("inf")]
)
def test_what_is_no_duration(raw):
    with pytest.raises(BadValue) as wrong:
        read_duration(raw)
    assert wrong.value.problem
    assert wrong.value.advice


@given(st.integers(1, 10**12))
def test_duration_text_is_read_back(milliseconds):
    duration = timedelta(milliseconds=milliseconds)
    assert read_duration(duration_text(duration)) == duration


@pytest.mark.parametrize(
    ("raw", "octets"),
    [
        (0, 0),
        (262144000, 262144000),
        ("1000", 1000),
        ("10k", 10240),
        ("10KB", 10240),
        ("25 Mb", 25 * 1024**2),
        ("1g", 1024**3),
        ("1GB", 1024**3),
    ],
)
def test_size(raw, octets):
    assert read_size(raw) == octets


@pytest.mark.parametrize("raw", ["", "b", "10t", "-1", -1, 1.5, True, None, "10 m b x", "999999999999999g"])
def test_what_is_no_size(raw):
    with pytest.raises(BadValue):
        read_size(raw)


@pytest.mark.parametrize(
    ("raw", "rate"),
    [
        ("25/1h", Rate(25, timedelta(hours=1))),
        (" 5 / 1 s", Rate(5, timedelta(seconds=1))),
        ("2/10ms", Rate(2, timedelta(seconds=1))),
        (False, None),
        ("none", None),
        ("unlimited", None),
    ],
)
def test_rate(raw, rate):
    assert read_rate(raw) == rate


@pytest.mark.parametrize("raw", ["", "25", "0/1h", "x/1h", "25/", "25/0s", True, 25, None, "1/2/3"])
def test_what_is_no_rate(raw):
    with pytest.raises(BadValue):
        read_rate(raw)


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ("x", "x"),
        (5, "5"),
        (True, "1"),
        (-3, "-3"),
        (3.5, "3.5"),
        (3.0, "3"),
        (0.0, "0"),
        (1e22, "10000000000000000000000"),
        (1e-7, "0.0000001"),
        (("a", 1, ("no",), 2.5), "a\r\n1\r\n2.5"),
        ((), ""),
    ],
)
def test_text_form(value, form):
    assert text(value) == form


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("0", 0),
        ("-4", -4),
        ("+7", 7),
        ("3.5", 3.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e3", 1000.0),
        ("99999999999999999999", INTEGER_MAX),
        ("-99999999999999999999", INTEGER_MIN),
        ("1e999", 0.0),
        ("", None),
        (" 1", None),
        ("1x", None),
        ("nan", None),
        ("inf", None),
        ("1_0", None),
        ("\u0661", None),
        ("9" * 5000, None),
    ],
)
def test_number_in_a_text(written, value):
    assert parsed(written) == value


def test_number_of_any_value():
    assert [number(value) for value in ("x", "2", 3, 4.5, ("9",))] == [0, 2, 3, 4.5, 0]


@given(st.integers())
def test_integers_stay_within_64_bits(value):
    assert INTEGER_MIN <= saturated(value) <= INTEGER_MAX


def test_types_are_told_in_words():
    assert Type.STRING.words == "a text"
    assert (Type.INTEGER | Type.FLOAT).words == "a number"
    assert (Type.STRING | Type.ARRAY).words == "a text or an array"
