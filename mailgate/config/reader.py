"""From the tree that `tomllib` read to settings, by the declarations of the schema.

Reading goes on after an error: whatever is wrong is reported at once, each
thing once, with its line. What could not be read is left out of the settings,
which then never come to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from mailgate.config.effective import Effective, all_keys
from mailgate.config.error import ConfigError, ConfigWarning, dotted
from mailgate.config.key import (
    Absent,
    ChoiceFacts,
    Derived,
    EntriesDeclaration,
    Entry,
    KeyDeclaration,
    RuleDeclaration,
    TableDeclaration,
    TableListDeclaration,
    TablesDeclaration,
    layout,
    number_name,
    place_attribute,
)
from mailgate.config.kind import Quoted, Step, Unfit
from mailgate.config.macro import Macros
from mailgate.config.place import Origins, Path
from mailgate.config.schema.older import OLDER
from mailgate.config.schema.pattern import Fit, Pattern
from mailgate.config.schema.unsupported import REFUSAL, UNSUPPORTED, WITHOUT_EFFECT
from mailgate.expr.error import ExpressionErrors
from mailgate.expr.resolve import Environment
from mailgate.expr.scope import nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
K = TypeVar("K", bound=Step)

# Every table with a name of the operator's choice takes it, for people.
DESCRIPTION = "description"


class _Unread(Exception):
    """A value that could not be read; it has been reported."""


@dataclass(slots=True)
class Findings:
    """What is wrong or odd in one configuration."""

    origins: Origins
    errors: list[ConfigError] = field(default_factory=list)
    warnings: list[ConfigWarning] = field(default_factory=list)

    def error(self, path: Path, problem: str, advice: str = "", at: tuple[Step, ...] = ()) -> None:
        """Report a fault of the key at `path`; `at` leads on to the part of its value that is wrong."""
        place = self.origins.place((*path, *at))
        self.errors.append(ConfigError(place.file, place.line, dotted(path), problem, advice))

    def warning(self, path: Path, text: str) -> None:
        """Report what is probably not meant."""
        place = self.origins.place(path)
        self.warnings.append(ConfigWarning(place.file, place.line, dotted(path), text))


class Reader:
    """Reads one tree. `tables` and `rules` are what was built, with the path of each."""

    def __init__(
        self,
        schema: type[DataclassInstance],
        tree: Mapping[str, object],
        macros: Macros,
        effective: Effective,
        findings: Findings,
        is_complete: bool = True,
    ) -> None:
        """With `is_complete` false a key that is missing is not reported: it may be in what is left out."""
        self._is_complete = is_complete
        self._schema = schema
        self._tree = tree
        self._findings = findings
        self._effective = effective
        # A list or table is secret, or unusable, where any part of it is.
        self._secret = _with_above(macros.secrets)
        self._unusable = _with_above(macros.failed)
        self._environment = Environment(effective, tuple(all_keys(schema)))
        self._refused = self._older_keys()
        self.tables: list[tuple[Path, DataclassInstance]] = []
        self.rules: list[tuple[Path, ChoiceFacts, object]] = []
        """Path, compiled rule, raw value."""

    @property
    def effective(self) -> Effective:
        """Gives each key as it is in force."""
        return self._effective

    def is_secret(self, path: Path) -> bool:
        """Whether a macro inserted the value at `path`, or any part of it."""
        return path in self._secret

    def settings(self) -> DataclassInstance | None:
        """The whole; None when anything in it could not be read."""
        return self._table(self._schema, self._tree, (), "")

    # --- tables

    def _table(
        self, type: type[DataclassInstance], raw: Mapping[str, object], path: Path, inherits: str, named: bool = False
    ) -> DataclassInstance | None:
        entries = layout(type)
        known = {spelling for entry in entries for spelling in entry.spellings}
        for name, value in raw.items():
            if name not in known:
                self._unknown((*path, name), value, known, named)
        values: dict[str, object] = {}
        complete = True
        for entry in entries:
            try:
                values[entry.attribute] = self._entry(entry, raw, path, inherits)
            except _Unread:
                complete = False
        if not complete:
            return None
        if (place := place_attribute(type)) is not None:
            values[place] = str(self._findings.origins.place(path))
        make: Callable[..., DataclassInstance] = type
        made = make(**values)
        self.tables.append((path, made))
        return made

    def _entry(self, entry: Entry, raw: Mapping[str, object], path: Path, inherits: str) -> object:
        given = [spelling for spelling in entry.spellings if spelling in raw]
        here = (*path, given[0] if given else entry.name)
        if len(given) > 1:
            first, second = self._findings.origins.place(here), self._findings.origins.place((*path, given[1]))
            seen = f"line {first.line}" if first.file == second.file else str(first)
            self._findings.error((*path, given[1]), f"means the same as {dotted(here)}", f"keep one, see {seen}")
            raise _Unread
        if here in self._refused:
            raise _Unread
        value = raw.get(given[0]) if given else None
        match entry.declaration:
            case KeyDeclaration() as declaration:
                return self._key(declaration, value, here, f"{inherits}.{entry.name}" if inherits else "")
            case RuleDeclaration() as declaration:
                return self._rule(declaration, value, here)
            case TableDeclaration(type=inner, inherits=whole):
                return _read(self._table(inner, self._as_table(value, here), here, whole))
            case TablesDeclaration() as declaration:
                if declaration.listed and isinstance(value, list):
                    return self._tables(declaration, dict(enumerate(value)), here)
                return self._tables(declaration, dict(self._as_table(value, here)), here)
            case TableListDeclaration(type=inner):
                return self._table_list(inner, value, here)
            case EntriesDeclaration(kind=kind):
                return self._each(
                    self._as_table(value, here), here, lambda inner, at: self._value(kind.read, inner, at)
                )

    def _as_table(self, value: object, path: Path) -> Mapping[str, object]:
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        if isinstance(value, list) and value and isinstance(value[0], dict):
            self._wrong(path, "an array of tables stands where a table is wanted", f"write [{dotted(path)}]")
        else:
            self._wrong(
                path, f"{self._quoted(value, path).text} is no table", f"write [{dotted(path)}] and its keys below"
            )
        raise _Unread

    def _table_list(self, type: type[DataclassInstance], value: object, path: Path) -> tuple[DataclassInstance, ...]:
        raws = [] if value is None else value if isinstance(value, list) else [value]
        found = []
        for number, raw in enumerate(raws):
            at = (*path, number)
            if not isinstance(raw, dict):
                self._wrong(path, f"{self._quoted(raw, at).text} is no table", f"write [[{dotted(path)}]]", (number,))
            elif (made := self._table(type, raw, at, "")) is not None:
                found.append(made)
        if len(found) < len(raws):
            raise _Unread
        return tuple(found)

    def _tables(self, declaration: TablesDeclaration, raw: Mapping[K, object], path: Path) -> Mapping[str, object]:
        def one(value: object, at: Path) -> tuple[str, DataclassInstance]:
            step = at[-1]
            name = number_name(step) if isinstance(step, int) else self._value(declaration.id.read, step, at)
            if not isinstance(value, dict):
                self._wrong(
                    at, f"{self._quoted(value, at).text} is no table", f"write [{dotted(at)}] and its keys below"
                )
                raise _Unread
            return str(name), self._variant(declaration, value, at)

        made = self._each(raw, path, one).values()
        found = dict(made)
        if len(found) < len(made):
            self._wrong(path, "the same entry is given twice")
            raise _Unread
        builtin = {
            name: self._variant(declaration, value, (*path, name))
            for name, value in declaration.builtin.items()
            if name not in found
        }
        return {**builtin, **found}

    def _variant(self, declaration: TablesDeclaration, raw: Mapping[str, object], path: Path) -> DataclassInstance:
        variants = declaration.variants
        if "" in variants:
            return _read(self._table(variants[""], raw, path, "", named=True))
        words = ", ".join(f'"{word}"' for word in variants)
        word = raw.get("type")
        if word is None:
            self._missing((*path, "type"), f"write one of {words}")
            raise _Unread
        wanted = word.strip().lower() if isinstance(word, str) else ""
        if wanted in variants:
            rest = {name: value for name, value in raw.items() if name != "type"}
            return _read(self._table(variants[wanted], rest, path, "", named=True))
        shown = self._quoted(word, (*path, "type")).text
        if wanted in declaration.refused:
            problem, advice = declaration.refused[wanted]
            self._wrong((*path, "type"), f"{shown}: {problem}", advice)
        else:
            near = nearest(wanted, variants)
            advice = f'did you mean "{near}"?' if near else f"write one of {words}"
            self._wrong((*path, "type"), f"{shown} is none of {words}", advice)
        raise _Unread

    def _each(self, raw: Mapping[K, object], path: Path, one: Callable[[object, Path], T]) -> Mapping[K, T]:
        found: dict[K, T] = {}
        complete = True
        for name, value in raw.items():
            at = (*path, name)
            if at in self._refused:
                complete = False
                continue
            try:
                found[name] = one(value, at)
            except _Unread:
                complete = False
        if not complete:
            raise _Unread
        return found

    # --- values

    def _key(self, declaration: KeyDeclaration, value: object, path: Path, inherited: str) -> object:
        if value is not None:
            return self._value(declaration.kind.read, value, path)
        default = declaration.default
        inherits = inherited or declaration.inherits
        if inherits:
            default = self._effective(inherits)
            if default is None:
                return None
        if isinstance(default, Derived):
            default = default.value(self._effective)
        if default is Absent.UNSET:
            return None
        if default is Absent.REQUIRED:
            self._missing(path, f"write {path[-1]} = ... ({declaration.kind.name})")
            raise _Unread
        try:
            return declaration.kind.read(Quoted(default))
        except Unfit:
            # The key it comes from has been reported.
            raise _Unread

    def _value(self, read: Callable[[Quoted], T], value: object, path: Path) -> T:
        if path in self._unusable:
            raise _Unread
        try:
            return read(self._quoted(value, path))
        except Unfit as unfit:
            self._wrong(path, unfit.problem, unfit.advice, unfit.at)
            raise _Unread

    def _rule(self, declaration: RuleDeclaration, value: object, path: Path) -> ChoiceFacts:
        if path in self._unusable:
            raise _Unread
        raw, place = declaration.default, "built-in"
        if value is not None:
            raw, place = value, str(self._findings.origins.place(path))
        try:
            compiled = declaration.compiled(raw, dotted(path), place, self._environment)
        except ExpressionErrors as wrong:
            for error in wrong.errors:
                at: Path = (error.element - 1,) if error.element is not None and isinstance(raw, list) else ()
                if path in self._secret:
                    self._wrong(path, "with the inserted value this is no usable expression", "", at)
                else:
                    told = f"{error.problem} ({error.where})" if error.where else error.problem
                    self._wrong(path, told, error.advice, at)
            raise _Unread
        self.rules.append((path, compiled, raw))
        return compiled

    def _quoted(self, value: object, path: Path) -> Quoted:
        return Quoted(value, self.is_secret(path))

    def _wrong(self, path: Path, problem: str, advice: str = "", at: tuple[Step, ...] = ()) -> None:
        self._findings.error(path, problem, advice, at)

    def _missing(self, path: Path, advice: str) -> None:
        if self._is_complete:
            self._wrong(path, "the key is missing", advice)

    # --- keys that are not declared

    def _unknown(self, path: Path, value: object, known: Iterable[str], named: bool) -> None:
        if path in self._refused:
            return
        if named and path[-1] == DESCRIPTION and isinstance(value, str):
            return
        if any(pattern.fit(path) is Fit.MATCH for pattern in WITHOUT_EFFECT):
            self._findings.warning(path, "the key has no effect")
            return
        patterns = [*(one.pattern for one in UNSUPPORTED), *(one.pattern for one in OLDER), *WITHOUT_EFFECT]
        if isinstance(value, dict) and any(pattern.fit(path) is Fit.ABOVE for pattern in patterns):
            below = _names_below(patterns, path)
            for name, inner in value.items():
                self._unknown((*path, name), inner, below, False)
            return
        for one in UNSUPPORTED:
            if one.pattern.fit(path) is Fit.MATCH:
                if not one.is_off(value):
                    self._wrong(path, REFUSAL, one.advice)
                return
        self._wrong(path, "unknown key", self._meant(path, {*known, *_names_below(patterns, path[:-1])}))

    def _meant(self, path: Path, known: Iterable[str]) -> str:
        name = str(path[-1])
        near = nearest(name, sorted(known))
        if near is not None:
            return f"did you mean {dotted((*path[:-1], near))}?"
        top = f"{path[0]}." if len(path) > 1 else ""
        elsewhere = [key for key in all_keys(self._schema) if key.startswith(top) and key.endswith(f".{name}")]
        if len(elsewhere) == 1:
            return f"did you mean {elsewhere[0]}?"
        shown = sorted(known)
        return f"known here: {', '.join(shown)}" if 0 < len(shown) <= 20 else ""

    def _older_keys(self) -> frozenset[Path]:
        refused = set()
        for older in OLDER:
            for path, value in _matching(self._tree, older.pattern.parts, ()):
                whole = older.pattern.parts[-1] == "**"
                if path not in refused and (whole or not isinstance(value, dict)):
                    refused.add(path)
                    self._wrong(path, "the key is of an earlier release", older.advice)
        return frozenset(refused)


def _read(made: DataclassInstance | None) -> DataclassInstance:
    if made is None:
        raise _Unread
    return made


def _with_above(paths: Iterable[Path]) -> frozenset[Path]:
    return frozenset(path[:depth] for path in paths for depth in range(1, len(path) + 1))


def _names_below(patterns: Iterable[Pattern], path: Path) -> set[str]:
    parts = (pattern.parts[len(path)] for pattern in patterns if pattern.fit(path) is Fit.ABOVE)
    return {part for part in parts if part not in ("*", "**")}


def _matching(tree: object, parts: tuple[str, ...], path: Path) -> Iterator[tuple[Path, object]]:
    if not parts or parts == ("**",):
        yield path, tree
    elif isinstance(tree, dict):
        for name in [*tree] if parts[0] == "*" else [parts[0]]:
            if name in tree:
                yield from _matching(tree[name], parts[1:], (*path, name))
