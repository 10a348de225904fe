"""Functions over arrays, and those that look at values of any type."""

from __future__ import annotations

from mailgate.expr.functions.function import Function
from mailgate.expr.operate import elements_of, equal, sort_key
from mailgate.expr.value import Type, Value, parsed, text


def _len(x: Value) -> Value:
    if isinstance(x, tuple):
        return len(x)
    written = text(x)
    return len(written) if written.isascii() else len(written.encode("utf-8", "surrogatepass"))


def _contains(x: Value, y: Value) -> Value:
    if isinstance(x, tuple):
        return int(any(equal(element, y) for element in x))
    return int(text(y) in text(x))


def _contains_ignore_case(x: Value, y: Value) -> Value:
    wanted = text(y).lower()
    if isinstance(x, tuple):
        return int(any(text(element).lower() == wanted for element in x))
    return int(wanted in text(x).lower())


def _is_empty(x: Value) -> Value:
    return 1 if x == "" or x == () else 0


def _is_number(x: Value) -> Value:
    if isinstance(x, str):
        return int(parsed(x) is not None)
    return int(not isinstance(x, tuple))


def _listed(x: Value) -> tuple[Value, ...]:
    return () if x == "" else elements_of(x)


def _count(x: Value) -> Value:
    return len(_listed(x))


def _sort(x: Value, asc: Value) -> Value:
    return tuple(sorted(_listed(x), key=sort_key, reverse=not asc))


def _dedup(x: Value) -> Value:
    kept: dict[object, Value] = {}
    for element in _listed(x):
        kept.setdefault(sort_key(element), element)
    return tuple(kept.values())


def _winnow(x: Value) -> Value:
    return tuple(element for element in _listed(x) if not _is_empty(element))


def _is_intersect(x: Value, y: Value) -> Value:
    return int(any(equal(one, other) for one in elements_of(x) for other in elements_of(y)))


FUNCTIONS = (
    Function("len", ("x",), Type.INTEGER, "Bytes of a text, elements of an array.", _len),
    Function(
        "contains",
        ("x", "y"),
        Type.INTEGER,
        "1 when the text `x` contains `y`, or the array has the element `y`.",
        _contains,
    ),
    Function("contains_ignore_case", ("x", "y"), Type.INTEGER, "The same, whatever the case.", _contains_ignore_case),
    Function("count", ("x",), Type.INTEGER, "Elements of an array; of a scalar 0 when empty, else 1.", _count),
    Function("sort", ("x", "asc"), Type.ARRAY, "The array in order, ascending when `asc` is true.", _sort),
    Function(
        "dedup", ("x",), Type.ARRAY, "The array with only the first of equal elements, in the same order.", _dedup
    ),
    Function("winnow", ("x",), Type.ARRAY, "The array without its empty elements.", _winnow),
    Function(
        "is_intersect",
        ("x", "y"),
        Type.INTEGER,
        "1 when an element is in both; one side may be a scalar.",
        _is_intersect,
    ),
    Function(
        "is_empty",
        ("x",),
        Type.INTEGER,
        "1 for the empty text and the empty array; numbers are never empty.",
        _is_empty,
    ),
    Function("is_number", ("x",), Type.INTEGER, "1 for a number, or a text that is one.", _is_number),
    Function("if_then", ("c", "a", "b"), Type.ANY, "`a` when `c` is true, else `b`."),
)
