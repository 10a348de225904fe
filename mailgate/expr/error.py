"""What is wrong with an expression, told to the operator who wrote it."""

from __future__ import annotations

from collections.abc import Iterable


class ExpressionError(Exception):
    """One thing that is wrong: what was found, and what to write instead.

    `element` counts the elements of an if-block or array from 1, `slot` is the
    key in that element (`if`, `then`, `else`); `column` counts the characters of
    the expression from 1. Each is None or empty where there is no such place.
    """

    def __init__(
        self, problem: str, advice: str = "", column: int | None = None, element: int | None = None, slot: str = ""
    ) -> None:
        super().__init__(problem, advice, column, element, slot)
        self.problem = problem
        self.advice = advice
        self.column = column
        self.element = element
        self.slot = slot

    def at(self, element: int | None, slot: str = "") -> ExpressionError:
        """The same error in a known element of an if-block."""
        return ExpressionError(self.problem, self.advice, self.column, element, slot)

    @property
    def where(self) -> str:
        """The place within the key's value: `element 2, then, column 5`; may be empty."""
        parts = []
        if self.element is not None:
            parts.append(f"element {self.element}")
        if self.slot:
            parts.append(self.slot)
        if self.column is not None:
            parts.append(f"column {self.column}")
        return ", ".join(parts)

    def __str__(self) -> str:
        told = f"{self.where}: {self.problem}" if self.where else self.problem
        return f"{told}; {self.advice}" if self.advice else told


class ExpressionErrors(Exception):
    """Everything that is wrong with the value of one key, in the order in which it is written."""

    def __init__(self, errors: Iterable[ExpressionError]) -> None:
        self.errors: tuple[ExpressionError, ...] = tuple(errors)
        super().__init__(self.errors)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)
