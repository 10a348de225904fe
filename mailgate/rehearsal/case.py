"""A policy test as an operator writes it, in TOML (doc/policy-tests.md).

A file holds many `[[test]]` tables and at most one `[default]`, whose keys
stand in for those a test leaves out. The keys are declared like those of the
configuration and read by the same reader: everything that is wrong with a file
is reported at once, with line and key path.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from mailgate.config.effective import Effective
from mailgate.config.error import ConfigErrors
from mailgate.config.key import entries, key, table, table_list, tables
from mailgate.config.kind import (
    BOOLEAN,
    IP,
    LINE,
    NAME,
    SOCKET_ADDRESS,
    Kind,
    Quoted,
    SocketAddress,
    Unfit,
    integer,
    listed,
)
from mailgate.config.macro import Macros
from mailgate.config.place import Origins
from mailgate.config.reader import Findings, Reader
from mailgate.config.sources import Source, merged
from mailgate.expr.scope import nearest
from mailgate.expr.value import BadValue, Value, read_size
from mailgate.mail.unknown import Unknown
from mailgate.queue.charge import EMPTY, Usage

T = TypeVar("T")

VERDICTS = ("accept", "reject", "tempfail", "discard", "not reached")
"""What a stage may say: `reject` is a 5xx, `tempfail` a 4xx, `not reached` a command that was not sent."""

RECORD_TYPES = ("mx", "a", "aaaa", "txt", "ptr")

_DEFAULT_CLOCK = datetime(2026, 1, 1, tzinfo=UTC)


# --- values -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Command:
    """The argument of MAIL or RCPT: an address, and parameters as they stand on the wire."""

    path: str
    parameters: str = ""


@dataclass(frozen=True, slots=True)
class Greeting:
    """What the client says first: a name, a whole HELO command, or nothing (None)."""

    name: str | None


@dataclass(frozen=True, slots=True)
class Message:
    """The message of a test, as it is sent: lines end with CR LF."""

    octets: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage has to say; None is not looked at."""

    code: int | None = None
    enhanced: str | None = None
    verdict: str | None = None
    rule: str | None = None
    """The key or check that has to decide."""


@dataclass(frozen=True, slots=True)
class ListAnswer:
    """A list: `entries` with their values; `configured` is the list of the configuration; `unknown` does not answer."""

    entries: Mapping[str, str]
    configured: bool = False
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class SqlAnswer:
    """What SQL statements of one store give, by their text; in a table by their arguments, joined with `, `."""

    results: Mapping[str, Value | Mapping[str, Value]]
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class DnsAnswer:
    """What DNS says of one name, by record type; `exists` is false for a name that is not there at all."""

    records: Mapping[str, tuple[str, ...] | Unknown]
    exists: bool = True
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class QuotaAnswer:
    """What is in each bucket of a quota before the message comes."""

    used: Usage = EMPTY
    is_full: bool = False


def _fields(value: Quoted, wanted: str, *known: str) -> Mapping[str, object]:
    """A table with no other keys than these."""
    if not isinstance(value.raw, Mapping):
        raise Unfit(f"{value.text} cannot stand here", f"write {wanted}")
    for name in value.raw:
        if name not in known:
            near = nearest(str(name), known)
            advice = f"did you mean {near}?" if near else f"known here: {', '.join(known)}"
            raise Unfit(f"unknown key {name}", advice, (str(name),))
    return value.raw


def _part(kind: Kind[T], fields: Mapping[str, object], name: str) -> T:
    try:
        return kind.read(Quoted(fields[name]))
    except Unfit as unfit:
        raise Unfit(unfit.problem, unfit.advice, (name, *unfit.at)) from None


def _command(argument: str) -> Kind[Command]:
    wanted = f'an address, or a table {{ {argument} = "...", parameters = "..." }}'

    def read(value: Quoted) -> Command:
        if isinstance(value.raw, str):
            return Command(LINE.read(value))
        fields = _fields(value, wanted, argument, "parameters")
        if argument not in fields:
            raise Unfit(f"{argument} is missing", f"write {wanted}")
        return Command(
            _part(LINE, fields, argument), _part(LINE, fields, "parameters") if "parameters" in fields else ""
        )

    return Kind(wanted, read)


def _size(value: Quoted) -> int:
    try:
        return read_size(value.raw)
    except BadValue as wrong:
        raise Unfit(wrong.problem, wrong.advice) from None


_LINE_END = re.compile(r"\r?\n")
_MESSAGE = 'a text, or a table { header = ["Subject: ..."], size = "4kb" }'
_FILLING = b"x" * 76 + b"\r\n"


def _message(value: Quoted) -> Message:
    if isinstance(value.raw, str):
        text = _LINE_END.sub("\r\n", value.raw)
        return Message((text if text.endswith("\r\n") else text + "\r\n").encode("utf-8", "surrogateescape"))
    fields = _fields(value, _MESSAGE, "header", "size")
    lines = _part(listed(LINE), fields, "header") if "header" in fields else ()
    octets = "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"
    size = _part(Kind("size", _size), fields, "size") if "size" in fields else 0
    missing = size - len(octets)
    # Whole lines, and a last one that makes the size right.
    filling = _FILLING * (missing // len(_FILLING)) if missing > 0 else b""
    rest = missing - len(filling)
    return Message(octets + filling + (b"x" * (rest - 2) + b"\r\n" if rest >= 2 else b""))


_OUTCOME = 'a reply code, "550 5.7.1", a verdict, or a table { code, enhanced, verdict, rule }'
_REPLY = re.compile(r"([2-5][0-9]{2})(?:[ -]([245]\.[0-9]{1,3}\.[0-9]{1,3}))?")


def _verdict(value: Quoted) -> str:
    text = LINE.read(value).strip().lower()
    if text in VERDICTS:
        return text
    near = nearest(text, VERDICTS)
    words = ", ".join(f'"{word}"' for word in VERDICTS)
    raise Unfit(f"{value.text} is no verdict", f'did you mean "{near}"?' if near else f"write one of {words}")


def _code(value: Quoted) -> int:
    raw = value.raw
    if isinstance(raw, int) and not isinstance(raw, bool) and 200 <= raw <= 599:
        return raw
    raise Unfit(f"{value.text} is no reply code", "write a number from 200 to 599")


def _enhanced(value: Quoted) -> str:
    text = LINE.read(value)
    if re.fullmatch(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}", text):
        return text
    raise Unfit(f"{value.text} is no enhanced status code", 'write one such as "5.7.1"')


def _outcome(value: Quoted) -> Outcome:
    if isinstance(value.raw, int):
        return Outcome(code=_code(value))
    if isinstance(value.raw, str):
        reply = _REPLY.fullmatch(value.raw.strip())
        return Outcome(code=int(reply[1]), enhanced=reply[2]) if reply else Outcome(verdict=_verdict(value))
    fields = _fields(value, _OUTCOME, "code", "enhanced", "verdict", "rule")
    if not fields:
        raise Unfit("the table is empty", f"write {_OUTCOME}")
    return Outcome(
        code=_part(Kind("reply code", _code), fields, "code") if "code" in fields else None,
        enhanced=_part(Kind("enhanced status code", _enhanced), fields, "enhanced") if "enhanced" in fields else None,
        verdict=_part(Kind("verdict", _verdict), fields, "verdict") if "verdict" in fields else None,
        rule=_part(NAME, fields, "rule") if "rule" in fields else None,
    )


_LIST = 'a list of keys, a table of keys and values, "configured", or { unknown = "DEPENDENCY" }'


def _list(value: Quoted) -> ListAnswer:
    raw = value.raw
    if raw == "configured":
        return ListAnswer({}, configured=True)
    if raw == "unknown":
        return ListAnswer({}, unknown="list")
    if isinstance(raw, list):
        return ListAnswer({entry.lower(): "true" for entry in listed(LINE).read(value)})
    if not isinstance(raw, Mapping):
        raise Unfit(f"{value.text} is no list", f"write {_LIST}")
    found = {str(name).lower(): _part(LINE, raw, name) for name in raw}
    unknown = found.pop("unknown", "")
    return ListAnswer(found, unknown=unknown)


_SQL = '{ "SELECT ..." = VALUE }, with { "first, second" = VALUE } as the value where it depends on the arguments'


def _sql(value: Quoted) -> SqlAnswer:
    if value.raw == "unknown":
        return SqlAnswer({}, unknown="sql")
    if not isinstance(value.raw, Mapping):
        raise Unfit(f"{value.text} is no table", f"write {_SQL}")
    results: dict[str, Value | Mapping[str, Value]] = {}
    for statement, given in value.raw.items():
        if statement == "unknown":
            continue
        if isinstance(given, Mapping):
            results[statement] = {name: _sql_value(value.of(one), statement, name) for name, one in given.items()}
        else:
            results[statement] = _sql_value(value.of(given), statement)
    return SqlAnswer(results, unknown=_part(LINE, value.raw, "unknown") if "unknown" in value.raw else "")


def _sql_value(value: Quoted, *at: str) -> Value:
    raw = value.raw
    if isinstance(raw, bool):
        return int(raw)
    if isinstance(raw, (str, int, float)):
        return raw
    if isinstance(raw, list):
        return tuple(_sql_value(value.of(each), *at) for each in raw)
    raise Unfit(f"{value.text} is no value", "write a text, a number or an array", at)


_DNS = '{ mx = [...], txt = "unknown" }, "none" or "unknown"'


def _dns(value: Quoted) -> DnsAnswer:
    if value.raw == "none":
        return DnsAnswer({}, exists=False)
    if value.raw == "unknown":
        return DnsAnswer({}, unknown="dns")
    fields = _fields(value, _DNS, *RECORD_TYPES, "unknown")
    records: dict[str, tuple[str, ...] | Unknown] = {}
    for name, given in fields.items():
        if name != "unknown":
            unknown = Unknown("dns", "the test says so")
            kind = listed(IP if name in ("a", "aaaa") else LINE)
            records[name] = unknown if given == "unknown" else _part(kind, fields, name)
    return DnsAnswer(records, unknown=_part(LINE, fields, "unknown") if "unknown" in fields else "")


_QUOTA = '"full", or { messages = 10, size = "4kb" } for what is in the queue'


def _quota(value: Quoted) -> QuotaAnswer:
    if value.raw == "full":
        return QuotaAnswer(is_full=True)
    fields = _fields(value, _QUOTA, "messages", "size")
    messages = _part(integer(0, 2**53), fields, "messages") if "messages" in fields else 0
    octets = _part(Kind("size", _size), fields, "size") if "size" in fields else 0
    return QuotaAnswer(Usage(messages, octets))


def _addresses(value: Quoted) -> Mapping[str, tuple[str, ...]]:
    if not isinstance(value.raw, Mapping):
        raise Unfit(f"{value.text} is no table", 'write { NAME = ["user@example.org"] }')
    return {str(name): _part(listed(LINE), value.raw, name) for name in value.raw}


def _moment(value: Quoted) -> datetime:
    raw = value.raw
    if isinstance(raw, str):
        try:
            raw = datetime.fromisoformat(raw)
        except ValueError:
            raw = None
    if not isinstance(raw, datetime):
        raise Unfit(f"{value.text} is no moment", "write 2026-01-31T12:00:00Z")
    return raw if raw.tzinfo is not None else raw.replace(tzinfo=UTC)


def _greeting(value: Quoted) -> Greeting:
    return Greeting(None if value.raw is False else LINE.read(value))


_COMMANDS_FROM = _command("from")
_COMMANDS_TO = _command("to")
_OUTCOMES = Kind(_OUTCOME, _outcome)
_PER_NAME = Kind("table of addresses", _addresses)


# --- the tables -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryAnswers:
    """What one directory says. A key that is given is complete: what is not in it is not there."""

    domains: tuple[str, ...] | None = key(listed(LINE), default=None, doc="The local domains.")
    addresses: tuple[str, ...] | None = key(listed(LINE), default=None, doc="Addresses that take mail themselves.")
    lists: Mapping[str, tuple[str, ...]] | None = key(_PER_NAME, default=None, doc="Mailing lists with their members.")
    logins: Mapping[str, tuple[str, ...]] | None = key(
        _PER_NAME, default=None, doc="Who may log in, with the addresses of the account; anybody else is refused."
    )
    configured: bool = key(BOOLEAN, default=False, doc="Domains, addresses and lists are those of the configuration.")
    unknown: str = key(LINE, default="", doc="The dependency that does not answer whatever else is asked.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Everything outside that a test lets the policy ask."""

    clock: datetime | None = key(Kind("moment", _moment), default=None, doc="When the session begins.")
    directory: Mapping[str, DirectoryAnswers] = tables(DirectoryAnswers, id=NAME)
    lists: Mapping[str, ListAnswer] = entries(
        Kind(_LIST, _list),
        doc="Lists and stores by name; what the policy keeps there is gone after the test.",
    )
    sql: Mapping[str, SqlAnswer] = entries(Kind(_SQL, _sql), doc="SQL statements by store.")
    dns: Mapping[str, DnsAnswer] = entries(Kind(_DNS, _dns), doc="DNS by name; for ptr the name is an address.")
    quotas: Mapping[str, QuotaAnswer] = entries(
        Kind(_QUOTA, _quota), doc="What the queue holds, by quota; what is not said is empty."
    )

    def over(self, default: Answers) -> Answers:
        """These answers, and those of `default` for what they do not say."""
        return Answers(
            clock=self.clock or default.clock,
            directory={**default.directory, **self.directory},
            lists={**default.lists, **self.lists},
            sql={**default.sql, **self.sql},
            dns={**default.dns, **self.dns},
            quotas={**default.quotas, **self.quotas},
        )

    @property
    def epoch_seconds(self) -> float:
        """When the session begins."""
        return (self.clock or _DEFAULT_CLOCK).timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What has to come of it; what is not given is not looked at."""

    connect: Outcome | None = key(_OUTCOMES, default=None, doc="The greeting.")
    ehlo: Outcome | None = key(_OUTCOMES, default=None, doc="The last EHLO, HELO or LHLO.")
    starttls: Outcome | None = key(_OUTCOMES, default=None, doc="STARTTLS.")
    auth: Outcome | None = key(_OUTCOMES, default=None, doc="AUTH.")
    mail: Outcome | None = key(_OUTCOMES, default=None, doc="MAIL.")
    rcpt: tuple[Outcome, ...] | None = key(
        listed(_OUTCOMES), default=None, doc="Each RCPT in order; a single one stands for all."
    )
    data: Outcome | None = key(_OUTCOMES, default=None, doc="DATA and the message.")
    queued: bool | None = key(BOOLEAN, default=None, doc="Whether the message is queued.")
    sender: str | None = key(LINE, default=None, doc="The return path in the queue, after rewriting.")
    recipients: tuple[str, ...] | None = key(
        listed(LINE), default=None, doc="The recipients in the queue, after rewriting."
    )
    header: tuple[str, ...] | None = key(
        listed(NAME), default=None, doc="Names of the fields that are added, in order."
    )

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all is looked at."""
        return all(getattr(self, each.name) is None for each in dataclasses.fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the client does, command by command, and what the policy may ask."""

    listener: str | None = key(NAME, default=None, doc="The listener.")
    peer: str | None = key(IP, default=None, doc="The client's address.")
    local: SocketAddress | None = key(SOCKET_ADDRESS, default=None, doc="The address the client connects to.")
    tls: bool | None = key(BOOLEAN, default=None, doc="The client uses TLS; by STARTTLS where it is not implicit.")
    helo: Greeting | None = key(
        Kind("name or command", _greeting),
        default=None,
        doc="The name in EHLO (LHLO), or a whole HELO command; false for none.",
    )
    login: str | None = key(LINE, default=None, doc="The name the client logs in with.")
    mail: Command | None = key(_COMMANDS_FROM, default=None, doc="The sender.")
    rcpt: tuple[Command, ...] | None = key(listed(_COMMANDS_TO), default=None, doc="The recipients.")
    message: Message | None = key(Kind(_MESSAGE, _message), default=None, doc="The message; DATA is sent with it.")
    answers: Answers = table(Answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Test(Given):
    name: str = key(NAME, doc="What the test shows.")
    expect: Expected = table(Expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    default: Given = table(Given)
    test: tuple[_Test, ...] = table_list(_Test)


@dataclass(frozen=True, slots=True)
class Case:
    """One policy test, whole."""

    file: str
    line: int
    name: str
    listener: str
    given: Given
    expect: Expected


def read_file(file: str, text: str) -> tuple[Case, ...]:
    """The tests of one file. Raises `ConfigErrors` with everything that is wrong with it."""
    found = merged([Source(file, text)])
    if found.errors:
        raise ConfigErrors(found.errors, found.files)
    findings = Findings(found.origins)
    # Macros are the configuration's: here a text is what it is.
    macros = Macros({}, {}, findings.error)
    whole = Reader(_File, found.tree, macros, Effective(_File, lambda key: None), findings).settings()
    cases = _cases(file, whole, findings, found.origins) if isinstance(whole, _File) else ()
    if findings.errors:
        raise ConfigErrors(findings.errors, found.files)
    return cases


def _cases(file: str, whole: _File, findings: Findings, origins: Origins) -> tuple[Case, ...]:
    if not whole.test:
        findings.error((), "there is no test in the file", "write [[test]]")
    names: dict[str, int] = {}
    cases = []
    for number, test in enumerate(whole.test):
        path = ("test", number)
        line = origins.place(path).line
        listener = test.listener or whole.default.listener
        if listener is None:
            findings.error((*path, "listener"), "the key is missing", 'write listener = "smtp"')
        if test.expect.is_empty:
            findings.error((*path, "expect"), "the test expects nothing", "write [test.expect] and its keys below")
        if test.name in names:
            findings.error((*path, "name"), f'"{test.name}" is a test in line {names[test.name]} already', "rename one")
        names.setdefault(test.name, line)
        cases.append(Case(file, line, test.name, listener or "", _over(test, whole.default), test.expect))
    return tuple(cases)


def _either(own: T, default: T) -> T:
    return default if own is None else own


def _over(test: _Test, default: Given) -> Given:
    """What a test gives, and the default for what it leaves out."""

    return Given(
        listener=_either(test.listener, default.listener),
        peer=_either(test.peer, default.peer),
        local=_either(test.local, default.local),
        tls=_either(test.tls, default.tls),
        helo=_either(test.helo, default.helo),
        login=_either(test.login, default.login),
        mail=_either(test.mail, default.mail),
        rcpt=_either(test.rcpt, default.rcpt),
        message=_either(test.message, default.message),
        answers=test.answers.over(default.answers),
    )
