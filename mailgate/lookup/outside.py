"""What expressions may ask, answered from directories, lists, stores and DNS.

A name that nothing defines was computed by an expression (literal names are
resolved when the configuration is loaded): the answer is `Unknown`, as for
any dependency that is not there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

from mailgate.expr.value import Value
from mailgate.lookup.directory import Directory
from mailgate.lookup.recipient import AddressRules
from mailgate.lookup.store import NO_STORES, KeyStore, SqlStore
from mailgate.mail.unknown import Unknown

DnsQuery = Callable[[str, str], Awaitable[tuple[str, ...] | str | Unknown]]
"""Asks DNS for the records of a name, by the type word of the expression language."""

DEFAULT_NAMES = ("", "*")


class ListTable(Protocol):
    """One list."""

    def get(self, key: str) -> str | Unknown | None:
        """The value of `key`; None when the list does not have it."""
        ...


class ListTables(Protocol):
    """The lists of a configuration, by name."""

    def find(self, name: str) -> ListTable | None:
        """The list of this name, the default one for the empty name; None when there is none."""
        ...


class KeyStores(Protocol):
    """The stores of a configuration, by name."""

    def find(self, name: str) -> KeyStore | None:
        """The store of this name, the default one for the empty name; None when there is none."""
        ...


class Directories:
    """The directories of a configuration, by id."""

    __slots__ = ("_by_id", "_default")

    def __init__(self, directories: Iterable[Directory], default: str = "") -> None:
        """`default` is the id that `''` and `'*'` stand for (`storage.directory`); "" for none."""
        self._by_id: Mapping[str, Directory] = {directory.id: directory for directory in directories}
        self._default = default

    def find(self, name: str) -> Directory | Unknown | None:
        """The directory of this name; None for the default one where there is none."""
        if name in DEFAULT_NAMES:
            return self._by_id[self._default] if self._default else None
        directory = self._by_id.get(name)
        return Unknown(f"directory {name}", "no directory has this name") if directory is None else directory


class Answers:
    """The `Outside` of live mail."""

    def __init__(
        self,
        directories: Directories,
        lists: ListTables,
        dns_query: DnsQuery,
        rules: AddressRules | None,
        stores: KeyStores = NO_STORES,
    ) -> None:
        """Without `rules` an address is looked up exactly as it is."""
        self._directories = directories
        self._lists = lists
        self._dns_query = dns_query
        self._rules = rules
        self._stores = stores
        self._plain = self if rules is None else Answers(directories, lists, dns_query, None, stores)

    @property
    def plain(self) -> Answers:
        """The same without sub-addressing and catch-all: what those two keys themselves may ask."""
        return self._plain

    async def is_local_domain(self, directory: str, domain: str) -> bool | Unknown:
        """Whether `domain` is local; False when there is no default directory."""
        found = self._directories.find(directory)
        if found is None or isinstance(found, Unknown):
            return False if found is None else found
        return await found.is_local_domain(domain.lower())

    async def is_local_address(self, directory: str, address: str) -> bool | Unknown:
        """Whether a mailbox or list takes mail for `address`."""
        found = self._directories.find(directory)
        if found is None or isinstance(found, Unknown):
            return False if found is None else found
        address = address.lower()
        if self._rules is None:
            holder = await found.find(address)
        else:
            holder = await self._rules.find(found, address, self)
        return holder if isinstance(holder, Unknown) else holder is not None

    async def key_get(self, store: str, key: str) -> str | Unknown:
        """The value of `key`; empty when there is none."""
        named = self._lists.find(store)
        value = await self._stored(store, key) if named is None else named.get(key)
        return "" if value is None else value

    async def key_exists(self, store: str, key: str) -> bool | Unknown:
        """Whether the store has `key`."""
        named = self._lists.find(store)
        value = await self._stored(store, key) if named is None else named.get(key)
        return value if isinstance(value, Unknown) else value is not None

    async def _stored(self, store: str, key: str) -> str | Unknown | None:
        found = self._store(store)
        return found if isinstance(found, Unknown) else await found.get(key)

    def _store(self, name: str) -> KeyStore | Unknown:
        found = self._stores.find(name)
        if found is not None:
            return found
        if self._lists.find(name) is not None:
            return Unknown(f"store {name}", "a list keeps no keys for rules")
        return Unknown(f"store {name}".rstrip(), "no store or list has this name")

    async def key_set(self, store: str, key: str, value: str) -> Unknown | None:
        """Give `key` a value; None once the store has it."""
        found = self._store(store)
        return found if isinstance(found, Unknown) else await found.set(key, value)

    async def counter_get(self, store: str, key: str) -> int | Unknown:
        """The counter `key`; 0 when there is none."""
        found = self._store(store)
        return found if isinstance(found, Unknown) else await found.counter(key)

    async def counter_incr(self, store: str, key: str, by: int) -> int | Unknown:
        """Add to the counter `key`; answers its new value."""
        found = self._store(store)
        return found if isinstance(found, Unknown) else await found.increase(key, by)

    async def sql_query(self, store: str, statement: str, arguments: tuple[Value, ...]) -> Value | Unknown:
        """Run one SQL statement."""
        found = self._store(store)
        if isinstance(found, Unknown):
            return found
        if not isinstance(found, SqlStore):
            return Unknown(f"store {store}".rstrip(), "the store is not asked in SQL")
        return await found.query(statement, arguments)

    async def dns_query(self, name: str, type: str) -> tuple[str, ...] | str | Unknown:
        """The records of `name` in DNS."""
        return await self._dns_query(name, type)
