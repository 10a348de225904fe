"""How a key is declared: once, as a field of a frozen dataclass in `schema/`.

`name: type = key(kind, default=..., doc=...)` gives the type, the default, its
check, its sentence in the reference page and the attribute it is read by. The
TOML name is the attribute with `-` for `_`. `rule` declares a key whose value
is an expression, `table`, `tables`, `table_list` and `variants` what holds
further keys, `mapping` a table of free entries.

Defaults are written as they would stand in the file and are read the same way.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, overload

from mailgate.config.kind import Kind, Quoted
from mailgate.expr.choice import Choice, compile_choice
from mailgate.expr.kind import ResultKind
from mailgate.expr.resolve import Environment
from mailgate.expr.scope import Context

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
S = TypeVar("S", bound="DataclassInstance")

METADATA = "mailgate"
"""Where a field keeps its declaration."""

PLACE = "mailgate.place"
"""Marks the field that says where its table is written."""

Effective = Callable[[str], object]
"""Gives the value of a key as a file would write it: as configured, else its default; None when unset."""


class Absent(Enum):
    """Why a key has no default."""

    REQUIRED = "required"
    UNSET = "unset"


@dataclass(frozen=True, slots=True)
class Derived:
    """A default that depends on other keys or on the system; `doc` says how."""

    doc: str
    value: Callable[[Effective], object]


@dataclass(frozen=True, slots=True)
class KeyDeclaration:
    """A key with a literal value."""

    kind: Kind[object]
    default: object
    """As TOML would say it, or `Derived`, or `Absent`."""
    doc: str
    synonyms: tuple[str, ...] = ()
    inherits: str = ""
    """The key whose value stands in when this one is not given."""
    unit: str = ""
    secret: bool = False
    """Whether nobody may see the value."""


class ChoiceFacts(Protocol):
    """What checking needs of a compiled rule, whatever its result is."""

    @property
    def literals(self) -> tuple[tuple[str, str], ...]:
        """Names that are written out in it, as (kind, name)."""
        ...


@dataclass(frozen=True, slots=True)
class RuleDeclaration:
    """A key whose value is an expression or a list of `if`, `then` and `else`."""

    wanted: str
    """What the expression has to give, for people."""
    words: tuple[str, ...]
    """The constants it may name."""
    context: Context
    default: object
    doc: str
    compiled: Callable[[object, str, str, Environment], ChoiceFacts]
    """Takes the raw value, key and place; raises `ExpressionErrors`."""
    synonyms: tuple[str, ...] = ()
    unit: str = ""


@dataclass(frozen=True, slots=True)
class TableDeclaration:
    """A table with keys of its own."""

    type: type[DataclassInstance]
    inherits: str = ""
    """The table whose keys stand in for those not given here."""


@dataclass(frozen=True, slots=True)
class TablesDeclaration:
    """A table of tables with names the operator chooses."""

    variants: Mapping[str, type[DataclassInstance]]
    """By the word of the key `type`; one entry under "" where the tables are all alike."""
    id: Kind[str]
    builtin: Mapping[str, Mapping[str, object]]
    """Entries that are there unless the file has one of that name."""
    refused: Mapping[str, tuple[str, str]]
    """Words of `type` that are known, but refused: problem and advice."""
    listed: bool = False
    """An array of tables may stand in its place; the names of its entries are `0000`, `0001` and so on."""


@dataclass(frozen=True, slots=True)
class TableListDeclaration:
    """An array of tables."""

    type: type[DataclassInstance]


@dataclass(frozen=True, slots=True)
class EntriesDeclaration:
    """A table whose entries are data, such as a list that expressions ask."""

    kind: Kind[object]
    doc: str


Literal = KeyDeclaration | RuleDeclaration
Declaration = Literal | TableDeclaration | TablesDeclaration | TableListDeclaration | EntriesDeclaration


class _Missing(Generic[T]):
    """Stands for a default that only the loader can make."""

    def __call__(self) -> T:
        raise TypeError("settings are made by mailgate.config.load, or with every key given")


def _given(kind: Kind[T], default: object) -> Callable[[], T]:
    return lambda: kind.read(Quoted(default))


@overload
def key(
    kind: Kind[T],
    *,
    doc: str,
    default: None,
    synonyms: tuple[str, ...] = (),
    inherits: str = "",
    unit: str = "",
    secret: bool = False,
) -> T | None: ...


@overload
def key(
    kind: Kind[T],
    *,
    doc: str,
    default: object = Absent.REQUIRED,
    synonyms: tuple[str, ...] = (),
    inherits: str = "",
    unit: str = "",
    secret: bool = False,
) -> T: ...


def key(
    kind: Kind[T],
    *,
    doc: str,
    default: object = Absent.REQUIRED,
    synonyms: tuple[str, ...] = (),
    inherits: str = "",
    unit: str = "",
    secret: bool = False,
) -> T | None:
    """Declare a key with a literal value; without `default` it is required, `None` leaves it unset.

    `secret` keeps the value out of what `repr` and `mailgate config show` show of its table.
    """
    given = Absent.UNSET if default is None else default
    declaration = KeyDeclaration(kind, given, doc, synonyms, inherits, unit, secret)
    metadata = {METADATA: declaration}
    if default is None:
        unset: T | None = None
        return dataclasses.field(default=unset, metadata=metadata, repr=not secret)
    if isinstance(default, (Absent, Derived)):
        return dataclasses.field(default_factory=_Missing[T](), metadata=metadata, repr=not secret)
    return dataclasses.field(default_factory=_given(kind, default), metadata=metadata, repr=not secret)


def rule(
    kind: ResultKind[T],
    context: Context,
    *,
    default: object,
    doc: str,
    synonyms: tuple[str, ...] = (),
    unit: str = "",
) -> Choice[T]:
    """Declare a key whose value is an expression, evaluated in `context`."""

    def compiled(raw: object, key: str, place: str, environment: Environment) -> Choice[T]:
        return compile_choice(raw, key=key, place=place, context=context, kind=kind, environment=environment)

    declaration = RuleDeclaration(kind.wanted, kind.words, context, default, doc, compiled, synonyms, unit)
    return dataclasses.field(default_factory=_Missing[Choice[T]](), metadata={METADATA: declaration})


def table(type: type[S], *, inherits: str = "") -> S:
    """Declare a table; its keys are the fields of `type`."""
    return dataclasses.field(default_factory=_Missing[S](), metadata={METADATA: TableDeclaration(type, inherits)})


def tables(
    type: type[S],
    *,
    id: Kind[str],
    builtin: Mapping[str, Mapping[str, object]] | None = None,
    listed: bool = False,
) -> Mapping[str, S]:
    """Declare a table of tables that are all alike, by the names the operator gave them.

    With `listed` they may be written as an array of tables, too, which numbers them.
    """
    declaration = TablesDeclaration({"": type}, id, builtin or {}, {}, listed)
    return dataclasses.field(default_factory=_Missing[Mapping[str, S]](), metadata={METADATA: declaration})


def variants(
    types: Mapping[str, type[S]],
    *,
    id: Kind[str],
    builtin: Mapping[str, Mapping[str, object]] | None = None,
    refused: Mapping[str, tuple[str, str]] | None = None,
) -> Mapping[str, S]:
    """Declare a table of tables whose keys depend on the word each has as `type`."""
    declaration = TablesDeclaration(types, id, builtin or {}, refused or {})
    return dataclasses.field(default_factory=_Missing[Mapping[str, S]](), metadata={METADATA: declaration})


def placed() -> str:
    """Declare the attribute that tells where the table is written; no key of the file."""
    return dataclasses.field(default="built-in", metadata={PLACE: True}, compare=False)


def number_name(number: int) -> str:
    """The name of an entry of an array of tables."""
    return f"{number:04}"


def table_list(type: type[S]) -> tuple[S, ...]:
    """Declare an array of tables."""
    return dataclasses.field(default_factory=_Missing[tuple[S, ...]](), metadata={METADATA: TableListDeclaration(type)})


def entries(kind: Kind[T], *, doc: str) -> Mapping[str, T]:
    """Declare a table of free entries, all of one kind."""
    return dataclasses.field(
        default_factory=_Missing[Mapping[str, T]](), metadata={METADATA: EntriesDeclaration(kind, doc)}
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """One declared name of a table, as the file spells it, with the attribute that holds its value."""

    name: str
    attribute: str
    declaration: Declaration

    @property
    def spellings(self) -> tuple[str, ...]:
        """The name, and older names that mean the same."""
        synonyms = self.declaration.synonyms if isinstance(self.declaration, Literal) else ()
        return (self.name, *synonyms)


@functools.cache
def place_attribute(type: type[DataclassInstance]) -> str | None:
    """The attribute of a table that holds its place, where it has one."""
    return next((field.name for field in dataclasses.fields(type) if field.metadata.get(PLACE)), None)


@functools.cache
def layout(type: type[DataclassInstance]) -> tuple[Entry, ...]:
    """What a table may hold, in the order of its declaration."""
    found = []
    for field in dataclasses.fields(type):
        declaration: object = field.metadata.get(METADATA)
        if isinstance(declaration, Declaration):
            found.append(Entry(field.name.rstrip("_").replace("_", "-"), field.name, declaration))
    return tuple(found)
