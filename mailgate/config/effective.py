"""What a key is worth before it is read: as configured, else its default.

Serves `%{cfg:key}%`, `config_get('key')`, values inherited from another table,
and defaults that depend on other keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mailgate.config.key import (
    Absent,
    Derived,
    EntriesDeclaration,
    KeyDeclaration,
    RuleDeclaration,
    TableDeclaration,
    TableListDeclaration,
    TablesDeclaration,
    layout,
)
from mailgate.config.kind import Quoted, Unfit

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ANY_ID = "<id>"
_MISSING = object()


class Effective:
    """The effective values of one configuration; each is found once."""

    def __init__(self, schema: type[DataclassInstance], configured: Callable[[str], object]) -> None:
        """`configured` gives the value the file has for a key, None where it has none."""
        self._schema = schema
        self._configured = configured
        self._found: dict[str, object] = {}

    def __call__(self, key: str) -> object:
        """The value as a file would write it, None when unset; raises `LookupError` for a key nobody declared."""
        found = self._found.get(key, _MISSING)
        if found is _MISSING:
            # A default that leads back to itself is unset.
            self._found[key] = None
            try:
                found = self._find(key)
            except LookupError:
                del self._found[key]
                raise
            self._found[key] = found
        return found

    def _find(self, key: str) -> object:
        configured = self._configured(key)
        declaration = declared(self._schema, key.split("."))
        if configured is not None:
            return configured if _is_usable(declaration, configured) else None
        if declaration is None:
            raise LookupError(key)
        default = declaration.default
        if isinstance(default, Derived):
            return default.value(self)
        if isinstance(default, Absent):
            return None
        if isinstance(declaration, KeyDeclaration) and declaration.inherits:
            return self(declaration.inherits)
        return default


def _is_usable(declaration: KeyDeclaration | RuleDeclaration | None, value: object) -> bool:
    """False for a value that its own key refuses: what depends on it is not at fault as well."""
    if not isinstance(declaration, KeyDeclaration):
        return True
    try:
        declaration.kind.read(Quoted(value))
    except Unfit:
        return False
    return True


def declared(schema: type[DataclassInstance], names: list[str]) -> KeyDeclaration | RuleDeclaration | None:
    """The declaration that a dotted key leads to; ids may have dots in them."""
    for entry in layout(schema):
        if names and names[0] in entry.spellings:
            match entry.declaration:
                case KeyDeclaration() | RuleDeclaration() as declaration:
                    return declaration if len(names) == 1 else None
                case TableDeclaration(type=inner):
                    return declared(inner, names[1:])
                case TablesDeclaration(variants=inners):
                    for skipped in range(2, len(names)):
                        for inner in inners.values():
                            if (found := declared(inner, names[skipped:])) is not None:
                                return found
    return None


def all_keys(schema: type[DataclassInstance], above: tuple[str, ...] = ()) -> Iterator[str]:
    """Every declared key in the order of the reference page, ids written `<id>`."""
    for entry in layout(schema):
        path = (*above, entry.name)
        match entry.declaration:
            case KeyDeclaration() | RuleDeclaration():
                yield ".".join(path)
            case EntriesDeclaration():
                yield ".".join((*path, ANY_ID))
            case TableDeclaration(type=inner) | TableListDeclaration(type=inner):
                yield from all_keys(inner, path)
            case TablesDeclaration(variants=inners):
                if "" not in inners:
                    yield ".".join((*path, ANY_ID, "type"))
                seen = set()
                for inner in inners.values():
                    for key in all_keys(inner, (*path, ANY_ID)):
                        if key not in seen:
                            seen.add(key)
                            yield key
