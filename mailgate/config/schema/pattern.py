"""Key paths with places left open: `queue.route.*.port`, `session.milter.**`."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from mailgate.config.kind import Step


class Fit(Enum):
    """How a path stands to a pattern."""

    NONE = 0
    ABOVE = 1
    """Keys that match may be found further down."""
    MATCH = 2


class Pattern(NamedTuple):
    """`*` stands for one name, `**` at the end for any number of further names, none included."""

    parts: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Pattern:
        """Read the dotted form."""
        return cls(tuple(text.split(".")))

    @property
    def text(self) -> str:
        """For people: `queue.route.<id>.port`."""
        return ".".join("<id>" if part == "*" else part for part in self.parts if part != "**")

    def fit(self, path: tuple[Step, ...]) -> Fit:
        """Whether the path matches, or leads towards a match."""
        for number, part in enumerate(self.parts):
            if part == "**":
                return Fit.MATCH
            if number == len(path):
                return Fit.MATCH if self.parts[number:] == ("**",) else Fit.ABOVE
            if part != "*" and part != path[number]:
                return Fit.NONE
        return Fit.MATCH if len(path) == len(self.parts) else Fit.NONE
