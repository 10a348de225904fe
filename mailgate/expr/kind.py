"""What a key wants from its expression: conversion, words it understands, and what no value means.

A `ResultKind` turns the value of an expression into what the program uses. A
value that cannot be converted is *no value*: an optional feature is off then,
any other key has its fallback. What is certain to be of the wrong type is an
error when the configuration is loaded (`expr/choice.py` asks `refusal`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

from mailgate.expr.value import (
    LONGEST_MILLISECONDS,
    BadValue,
    Rate,
    Type,
    Value,
    number,
    parsed,
    read_duration,
    read_rate,
    read_size,
    saturated,
    text,
)

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Names:
    """A kind whose texts name something: a bare word that is nothing else is such a name."""

    category: str
    """What is named (`script`, `directory`, `route`); empty for free text, which names nothing."""


@dataclass(frozen=True, slots=True)
class ResultKind(Generic[T]):
    """How the value of a key's expression becomes a `T`.

    `missing` is what no value means. `lets_pass` and `refuses` are what
    `on-error = "accept"` and `"reject"` give; None where the key does not
    decide that by itself.
    """

    wanted: str
    """For error messages: "a duration"."""
    convert: Callable[[Value], T | None]
    """None means no value."""
    accepts: Type
    missing: T
    words: tuple[str, ...] = ()
    """Constants of this kind's expressions; each stands for the text it is written as."""
    spelling: Callable[[object], timedelta | int] | None = None
    """Reads the whole text of a value written in another way than as an expression (`read_size`)."""
    names: Names | None = None
    has_empty: bool = False
    """The empty expression is no value, although the key is not optional: the list is empty."""
    optional: bool = False
    """No value switches the feature off; texts such as `disable` mean no value."""
    lets_pass: T | None = None
    refuses: T | None = None

    def __call__(self, value: Value) -> T:
        """Convert, with no value replaced by what it means for this key."""
        converted = self.convert(value)
        return self.missing if converted is None else converted

    def deciding(self, *, lets_pass: T, refuses: T | None = None) -> ResultKind[T]:
        """The same for a key that decides whether a client may pass.

        Without `refuses` an `on-error = "reject"` gives `Unknown(reject=True)`:
        the key's user refuses in its own way.
        """
        return dataclasses.replace(self, lets_pass=lets_pass, refuses=refuses)

    def refusal(self, value: Value) -> str | None:
        """What is wrong with a value that is known at load; None when the key can use it.

        False, 0, the empty text and the empty array are always allowed.
        """
        if not value:
            return None
        return f"{_shown(value)} is not {self.wanted}" if self.convert(value) is None else None


@dataclass(frozen=True, slots=True)
class OptionalKind(ResultKind[U | None], Generic[U]):
    """A kind as it stands for optional features: None when there is no value."""

    def fallback(self, value: U) -> ResultKind[U]:
        """The same for a key that always has a value: `value` where the expression gives none."""
        return ResultKind(
            wanted=self.wanted,
            convert=self.convert,
            accepts=self.accepts,
            missing=value,
            words=self.words,
            spelling=self.spelling,
            names=self.names,
        )


def _optional(
    wanted: str,
    convert: Callable[[Value], U | None],
    accepts: Type,
    *,
    words: tuple[str, ...] = (),
    spelling: Callable[[object], timedelta | int] | None = None,
    names: Names | None = None,
) -> OptionalKind[U]:
    return OptionalKind(wanted, convert, accepts, None, words=words, spelling=spelling, names=names, optional=True)


def _shown(value: Value) -> str:
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, tuple):
        return "[" + ", ".join(_shown(element) for element in value) + "]"
    return text(value)


# --- conversions: None is no value ----------------------------------------------


def _truth(value: Value) -> bool:
    return bool(value)


def _string(value: Value) -> str | None:
    return value if isinstance(value, str) else None


def _name(value: Value) -> str | None:
    return value if isinstance(value, str) and value else None


def _strings(value: Value) -> tuple[str, ...] | None:
    if isinstance(value, str):
        return (value,) if value else None
    if isinstance(value, tuple):
        strings = tuple(element for element in value if isinstance(element, str))
        return strings if len(strings) == len(value) else None
    return None


def _integer(value: Value) -> int | None:
    if isinstance(value, str):
        found = parsed(value)
        return None if found is None else saturated(int(found))
    return None if isinstance(value, tuple) else saturated(int(value))


def _duration(value: Value) -> timedelta | None:
    if isinstance(value, tuple):
        return None
    if isinstance(value, str):
        try:
            return read_duration(value)
        except BadValue:
            return None
    return timedelta(milliseconds=value) if 0 < value <= LONGEST_MILLISECONDS else None


def _rate(value: Value) -> Rate | None:
    try:
        if isinstance(value, tuple) and len(value) == 2:
            count, period = number(value[0]), number(value[1])
            if count >= 1:
                return Rate(int(count), max(read_duration(period), timedelta(seconds=1)))
        return read_rate(value) if isinstance(value, str) else None
    except BadValue:
        return None


def _string_or_truth(value: Value) -> bool | str:
    return value if isinstance(value, str) and value else bool(value)


# In the order in which EHLO lists them.
_MECHANISMS = ("plain", "login", "xoauth2", "oauthbearer", "scram_sha_256", "scram_sha_256_plus")


def _mechanisms(value: Value) -> tuple[str, ...] | None:
    chosen = _strings(value)
    if not chosen or any(word not in _MECHANISMS for word in chosen):
        return None
    return tuple(word.upper().replace("_", "-") for word in _MECHANISMS if word in chosen)


def _verify(value: Value) -> str | None:
    if isinstance(value, str) and value in _VERIFY_WORDS:
        return value if value in ("relaxed", "strict") else "disable"
    # Only the number that `false` is: a failed look-up (an empty text) must not switch a check off.
    return "disable" if isinstance(value, (int, float)) and not value else None


_VERIFY_WORDS = ("relaxed", "strict", "disable", "disabled", "never", "none")


# --- the kinds ------------------------------------------------------------------

BOOLEAN: ResultKind[bool] = ResultKind("true or false", _truth, Type.ANY, False)
"""The truth of any value. `boolean(fallback)` where `on-error = "accept"` must give something else than False."""


def boolean(fallback: bool) -> ResultKind[bool]:
    """The truth of any value; `fallback` stands for no value."""
    return dataclasses.replace(BOOLEAN, missing=fallback)


STRING: OptionalKind[str] = _optional("a text", _string, Type.STRING)
"""A text, None when it is none: `false` switches the feature off. The empty text is a text."""

STRINGS: OptionalKind[tuple[str, ...]] = _optional("a list of texts", _strings, Type.STRING | Type.ARRAY)
"""Several texts; a single one is a list of one."""

INTEGER: OptionalKind[int] = _optional("a number", _integer, Type.INTEGER | Type.FLOAT | Type.STRING)
"""A number; fractions are cut, a text is read. `fallback()` of it takes 0 for what it is: a number."""

SIZE: OptionalKind[int] = _optional("a size", _integer, Type.INTEGER | Type.FLOAT | Type.STRING, spelling=read_size)
"""A number of octets, also written `25mb`."""

DURATION: OptionalKind[timedelta] = _optional("a duration", _duration, Type.SCALAR, spelling=read_duration)
"""A duration: `5m`, or more than zero milliseconds."""

RATE: OptionalKind[Rate] = _optional("a rate", _rate, Type.ARRAY | Type.STRING)
"""A rate: `[25, 1h]` or `'25/1h'`."""

MECHANISMS: ResultKind[tuple[str, ...]] = ResultKind(
    "a list of SASL mechanisms", _mechanisms, Type.STRING | Type.ARRAY, (), words=_MECHANISMS, has_empty=True
)
"""SASL mechanism names as EHLO lists them (`SCRAM-SHA-256`), in its order; empty when there is no value."""

VERIFY: ResultKind[str] = ResultKind("a verification policy", _verify, Type.STRING, "relaxed", words=_VERIFY_WORDS)
"""`relaxed`, `strict` or `disable`; `false` disables, no value is relaxed."""

STRING_OR_TRUTH: ResultKind[bool | str] = ResultKind("a text, true or false", _string_or_truth, Type.ANY, False)
"""A text that is not empty, or the truth of anything else."""


def WORD(*words: str) -> OptionalKind[str]:
    """One of `words`, written as it is or as a text."""

    def convert(value: Value) -> str | None:
        return value if isinstance(value, str) and value in words else None

    return _optional(f"one of {', '.join(words)}", convert, Type.STRING, words=words)


MT_PRIORITY: OptionalKind[str] = WORD("mixer", "stanag4406", "nsep")
"""Priority assignment policy of MT-PRIORITY (RFC 6710); None switches the extension off."""


def NAME(category: str = "") -> OptionalKind[str]:
    """The name of a `category` (`script`, `directory`, `route`); without one a text that names nothing.

    A value that is no expression is taken as the name itself. The empty text is no value.
    """
    return _optional(f"the name of a {category}" if category else "a text", _name, Type.STRING, names=Names(category))


def NAMES(category: str) -> OptionalKind[tuple[str, ...]]:
    """The names of several `category`, of which a single one is a list of one."""
    return _optional(f"a list of names of a {category}", _strings, Type.STRING | Type.ARRAY, names=Names(category))
