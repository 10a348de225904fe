"""`storage.*`, `store.*` and `lookup.*`: where data is, and the lists that expressions ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mailgate.config.key import key
from mailgate.config.kind import NAME, PATH, TEXT, Kind, Quoted, Step, Unfit, any_of, listed, word

FORMATS = ("list", "map", "glob", "regex")


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """Which store or directory serves a purpose."""

    data: str | None = key(
        NAME,
        default=None,
        doc="Id of the SQLite store that holds the queue; unset: `/var/spool/mailgate/queue.sqlite`.",
    )
    directory: str | None = key(
        NAME, default=None, doc="Id of the default directory, the one that `'*'` means; unset: there is none."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteStoreSettings:
    """An SQLite database."""

    path: str = key(PATH, doc="The file; it is made when it does not exist, its directory is not.")


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


StoreSettings = SqliteStoreSettings | MemoryStoreSettings


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
