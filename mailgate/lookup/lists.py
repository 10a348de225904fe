"""Named lists that rules look things up in: sets, maps, globs, regular expressions.

They are read whole when the configuration is loaded and never change after
that. Keys are compared in lower case. A list one of whose files could not be
read still knows what it has; about everything else it says `Unknown`, because
the key may stand in the part that is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from urllib.parse import unquote, urlsplit

from mailgate.config.schema.storage import STANDARD_LISTS
from mailgate.mail.unknown import Unknown

# What `key_get` tells of an entry that was written without a value of its own.
MEMBER = "true"


class Format(Enum):
    """How the entries of a `[store."name"]` of type `memory` are written."""

    LIST = "list"
    MAP = "map"
    GLOB = "glob"
    REGEX = "regex"


class BadList(ValueError):
    """A list that cannot be used; `problems` are for the operator."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def glob_pattern(glob: str) -> re.Pattern[str]:
    """A lower-case glob as a regular expression: `*` is any text, `?` one character, all else itself."""
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in re.sub(r"\*+", "*", glob))
    return re.compile("".join(parts), re.DOTALL)


class _Globs:
    """Many globs at once; where several match, the one written first.

    The usual shapes (`*.example.org`, `*@example.org`, `postmaster@*`) are found
    by looking up the parts of the key; only the rest are tried one by one.
    """

    __slots__ = ("_count", "_others", "_prefixes", "_suffixes")

    def __init__(self) -> None:
        self._count = 0
        self._suffixes: dict[str, tuple[int, str]] = {}
        self._prefixes: dict[str, tuple[int, str]] = {}
        self._others: list[tuple[int, re.Pattern[str], str]] = []

    def __bool__(self) -> bool:
        return self._count > 0

    def add(self, glob: str, value: str) -> None:
        self._count += 1
        if glob[:1] == "*" and glob[1:2] in (".", "@") and not _is_glob(glob[1:]):
            self._suffixes.setdefault(glob[1:], (self._count, value))
        elif glob[-1:] == "*" and glob[-2:-1] in (".", "@") and not _is_glob(glob[:-1]):
            self._prefixes.setdefault(glob[:-1], (self._count, value))
        else:
            self._others.append((self._count, glob_pattern(glob), value))

    def find(self, key: str) -> tuple[int, str] | None:
        best: tuple[int, str] | None = None
        for match in _JOINT.finditer(key):
            at = match.start()
            for found in (self._suffixes.get(key[at:]), self._prefixes.get(key[: at + 1])):
                if found is not None and (best is None or found[0] < best[0]):
                    best = found
        for number, pattern, value in self._others:
            if best is not None and best[0] < number:
                break
            if pattern.fullmatch(key):
                return number, value
        return best


_JOINT = re.compile("[.@]")


def _is_glob(text: str) -> bool:
    return "*" in text or "?" in text


class NamedList:
    """One list, by the name rules call it."""

    __slots__ = ("_entries", "_globs", "_regexes", "id", "missing")

    def __init__(self, id: str, missing: str = "") -> None:
        """`missing` says which part of the list could not be read, and why; "" when all is here."""
        self.id = id
        self.missing = missing
        self._entries: dict[str, str] = {}
        self._globs = _Globs()
        self._regexes: list[tuple[re.Pattern[str], str]] = []

    def __len__(self) -> int:
        return len(self._entries) + self._globs._count + len(self._regexes)

    def get(self, key: str) -> str | Unknown | None:
        """The value of `key` (an entry without one: `true`), None when the list does not have it.

        An entry with exactly this key goes before globs. The time grows with
        the length of the key only, but for globs of unusual shape and regular
        expressions.
        """
        key = key.lower()
        if key in self._entries:
            return self._entries[key]
        if self._globs and (found := self._globs.find(key)) is not None:
            return found[1]
        for pattern, value in self._regexes:
            if pattern.search(key):
                return value
        return Unknown(f"list {self.id}", self.missing) if self.missing else None

    def _add(self, entry: str, value: str, globs: bool) -> None:
        entry = entry.lower()
        if globs and _is_glob(entry):
            self._globs.add(entry, value)
        else:
            self._entries.setdefault(entry, value)


def from_lookup(id: str, entries: Mapping[str, str | bool]) -> NamedList:
    """A list of `[lookup]`: entries, which may be globs, with their values; "" or True for an entry without one."""
    named = NamedList(id)
    for entry, value in entries.items():
        named._add(entry, value if value and isinstance(value, str) else MEMBER, globs=True)
    return named


def read_text(path: str) -> str:
    """The text of a list's file. Raises `OSError`, and `UnicodeDecodeError` for what is not UTF-8."""
    with open(path, encoding="utf-8") as file:
        return file.read()


def from_store(
    id: str,
    format: Format,
    values: Iterable[str],
    *,
    comment: str = "#",
    separator: str = " ",
    read: Callable[[str], str] = read_text,
) -> NamedList:
    """A list of `[store."id"]` with `type = "memory"`: literal entries, and `file://` addresses of more.

    A file holds one entry a line; empty lines and those that begin with
    `comment` are skipped. Raises `BadList` for entries that cannot be used; a
    file that cannot be read is not that: see `missing`.
    """
    named = NamedList(id)
    problems: list[str] = []
    for value in values:
        if not _URL.match(value):
            _add_line(named, format, value, separator, problems, f'store "{id}"')
            continue
        parts = urlsplit(value)
        if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
            problems.append(f'store "{id}": {value} is not the address of a local file; write file:///PATH')
            continue
        path = unquote(parts.path)
        try:
            text = read(path)
        except (OSError, UnicodeDecodeError) as failure:
            reason = failure.strerror or "cannot be read" if isinstance(failure, OSError) else "is not UTF-8"
            named.missing = named.missing or f"{path}: {reason}"
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not (comment and line.lstrip().startswith(comment)):
                _add_line(named, format, line, separator, problems, f"{path}:{number}")
    if problems:
        raise BadList(tuple(problems))
    return named


_URL = re.compile(r"(?:file|https?|file\+fallback)://")


def _add_line(named: NamedList, format: Format, line: str, separator: str, problems: list[str], place: str) -> None:
    entry = line.strip()
    if format is Format.MAP:
        key, found, value = entry.partition(separator)
        if not found or not key.strip():
            problems.append(f'{place}: "{entry}" is no key and value with "{separator}" between them')
        else:
            named._entries.setdefault(key.strip().lower(), value.strip())
    elif format is Format.REGEX:
        try:
            # Compared with the key in lower case: the pattern's own case cannot matter.
            named._regexes.append((re.compile(entry, re.IGNORECASE), MEMBER))
        except re.error as error:
            problems.append(f'{place}: "{entry}" is no regular expression: {error}')
    else:
        named._add(entry, MEMBER, globs=format is Format.GLOB)


class Lists:
    """All lists of a configuration, by name."""

    __slots__ = ("_default", "_named")

    def __init__(self, lists: Iterable[NamedList], default: str = "") -> None:
        """`default` is the list the empty name stands for; "" for none.

        The standard lists are there also when nobody defined them, and empty.
        """
        self._named = {name: NamedList(name) for name in STANDARD_LISTS}
        self._named.update((named.id, named) for named in lists)
        self._default = default

    def find(self, name: str) -> NamedList | None:
        """The list of this name; the default one for the empty name; None when there is none."""
        return self._named.get(name or self._default)

    @property
    def has_default(self) -> bool:
        """Whether the empty name stands for a list."""
        return self._default in self._named

    @property
    def incomplete(self) -> tuple[NamedList, ...]:
        """The lists of which something could not be read, for the log."""
        return tuple(named for named in self._named.values() if named.missing)
