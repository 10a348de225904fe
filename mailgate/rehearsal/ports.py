"""Ports that answer from the table of a test, and from nothing else (DESIGN D2).

What a test does not say is never looked up elsewhere: the question is kept,
and the policy is told `Unknown`. A test with such a question has failed,
whatever came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

from mailgate.config.schema.settings import Settings
from mailgate.config.schema.storage import MemoryStoreSettings
from mailgate.dns.name import ascii_name
from mailgate.dns.question import dns_query
from mailgate.dns.resolver import Absent, Answer, MxRecord, Resolver, TlsaRecord
from mailgate.expr.value import Value, text
from mailgate.lookup.directory import Denied, Directory, Mailbox, MailingList
from mailgate.lookup.lists import Lists
from mailgate.lookup.outside import Answers as Outside
from mailgate.lookup.outside import Directories, ListTable
from mailgate.lookup.recipient import AddressRules
from mailgate.lookup.store import KeyStore, StoreError, whole_number
from mailgate.mail.path import Path
from mailgate.mail.session import Identity
from mailgate.mail.unknown import Unknown
from mailgate.rehearsal.case import Answers, DirectoryAnswers, DnsAnswer, ListAnswer, SqlAnswer
from mailgate.session.ports import Ports

_SAID = "the test says so"

Missing = Callable[[str, str], Unknown]
"""Takes a question and the key that would answer it."""


class Questions:
    """What was asked and is not in the table."""

    def __init__(self) -> None:
        self.missing: dict[str, None] = {}

    def take(self, question: str, key: str) -> Unknown:
        """Keep a question nobody answers."""
        self.missing[f"the policy asked {question}, the test has no answer for it: write answers.{key}"] = None
        return Unknown("the test", f"no answer for {question}")

    def unknown(self, key: str, why: str) -> None:
        """Keep an answer that nothing can ask for."""
        self.missing[f"{key}: {why}"] = None


def ports(settings: Settings, answers: Answers, configured: Configured, questions: Questions) -> tuple[Ports, Resolver]:
    """The ports of one test, and the resolver behind them."""
    directories = Directories(
        [
            TableDirectory(id, answers.directory.get(id), configured, questions.take)
            for id in sorted({*settings.directory, *answers.directory})
        ],
        settings.storage.directory or "",
    )
    rules = settings.session.rcpt
    addresses = AddressRules(rules.sub_addressing, rules.catch_all)
    resolver = TableResolver(answers, questions.take)
    lists = TableLists(answers, configured, questions.take)
    names = {id for id, store in settings.store.items() if not isinstance(store, MemoryStoreSettings)}
    stores = TableStores(names, lists, answers, questions.take)
    outside = Outside(directories, lists, partial(dns_query, resolver), addresses, stores)
    return Ports(outside, directories, addresses), resolver


class Configured:
    """The directories and lists of the configuration, made when a test first says that it wants them."""

    def __init__(self, directories: Callable[[], Directories], lists: Callable[[], Lists]) -> None:
        """Both raise what is wrong with them."""
        self._make_directories = directories
        self._make_lists = lists
        self._directories: Directories | None = None
        self._lists: Lists | None = None

    def directory(self, id: str) -> Directory | Unknown | None:
        """The directory of this id."""
        self._directories = self._directories or self._make_directories()
        return self._directories.find(id)

    @property
    def lists(self) -> Lists:
        """All lists."""
        self._lists = self._lists or self._make_lists()
        return self._lists


class TableDirectory:
    """A directory that knows what the test says of it."""

    def __init__(self, id: str, answers: DirectoryAnswers | None, configured: Configured, missing: Missing) -> None:
        self._id = id
        self._answers = answers or DirectoryAnswers(
            domains=None, addresses=None, lists=None, logins=None, configured=False, unknown=""
        )
        self._configured = configured
        self._missing = missing
        self._domains = _lower(self._answers.domains)
        self._addresses = _lower(self._answers.addresses)
        self._lists = {
            address.lower(): MailingList(tuple(Path.parse(member) for member in members))
            for address, members in (self._answers.lists or {}).items()
        }

    @property
    def id(self) -> str:
        """The id under `directory.<id>`."""
        return self._id

    def _behind(self, question: str, key: str) -> Directory | Unknown:
        """Who answers what the table does not: the configuration, nobody that answers, or nobody at all."""
        if self._answers.configured:
            found = self._configured.directory(self._id)
            if found is not None and not isinstance(found, Unknown):
                return found
        if self._answers.unknown:
            return Unknown(self._answers.unknown, _SAID)
        return self._missing(f"directory {self._id} {question}", f"directory.{self._id}.{key}")

    async def authenticate(self, login: str, secret: str) -> Identity | Denied | Unknown:
        """Whoever the test lets log in; a password is not looked at."""
        logins = self._answers.logins
        if logins is None:
            if self._answers.unknown:
                return Unknown(self._answers.unknown, _SAID)
            return self._missing(f"directory {self._id} whether {login} may log in", f"directory.{self._id}.logins")
        found = logins.get(login)
        return Denied.WRONG if found is None else Identity(login, tuple(address.lower() for address in found))

    async def is_local_domain(self, domain: str) -> bool | Unknown:
        """Whether `domain` is one of the test's."""
        if self._domains is not None:
            return domain in self._domains
        behind = self._behind(f"whether {domain} is local", "domains")
        return behind if isinstance(behind, Unknown) else await behind.is_local_domain(domain)

    async def find(self, address: str) -> Mailbox | MailingList | Unknown | None:
        """What the test says this address is."""
        if address in self._lists:
            return self._lists[address]
        if self._addresses is not None:
            return Mailbox() if address in self._addresses else None
        behind = self._behind(f"for {address}", "addresses")
        return behind if isinstance(behind, Unknown) else await behind.find(address)

    async def verify(self, text: str) -> tuple[str, ...] | Unknown:
        """Every address of the test that contains `text`."""
        if self._addresses is not None:
            return tuple(address for address in self._addresses if text in address)
        behind = self._behind(f"who {text} is", "addresses")
        return behind if isinstance(behind, Unknown) else await behind.verify(text)

    async def expand(self, address: str) -> tuple[str, ...] | Unknown:
        """The members of a list of the test."""
        found = self._lists.get(address)
        if found is not None:
            return tuple(member.text for member in found.members)
        if self._answers.lists is not None:
            return ()
        behind = self._behind(f"who is on the list {address}", "lists")
        return behind if isinstance(behind, Unknown) else await behind.expand(address)


def _lower(texts: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if texts is None else tuple(text.lower() for text in texts)


class TableList:
    """A list or store that knows what the test says of it, and what the policy has put there since."""

    def __init__(self, name: str, answer: ListAnswer | None, missing: Missing) -> None:
        self._called = f"list {name}" if name else "the default store"
        self._key = f"lists.{name}" if name else 'lists.""'
        self._answer = answer
        self._missing = missing
        self._kept: dict[str, str] = {}

    def get(self, key: str) -> str | Unknown | None:
        """The value of `key`; None when the list does not have it."""
        key = key.lower()
        if key in self._kept:
            return self._kept[key]
        answer = self._answer
        if answer is None:
            return self._missing(f"{self._called} for {key}", self._key)
        found = answer.entries.get(key)
        return Unknown(answer.unknown, _SAID) if found is None and answer.unknown else found

    def set(self, key: str, value: str) -> Unknown | None:
        """Keep a value until the test ends; a store that does not answer does not take it either."""
        if self._answer is None:
            return self._missing(f"{self._called} to keep {key}", self._key)
        if self._answer.unknown:
            return Unknown(self._answer.unknown, _SAID)
        self._kept[key.lower()] = value
        return None


class TableLists:
    """The lists of a test, by name."""

    def __init__(self, answers: Answers, configured: Configured, missing: Missing) -> None:
        self._answers = answers.lists
        self._configured = configured
        self._missing = missing
        self._tables: dict[str, TableList] = {}

    def find(self, name: str) -> ListTable | None:
        """The list of this name; whether there is one the configuration's check has seen to."""
        answer = self._answers.get(name)
        if answer is not None and answer.configured:
            return self._configured.lists.find(name)
        return self.table(name) if name else None

    def table(self, name: str) -> TableList:
        """What the test says of a list or store."""
        if name not in self._tables:
            self._tables[name] = TableList(name, self._answers.get(name), self._missing)
        return self._tables[name]


class TableStore:
    """A store of keys that knows what the test says of it."""

    def __init__(self, name: str, table: TableList, sql: SqlAnswer | None, missing: Missing) -> None:
        self._name = name
        self._table = table
        self._sql = sql
        self._missing = missing

    async def get(self, key: str) -> str | Unknown | None:
        """The value of `key`."""
        return self._table.get(key)

    async def set(self, key: str, value: str) -> Unknown | None:
        """Give `key` a value, for this test."""
        return self._table.set(key, value)

    async def counter(self, key: str) -> int | Unknown:
        """The counter `key`, 0 when there is none."""
        found = self._table.get(key)
        if isinstance(found, Unknown):
            return found
        try:
            return whole_number(found or "0")
        except StoreError as error:
            return Unknown(f"store {self._name}".rstrip(), str(error))

    async def increase(self, key: str, by: int) -> int | Unknown:
        """Add to the counter `key`, for this test."""
        before = await self.counter(key)
        if isinstance(before, Unknown):
            return before
        failed = self._table.set(key, str(before + by))
        return before + by if failed is None else failed

    async def query(self, statement: str, arguments: tuple[Value, ...]) -> Value | Unknown:
        """What the test says the statement gives, with these arguments."""
        given = ", ".join(map(text, arguments))
        if self._sql is not None:
            found = self._sql.results.get(statement)
            if isinstance(found, Mapping):
                found = found.get(given)
            if found is not None:
                return found
            if self._sql.unknown:
                return Unknown(self._sql.unknown, _SAID)
        told = f"{statement} with {given}" if given else statement
        return self._missing(f"store {self._name} for {told}", f'sql."{self._name}"."{statement}"')


class TableStores:
    """The stores of a test, by name: those the configuration has, and the default one."""

    def __init__(self, names: Collection[str], lists: TableLists, answers: Answers, missing: Missing) -> None:
        self._names = names
        self._lists = lists
        self._sql = answers.sql
        self._missing = missing

    def find(self, name: str) -> KeyStore | None:
        """The store of this name."""
        if name and name not in self._names:
            return None
        return TableStore(name, self._lists.table(name), self._sql.get(name), self._missing)


class TableResolver:
    """DNS as the test tells it."""

    def __init__(self, answers: Answers, missing: Missing) -> None:
        self._names = {ascii_name(name) or name.lower(): answer for name, answer in answers.dns.items()}
        self._missing = missing

    def _records(self, name: str, type: str) -> tuple[str, ...] | Absent | Unknown:
        answer: DnsAnswer | None = self._names.get(name.lower())
        if answer is not None:
            if not answer.exists:
                return Absent(name_exists=False)
            found = answer.records.get(type)
            if found is not None:
                return found or Absent(name_exists=True)
            if answer.unknown:
                return Unknown(answer.unknown, f"{name} {type}: {_SAID}")
        return self._missing(f"DNS for {name} {type.upper()}", f'dns."{name}".{type}')

    def _texts(self, name: str, type: str) -> Answer[str] | Absent | Unknown:
        found = self._records(name, type)
        return found if isinstance(found, (Absent, Unknown)) else Answer(found)

    async def mx(self, name: str) -> Answer[MxRecord] | Absent | Unknown:
        """The MX records of `name`: `10 mx.example.org`, or hosts in order of preference."""
        found = self._records(name, "mx")
        if isinstance(found, (Absent, Unknown)):
            return found
        return Answer(tuple(_mx(text, 10 * number) for number, text in enumerate(found, 1)))

    async def ipv4(self, name: str) -> Answer[str] | Absent | Unknown:
        """The A records of `name`."""
        return self._texts(name, "a")

    async def ipv6(self, name: str) -> Answer[str] | Absent | Unknown:
        """The AAAA records of `name`."""
        return self._texts(name, "aaaa")

    async def txt(self, name: str) -> Answer[str] | Absent | Unknown:
        """The TXT records of `name`."""
        return self._texts(name, "txt")

    async def ptr(self, ip: str) -> Answer[str] | Absent | Unknown:
        """The names of an address."""
        return self._texts(ip, "ptr")

    async def tlsa(self, name: str) -> Answer[TlsaRecord] | Absent | Unknown:
        """No policy of a session asks for TLSA records."""
        return Unknown("the test", f"no answer for DNS for {name} TLSA")


def _mx(text: str, preference: int) -> MxRecord:
    number, _, host = text.rpartition(" ")
    return MxRecord(int(number) if number.strip().isdigit() else preference, host.rstrip("."))
