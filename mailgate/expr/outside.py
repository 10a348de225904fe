"""The port of expressions that ask something outside the process.

An expression never does I/O itself: it asks the `Outside` of the scope it is
evaluated in. "There is none" is an answer; what could not be found out is
`Unknown`, and nothing here raises for it.
"""

from __future__ import annotations

from typing import Protocol

from mailgate.expr.value import Value
from mailgate.mail.unknown import Unknown


class Outside(Protocol):
    """What `is_local_domain`, `is_local_address`, `key_*`, `counter_*`, `dns_query` and `sql_query` ask.

    A directory or store is named by the id it has in the configuration; `""`
    (and `"*"` for directories) is the default one. A name that nothing defines
    is `Unknown`: names written literally were resolved when the configuration
    was loaded, so this one was computed.
    """

    async def is_local_domain(self, directory: str, domain: str) -> bool | Unknown:
        """Whether `domain` is local; False when there is no default directory."""
        ...

    async def is_local_address(self, directory: str, address: str) -> bool | Unknown:
        """Whether a mailbox or list takes mail for `address`, sub-addressing and catch-all included."""
        ...

    async def key_get(self, store: str, key: str) -> str | Unknown:
        """The value of `key`; empty when there is none."""
        ...

    async def key_exists(self, store: str, key: str) -> bool | Unknown:
        """Whether the store has `key`."""
        ...

    async def key_set(self, store: str, key: str, value: str) -> Unknown | None:
        """Give `key` a value; None once the store has it."""
        ...

    async def counter_get(self, store: str, key: str) -> int | Unknown:
        """The counter `key`; 0 when there is none."""
        ...

    async def counter_incr(self, store: str, key: str, by: int) -> int | Unknown:
        """Add to the counter `key`; answers its new value."""
        ...

    async def sql_query(self, store: str, statement: str, arguments: tuple[Value, ...]) -> Value | Unknown:
        """Run one SQL statement, `?` standing for each argument.

        Rows: none is the empty text, a single one of one column its value, a
        single one an array, several an array of arrays; without rows, how many
        were affected.
        """
        ...

    async def dns_query(self, name: str, type: str) -> tuple[str, ...] | str | Unknown:
        """The records of `name`; `type` is one of `ip ipv4 ipv6 mx ptr txt`.

        `txt` answers one text, the others an array (`mx`: hosts by preference,
        no final dots); empty when the name or the record does not exist. For
        `ptr`, `name` is an IP address in text form.
        """
        ...
