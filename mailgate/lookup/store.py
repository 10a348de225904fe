"""The ports of stores: keys and counters that rules read and change, and SQL.

What a store cannot tell is `Unknown`, never "no such key". The connections
below them block: each is used on a thread of its own (`connections.py`), and
says what went wrong with `StoreError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from mailgate.expr.value import Value
from mailgate.mail.unknown import Unknown


class StoreError(Exception):
    """A store did not do what it was asked; the text is for the log and shows no secret."""


class KeyStore(Protocol):
    """Keys with their values. A counter is a key whose value is a whole number of 64 bits.

    Keys are taken as they are, upper and lower case apart.
    """

    async def get(self, key: str) -> str | Unknown | None:
        """The value of `key`; None when there is none."""
        ...

    async def set(self, key: str, value: str) -> Unknown | None:
        """Give `key` a value; None once it has it."""
        ...

    async def counter(self, key: str) -> int | Unknown:
        """The counter `key`, 0 when there is none."""
        ...

    async def increase(self, key: str, by: int) -> int | Unknown:
        """Add to the counter `key`; answers its new value."""
        ...


@runtime_checkable
class SqlStore(Protocol):
    """A database that is asked in SQL."""

    async def query(self, statement: str, arguments: tuple[Value, ...]) -> Value | Unknown:
        """Run one statement, `?` standing for each argument.

        Rows: none is the empty text, a single one of one column its value, a
        single one an array, several an array of arrays. A statement without rows
        answers how many it affected.
        """
        ...


class KeyConnection(Protocol):
    """One connection to a store of keys. Everything blocks, and raises `StoreError`."""

    def get(self, key: str) -> str | None:
        """As `KeyStore.get`."""
        ...

    def set(self, key: str, value: str) -> None:
        """As `KeyStore.set`."""
        ...

    def counter(self, key: str) -> int:
        """As `KeyStore.counter`."""
        ...

    def increase(self, key: str, by: int) -> int:
        """As `KeyStore.increase`."""
        ...

    def is_usable(self) -> bool:
        """Whether the other side has not hung up since the last use; raises nothing."""
        ...

    def close(self) -> None:
        """Let go of it; raises nothing."""
        ...


class SqlConnection(KeyConnection, Protocol):
    """One connection to a database."""

    def query(self, statement: str, arguments: tuple[Value, ...]) -> Value:
        """As `SqlStore.query`."""
        ...


def whole_number(value: str) -> int:
    """A counter's stored text as a number. Raises `StoreError`."""
    try:
        number = int(value)
    except ValueError:
        raise StoreError("the value of the key is no whole number") from None
    if not -(2**63) <= number < 2**63:
        raise StoreError("the counter is past 64 bits")
    return number


class Stores:
    """The stores of a configuration that hold keys, by id."""

    __slots__ = ("_by_id", "_default")

    def __init__(self, stores: Mapping[str, KeyStore], default: KeyStore | None = None) -> None:
        """`default` is what `''` stands for; None where that is nothing."""
        self._by_id = dict(stores)
        self._default = default

    def find(self, name: str) -> KeyStore | None:
        """The store of this name; None when there is none."""
        return self._by_id.get(name) if name else self._default


NO_STORES = Stores({})
