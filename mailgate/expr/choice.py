"""`Choice`: what one key says, an expression or an if/then/else list, compiled at load.

`compile_choice` checks the shape, the names, the types and the result of every
part and reports all that is wrong at once. What cannot depend on anything that
is read later is computed there and then: most choices are constants.

A condition that is unknown when its turn comes makes the choice unknown; so does
an unknown value. `on-error` says what follows: `tempfail` leaves it unknown,
`accept` and `reject` give what the key's kind declares for them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from mailgate.expr.compile import Compiler, OnError
from mailgate.expr.error import ExpressionErrors
from mailgate.expr.evaluate import Branch, Frame, Waiting, build, question_text
from mailgate.expr.fold import fold_branches
from mailgate.expr.kind import ResultKind
from mailgate.expr.node import Ask, Literal, Read, walk
from mailgate.expr.resolve import Environment, Resolution
from mailgate.expr.scope import Context, Scope
from mailgate.expr.value import Result, Type, Value
from mailgate.mail.unknown import Unknown

T = TypeVar("T")

Reads = tuple[tuple[str, object], ...]


class Rule(Protocol):
    """A choice, whatever it gives: what says why something was decided."""

    @property
    def key(self) -> str:
        """The key, as `session.mail.is-allowed`."""
        ...

    @property
    def place(self) -> str:
        """Where it is written."""
        ...

    def reads(self, scope: Scope) -> Reads:
        """The variables it names, with their values."""
        ...


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
        "_named",
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
        self._read = self._named = _reader(attributes)
        self._run = build(branches)

    @classmethod
    def constant(cls, value: T, key: str) -> Choice[T]:
        """A default built in code: always `value`."""
        kind = ResultKind("a constant", lambda _: value, Type.ANY, value)
        return cls(key, "built-in", kind, (Branch(None, Literal(0, Type.INTEGER)),))

    def __repr__(self) -> str:
        told = f"always {self._fixed[0]!r}" if self._fixed is not None else f"reads {', '.join(self.variables)}"
        return f"<Choice {self.key} at {self.place}: {told}>"

    @property
    def fixed(self) -> tuple[T] | None:
        """What a constant always says, in a tuple of its own; None where it depends on something."""
        return self._fixed

    def is_always(self, value: T) -> bool:
        """Whether this says `value` whatever happens."""
        return self._fixed is not None and self._fixed[0] == value

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
            reads += tuple([(question_text(function, given), answer) for function, given, answer in frame.asked])
        if isinstance(result, Unknown) and self.on_error is not OnError.TEMPFAIL:
            reads += (("on-error", self.on_error.value),)
        scope.note(self.key, self.place, reads, final)
        return final

    async def unrecorded(self, scope: Scope) -> T | Unknown:
        """What `value` answers, for those who keep no record of it: nothing is noted."""
        if self._fixed is not None:
            return self._fixed[0]
        frame = Frame(scope)
        result = await self._answered(scope, frame) if self._asks else self._run(frame)
        return self._unknown(result) if isinstance(result, Unknown) else self._kind(result)

    def specialise(self, known: Mapping[str, Value]) -> Choice[T]:
        """The same choice where some variables are known already, by name: a constant where nothing else is read."""
        if not known.keys() & set(self.variables):
            return self
        branches = fold_branches(self._branches, known)
        special = Choice(self.key, self.place, self._kind, branches, self.on_error, self.literals)
        special._named = self._named
        return special

    def reads(self, scope: Scope) -> Reads:
        """The variables the choice names with their values, those that `specialise` has worked in among them."""
        return self._named(scope)

    async def _answered(self, scope: Scope, frame: Frame) -> Result:
        """Evaluate anew after each answer from outside."""
        while True:
            try:
                return self._run(frame)
            except Waiting as waiting:
                answer = await waiting.answer()
                frame.answers[waiting.site] = answer
                frame.asked.append((waiting.function, waiting.arguments, answer))
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


def compile_choice(
    raw: object, *, key: str, place: str, context: Context, kind: ResultKind[T], environment: Environment
) -> Choice[T]:
    """Compile the TOML value of a key; raises `ExpressionErrors` with everything that is wrong.

    `place` is where the key is written ("mailgate.toml:31"). Evaluation happens in
    a scope that has the variables of `context`.
    """
    compiler = Compiler(kind, Resolution(context, kind.words, environment))
    branches = compiler.branches(raw)
    if compiler.errors:
        raise ExpressionErrors(compiler.errors)
    literals = tuple(dict.fromkeys(compiler.resolution.literals))
    return Choice(key, place, kind, fold_branches(branches, {}), compiler.on_error, literals)
