"""The files a configuration is made of, merged into one tree.

The main file comes first, then `conf.d/*.toml` beside it in the order of their
names. Tables are merged; an array of tables written `[[...]]` in several files
has the entries of all; any other key stands in one file only.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from mailgate.config.error import ConfigError, dotted
from mailgate.config.kind import Step
from mailgate.config.place import Origins, Path, Places, places
from mailgate.config.toml_fault import toml_fault

FURTHER = "conf.d"
"""The directory beside the main file that further files are in."""

_ENDING = ".toml"
_LARGEST_FILE = 64 * 1024 * 1024
# Deeper than any declared key; what is deeper still is reported by whoever reads the tree.
_DEEPEST = 60


class Source(NamedTuple):
    """One file: what errors call it, and its text."""

    file: str
    text: str


@dataclass(slots=True)
class Written:
    """What the files of one configuration say, macros not expanded."""

    tree: dict[str, object]
    origins: Origins
    files: tuple[str, ...]
    errors: list[ConfigError] = field(default_factory=list)
    """What is wrong with the texts themselves, and keys that stand in two files."""
    is_complete: bool = True
    """False when a file is missing from the tree because of an error."""


def written(path: str) -> Written:
    """Read the main file and those beside it. Raises nothing: an unreadable file is an error among others.

    When the main file itself cannot be read the others are not looked at.
    """
    main = _source(path)
    if isinstance(main, ConfigError):
        return Written({}, Origins(path), (path,), [main], False)
    folder = os.path.join(os.path.dirname(path), FURTHER)
    return merged([main, *_further(folder)])


def _further(folder: str) -> list[Source | ConfigError]:
    """The files of a folder that are read, in order."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as wrong:
        return [_unreadable(folder, wrong)]
    # What editors and package managers leave behind is hidden or ends otherwise.
    paths = [os.path.join(folder, name) for name in sorted(names) if name.endswith(_ENDING) and name[0] != "."]
    return [_source(path, has_to_be_file=True) for path in paths]


def _source(path: str, has_to_be_file: bool = False) -> Source | ConfigError:
    try:
        # A pipe is a main file as good as any; in a folder it would be waited for in vain.
        if has_to_be_file and not stat.S_ISREG(os.stat(path).st_mode):
            return ConfigError(path, 1, "", "cannot be read: no regular file", "move it out of the folder")
        with open(path, "rb") as file:
            octets = file.read(_LARGEST_FILE + 1)
    except (OSError, ValueError) as wrong:
        return _unreadable(path, wrong)
    if len(octets) > _LARGEST_FILE:
        return ConfigError(path, 1, "", "larger than 64 MiB, no configuration")
    try:
        return Source(path, octets.decode())
    except UnicodeDecodeError as wrong:
        line = octets.count(b"\n", 0, wrong.start) + 1
        return ConfigError(path, line, "", "not UTF-8 text", "save the file as UTF-8")


def _unreadable(path: str, wrong: OSError | ValueError) -> ConfigError:
    reason = (wrong.strerror if isinstance(wrong, OSError) else None) or str(wrong)
    return ConfigError(path, 1, "", f"cannot be read: {reason.lower()}")


def merged(sources: Iterable[Source | ConfigError]) -> Written:
    """Merge texts in their order; one that is no TOML is an error and left out. At least one has to be given."""
    merging: Written | None = None
    files = []
    for source in sources:
        files.append(source.file)
        merging = merging or Written({}, Origins(source.file), ())
        read = source if isinstance(source, ConfigError) else _read(source)
        if isinstance(read, ConfigError):
            merging.errors.append(read)
            merging.is_complete = False
        else:
            _Merge(merging, source.file, read[1]).run(read[0])
    if merging is None:
        raise ValueError("a configuration has at least one file")
    merging.files = tuple(files)
    return merging


def _read(source: Source) -> tuple[dict[str, object], Places] | ConfigError:
    text = source.text.removeprefix("\ufeff").replace("\r\n", "\n")
    try:
        tree: dict[str, object] = tomllib.loads(text)
    except (ValueError, RecursionError) as wrong:
        return toml_fault(text, source.file, wrong)
    return tree, places(text)


class _Merge:
    """Puts one file into what those before it said."""

    def __init__(self, into: Written, file: str, found: Places) -> None:
        self._into = into
        self._file = file
        self._places = found
        # Where entries of an array of tables go behind those of earlier files, and behind how many.
        self._behind: dict[Path, int] = {}

    def run(self, tree: dict[str, object]) -> None:
        if self._into.tree:
            self._table(self._into.tree, tree, ())
        else:
            self._into.tree = tree
        origins = self._into.origins
        origins.table_lists |= self._places.table_lists
        for path, line in self._places.lines.items():
            origins.add(self._moved(path) if self._behind else path, self._file, line)

    def _table(self, into: dict[str, object], tree: dict[str, object], path: Path) -> None:
        for name, value in tree.items():
            here = (*path, name)
            old = into.get(name)
            if name not in into:
                into[name] = value
            elif isinstance(old, dict) and isinstance(value, dict) and len(here) < _DEEPEST:
                self._table(old, value, here)
            elif isinstance(old, list) and isinstance(value, list) and self._are_table_lists(here):
                self._behind[here] = len(old)
                old.extend(value)
            else:
                line = self._places.line(here)
                first = self._into.origins.place(here)
                problem = f"given twice, first in {first}"
                self._into.errors.append(ConfigError(self._file, line, dotted(here), problem, "keep one of them"))

    def _are_table_lists(self, path: Path) -> bool:
        return path in self._places.table_lists and path in self._into.origins.table_lists

    def _moved(self, path: Path) -> Path:
        for depth in range(1, len(path)):
            step: Step = path[depth]
            behind = self._behind.get(path[:depth])
            if behind is not None and isinstance(step, int):
                return (*path[:depth], step + behind, *path[depth + 1 :])
        return path
