"""Arithmetic, comparison and order of known values.

Nothing here raises: what is no number counts as 0, integers stay within 64
bits, a division by zero gives 0.0.
"""

from __future__ import annotations

from mailgate.expr.value import Value, finite, number, saturated, text


def add(left: Value, right: Value) -> Value:
    """`+`: array concatenation, text concatenation or a sum.

    An empty text adds nothing: the other side keeps its type.
    """
    if isinstance(left, tuple) or isinstance(right, tuple):
        return elements_of(left) + elements_of(right)
    if isinstance(left, str):
        return left + text(right) if left else right
    if isinstance(right, str):
        return text(left) + right if right else left
    return _bounded(left + right)


def subtract(left: Value, right: Value) -> Value:
    """`-`: a difference, or an array without the elements that equal `right`."""
    if isinstance(left, tuple):
        return tuple(element for element in left if not equal(element, right))
    return _bounded(number(left) - number(right))


def multiply(left: Value, right: Value) -> Value:
    """`*`."""
    return _bounded(number(left) * number(right))


def divide(left: Value, right: Value) -> Value:
    """`/`: always a fraction."""
    divisor = number(right)
    return finite(number(left) / divisor) if divisor else 0.0


def negate(value: Value) -> Value:
    """Unary `-`."""
    return _bounded(-number(value))


def element(value: Value, at: Value) -> Value:
    """`value[at]`, from 0; a scalar has one element, what is out of range is the empty text."""
    elements = elements_of(value)
    position = int(number(at))
    return elements[position] if 0 <= position < len(elements) else ""


def elements_of(value: Value) -> tuple[Value, ...]:
    """The elements of an array; a scalar is an array of one."""
    return value if isinstance(value, tuple) else (value,)


def equal(left: Value, right: Value) -> bool:
    """`=`: a text against a number is read as a number; an array equals only an array."""
    if isinstance(left, str) and isinstance(right, str):
        return left == right
    if isinstance(left, tuple) or isinstance(right, tuple):
        if not (isinstance(left, tuple) and isinstance(right, tuple)) or len(left) != len(right):
            return False
        return all(map(equal, left, right))
    return number(left) == number(right)


def order(left: Value, right: Value) -> int:
    """Below, at or above 0 as `left` is below, equal to or above `right`.

    Texts go by code point (which is their order as UTF-8), a text against a
    number by number, arrays by their elements and above everything else.
    """
    if isinstance(left, tuple) or isinstance(right, tuple):
        if not isinstance(right, tuple):
            return 1
        if not isinstance(left, tuple):
            return -1
        for one, other in zip(left, right, strict=False):
            if found := order(one, other):
                return found
        return len(left) - len(right)
    if isinstance(left, str) and isinstance(right, str):
        return (left > right) - (left < right)
    one_number, other_number = number(left), number(right)
    return (one_number > other_number) - (one_number < other_number)


def sort_key(value: Value) -> tuple[int, float, str, tuple[object, ...]]:
    """For sorting a mixed array: numbers, then texts, then arrays. Unlike `order` this is transitive."""
    if isinstance(value, str):
        return (1, 0, value, ())
    if isinstance(value, tuple):
        return (2, 0, "", tuple(map(sort_key, value)))
    return (0, value, "", ())


def _bounded(value: int | float) -> Value:
    return saturated(value) if isinstance(value, int) else finite(value)
