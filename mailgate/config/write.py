"""Write TOML: the one doorway of the package `toml`, which writes and never reads here.

What was written is read back by `tomllib` and compared before it is put in
place, so that a file is whole and true or is the one from before.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import tomllib
from collections import UserDict
from collections.abc import Iterator, Mapping

import toml

from mailgate.config.place import Path, places


class WriteError(Exception):
    """Nothing was put in place: the values cannot be told in TOML, or the file cannot be written."""


class Rows(list[Mapping[str, object]]):
    """An array of tables that is written as one value, each table inline on a line of its own."""


class _Inline(UserDict[str, object]):
    """A table in braces: to the package no dictionary, which it would give a header."""


def _encoder() -> toml.TomlEncoder[dict[str, object]]:
    made: toml.TomlEncoder[dict[str, object]] = toml.TomlEncoder()

    def inline(table: Mapping[str, object]) -> str:
        return "{ " + ", ".join(f"{_key(name)} = {made.dump_value(value)}" for name, value in table.items()) + " }"

    def rows(rows: Rows) -> str:
        return "[\n" + "".join(f"  {inline(row)},\n" for row in rows) + "]"

    def row(values: list[object]) -> str:
        return "[" + ", ".join(str(made.dump_value(value)) for value in values) + "]"

    made.dump_funcs[list] = row
    # The package's own function takes a text with a backslash before an x for another.
    made.dump_funcs[str] = _string
    made.dump_funcs[Rows] = rows
    made.dump_funcs[_Inline] = inline
    return made


def _string(text: str) -> str:
    # What JSON escapes TOML escapes alike, but for one control character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _string(name)


_REFUSED = (ValueError, TypeError, AttributeError, IndexError, KeyError, RecursionError)


def toml_text(values: Mapping[str, object], comments: Mapping[Path, str] | None = None) -> str:
    """The values as TOML that `tomllib` reads back as they are; raises `WriteError` where that fails.

    Tables follow each other from the outside in. `comments` are put behind the
    line that a path is written in.
    """
    try:
        blocks = [toml.dumps(block, _encoder()) for block in _blocks(values, ())]
        text = _commented("\n".join(blocks), comments or {})
        again = tomllib.loads(text)
    except _REFUSED as wrong:
        raise WriteError(f"the values cannot be written as TOML: {wrong}") from wrong
    if not _same(again, values):
        raise WriteError("the values would not read back from TOML as they are")
    return text


def _blocks(values: Mapping[str, object], path: tuple[str, ...]) -> Iterator[dict[str, object]]:
    """Each table by itself, below the names of those around it."""
    own = {name: _listed(value) for name, value in values.items() if not isinstance(value, Mapping)}
    tables = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    if own or (path and not tables):
        block: dict[str, object] = dict(own)
        for name in reversed(path):
            block = {name: block}
        yield block
    for name, value in tables.items():
        yield from _blocks(value, (*path, name))


def _listed(value: object) -> object:
    """Tables in a list that has headers for none of them, kept from getting one."""
    if isinstance(value, Rows):
        return Rows(map(_Inline, value))
    if not isinstance(value, (list, tuple)):
        return value
    if value and all(isinstance(one, Mapping) for one in value):
        return value
    return [_Inline(one) if isinstance(one, Mapping) else _listed(one) for one in value]


def _commented(text: str, comments: Mapping[Path, str]) -> str:
    if not comments:
        return text
    lines = text.split("\n")
    for path, line in places(text).lines.items():
        if path in comments:
            lines[line - 1] += "  # " + "".join(c if c.isprintable() else "?" for c in comments[path])
    return "\n".join(lines)


def write(path: str, values: Mapping[str, object], heading: str = "") -> None:
    """Put the values into a file, durable and in one step; `heading` is a comment above them.

    Raises `WriteError`; a file that was there before is then as it was.
    """
    comment = "".join(f"# {line}".rstrip() + "\n" for line in heading.splitlines())
    text = f"{comment}\n{toml_text(values)}" if comment else toml_text(values)
    directory = os.path.dirname(path) or "."
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".toml", dir=directory)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with open(temporary, "rb") as file:
            if not _same(tomllib.load(file), values):
                raise WriteError(f"{path} would not read back as it was written")
        os.rename(temporary, path)
        temporary = ""
        _sync_directory(directory)
    except (OSError, ValueError) as wrong:
        raise WriteError(f"cannot write {path}: {wrong}") from wrong
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _sync_directory(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _same(one: object, other: object) -> bool:
    """Whether two trees are equal in values and in types: 1, 1.0 and true are three values."""
    if isinstance(one, dict) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    # NaN is the one value that is not equal to itself.
    return type(one) is type(other) and (one == other or (one != one and other != other))
