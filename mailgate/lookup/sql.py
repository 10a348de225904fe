"""What the SQL stores have in common: placeholders, arguments, and rows as values of expressions.

A rule writes `?` (or `$1`, `$2`) for an argument, whatever the database calls
it; a `?` that is an operator is written `??`. What stands in quotes or in a
comment is no placeholder.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from decimal import Decimal

from mailgate.expr.value import Value, finite, saturated
from mailgate.lookup.store import StoreError

MOST_ROWS = 1000
"""More rows than this are an error: a rule wants an answer, not a table."""

TABLE = "mailgate_keys"
"""Keys and their values are in a table of this name, with the columns `key` and `value`."""

_PARTS = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | --[^\n]* | /\*.*?\*/ | (?P<dollar>\$\w*\$).*?(?P=dollar)
      | (?P<operator>\?\?) | (?P<next>\?) | \$(?P<number>[1-9]\d{0,3})(?!\w)""",
    re.VERBOSE | re.DOTALL,
)


def placed(statement: str, arguments: int, spelling: Callable[[int], str]) -> str:
    """The statement with its placeholders as a database spells them. Raises `StoreError` when they are not so many."""
    highest = count = 0

    def spelled(match: re.Match[str]) -> str:
        nonlocal highest, count
        if match["operator"]:
            return "?"
        if match["next"]:
            count += 1
            highest = max(highest, count)
            return spelling(count)
        if match["number"]:
            highest = max(highest, int(match["number"]))
            return spelling(int(match["number"]))
        return match[0]

    written = _PARTS.sub(spelled, statement)
    if highest != arguments:
        raise StoreError(f"the statement has {highest} placeholders and {arguments} arguments")
    return written


def column(found: object) -> Value:
    """What a column holds, as expressions know it: nothing as the empty text, moments in ISO 8601."""
    if found is None:
        return ""
    if isinstance(found, bool):
        return int(found)
    if isinstance(found, int):
        return saturated(found)
    if isinstance(found, str):
        return found
    if isinstance(found, float):
        return finite(found)
    if isinstance(found, Decimal):
        return saturated(int(found)) if found == found.to_integral_value() else finite(float(found))
    if isinstance(found, (bytes, bytearray, memoryview)):
        return bytes(found).decode("utf-8", "replace")
    if isinstance(found, (datetime.date, datetime.time)):
        return found.isoformat()
    if isinstance(found, (list, tuple)):
        return tuple(map(column, found))
    return str(found)


def result(rows: Sequence[Sequence[object]]) -> Value:
    """Rows as a value: none the empty text, one its column or columns, several an array of arrays."""
    if len(rows) > MOST_ROWS:
        raise StoreError(f"more than {MOST_ROWS} rows")
    if not rows:
        return ""
    if len(rows) > 1:
        return tuple(tuple(map(column, row)) for row in rows)
    (row,) = rows
    return column(row[0]) if len(row) == 1 else tuple(map(column, row))
