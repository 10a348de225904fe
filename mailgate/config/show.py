"""A configuration told back: what its files say, or everything it comes to.

The values are as a file would have them, macros not expanded, so that nothing
secret is among them: text that a macro inserted stands as the macro, a secret
that was written out as `[secret]`. With the defaults they make a file that
loads to the same settings, its secrets apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from mailgate.config.effective import Effective
from mailgate.config.error import dotted
from mailgate.config.key import (
    Absent,
    Derived,
    Entry,
    KeyDeclaration,
    RuleDeclaration,
    TableDeclaration,
    TableListDeclaration,
    TablesDeclaration,
    layout,
)
from mailgate.config.kind import Quoted, Unfit
from mailgate.config.load import Loaded
from mailgate.config.macro import find
from mailgate.config.place import Path
from mailgate.config.schema.queue import LocalRouteSettings
from mailgate.config.schema.settings import Settings
from mailgate.config.write import Rows, toml_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SECRET = "[secret]"
BUILT_IN = "built-in"

_MACRO = re.compile(r"%\{(?:env|file|cfg):[^{}\n]*\}%")
_UNITS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms"))


@dataclass(slots=True)
class Shown:
    """Values to be shown, where each comes from, and what had to be left out."""

    values: dict[str, object] = field(default_factory=dict)
    origins: dict[Path, str] = field(default_factory=dict)
    left_out: dict[Path, str] = field(default_factory=dict)
    """Why, for each path."""

    def below(self, key: str) -> Shown | None:
        """The part that a dotted key leads to, with the names above it; None when there is none."""
        found = find(self.values, key)
        if found is None:
            return None
        path, value = found
        for name in reversed(path):
            value = {name: value}
        within = {at: why for at, why in self.left_out.items() if at[: len(path)] == path}
        return Shown(value if isinstance(value, dict) else {}, self.origins, within)

    def text(self, with_origins: bool) -> str:
        """As TOML; raises `WriteError` when that would not read back as it is."""
        notes = "".join(f"# {dotted(path)}: {why}\n" for path, why in self.left_out.items())
        return toml_text(self.values, self.origins if with_origins else None) + (f"\n{notes}" if notes else "")


def configured(loaded: Loaded) -> Shown:
    """What the files say, merged."""
    return _Walk(loaded, False).run()


def effective(loaded: Loaded) -> Shown:
    """Every key that has a value, defaults included."""
    return _Walk(loaded, True).run()


class _Walk:
    def __init__(self, loaded: Loaded, with_defaults: bool) -> None:
        self._loaded = loaded
        self._with_defaults = with_defaults
        self._shown = Shown()
        self._read_secret = False
        self._expanded = Effective(Settings, self._value_of)

    def run(self) -> Shown:
        tree = self._loaded.written.tree
        self._shown.values = self._table(Settings, tree, self._loaded.settings, (), "", False)
        return self._shown

    def _value_of(self, key: str) -> object:
        """What the files have for a key; remembers whether that was inserted."""
        found = find(self._loaded.expanded, key)
        if found is None:
            return None
        path, value = found
        self._read_secret = self._read_secret or path in self._loaded.secret_paths
        return value

    def _place(self, path: Path) -> str:
        return str(self._loaded.written.origins.place(path))

    # --- tables

    def _table(
        self,
        type: type[DataclassInstance],
        raw: Mapping[str, object],
        made: object,
        path: Path,
        inherits: str,
        is_built_in: bool,
    ) -> dict[str, object]:
        out: dict[str, object] = {}
        told: set[str] = set()
        for entry in layout(type):
            told.update(entry.spellings)
            given = next((spelling for spelling in entry.spellings if spelling in raw), None)
            value = raw[given] if given is not None else None
            instance = getattr(made, entry.attribute)
            here = (*path, entry.name)
            written_at = (*path, given) if given is not None else here
            match entry.declaration:
                case KeyDeclaration() | RuleDeclaration():
                    found = self._key(entry, value, instance, here, written_at, inherits, is_built_in)
                    if found is not None:
                        out[entry.name] = found
                case TableDeclaration(type=inner, inherits=whole):
                    below = value if isinstance(value, dict) else {}
                    if table := self._table(inner, below, instance, here, whole, is_built_in):
                        out[entry.name] = table
                case TablesDeclaration() as many:
                    if many.listed and isinstance(value, list):
                        out[entry.name] = self._table_list(many.variants[""], value, tuple(instance.values()), here)
                    elif table := self._tables(many, value if isinstance(value, dict) else {}, instance, here):
                        out[entry.name] = table
                case TableListDeclaration(type=inner):
                    if tables := self._table_list(inner, value, instance, here):
                        out[entry.name] = tables
                case _:
                    if entries := self._entries(value if isinstance(value, dict) else {}, instance, here):
                        out[entry.name] = entries
        if not self._with_defaults:
            told.update(out, ("type",))
            rest = {name: value for name, value in raw.items() if name not in told}
            out |= {name: self._as_written(value, (*path, name)) for name, value in rest.items()}
        return out

    def _tables(
        self, many: TablesDeclaration, raw: Mapping[str, object], made: object, path: Path
    ) -> dict[str, object]:
        out: dict[str, object] = {}
        if not isinstance(made, Mapping):
            return out
        names = {self._id(many, name): name for name in raw}
        for id, instance in made.items():
            name = names.get(id)
            is_built_in = name is None
            values = many.builtin[id] if name is None else raw[name]
            if (is_built_in and not self._with_defaults) or not isinstance(values, Mapping):
                continue
            here = (*path, id if name is None else name)
            if is_built_in and isinstance(instance, LocalRouteSettings):
                # Written into a file it would have to have one.
                self._shown.left_out[here] = "built-in, has no maildir: mail it gets is delayed"
                continue
            variant: dict[str, object] = {}
            if "" not in many.variants:
                variant["type"] = values["type"]
                self._shown.origins[(*here, "type")] = BUILT_IN if is_built_in else self._place((*here, "type"))
            variant |= self._table(type(instance), values, instance, here, "", is_built_in)
            out[str(here[-1])] = variant
        if not self._with_defaults:
            rest = {name: value for name, value in raw.items() if name not in out}
            out |= {name: self._as_written(value, (*path, name)) for name, value in rest.items()}
        return out

    def _id(self, many: TablesDeclaration, name: str) -> str:
        try:
            return many.id.read(Quoted(name))
        except Unfit:
            return name

    def _table_list(self, type: type[DataclassInstance], raw: object, made: object, path: Path) -> list[object]:
        raws = raw if isinstance(raw, list) else [] if raw is None else [raw]
        instances = made if isinstance(made, tuple) else ()
        return [
            self._table(type, values, instance, (*path, number), "", False)
            for number, (values, instance) in enumerate(zip(raws, instances, strict=True))
        ]

    def _entries(self, raw: Mapping[str, object], made: object, path: Path) -> dict[str, object]:
        out = {name: self._as_written(value, (*path, name)) for name, value in raw.items()}
        if self._with_defaults and isinstance(made, Mapping):
            for name in made:
                if name not in raw:
                    out[name] = []
                    self._shown.origins[(*path, name)] = BUILT_IN
        return out

    def _as_written(self, value: object, path: Path) -> object:
        """What no declaration says more about, with the place of each part."""
        if isinstance(value, dict):
            return {name: self._as_written(inner, (*path, name)) for name, inner in value.items()}
        self._shown.origins[path] = self._place(path)
        return value

    # --- values

    def _key(
        self,
        entry: Entry,
        raw: object,
        made: object,
        here: Path,
        written_at: Path,
        inherits: str,
        is_built_in: bool,
    ) -> object:
        declaration = entry.declaration
        if raw is not None:
            self._shown.origins[here] = BUILT_IN if is_built_in else self._place(written_at)
            if isinstance(declaration, KeyDeclaration) and declaration.secret:
                return _hidden(raw, declaration.kind.concealed)
            return _rows(raw)
        if not self._with_defaults or not isinstance(declaration, (KeyDeclaration, RuleDeclaration)):
            return None
        from_elsewhere = declaration.inherits if isinstance(declaration, KeyDeclaration) else ""
        if source := f"{inherits}.{entry.name}" if inherits else from_elsewhere:
            return self._inherited(source, here)
        default = declaration.default
        if isinstance(default, Derived):
            self._read_secret = False
            # What was read before would be remembered, and not whether it was inserted.
            default = default.value(Effective(Settings, self._value_of))
            if self._read_secret:
                self._shown.left_out[here] = "follows from a value that a macro inserted"
                return None
        elif isinstance(default, Absent):
            default = _completed(made)
        if default is not None:
            self._shown.origins[here] = BUILT_IN
        return _rows(default)

    def _inherited(self, source: str, here: Path) -> object:
        found = find(self._loaded.written.tree, source)
        if found is not None:
            self._shown.origins[here] = f"{source}, {self._place(found[0])}"
            return _rows(found[1])
        default = self._expanded(source)
        if default is not None:
            self._shown.origins[here] = f"{source}, {BUILT_IN}"
        return _rows(default)


def _rows(value: object) -> object:
    """An if-block is told as people write it."""
    return Rows(value) if isinstance(value, list) and value and all(isinstance(one, dict) for one in value) else value


def _hidden(value: object, concealed: Callable[[str], str] | None) -> object:
    if isinstance(value, list):
        return [_hidden(one, concealed) for one in value]
    if not isinstance(value, str):
        return SECRET
    if _MACRO.fullmatch(value):
        return value
    return SECRET if concealed is None else concealed(value)


def _completed(value: object) -> object:
    """What a table gives a key that was left out, as a file would write it."""
    if not isinstance(value, timedelta):
        return None
    milliseconds = value // timedelta(milliseconds=1)
    return next(f"{milliseconds // size}{unit}" for size, unit in _UNITS if milliseconds % size == 0)
