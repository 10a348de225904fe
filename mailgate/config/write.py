"""Write TOML: the one doorway of the package `toml`, which writes and never reads here.

What was written is read back by `tomllib` and compared before it is put in
place, so that a file is whole and true or is the one from before.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import tomllib
from collections.abc import Mapping

import toml


class WriteError(Exception):
    """Nothing was put in place: the values cannot be told in TOML, or the file cannot be written."""


def toml_text(values: Mapping[str, object]) -> str:
    """The values as TOML that `tomllib` reads back as they are; raises `WriteError` where that fails."""
    try:
        text = toml.dumps(values)
        again = tomllib.loads(text)
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, RecursionError) as wrong:
        raise WriteError(f"the values cannot be written as TOML: {wrong}") from wrong
    if not _same(again, values):
        raise WriteError("the values would not read back from TOML as they are")
    return text


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
