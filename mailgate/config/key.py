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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar, overload

from mailgate.config.kind import Kind, Quoted
from mailgate.expr.choice import Choice
from mailgate.expr.kind import ResultKind
from mailgate.expr.scope import Context

T = TypeVar("T")
S = TypeVar("S")

METADATA = "mailgate"
"""Where a field keeps its declaration."""

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
class KeyDeclaration(Generic[T]):
    """A key with a literal value."""

    kind: Kind[T]
    default: object
    """As TOML would say it, or `Derived`, or `Absent`."""
    doc: str
    synonyms: tuple[str, ...] = ()
    inherits: str = ""
    """The key whose value stands in when this one is not given."""
    unit: str = ""


@dataclass(frozen=True, slots=True)
class RuleDeclaration(Generic[T]):
    """A key whose value is an expression or a list of `if`, `then` and `else`."""

    kind: ResultKind[T]
    context: Context
    default: object
    doc: str
    synonyms: tuple[str, ...] = ()
    unit: str = ""


@dataclass(frozen=True, slots=True)
class TableDeclaration:
    """A table with keys of its own."""

    type: Callable[..., object]
    inherits: str = ""
    """The table whose keys stand in for those not given here."""


@dataclass(frozen=True, slots=True)
class TablesDeclaration:
    """A table of tables with names the operator chooses."""

    variants: Mapping[str, Callable[..., object]]
    """By the word of the key `type`; one entry under "" where the tables are all alike."""
    id: Kind[str]
    builtin: Mapping[str, Mapping[str, object]]
    """Entries that are there unless the file has one of that name."""


@dataclass(frozen=True, slots=True)
class TableListDeclaration:
    """An array of tables."""

    type: Callable[..., object]


@dataclass(frozen=True, slots=True)
class EntriesDeclaration(Generic[T]):
    """A table whose entries are data, such as a list that expressions ask."""

    kind: Kind[T]
    doc: str


Declaration = (
    KeyDeclaration[object]
    | RuleDeclaration[object]
    | TableDeclaration
    | TablesDeclaration
    | TableListDeclaration
    | EntriesDeclaration[object]
)


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

    `secret` keeps the value out of what `repr` shows of its table.
    """
    declaration = KeyDeclaration(kind, Absent.UNSET if default is None else default, doc, synonyms, inherits, unit)
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
    declaration = RuleDeclaration(kind, context, default, doc, synonyms, unit)
    return dataclasses.field(default_factory=_Missing[Choice[T]](), metadata={METADATA: declaration})


def table(type: Callable[..., S], *, inherits: str = "") -> S:
    """Declare a table; its keys are the fields of `type`."""
    return dataclasses.field(default_factory=_Missing[S](), metadata={METADATA: TableDeclaration(type, inherits)})


def tables(
    type: Callable[..., S],
    *,
    id: Kind[str],
    builtin: Mapping[str, Mapping[str, object]] | None = None,
) -> Mapping[str, S]:
    """Declare a table of tables that are all alike, by the names the operator gave them."""
    declaration = TablesDeclaration({"": type}, id, builtin or {})
    return dataclasses.field(default_factory=_Missing[Mapping[str, S]](), metadata={METADATA: declaration})


def variants(
    types: Mapping[str, Callable[..., S]],
    *,
    id: Kind[str],
    builtin: Mapping[str, Mapping[str, object]] | None = None,
) -> Mapping[str, S]:
    """Declare a table of tables whose keys depend on the word each has as `type`."""
    declaration = TablesDeclaration(types, id, builtin or {})
    return dataclasses.field(default_factory=_Missing[Mapping[str, S]](), metadata={METADATA: declaration})


def table_list(type: Callable[..., S]) -> tuple[S, ...]:
    """Declare an array of tables."""
    return dataclasses.field(default_factory=_Missing[tuple[S, ...]](), metadata={METADATA: TableListDeclaration(type)})


def entries(kind: Kind[T], *, doc: str) -> Mapping[str, T]:
    """Declare a table of free entries, all of one kind."""
    return dataclasses.field(
        default_factory=_Missing[Mapping[str, T]](), metadata={METADATA: EntriesDeclaration(kind, doc)}
    )
