"""`Choice`: what one key says, an expression or an if/then/else list, compiled at load.

    one-key = "expression"
    other-key = [ { if = "condition", then = "expression" },
                  { else = "expression" },
                  { on-error = "accept" } ]

`compile_choice` checks the shape, the names, the types and the result of every
part and reports all that is wrong at once. What cannot depend on anything that
is read later is computed there and then: most choices are constants.

A condition that is unknown when its turn comes makes the choice unknown; so does
an unknown value. `on-error` says what follows: `tempfail` leaves it unknown,
`accept` and `reject` give what the key's kind declares for them.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Generic, TypeVar

from mailgate.expr.error import ExpressionError, ExpressionErrors
from mailgate.expr.evaluate import Branch, Frame, Waiting, build, fold_branches
from mailgate.expr.kind import ResultKind
from mailgate.expr.node import Array, Ask, Either, Literal, Node, Read, walk
from mailgate.expr.parse import parse
from mailgate.expr.resolve import Environment, Resolution, static_type
from mailgate.expr.scope import Context, Scope, nearest
from mailgate.expr.value import INTEGER_MAX, INTEGER_MIN, OFF_WORDS, BadValue, Result, Type, Value, type_of
from mailgate.mail.unknown import Unknown

T = TypeVar("T")

Reads = tuple[tuple[str, object], ...]


class OnError(Enum):
    """What an unknown choice means."""

    TEMPFAIL = "tempfail"
    """Not now: the choice stays unknown and the client is told to try again."""
    ACCEPT = "accept"
    """The value that lets the client pass; of keys that do not decide that, no value."""
    REJECT = "reject"
    """The value that refuses; of keys that do not decide that, an `Unknown` with `reject`."""


class Choice(Generic[T]):
    """What one key says. Nothing in it changes after it was built.

    `literals` are the names written out in it, as (kind, name), for example
    `("store", "blocked-domains")`: whoever knows what is defined checks them.
    `variables` are the names of those it still reads.
    """

    __slots__ = (
        "_asks",
        "_branches",
        "_fixed",
        "_kind",
        "_read",
        "_run",
        "is_constant",
        "key",
        "literals",
        "on_error",
        "place",
        "variables",
    )

    def __init__(
        self,
        key: str,
        place: str,
        kind: ResultKind[T],
        branches: tuple[Branch, ...],
        on_error: OnError = OnError.TEMPFAIL,
        literals: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Build from folded branches; made by `compile_choice`, `constant` and `specialise`."""
        self.key = key
        self.place = place
        self.on_error = on_error
        self.literals = literals
        self._kind = kind
        self._branches = branches
        only = branches[0].value
        self.is_constant = branches[0].condition is None and isinstance(only, Literal)
        self._fixed: tuple[T] | None = (kind(only.value),) if self.is_constant and isinstance(only, Literal) else None
        nodes = [node for branch in branches for part in branch.nodes for node in walk(part)]
        self._asks = any(isinstance(node, Ask) for node in nodes)
        attributes = {node.variable.name: node.variable.attribute for node in nodes if isinstance(node, Read)}
        self.variables = tuple(attributes)
        self._read = _reader(attributes)
        self._run = build(branches)

    @classmethod
    def constant(cls, value: T, key: str) -> Choice[T]:
        """A default built in code: always `value`."""
        kind = ResultKind("a constant", lambda _: value, Type.ANY, value)
        return cls(key, "built-in", kind, (Branch(None, Literal(0, Type.INTEGER)),))

    def __repr__(self) -> str:
        told = f"always {self._fixed[0]!r}" if self._fixed is not None else f"reads {', '.join(self.variables)}"
        return f"<Choice {self.key} at {self.place}: {told}>"

    async def value(self, scope: Scope) -> T | Unknown:
        """What the key says in this scope, `on-error` applied.

        A constant is returned straight away. Every other evaluation is noted in
        the scope, once, also when the result is unknown.
        """
        if self._fixed is not None:
            return self._fixed[0]
        frame = Frame(scope)
        result = await self._answered(scope, frame) if self._asks else self._run(frame)
        final = self._unknown(result) if isinstance(result, Unknown) else self._kind(result)
        reads = self._read(scope)
        if frame.asked:
            reads += tuple(frame.asked)
        if isinstance(result, Unknown) and self.on_error is not OnError.TEMPFAIL:
            reads += (("on-error", self.on_error.value),)
        scope.note(self.key, self.place, reads, final)
        return final

    def specialise(self, known: Mapping[str, Value]) -> Choice[T]:
        """The same choice where some variables are known already, by name: a constant where nothing else is read."""
        if not known.keys() & set(self.variables):
            return self
        branches = fold_branches(self._branches, known)
        return Choice(self.key, self.place, self._kind, branches, self.on_error, self.literals)

    async def _answered(self, scope: Scope, frame: Frame) -> Result:
        """Evaluate anew after each answer from outside."""
        while True:
            try:
                return self._run(frame)
            except Waiting as waiting:
                answer = await waiting.ask(scope.outside)
                frame.answers[waiting.site] = answer
                frame.asked.append((waiting.question, answer))
                frame.captures = None

    def _unknown(self, unknown: Unknown) -> T | Unknown:
        if self.on_error is OnError.TEMPFAIL:
            return unknown
        if self.on_error is OnError.ACCEPT:
            return self._kind.missing if self._kind.lets_pass is None else self._kind.lets_pass
        return unknown._replace(reject=True) if self._kind.refuses is None else self._kind.refuses


def _reader(attributes: Mapping[str, str]) -> Callable[[Scope], Reads]:
    """Reads the variables of a choice for its note."""
    names = tuple(attributes)
    if not names:
        return lambda scope: ()
    get = operator.attrgetter(*attributes.values())
    if len(names) == 1:
        name = names[0]
        return lambda scope: ((name, get(scope)),)
    return lambda scope: tuple(zip(names, get(scope), strict=True))


# --- compiling -------------------------------------------------------------------


def compile_choice(
    raw: object, *, key: str, place: str, context: Context, kind: ResultKind[T], environment: Environment
) -> Choice[T]:
    """Compile the TOML value of a key; raises `ExpressionErrors` with everything that is wrong.

    `place` is where the key is written ("mailgate.toml:31"). Evaluation happens in
    a scope that has the variables of `context`.
    """
    compiler = _Compiler(kind, Resolution(context, kind.words, environment))
    branches = compiler.block(raw) if _is_block(raw) else compiler.single(raw)
    if compiler.errors:
        raise ExpressionErrors(compiler.errors)
    literals = tuple(dict.fromkeys(compiler.resolution.literals))
    return Choice(key, place, kind, fold_branches(branches, {}), compiler.on_error, literals)


def _is_block(raw: object) -> bool:
    return isinstance(raw, list) and any(isinstance(element, dict) for element in raw)


# What names look like that are written without quotes, such as `connect_filter` and `list/blocked-domains`.
_BARE_NAME = re.compile(r"[\w./@ +-]*\w[\w./@ +-]*")
_BLOCK_KEYS = ("if", "then", "else", "on-error")
_ON_ERROR_ADVICE = 'write { on-error = "tempfail" }, "accept" or "reject" as an element of its own, once'


@dataclass(slots=True)
class _Compiler(Generic[T]):
    """Compiles the parts of one choice; errors are kept with the element they are in."""

    kind: ResultKind[T]
    resolution: Resolution
    errors: list[ExpressionError] = field(default_factory=list)
    on_error: OnError = OnError.TEMPFAIL

    def single(self, raw: object) -> tuple[Branch, ...]:
        return (Branch(None, self.wanted(raw, None, "")),)

    def block(self, raw: object) -> tuple[Branch, ...]:
        """An if-block, after its shape."""
        elements = raw if isinstance(raw, list) else []
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
                found = self.wanted(element["else"], position, "else")
                otherwise = otherwise or found
            elif "then" in element:
                self.wrong("misplaced then: without if", "write { if = ..., then = ... } or { else = ... }", position)
            elif not unknown and "on-error" not in element:
                self.wrong("an empty element", "remove it", position)
        if otherwise is None:
            self.wrong("missing else", "add { else = ... } as the last element", None)
            otherwise = Literal(0, Type.ANY)
        return (*branches, Branch(None, otherwise))

    def conditional(self, element: Mapping[str, object], position: int) -> Branch:
        if "else" in element:
            self.wrong("else beside if", "write { else = ... } as an element of its own", position)
        condition = self.expression(element["if"], position, "if")
        if "then" not in element:
            self.wrong("missing then", "write { if = ..., then = ... }", position)
        return Branch(condition, self.wanted(element.get("then", 0), position, "then"))

    def set_on_error(self, element: Mapping[str, object], position: int, again: bool) -> None:
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
            return Array(
                tuple(
                    self.expression(below, element if element is not None else position, slot, bare_names)
                    for position, below in enumerate(raw, 1)
                )
            )
        self.wrong(f"{_shown(raw)} is no expression", "write true, false, a number or a text", element, slot)
        return Literal(0, Type.ANY)

    def text(self, written: str, element: int | None, slot: str, bare_names: bool) -> Node:
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
