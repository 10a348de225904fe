"""Values of expressions, their types and text forms; spellings of durations, sizes and rates.

The spellings serve plain configuration keys as well: each `read_*` takes a TOML
value and raises `BadValue`, which says what was found and what to write.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from enum import Flag, auto

from mailgate.mail.unknown import Unknown

Value = str | int | float | tuple["Value", ...]
"""A text, a number or an array. 1 stands for yes, 0 for no; durations are milliseconds."""

Result = Value | Unknown
"""What an evaluation ends in. Look for `Unknown` first: it is a tuple, too."""

INTEGER_MAX = 2**63 - 1
INTEGER_MIN = -(2**63)


class Type(Flag):
    """What a value may be, as far as it shows when the configuration is loaded."""

    NOTHING = 0
    STRING = auto()
    INTEGER = auto()
    FLOAT = auto()
    DURATION = auto()
    """An integer that was written with a unit of time."""
    ARRAY = auto()

    NUMBER = INTEGER | FLOAT | DURATION
    SCALAR = STRING | NUMBER
    ANY = SCALAR | ARRAY

    @property
    def words(self) -> str:
        """The type for people: `a text`, `a number or an array`."""
        parts = [words for flag, words in _TYPE_WORDS if flag & self]
        if self & Type.INTEGER and self & Type.FLOAT:
            parts.remove("a fraction")
        return " or ".join(parts) or "nothing"


_TYPE_WORDS = (
    (Type.STRING, "a text"),
    (Type.INTEGER, "a number"),
    (Type.FLOAT, "a fraction"),
    (Type.DURATION, "a duration"),
    (Type.ARRAY, "an array"),
)


def type_of(value: Value) -> Type:
    """The type of a known value."""
    if isinstance(value, str):
        return Type.STRING
    if isinstance(value, float):
        return Type.FLOAT
    return Type.INTEGER if isinstance(value, int) else Type.ARRAY


def text(value: Value) -> str:
    """The text form: shortest decimal for numbers, the elements of an array by CRLF, nested arrays skipped."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return format(value, "d")
    if isinstance(value, float):
        shortest = format(Decimal(repr(value)), "f") if "e" in repr(value) else repr(value)
        return shortest.removesuffix(".0")
    return "\r\n".join(text(element) for element in value if not isinstance(element, tuple))


# Only the plain decimal forms: neither "inf", "nan", "1_000" nor digits of other scripts.
_INTEGER = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
# More digits than this cannot change a saturated integer, and int() is quadratic.
_MOST_DIGITS = 400


def parsed(written: str) -> int | float | None:
    """The number a text stands for; None when it is none."""
    if len(written) > _MOST_DIGITS:
        return None
    if _INTEGER.fullmatch(written):
        return saturated(int(written))
    return finite(float(written)) if _FLOAT.fullmatch(written) else None


def number(value: Value) -> int | float:
    """The value as a number: a text is parsed; what is no number is 0."""
    if isinstance(value, (int, float)):
        return value
    return (parsed(value) or 0) if isinstance(value, str) else 0


def saturated(value: int) -> int:
    """Keep an integer within 64 bits."""
    return INTEGER_MAX if value > INTEGER_MAX else INTEGER_MIN if value < INTEGER_MIN else value


def finite(value: float) -> float:
    """0.0 in place of what is no number any more, as for a division by zero."""
    return value if math.isfinite(value) else 0.0


# --- spellings ----------------------------------------------------------------


class BadValue(ValueError):
    """A spelling that is not understood; both texts are for the operator."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem}; {advice}")
        self.problem = problem
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Rate:
    """So many per period; the period is at least one second."""

    count: int
    period: timedelta


UNIT_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
OFF_WORDS = frozenset({"", "disable", "disabled", "never"})
"""Texts that mean "not set" for whatever is optional."""
LONGEST_MILLISECONDS = 100 * 365 * 86_400_000
"""No duration is longer than a hundred years."""

_DURATION = re.compile(r"([0-9]{1,15})(ms|[dhms])?")
_SIZE = re.compile(r"([0-9]{1,15})(?:([kmg])b?)?")
_SIZE_FACTOR = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_DURATION_ADVICE = "write a number and a unit, for example '5m' (units: d h m s ms)"
_SIZE_ADVICE = "write a number of bytes, or for example '25mb' (units: kb mb gb)"
_RATE_ADVICE = "write for example '25/1h', or false to switch it off"


def _shown(raw: object) -> str:
    if isinstance(raw, bool):
        return "true" if raw else "false"
    return f"'{raw}'" if isinstance(raw, str) else str(raw)


def _squeezed(raw: str) -> str:
    return "".join(raw.split())


def read_duration(raw: object) -> timedelta:
    """A duration: `5m`, `500ms`, or a number of milliseconds. Zero is an error."""
    if isinstance(raw, str) and (found := _DURATION.fullmatch(_squeezed(raw))):
        milliseconds = int(found[1]) * UNIT_MILLISECONDS[found[2] or "ms"]
    elif isinstance(raw, (int, float)) and not isinstance(raw, bool) and math.isfinite(raw):
        milliseconds = int(raw)
    else:
        raise BadValue(f"{_shown(raw)} is no duration", _DURATION_ADVICE)
    if milliseconds <= 0:
        raise BadValue(f"{_shown(raw)} is no duration: it must be more than zero", _DURATION_ADVICE)
    if milliseconds > LONGEST_MILLISECONDS:
        raise BadValue(f"{_shown(raw)} is more than a hundred years", _DURATION_ADVICE)
    return timedelta(milliseconds=milliseconds)


def read_size(raw: object) -> int:
    """A size in octets: a number, or `25mb`, `10k` (of 1024, in either case)."""
    if isinstance(raw, str) and (found := _SIZE.fullmatch(_squeezed(raw).lower())):
        octets = int(found[1]) * _SIZE_FACTOR[found[2] or ""]
    elif isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0:
        octets = raw
    else:
        raise BadValue(f"{_shown(raw)} is no size", _SIZE_ADVICE)
    if octets > INTEGER_MAX:
        raise BadValue(f"{_shown(raw)} is too large a size", _SIZE_ADVICE)
    return octets


def read_rate(raw: object) -> Rate | None:
    """A rate such as `25/1h`, None when switched off; periods under a second become one second."""
    if raw is False or raw in ("none", "unlimited"):
        return None
    if isinstance(raw, str):
        count, slash, period = _squeezed(raw).partition("/")
        if slash and re.fullmatch("[0-9]{1,15}", count) and int(count):
            return Rate(int(count), max(read_duration(period), timedelta(seconds=1)))
    raise BadValue(f"{_shown(raw)} is no rate", _RATE_ADVICE)


def duration_text(duration: timedelta) -> str:
    """The shortest spelling `read_duration` takes back: `5m`, `36h`, `1500ms`."""
    milliseconds = duration // timedelta(milliseconds=1)
    for unit in ("d", "h", "m", "s"):
        if milliseconds % UNIT_MILLISECONDS[unit] == 0:
            return f"{milliseconds // UNIT_MILLISECONDS[unit]}{unit}"
    return f"{milliseconds}ms"
