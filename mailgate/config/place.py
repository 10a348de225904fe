"""Where in a TOML text each key stands, which `tomllib` does not tell.

A scanner of tables, keys and strings, not a second reader: it takes no value
from the text, only line numbers, and it is never the one to find a fault. On
text that is no TOML it stops early with what it has.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import NamedTuple

from mailgate.config.kind import Step

Path = tuple[Step, ...]
"""Leads from the top of a file to a value: names of keys, numbers of elements."""

# No group repeats possessively: Python 3.11.2, which Debian 12 has, mistakes such repeats.
_BLANK = re.compile(r"(?:[ \t\r\n]++|#[^\n]*+)*")
_SPACE = re.compile(r"[ \t]*+")
_KEY_PART = re.compile(r"""[A-Za-z0-9_-]++|"(?:[^"\\\n]++|\\.)*"|'[^'\n]*+'""")
_DOT = re.compile(r"[ \t]*+\.[ \t]*+")
_EQUALS = re.compile(r"[ \t]*+=[ \t]*+")
_HEADER_END = re.compile(r"[ \t]*+\]\]?")
_STRING = re.compile(
    r'"""(?:[^"\\]++|\\[\s\S]|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']++|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^"\\\n]++|\\.)*"'
    r"|'[^'\n]*+'"
)
_SCALAR = re.compile(r"[^,\]}#=\n]++")
# Deeper than any declared key; tomllib has its own bound for arrays.
_DEEPEST = 100


@dataclass(slots=True)
class Places:
    """The first line of every key, table and element, counted from 1."""

    lines: dict[Path, int] = field(default_factory=dict)
    repeated: list[tuple[Path, int, int]] = field(default_factory=list)
    """Keys and tables given twice: where first, where again."""
    last: Path = ()
    """The key or table that was begun last."""
    last_end: int | None = 0
    """The line it ended in; None where the scan stopped inside it."""
    table_lists: set[Path] = field(default_factory=set)
    """Arrays of tables written with `[[...]]`."""

    def line(self, path: Path) -> int:
        """The line of a path, or of the nearest thing around it that has one; 1 where nothing has."""
        while path:
            found = self.lines.get(path)
            if found is not None:
                return found
            path = path[:-1]
        return 1


class Place(NamedTuple):
    """A line of a file, as errors and decisions name it."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Origins:
    """Where everything in a configuration of several files stands."""

    def __init__(self, file: str) -> None:
        """`file` is named for what stands nowhere."""
        self._file = file
        self._places: dict[Path, Place] = {}
        self.table_lists: set[Path] = set()
        """Arrays of tables written with `[[...]]`."""

    def add(self, path: Path, file: str, line: int) -> None:
        """Say where a path stands; what was said first counts."""
        if path not in self._places:
            self._places[path] = Place(file, line)

    def place(self, path: Path) -> Place:
        """The place of a path, or of the nearest thing around it that has one; else line 1 of the main file."""
        while path:
            found = self._places.get(path)
            if found is not None:
                return found
            path = path[:-1]
        return Place(self._file, 1)


class _Stop(Exception):
    """The text is no TOML from here on."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._ends = [match.start() for match in re.finditer("\n", text)]
        self._at = 0
        self._table: Path = ()
        self._given: set[Path] = set()
        self._elements: dict[Path, int] = {}
        self.places = Places()

    def run(self) -> None:
        while True:
            self._skip(_BLANK)
            if self._at >= len(self._text):
                return
            if self._text.startswith("[", self._at):
                self._header()
            else:
                self._pair(self._table, 0)

    def _line(self) -> int:
        return bisect_right(self._ends, self._at - 1) + 1

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise _Stop
        self._at = match.end()
        return match[0]

    def _key(self) -> list[str]:
        parts = [self._part()]
        while dot := _DOT.match(self._text, self._at):
            self._at = dot.end()
            parts.append(self._part())
        return parts

    def _part(self) -> str:
        written = self._skip(_KEY_PART)
        if written[0] not in "\"'":
            return written
        if "\\" not in written:
            return written[1:-1]
        try:
            (name,) = tomllib.loads(f"{written} = 0")
        except tomllib.TOMLDecodeError:
            raise _Stop
        return name

    def _header(self) -> None:
        line = self._line()
        is_list = self._text.startswith("[[", self._at)
        self._at += 2 if is_list else 1
        self._skip(_SPACE)
        names = self._key()
        self._skip(_HEADER_END)
        self.places.last_end = line
        path: Path = ()
        for name in names[:-1]:
            path = self._inside((*path, name), line)
        path = (*path, names[-1])
        self.places.last = path
        if is_list:
            self.places.lines.setdefault(path, line)
            number = self._elements.get(path, -1) + 1
            self._elements[path] = number
            self.places.table_lists.add(path)
            path = (*path, number)
        elif path in self._given or path in self._elements:
            self.places.repeated.append((path, self.places.line(path), line))
        else:
            # The header says more about a table than an earlier mention of its parent.
            self._given.add(path)
        self.places.lines.setdefault(path, line)
        self._table = path

    def _inside(self, path: Path, line: int) -> Path:
        self.places.lines.setdefault(path, line)
        number = self._elements.get(path)
        return path if number is None else (*path, number)

    def _pair(self, table: Path, depth: int) -> None:
        line = self._line()
        names = self._key()
        self._skip(_EQUALS)
        path = table
        for name in names[:-1]:
            path = self._inside((*path, name), line)
        path = (*path, names[-1])
        self.places.last = path
        first = self.places.lines.setdefault(path, line)
        if path in self._given:
            self.places.repeated.append((path, first, line))
        self._given.add(path)
        self.places.last_end = None
        self._value(path, depth)
        self.places.last_end = self._line()

    def _value(self, path: Path, depth: int) -> None:
        if depth > _DEEPEST:
            raise _Stop
        here = self._text[self._at : self._at + 1]
        if here in ('"', "'"):
            self._skip(_STRING)
        elif here == "[":
            self._array(path, depth + 1)
        elif here == "{":
            self._inline_table(path, depth + 1)
        else:
            self._skip(_SCALAR)

    def _array(self, path: Path, depth: int) -> None:
        self._at += 1
        number = 0
        while True:
            self._skip(_BLANK)
            if self._text.startswith("]", self._at):
                self._at += 1
                return
            element = (*path, number)
            self.places.lines.setdefault(element, self._line())
            self._value(element, depth)
            number += 1
            self._skip(_BLANK)
            if self._text.startswith(",", self._at):
                self._at += 1
            elif not self._text.startswith("]", self._at):
                raise _Stop

    def _inline_table(self, path: Path, depth: int) -> None:
        self._at += 1
        while True:
            self._skip(_SPACE)
            if self._text.startswith("}", self._at):
                self._at += 1
                return
            self._pair(path, depth)
            self._skip(_SPACE)
            if self._text.startswith(",", self._at):
                self._at += 1
            elif not self._text.startswith("}", self._at):
                raise _Stop


def places(text: str) -> Places:
    """Find the line of everything in a TOML text whose line ends are LF."""
    scanner = _Scanner(text)
    try:
        scanner.run()
    except _Stop:
        pass
    return scanner.places
