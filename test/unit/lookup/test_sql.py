import datetime
from decimal import Decimal

import pytest

from mailgate.lookup.sql import MOST_ROWS, column, placed, result
from mailgate.lookup.store import StoreError


def dollars(statement, arguments):
    return placed(statement, arguments, lambda number: f"${number}")


@pytest.mark.parametrize(
    ("statement", "arguments", "written"),
    [
        ("SELECT 1", 0, "SELECT 1"),
        ("SELECT ? + ?", 2, "SELECT $1 + $2"),
        ("SELECT $2 || $1 || $2", 2, "SELECT $2 || $1 || $2"),
        ("SELECT '?' || ?", 1, "SELECT '?' || $1"),
        ("SELECT 'it''s ?' || ?", 1, "SELECT 'it''s ?' || $1"),
        ('SELECT "a?" FROM t WHERE b = ?', 1, 'SELECT "a?" FROM t WHERE b = $1'),
        ("SELECT ? -- why?\n, ?", 2, "SELECT $1 -- why?\n, $2"),
        ("SELECT /* ? \n ? */ ?", 1, "SELECT /* ? \n ? */ $1"),
        ("SELECT $$ ? $$ || ?", 1, "SELECT $$ ? $$ || $1"),
        ("SELECT $a$ ? $b$ ? $a$ || ?", 1, "SELECT $a$ ? $b$ ? $a$ || $1"),
        ("SELECT a ?? 'x' FROM t WHERE b = ?", 1, "SELECT a ? 'x' FROM t WHERE b = $1"),
        ("SELECT '100%', ?", 1, "SELECT '100%', $1"),
    ],
)
def test_placeholders_outside_of_quotes_and_comments(statement, arguments, written):
    assert dollars(statement, arguments) == written


@pytest.mark.parametrize(("statement", "arguments"), [("SELECT ?", 0), ("SELECT 1", 1), ("SELECT $3", 2), ("?, ?", 3)])
def test_as_many_placeholders_as_arguments(statement, arguments):
    with pytest.raises(StoreError, match="placeholders and"):
        dollars(statement, arguments)


@pytest.mark.parametrize(
    ("found", "value"),
    [
        (None, ""),
        ("x", "x"),
        (5, 5),
        (True, 1),
        (2**70, 2**63 - 1),
        (1.5, 1.5),
        (float("inf"), 0.0),
        (b"a\xff", "a\ufffd"),
        (memoryview(b"ab"), "ab"),
        (Decimal("12"), 12),
        (Decimal("1.25"), 1.25),
        (datetime.date(2026, 1, 31), "2026-01-31"),
        (datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC), "2026-01-31T12:00:00+00:00"),
        ([1, ["a", None]], (1, ("a", ""))),
        (datetime.timedelta(seconds=1), "0:00:01"),
    ],
)
def test_a_column_as_a_value(found, value):
    told = column(found)
    assert (type(told), told) == (type(value), value)


@pytest.mark.parametrize(
    ("rows", "value"),
    [
        ([], ""),
        ([("a",)], "a"),
        ([(None,)], ""),
        ([("a", 1)], ("a", 1)),
        ([("a",), ("b",)], (("a",), ("b",))),
        ([("a", 1), ("b", None)], (("a", 1), ("b", ""))),
    ],
)
def test_rows_as_a_value(rows, value):
    assert result(rows) == value


def test_too_many_rows_are_no_answer():
    with pytest.raises(StoreError, match="more than 1000 rows"):
        result([("a",)] * (MOST_ROWS + 1))
