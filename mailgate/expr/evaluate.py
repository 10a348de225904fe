"""Trees to closures, and Kleene's three-valued logic.

`build` turns folded branches into one function of a `Frame`. All closures are
plain functions, also of choices that ask outside: a call whose answer is not in
the frame yet raises `Waiting`; the choice awaits the answer, keeps it in the frame
and evaluates again from the start. That is sound because nothing here has an
effect besides the captures, which start anew; and it keeps one implementation
for both kinds, in which waiting costs only where one waits.

A value that is unknown makes the result unknown, except where the known side of
`&` or `|` decides, or both branches of `if_then` are known and equal. Of two
unknowns the left one is the result.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from types import coroutine

from mailgate.expr import operate
from mailgate.expr.functions.function import Function, mapped
from mailgate.expr.node import (
    Apply,
    Array,
    Ask,
    Binary,
    Call,
    Capture,
    Either,
    Index,
    Literal,
    Logic,
    Match,
    Node,
    Read,
    Unary,
    Word,
)
from mailgate.expr.regex import LONGEST_SUBJECT
from mailgate.expr.scope import Scope
from mailgate.expr.value import Result, Value, text
from mailgate.mail.unknown import Unknown

Run = Callable[["Frame"], Result]
Asking = Coroutine[object, None, Result]


class Frame:
    """One evaluation: what it reads, its captures, and the answers it got so far."""

    __slots__ = ("answers", "asked", "captures", "scope")

    def __init__(self, scope: Scope | None) -> None:
        self.scope = scope
        self.captures: re.Match[str] | None = None
        self.answers: dict[int, Result] = {}
        self.asked: list[tuple[Function, Sequence[Value], Result]] = []


class Waiting(Exception):
    """A call outside was begun and has not answered yet: the evaluation cannot go on."""

    def __init__(
        self, site: int, function: Function, arguments: Sequence[Value], asking: Asking, waits_for: object
    ) -> None:
        super().__init__(site)
        self.site = site
        self.function = function
        self.arguments = arguments
        self._asking = asking
        self._waits_for = waits_for

    @coroutine
    def answer(self) -> Generator[object, object, Result]:
        """Go on with the call where it stopped, to its answer."""
        waits_for = self._waits_for
        while True:
            try:
                try:
                    yield waits_for
                except BaseException as error:
                    waits_for = self._asking.throw(error)
                else:
                    waits_for = self._asking.send(None)
            except StopIteration as done:
                result: Result = done.value
                return result


def question_text(function: Function, arguments: Sequence[Value]) -> str:
    """A call as the trace tells it: `key_exists('friends', 'example.org')`."""
    told = [f"'{argument}'" if type(argument) is str else text(argument) for argument in arguments]
    return f"{function.name}({', '.join(told)})"


@dataclass(frozen=True, slots=True)
class Branch:
    """`then` or `else` of a choice; the last branch has no condition."""

    condition: Node | None
    value: Node

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Its trees in the order of evaluation."""
        return (self.value,) if self.condition is None else (self.condition, self.value)


def build(branches: tuple[Branch, ...]) -> Run:
    """One function for all branches: the value of the first whose condition is true."""
    last = compiled(branches[-1].value)
    if len(branches) == 1:
        return last
    conditional = tuple(
        (compiled(branch.condition), compiled(branch.value)) for branch in branches if branch.condition is not None
    )

    def run(frame: Frame) -> Result:
        for condition, value in conditional:
            frame.captures = None
            holds = condition(frame)
            if isinstance(holds, Unknown):
                return holds
            if holds:
                return value(frame)
        frame.captures = None
        return last(frame)

    return run


def compiled(node: Node) -> Run:
    """The closure of one resolved tree."""
    match node:
        case Literal():
            value = node.value
            return lambda frame: value
        case Read():
            return _read(node)
        case Capture():
            return _capture(node.group)
        case Array():
            return _strict(lambda *elements: elements, tuple(map(compiled, node.elements)))
        case Index():
            return _strict(operate.element, (compiled(node.base), compiled(node.at)))
        case Unary():
            return (
                _not(compiled(node.operand))
                if node.operator == "!"
                else _strict(operate.negate, (compiled(node.operand),))
            )
        case Binary():
            return _binary(node)
        case Logic():
            return _logic(node)
        case Apply():
            apply = node.function.apply
            if apply is None:
                raise TypeError(f"{node.function.name} computes nothing")
            return _strict(mapped(apply) if node.function.maps else apply, tuple(map(compiled, node.arguments)))
        case Match():
            return _match(node)
        case Either():
            return _either(compiled(node.condition), compiled(node.yes), compiled(node.no))
        case Ask():
            return _ask(node)
        case Word() | Call():
            raise TypeError(f"{node.name} was not resolved")


def _read(node: Read) -> Run:
    return operator.attrgetter(f"scope.{node.variable.attribute}")


def _capture(group: int) -> Run:
    def run(frame: Frame) -> Result:
        found = frame.captures
        if found is None or group > found.re.groups:
            return ""
        return found[group] or ""

    return run


def _not(operand: Run) -> Run:
    def run(frame: Frame) -> Result:
        value = operand(frame)
        if isinstance(value, Unknown):
            return value
        return 0 if value else 1

    return run


def _logic(node: Logic) -> Run:
    operands = tuple(map(compiled, node.operands))
    decides = node.operator == "|"
    decided, otherwise = (1, 0) if decides else (0, 1)

    def run(frame: Frame) -> Result:
        unknown: Unknown | None = None
        for operand in operands:
            value = operand(frame)
            if isinstance(value, Unknown):
                if unknown is None:
                    unknown = value
            elif bool(value) is decides:
                return decided
        return otherwise if unknown is None else unknown

    return run


_EXACT: dict[str, Callable[[Value, Value], Value]] = {
    "+": operate.add,
    "-": operate.subtract,
    "*": operate.multiply,
    "/": operate.divide,
    "=": lambda left, right: 1 if operate.equal(left, right) else 0,
    "!=": lambda left, right: 0 if operate.equal(left, right) else 1,
    "<": lambda left, right: 1 if operate.order(left, right) < 0 else 0,
    "<=": lambda left, right: 1 if operate.order(left, right) <= 0 else 0,
    ">": lambda left, right: 1 if operate.order(left, right) > 0 else 0,
    ">=": lambda left, right: 1 if operate.order(left, right) >= 0 else 0,
    "^": lambda left, right: 1 if bool(left) is not bool(right) else 0,
}


def _binary(node: Binary) -> Run:
    if node.operator in ("=", "!=") and isinstance(node.right, Literal) and isinstance(node.right.value, str):
        return _is_text(compiled(node.left), node.right.value, node.operator == "=")
    return _strict(_EXACT[node.operator], (compiled(node.left), compiled(node.right)))


def _is_text(operand: Run, wanted: str, same: bool) -> Run:
    """The commonest comparison, `variable = 'text'`."""
    yes, no = (1, 0) if same else (0, 1)

    def run(frame: Frame) -> Result:
        value = operand(frame)
        if isinstance(value, str):
            return yes if value == wanted else no
        if isinstance(value, Unknown):
            return value
        return yes if operate.equal(value, wanted) else no

    return run


def _strict(apply: Callable[..., Value], operands: tuple[Run, ...]) -> Run:
    """A call that is unknown as soon as one operand is; the leftmost unknown is the result."""
    if len(operands) == 1:
        return _strict_one(apply, operands[0])
    if len(operands) == 2:
        return _strict_two(apply, *operands)

    def run(frame: Frame) -> Result:
        values: list[Value] = []
        unknown: Unknown | None = None
        for operand in operands:
            value = operand(frame)
            if not isinstance(value, Unknown):
                values.append(value)
            elif unknown is None:
                unknown = value
        return apply(*values) if unknown is None else unknown

    return run


def _strict_one(apply: Callable[..., Value], operand: Run) -> Run:
    def run(frame: Frame) -> Result:
        value = operand(frame)
        return value if isinstance(value, Unknown) else apply(value)

    return run


def _strict_two(apply: Callable[..., Value], left: Run, right: Run) -> Run:
    def run(frame: Frame) -> Result:
        one = left(frame)
        other = right(frame)
        if isinstance(one, Unknown):
            return one
        return other if isinstance(other, Unknown) else apply(one, other)

    return run


def _match(node: Match) -> Run:
    subject = compiled(node.subject)
    search = node.pattern.search

    def run(frame: Frame) -> Result:
        # The subject may be a capture of the matches() before this one.
        value = subject(frame)
        frame.captures = None
        if isinstance(value, Unknown):
            return value
        searched = value if isinstance(value, str) else text(value)
        if len(searched) > LONGEST_SUBJECT:
            return Unknown("matches", f"a text of {len(searched)} characters, more than {LONGEST_SUBJECT}")
        frame.captures = search(searched)
        return 0 if frame.captures is None else 1

    return run


def _either(condition: Run, yes: Run, no: Run) -> Run:
    def run(frame: Frame) -> Result:
        holds = condition(frame)
        one = yes(frame)
        other = no(frame)
        if not isinstance(holds, Unknown):
            return one if holds else other
        if isinstance(one, Unknown) or isinstance(other, Unknown):
            return holds
        # `=` would take 'abc' and 0 for the same.
        return one if operate.sort_key(one) == operate.sort_key(other) else holds

    return run


def _ask(node: Ask) -> Run:
    operands = tuple(map(compiled, node.arguments))
    site, function = node.site, node.function
    ask = function.ask
    if ask is None:
        raise TypeError(f"{function.name} asks nobody")

    def run(frame: Frame) -> Result:
        values: list[Value] = []
        unknown: Unknown | None = None
        for operand in operands:
            value = operand(frame)
            if not isinstance(value, Unknown):
                values.append(value)
            elif unknown is None:
                unknown = value
        if unknown is not None:
            return unknown
        answer = frame.answers.get(site)
        if answer is not None:
            return answer
        if frame.scope is None:
            raise TypeError(f"{function.name} needs a scope to ask in")
        # Most answers are there at once: the call is started by hand, and only one
        # that really waits costs an exception and a second evaluation.
        asking = ask(frame.scope.outside, tuple(values))
        try:
            waits_for = asking.send(None)
        except StopIteration as done:
            answered: Result = done.value
            frame.answers[site] = answered
            frame.asked.append((function, values, answered))
            return answered
        raise Waiting(site, function, values, asking, waits_for)

    return run
