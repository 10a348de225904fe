"""The TOML value of a key to branches: the shape of if-blocks, and what each part may be.

    one-key = "expression"
    other-key = [ { if = "condition", then = "expression" },
                  { else = "expression" },
                  { on-error = "accept" } ]

Texts are parsed and resolved, other scalars are taken as they are. What is certain
to be of a type that the key cannot use is an error. Nothing is raised here: all
errors are collected, so that an operator sees them at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Generic, TypeVar

from mailgate.expr.error import ExpressionError
from mailgate.expr.evaluate import Branch
from mailgate.expr.fold import fold_branches
from mailgate.expr.kind import ResultKind
from mailgate.expr.node import Array, Either, Literal, Node
from mailgate.expr.parse import parse
from mailgate.expr.resolve import Resolution, static_type
from mailgate.expr.scope import nearest
from mailgate.expr.value import INTEGER_MAX, INTEGER_MIN, OFF_WORDS, BadValue, Type, Value, type_of

T = TypeVar("T")


class OnError(Enum):
    """What an unknown choice means."""

    TEMPFAIL = "tempfail"
    """Not now: the choice stays unknown and the client is told to try again."""
    ACCEPT = "accept"
    """The value that lets the client pass; of keys that do not decide that, no value."""
    REJECT = "reject"
    """The value that refuses; of keys that do not decide that, an `Unknown` with `reject`."""


# What names look like that are written without quotes, such as `connect_filter` and `list/blocked-domains`.
_BARE_NAME = re.compile(r"[\w./@ +-]*\w[\w./@ +-]*")
_BLOCK_KEYS = ("if", "then", "else", "on-error")
_ON_ERROR_ADVICE = 'write { on-error = "tempfail" }, "accept" or "reject" as an element of its own, once'


@dataclass(slots=True)
class Compiler(Generic[T]):
    """Compiles the parts of one choice.

    What it finds is left in `errors`, in `on_error` and in the `literals` of the
    resolution; the branches are of use only when there are no errors.
    """

    kind: ResultKind[T]
    resolution: Resolution
    errors: list[ExpressionError] = field(default_factory=list)
    on_error: OnError = OnError.TEMPFAIL

    def branches(self, raw: object) -> tuple[Branch, ...]:
        """The TOML value of a key: an if-block, or one value."""
        if isinstance(raw, list) and any(isinstance(element, dict) for element in raw):
            return self.block(raw)
        return (Branch(None, self.wanted(raw, None, "")),)

    def block(self, elements: list[object]) -> tuple[Branch, ...]:
        """An if-block, after its shape."""
        branches: list[Branch] = []
        otherwise: Node | None = None
        said_on_error = False
        for position, element in enumerate(elements, 1):
            if not isinstance(element, dict):
                self.wrong("an element that is not { ... } in an if-block", "write { if = ..., then = ... }", position)
                continue
            unknown = [name for name in element if name not in _BLOCK_KEYS]
            for name in unknown:
                likely = nearest(name, _BLOCK_KEYS)
                advice = f"did you mean {likely}?" if likely else f"the keys are {', '.join(_BLOCK_KEYS)}"
                self.wrong(f"invalid property {name}", advice, position)
            if "on-error" in element:
                self.set_on_error(element, position, said_on_error)
                said_on_error = True
            if "if" in element:
                branches.append(self.conditional(element, position))
            elif "else" in element:
                if "then" in element:
                    self.wrong("misplaced then: beside else", "write { else = ... }", position)
                if otherwise is not None:
                    self.wrong("multiple else", "keep one { else = ... }, as the last", position)
                elif not branches:
                    self.wrong(
                        "else before if", "put { if = ..., then = ... } before it, or write the value alone", position
                    )
                otherwise = self.wanted(element["else"], position, "else")
            elif "then" in element:
                self.wrong("misplaced then: without if", "write { if = ..., then = ... } or { else = ... }", position)
            elif not unknown and "on-error" not in element:
                self.wrong("an empty element", "remove it", position)
        if otherwise is None:
            self.wrong("missing else", "add { else = ... } as the last element", None)
            otherwise = Literal(0, Type.ANY)
        return (*branches, Branch(None, otherwise))

    def conditional(self, element: Mapping[str, object], position: int) -> Branch:
        """An element with `if`."""
        if "else" in element:
            self.wrong("else beside if", "write { else = ... } as an element of its own", position)
        condition = self.expression(element["if"], position, "if")
        if "then" not in element:
            self.wrong("missing then", "write { if = ..., then = ... }", position)
        return Branch(condition, self.wanted(element.get("then", 0), position, "then"))

    def set_on_error(self, element: Mapping[str, object], position: int, again: bool) -> None:
        """An element with `on-error`; `again` when there was one before."""
        said = element["on-error"]
        if again:
            self.wrong("bad on-error: written twice", _ON_ERROR_ADVICE, position)
        elif len(element) > 1:
            self.wrong("bad on-error: beside another key", _ON_ERROR_ADVICE, position)
        elif said not in [choice.value for choice in OnError]:
            self.wrong(f"bad on-error: {_shown(said)}", _ON_ERROR_ADVICE, position)
        else:
            self.on_error = OnError(said)

    def wrong(self, problem: str, advice: str, element: int | None, slot: str = "") -> None:
        """Keep an error that has no column."""
        self.errors.append(ExpressionError(problem, advice, None, element, slot))

    # --- one slot

    def wanted(self, raw: object, element: int | None, slot: str) -> Node:
        """A part whose value becomes the key's: its type is checked."""
        written = raw.strip() if isinstance(raw, str) else raw
        if isinstance(written, str):
            if written in OFF_WORDS and (self.kind.optional or (self.kind.has_empty and not written)):
                return Literal(0, Type.INTEGER)
            if (spelled := self.spelled(written)) is not None:
                return Literal(spelled, type_of(spelled))
        before = len(self.errors)
        node = self.expression(raw, element, slot, bare_names=True)
        if len(self.errors) == before:
            self.check(node, element, slot)
        return node

    def spelled(self, written: str) -> Value | None:
        """The value of a text in the key's own spelling, such as `25mb`."""
        if self.kind.spelling is None:
            return None
        try:
            read = self.kind.spelling(written)
        except BadValue:
            return None
        return read // timedelta(milliseconds=1) if isinstance(read, timedelta) else read

    def check(self, node: Node, element: int | None, slot: str) -> None:
        """Refuse what is certain to be of a type that the key cannot use, in each value it may be."""
        if isinstance(node, Either):
            self.check(node.yes, element, slot)
            self.check(node.no, element, slot)
            return
        # A literal keeps what it was written as: 5m is a duration, 300000 a number.
        value = node if isinstance(node, Literal) else fold_branches((Branch(None, node),), {})[0].value
        if isinstance(value, Literal) and not value.value:
            return
        found = static_type(value)
        if not found & self.kind.accepts:
            told = found.words
            if found == Type.DURATION and isinstance(value, Literal):
                told = f"the duration {value.written}"
            elif isinstance(value, Literal):
                told = _shown(value.value)
            advice = f"write {self.kind.wanted}, or false for none"
            self.wrong(f"{told} is not {self.kind.wanted}", advice, element, slot)
        elif isinstance(value, Literal) and (problem := self.kind.refusal(value.value)):
            likely = nearest(value.value, self.kind.words) if isinstance(value.value, str) else None
            advice = f"did you mean {likely}?" if likely else f"write {self.kind.wanted}, or false for none"
            self.wrong(problem, advice, element, slot)
        else:
            self.name(node)

    def name(self, node: Node) -> None:
        """Keep the names that are written out where the key wants a name."""
        if self.kind.names is None or not self.kind.names.category:
            return
        match node:
            case Literal(value=str() as name) if name:
                self.resolution.literals.append((self.kind.names.category, name))
            case Array():
                for below in node.elements:
                    self.name(below)

    def expression(self, raw: object, element: int | None, slot: str, bare_names: bool = False) -> Node:
        """Any part: parsed and resolved; with `bare_names` as the key's kind allows."""
        if isinstance(raw, str):
            return self.text(raw, element, slot, bare_names)
        if isinstance(raw, bool):
            return Literal(int(raw), Type.INTEGER)
        if isinstance(raw, int) and INTEGER_MIN <= raw <= INTEGER_MAX:
            return Literal(raw, Type.INTEGER)
        if isinstance(raw, float) and math.isfinite(raw):
            return Literal(raw, Type.FLOAT)
        if isinstance(raw, list):
            return self.array(raw, element, slot, bare_names)
        self.wrong(f"{_shown(raw)} is no expression", "write true, false, a number or a text", element, slot)
        return Literal(0, Type.ANY)

    def array(self, raw: list[object], element: int | None, slot: str, bare_names: bool) -> Node:
        """A TOML array is an array of expressions."""
        elements: list[Node] = []
        for position, below in enumerate(raw, 1):
            at = position if element is None else element
            if isinstance(below, list):
                self.wrong(
                    "an array within an array", 'write the whole value as one expression, "[[...], ...]"', at, slot
                )
            else:
                elements.append(self.expression(below, at, slot, bare_names))
        return Array(tuple(elements))

    def text(self, written: str, element: int | None, slot: str, bare_names: bool) -> Node:
        """An expression as text; where it is none, its name if the key wants one."""
        if not written.strip():
            self.wrong("an empty expression", "write a value, for the empty text \"''\"", element, slot)
            return Literal(0, Type.ANY)
        kept, self.resolution.errors = self.resolution.errors, []
        literals = len(self.resolution.literals)
        try:
            node = self.resolution.resolve(parse(written))
        except ExpressionError as error:
            node = Literal(0, Type.ANY)
            self.resolution.errors.append(error)
        found, self.resolution.errors = self.resolution.errors, kept
        if not found:
            return node
        del self.resolution.literals[literals:]
        names = self.kind.names
        if bare_names and names is not None and (not names.category or _BARE_NAME.fullmatch(written)):
            name = written.strip()
            return Literal(name, Type.STRING, name)
        self.errors += [error.at(element, slot) for error in found]
        return Literal(0, Type.ANY)


def _shown(raw: object) -> str:
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, (list, tuple)):
        return "[" + ", ".join(map(_shown, raw)) + "]"
    if isinstance(raw, dict):
        return "a table"
    return f"'{raw}'" if isinstance(raw, str) else str(raw)
