"""The kinds of values a key may have, and how each is written in TOML.

A kind turns what `tomllib` read (macros expanded) into the value the program
uses, or raises `Unfit` with what is wrong and what to write instead. Nothing
here knows a key by name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from mailgate.expr.scope import nearest
from mailgate.expr.value import OFF_WORDS, BadValue, read_duration, read_size

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# What fits into 64 bits signed; SQLite and the expression language end there too.
_LARGEST = 2**63 - 1


Step = str | int
"""One step down into a value: the name of an entry, or the number of an element."""


class Unfit(Exception):
    """A value that its key cannot take: what is wrong, and what to write instead ("" when that is clear).

    `at` leads from the key's value to the part of it that is wrong.
    """

    def __init__(self, problem: str, advice: str = "", at: tuple[Step, ...] = ()) -> None:
        super().__init__(problem, advice)
        self.problem = problem
        self.advice = advice
        self.at = at


class Quoted(NamedTuple):
    """A raw value, and how an error may show it: a secret is named, never shown."""

    raw: object
    secret: bool = False

    @property
    def text(self) -> str:
        """The value as an error shows it, cut to one short line."""
        if self.secret:
            return "the inserted value"
        if isinstance(self.raw, str):
            shown = self.raw if len(self.raw) <= 60 else self.raw[:57] + "..."
            return '"' + "".join(c if c.isprintable() else "?" for c in shown) + '"'
        if isinstance(self.raw, bool):
            return "true" if self.raw else "false"
        if isinstance(self.raw, (int, float)):
            return str(self.raw)
        if isinstance(self.raw, Mapping):
            return "a table"
        if isinstance(self.raw, list):
            return "a list"
        return "a date or time"

    def of(self, raw: object) -> Quoted:
        """Another value from the same place, such as an element of this one."""
        return Quoted(raw, self.secret)


@dataclass(frozen=True, slots=True)
class Kind(Generic[T_co]):
    """One way to write a value. `name` describes it in the reference page and in errors."""

    name: str
    read: Callable[[Quoted], T_co]
    """Raises `Unfit`."""
    json: Mapping[str, object] = field(default_factory=dict)
    """What it takes as JSON Schema, for editors: all of that, and perhaps more."""
    concealed: Callable[[str], str] | None = None
    """What may be shown of a secret text, which this kind reads again; None: nothing of it."""


# A string with a macro in it may become anything.
_MACRO_PATTERN = r"%\{(env|file|cfg):"
_STRING: Mapping[str, object] = {"type": "string"}
_NOT_EMPTY: Mapping[str, object] = {"type": "string", "minLength": 1}


def _matching(pattern: str) -> Mapping[str, object]:
    return {"type": "string", "pattern": f"{pattern}|{_MACRO_PATTERN}"}


def any_of(*schemas: Mapping[str, object]) -> Mapping[str, object]:
    """JSON Schema of what fits one of several."""
    return {"anyOf": [dict(schema) for schema in schemas]}


def _any_case(text: str) -> str:
    letters = (f"[{c.upper()}{c.lower()}]" if c.isalpha() else re.escape(c) for c in text)
    return r"^\s*" + "".join(letters) + r"\s*$"


def words_schema(words: Iterable[str]) -> Mapping[str, object]:
    """JSON Schema of one of a few words, proposed as they are spelt here, taken in any case."""
    each = list(words)
    return any_of({"enum": each}, _matching("|".join(map(_any_case, each))))


def _boolean(value: Quoted) -> bool:
    if isinstance(value.raw, bool):
        return value.raw
    if isinstance(value.raw, str) and value.raw.strip().lower() in ("true", "false"):
        raise Unfit(f"{value.text} is a string, a boolean is wanted", f"write {value.raw.strip().lower()}")
    raise Unfit(f"{value.text} is no boolean", "write true or false")


BOOLEAN = Kind("boolean", _boolean, {"type": "boolean"})


def _whole_number(value: Quoted) -> int:
    raw = value.raw
    if isinstance(raw, int) and not isinstance(raw, bool):
        number = raw
    elif isinstance(raw, str) and re.fullmatch(r"-?[0-9]{1,20}", raw.strip()):
        number = int(raw)
    else:
        raise Unfit(f"{value.text} is no whole number", "write digits, such as 100")
    if not -_LARGEST <= number <= _LARGEST:
        raise Unfit(f"{value.text} is too large a number")
    return number


def integer(least: int = 0, most: int = _LARGEST) -> Kind[int]:
    """A whole number within bounds, both included."""

    def read(value: Quoted) -> int:
        number = _whole_number(value)
        if number < least or number > most:
            allowed = f"from {least} to {most}" if most != _LARGEST else f"of at least {least}"
            raise Unfit(f"{value.text} is out of range", f"write a number {allowed}")
        return number

    bounds = {"minimum": least} if most == _LARGEST else {"minimum": least, "maximum": most}
    return Kind("integer", read, any_of({"type": "integer", **bounds}, _matching(r"^\s*-?[0-9]+\s*$")))


def _size(value: Quoted) -> int:
    try:
        octets = read_size(value.raw)
    except BadValue as wrong:
        raise _hidden(value, wrong)
    if not octets:
        raise Unfit(f"{value.text} is no usable size", "write a number of bytes above 0")
    return octets


def _hidden(value: Quoted, wrong: BadValue) -> Unfit:
    problem = f"{value.text} cannot be used here" if value.secret else wrong.problem
    return Unfit(problem, wrong.advice)


SIZE = Kind("size", _size, any_of({"type": "integer", "minimum": 1}, _matching(r"^\s*[0-9\s]+([kKmMgG]\s*[bB]?)?\s*$")))


def _duration(value: Quoted) -> timedelta:
    try:
        return read_duration(value.raw)
    except BadValue as wrong:
        raise _hidden(value, wrong)


_DURATION_SCHEMA = any_of({"type": "number", "exclusiveMinimum": 0}, _matching(r"^[0-9\s]+([dhms]|m\s*s)?\s*$"))
DURATION = Kind("duration", _duration, _DURATION_SCHEMA)


def _coarse_duration(value: Quoted) -> timedelta:
    return max(_duration(value), timedelta(seconds=1))


# Queue schedules: what is shorter than a second counts as one second.
DURATION_FROM_1S = Kind("duration", _coarse_duration, _DURATION_SCHEMA)


def _text(value: Quoted) -> str:
    if not isinstance(value.raw, str):
        raise Unfit(f"{value.text} is no string", "put it into quotes")
    return value.raw


TEXT = Kind("string", _text, _STRING)


def _line(value: Quoted) -> str:
    text = _text(value)
    if any(c < " " or c == "\x7f" for c in text):
        raise Unfit("the string holds a line break or another control character", "write it on one line")
    return text


LINE = Kind("string", _line, _STRING)


def _name(value: Quoted) -> str:
    text = _line(value)
    if not text.strip():
        raise Unfit("the string is empty", "write a name, or leave the key out")
    return text


NAME = Kind("string", _name, _NOT_EMPTY)


def _path(value: Quoted) -> str:
    text = _name(value)
    if "\0" in text:
        raise Unfit(f"{value.text} is no path")
    return text


PATH = Kind("path", _path, _NOT_EMPTY)

_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")


def _hostname(value: Quoted) -> str:
    text = _line(value).strip()
    if len(text) > 253 or not _HOSTNAME.fullmatch(text):
        raise Unfit(f"{value.text} is no host name", "write a name such as mx.example.org, A-labels for IDN")
    return text.rstrip(".")


HOSTNAME = Kind("host name", _hostname, _NOT_EMPTY)


def _ip(value: Quoted) -> str:
    try:
        return str(ipaddress.ip_address(_line(value).strip().strip("[]")))
    except ValueError:
        raise Unfit(f"{value.text} is no IP address", 'write "192.0.2.1" or "2001:db8::1"') from None


IP = Kind("IP address", _ip, _NOT_EMPTY)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _network(value: Quoted) -> Network:
    text = _line(value).strip()
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_interface(text)
    except ValueError:
        raise Unfit(f"{value.text} is no IP address or network", 'write "192.0.2.1" or "192.0.2.0/24"') from None
    raise Unfit(f"{value.text} is an address within a network", f'write "{meant.ip}" or "{meant.network}"')


NETWORK = Kind("IP address or network", _network, _NOT_EMPTY)


def _host(value: Quoted) -> str:
    try:
        return _ip(value)
    except Unfit:
        return _hostname(value)


HOST = Kind("host name or IP address", _host, _NOT_EMPTY)


class SocketAddress(NamedTuple):
    """Where a listener listens: an IP address in text form, and a port (0: not given, the protocol's own)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_V6_WITH_PORT = re.compile(r"\[([^\[\]]*)\](?::([0-9]{1,5}))?")
_V4_WITH_PORT = re.compile(r"([^:\[\]]*)(?::([0-9]{1,5}))?")


def split_address(text: str) -> SocketAddress | None:
    """Read `host:port`, `[v6]:port`, or an address alone (port 0); None when it is none of these."""
    try:
        match = _V6_WITH_PORT.fullmatch(text) or _V4_WITH_PORT.fullmatch(text)
        host = str(ipaddress.ip_address(match[1] if match else text))
    except ValueError:
        return None
    if match is None or match[2] is None:
        return SocketAddress(host, 0)
    port = int(match[2])
    return SocketAddress(host, port) if 0 < port < 65536 else None


def _socket_address(value: Quoted) -> SocketAddress:
    address = split_address(_line(value).strip())
    if address is None:
        raise Unfit(f"{value.text} is no address to listen on", 'write "192.0.2.1:25" or "[2001:db8::1]:25"')
    return address


SOCKET_ADDRESS = Kind("socket address", _socket_address, _NOT_EMPTY)


class DnsServer(NamedTuple):
    """One server of `resolver.custom`; `scheme` is `udp` or `tcp`."""

    scheme: str
    host: str
    port: int


def _dns_server(value: Quoted) -> DnsServer:
    text = _line(value).strip()
    scheme, separator, rest = text.rpartition("://")
    address = split_address(rest)
    if separator and scheme.lower() == "tls":
        raise Unfit("DNS over TLS: known, not supported by this version", 'write "udp://..." or "tcp://..."')
    if address is None or (separator and scheme.lower() not in ("udp", "tcp")):
        raise Unfit(f"{value.text} is no DNS server", 'write "udp://192.0.2.1:53" or "tcp://[2001:db8::1]:53"')
    return DnsServer(scheme.lower() or "udp", address.host, address.port or 53)


DNS_SERVER = Kind("DNS server", _dns_server, _NOT_EMPTY)


class RedisAddress(NamedTuple):
    """A Redis server: by host and port, or by a Unix socket."""

    host: str
    port: int
    socket: str | None
    tls: bool
    database: int
    user: str | None
    password: str | None

    def __repr__(self) -> str:
        return f"RedisAddress({self.socket or f'{self.host}:{self.port}'})"


_REDIS_ADVICE = 'write "redis://192.0.2.1:6379", "rediss://..." for TLS, or "unix:///run/redis/redis.sock"'


def _redis_address(value: Quoted) -> RedisAddress:
    problem = "the value is no address of a Redis server"
    try:
        parts = urlsplit(_line(value).strip())
        port = parts.port or 6379
    except ValueError:
        raise Unfit(problem, _REDIS_ADVICE) from None
    path, options = unquote(parts.path), dict(parse_qsl(parts.query, keep_blank_values=True))
    is_socket = parts.scheme == "unix"
    database = options.pop("db", "" if is_socket else path.strip("/")) or "0"
    if parts.scheme not in ("redis", "rediss", "unix") or parts.fragment or not (path if is_socket else parts.hostname):
        raise Unfit(problem, _REDIS_ADVICE)
    if options:
        raise Unfit(f"the address says {', '.join(sorted(options))}", "write the keys of the store for that")
    if not re.fullmatch("[0-9]{1,6}", database):
        raise Unfit("the address names no database by its number", "write it as redis://192.0.2.1:6379/0")
    user, password = (unquote(part) if part else None for part in (parts.username, parts.password))
    where = path if is_socket else None
    return RedisAddress(parts.hostname or "", port, where, parts.scheme == "rediss", int(database), user, password)


def _without_password(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    login, at, where = rest.rpartition("@")
    if not separator or not at:
        return text
    user = login.partition(":")[0]
    return f"{scheme}://{user if re.fullmatch('[A-Za-z0-9._-]*', user) else ''}:***@{where}"


REDIS_ADDRESS = Kind("Redis address", _redis_address, _NOT_EMPTY, _without_password)


class FreeSpace(NamedTuple):
    """Free space that must remain: so many octets, or so many percent of the file system (the other is 0)."""

    octets: int
    percent: float = 0.0

    def octets_of(self, total_octets: int) -> int:
        """What must remain free on a file system of this size."""
        return max(self.octets, int(total_octets * self.percent / 100))


def _free_space(value: Quoted) -> FreeSpace:
    match = re.fullmatch(r"\s*(\d{1,3}(?:\.\d+)?)\s*%\s*", value.raw, re.ASCII) if isinstance(value.raw, str) else None
    if match is None:
        return FreeSpace(_size(value))
    if not 0 < float(match[1]) < 100:
        raise Unfit(f"{value.text} is out of range", 'write a percentage between 0 and 100, such as "5%"')
    return FreeSpace(0, float(match[1]))


FREE_SPACE = Kind("size or percentage", _free_space, any_of(SIZE.json, _matching(r"^\s*[0-9]{1,3}(\.[0-9]+)?\s*%\s*$")))


def word(
    *words: str,
    synonyms: Mapping[str, str] | None = None,
    refused: Mapping[str, tuple[str, str]] | None = None,
    name: str = "",
) -> Kind[str]:
    """One of a few words, without regard to case; a synonym gives the word it stands for.

    `refused` are words with an error of their own: problem and advice.
    """
    meant = {**{w.lower(): w for w in words}, **(synonyms or {})}
    choice = ", ".join(f'"{w}"' for w in words)

    def read(value: Quoted) -> str:
        raw = value.raw
        text = ("true" if raw else "false") if isinstance(raw, bool) else raw
        wanted = text.strip().lower() if isinstance(text, str) else ""
        if wanted in meant:
            return meant[wanted]
        if refused is not None and wanted in refused:
            problem, advice = refused[wanted]
            raise Unfit(f"{value.text}: {problem}", advice)
        close = None if value.secret else nearest(wanted, (w.lower() for w in words))
        near = meant[close] if close else None
        problem = f"{value.text} is not {choice}" if len(words) == 1 else f"{value.text} is none of {choice}"
        raise Unfit(problem, f'did you mean "{near}"?' if near else "write one of these words")

    spelt = [w for w in (*words, *(synonyms or ())) if w not in ("true", "false")]
    booleans = [text == "true" for text in ("true", "false") if text in meant]
    json = any_of(words_schema(spelt), {"enum": booleans}) if booleans else words_schema(spelt)
    return Kind(name or " or ".join(f"`{w}`" for w in words), read, json)


def listed(kind: Kind[T]) -> Kind[tuple[T, ...]]:
    """A list; a single value stands for a list of one."""

    def read(value: Quoted) -> tuple[T, ...]:
        raws: Sequence[object] = value.raw if isinstance(value.raw, list) else [value.raw]
        values = []
        for number, raw in enumerate(raws):
            try:
                values.append(kind.read(value.of(raw)))
            except Unfit as unfit:
                at = (number, *unfit.at) if raws is value.raw else unfit.at
                raise Unfit(unfit.problem, unfit.advice, at) from None
        return tuple(values)

    return Kind(f"list of {kind.name}", read, any_of(kind.json, {"type": "array", "items": dict(kind.json)}))


def at_least_one(kind: Kind[tuple[T, ...]]) -> Kind[tuple[T, ...]]:
    """A list that is not empty."""

    def read(value: Quoted) -> tuple[T, ...]:
        values = kind.read(value)
        if not values:
            raise Unfit("the list is empty", "write at least one value")
        return values

    return Kind(kind.name, read, kind.json)


def optional(kind: Kind[T]) -> Kind[T | None]:
    """A value, or one of the spellings of "not set": `""`, `false`, `0`, `"disable"`, `"never"`."""

    def read(value: Quoted) -> T | None:
        raw = value.raw
        if raw is False or (isinstance(raw, int) and not isinstance(raw, bool) and raw == 0):
            return None
        if isinstance(raw, str) and raw.strip().lower() in OFF_WORDS:
            return None
        return kind.read(value)

    return Kind(kind.name, read, any_of(kind.json, {"enum": [False, 0, *sorted(OFF_WORDS)]}))
