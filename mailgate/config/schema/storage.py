"""`storage.*`, `store.*` and `lookup.*`: where data is, and the lists that expressions ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from mailgate.config.key import key, table
from mailgate.config.kind import (
    BOOLEAN,
    DURATION,
    HOST,
    LINE,
    NAME,
    PATH,
    REDIS_ADDRESS,
    TEXT,
    Kind,
    Quoted,
    RedisAddress,
    Step,
    Unfit,
    any_of,
    integer,
    listed,
    optional,
    word,
)

FORMATS = ("list", "map", "glob", "regex")


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """Which store or directory serves a purpose."""

    data: str | None = key(
        NAME,
        default=None,
        doc="Id of the SQLite store that holds the queue; unset: `/var/spool/mailgate/queue.sqlite`.",
    )
    lookup: str | None = key(
        optional(NAME),
        default=None,
        doc="Id of the store that `''` means in `key_get`, `key_set` and `counter_incr`; unset: an SQLite file of "
        "mailgate's own, `lookup.sqlite` beside the queue.",
    )
    directory: str | None = key(
        NAME, default=None, doc="Id of the default directory, the one that `'*'` means; unset: there is none."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlitePoolSettings:
    """How a database is shared out."""

    max_connections: int = key(
        integer(1, 100), default=4, doc="Connections that rules may use at a time; the queue has its own."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteStoreSettings:
    """An SQLite database."""

    path: str = key(PATH, doc="The file; it is made when it does not exist, its directory is not.")
    timeout: timedelta = key(DURATION, default="10s", doc="How long a rule waits for an answer.")
    pool: SqlitePoolSettings = table(SqlitePoolSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Connections to a server."""

    max_connections: int = key(integer(1, 1000), default=10, doc="Connections at a time.")
    create_timeout: timedelta = key(DURATION, default="30s", doc="How long connecting may take.")
    wait_timeout: timedelta = key(DURATION, default="30s", doc="How long a rule waits for a connection.")
    recycle_timeout: timedelta = key(DURATION, default="30s", doc="How long a connection is kept that nobody uses.")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreTlsSettings:
    """TLS to a server."""

    enable: bool = key(BOOLEAN, default=False, doc="Connect with TLS; the certificate must be of the host.")
    allow_invalid_certs: bool = key(BOOLEAN, default=False, doc="Take any certificate.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresqlStoreSettings:
    """A PostgreSQL database, for rules: keys, counters and SQL."""

    host: str = key(HOST, doc="The server.")
    port: int = key(integer(1, 65535), default=5432, doc="Its port.")
    database: str = key(NAME, doc="The database; `mailgate_keys` is the one table that mailgate makes in it.")
    user: str | None = key(NAME, default=None, doc="The role; unset: that of the system's user.")
    password: str | None = key(TEXT, default=None, secret=True, doc="Its password.")
    options: str | None = key(LINE, default=None, doc="Command-line options for the session, `-c search_path=mail`.")
    timeout: timedelta = key(DURATION, default="15s", doc="How long a rule waits for an answer.")
    tls: StoreTlsSettings = table(StoreTlsSettings)
    pool: PoolSettings = table(PoolSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisTlsSettings:
    """TLS, where the address begins with `rediss://`."""

    allow_invalid_certs: bool = key(BOOLEAN, default=False, doc="Take any certificate.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisStoreSettings:
    """A Redis server, for rules: keys and counters."""

    urls: RedisAddress = key(
        REDIS_ADDRESS,
        secret=True,
        doc="The server: `redis://user:password@host:port/database`, `rediss://` with TLS, `unix://` and a path.",
    )
    redis_type: str = key(
        word("single", refused={"cluster": ("known, not supported by this version", 'write "single"')}),
        default="single",
        doc="`single`: one server.",
    )
    timeout: timedelta = key(DURATION, default="10s", doc="How long a rule waits for an answer.")
    tls: RedisTlsSettings = table(RedisTlsSettings)
    pool: PoolSettings = table(PoolSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStoreSettings:
    """A list kept in memory, from the file itself or from other files."""

    format: str = key(
        word(*FORMATS),
        default="list",
        doc="What an entry is: `list` a key, `map` a key and its value, `glob` a pattern with `*` and `?`, "
        "`regex` a regular expression.",
    )
    values: tuple[str, ...] = key(
        listed(TEXT), default=[], doc="Entries, and `file://` URLs of files with an entry on each line."
    )
    comment: str = key(TEXT, default="#", doc="What a line of a file starts with that is no entry.")
    separator: str = key(TEXT, default=" ", doc="What stands between key and value of a `map`.")


KeyStoreSettings = SqliteStoreSettings | PostgresqlStoreSettings | RedisStoreSettings
SqlStoreSettings = SqliteStoreSettings | PostgresqlStoreSettings
StoreSettings = KeyStoreSettings | MemoryStoreSettings

KEY_STORES = ("sqlite", "postgresql", "redis")
SQL_STORES = ("sqlite", "postgresql")


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupSettings:
    """A list written into the configuration: each key with its value, "" for a plain member.

    Keys are in lower case and may hold the wildcards `*` and `?`.
    """

    entries: Mapping[str, str]


def _lookup(value: Quoted) -> LookupSettings:
    raw = value.raw
    if isinstance(raw, list):
        return LookupSettings(entries=dict.fromkeys((_member(value.of(m), i) for i, m in enumerate(raw)), ""))
    if isinstance(raw, str):
        return LookupSettings(entries={raw.lower(): ""})
    if not isinstance(raw, dict):
        raise Unfit(f"{value.text} is no list", 'write ["a", "b"]')
    return LookupSettings(entries={key.lower(): _entry(value.of(entry), key) for key, entry in raw.items()})


def _member(member: Quoted, number: int) -> str:
    if not isinstance(member.raw, str):
        raise Unfit(f"{member.text} is no string", "put it into quotes", (number,))
    return member.raw.lower()


def _entry(entry: Quoted, key: str) -> str:
    raw = entry.raw
    if raw is True:
        return ""
    if isinstance(raw, str):
        return raw
    if isinstance(raw, (int, float)) and not isinstance(raw, bool):
        return str(raw)
    at: tuple[Step, ...] = (key,)
    name = key
    while isinstance(raw, dict) and len(raw) >= 1:
        # `example.com = true` is read as a table `example` with the entry `com`.
        inner, raw = next(iter(raw.items()))
        at, name = (*at, inner), f"{name}.{inner}"
    if name != key:
        raise Unfit("a name with a dot has to be in quotes", f'write "{name}" = true', at)
    raise Unfit(f"{entry.text} is no entry", "write true, or a string that the list gives for this key", at)


LOOKUP = Kind(
    "list, or table of entries",
    _lookup,
    any_of(
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "object", "additionalProperties": any_of({"enum": [True]}, {"type": ["string", "number"]})},
    ),
)

# Lists that rules may name although the file has none; they are empty then.
STANDARD_LISTS = (
    "trusted-domains",
    "blocked-domains",
    "spam-traps",
    "spam-trap",
    "freemail-providers",
    "disposable-providers",
    "url-redirectors",
    "surbl-hashbl",
)
