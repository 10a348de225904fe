"""What is wrong with a configuration, told to the operator who wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mailgate.config.kind import Step

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def dotted(path: tuple[Step, ...]) -> str:
    """A key path as people write it: `store."list/blocked".values`; entries of arrays of tables count `0000`."""
    return ".".join(
        f"{step:04}" if isinstance(step, int) else step if _BARE.fullmatch(step) else f'"{step}"' for step in path
    )


def _printable(text: str) -> str:
    # One line, and nothing in it that a terminal would obey.
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


@dataclass(frozen=True, slots=True)
class ConfigError:
    """One fault: the place, what is wrong there, and what to write instead ("" when that is clear)."""

    file: str
    line: int
    key: str
    problem: str
    advice: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: {self.key}: " if self.key else f"{self.file}:{self.line}: "
        return _printable(where + (f"{self.problem}; {self.advice}" if self.advice else self.problem))


@dataclass(frozen=True, slots=True)
class ConfigWarning:
    """Something that is probably not meant; it refuses nothing."""

    file: str
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        return _printable(f"{self.file}:{self.line}: {self.key}: {self.text}")


class ConfigErrors(Exception):
    """A configuration that is refused, with everything that is wrong with it in the order of the files."""

    def __init__(self, errors: Iterable[ConfigError], files: Sequence[str] = ()) -> None:
        """`files` are those of the configuration, in their order."""
        # A fault of a value that several tables inherit is still one fault.
        unique = dict.fromkeys(errors)
        order = {file: number for number, file in enumerate(files)}
        self.errors: tuple[ConfigError, ...] = tuple(
            sorted(unique, key=lambda error: (order.get(error.file, -1), error.file, error.line))
        )
        super().__init__(self.errors)

    def report(self) -> str:
        """One line for each error, each ended."""
        return "".join(f"{error}\n" for error in self.errors)

    def __str__(self) -> str:
        return self.report().rstrip("\n")
