"""Names to what they stand for, and the type a tree certainly has.

Every name of an expression is looked up here, once, when the configuration is
loaded: variables against the key's context, constants of its kind, functions and
their arity, regular expressions, `config_get`. All errors of a tree are collected.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import timedelta

from mailgate.expr.error import ExpressionError
from mailgate.expr.functions.function import Function
from mailgate.expr.functions.registry import FUNCTIONS
from mailgate.expr.node import (
    Apply,
    Array,
    Ask,
    Binary,
    Call,
    Capture,
    Either,
    Literal,
    Logic,
    Match,
    Node,
    Read,
    Unary,
    Word,
    children,
    with_children,
)
from mailgate.expr.regex import compile_pattern
from mailgate.expr.scope import NAMES, Context, available, find, nearest
from mailgate.expr.value import BadValue, Type, Value, type_of


@dataclass(frozen=True, slots=True)
class Environment:
    """What the configuration tells expressions while it is being loaded.

    `config_get` gives the effective value of a key, None where it is declared
    but unset; it raises `LookupError` for a key that is not declared. `keys` are
    the declared keys, for "did you mean".
    """

    config_get: Callable[[str], object]
    keys: Collection[str] = ()


@dataclass(slots=True)
class Resolution:
    """Resolves the trees of one choice and keeps what it finds on the way."""

    context: Context
    words: tuple[str, ...]
    """Constants of the key's kind."""
    environment: Environment
    errors: list[ExpressionError] = field(default_factory=list)
    literals: list[tuple[str, str]] = field(default_factory=list)
    """Names of stores and directories that are written out."""
    asked: int = 0
    """Calls so far that ask outside."""

    def resolve(self, node: Node) -> Node:
        """The same tree without `Word` and `Call`; where that is not possible an error is kept."""
        match node:
            case Word():
                return self._word(node)
            case Call():
                return self._call(node)
            case _:
                return with_children(node, tuple(self.resolve(child) for child in children(node)))

    def _word(self, word: Word) -> Node:
        if variable := find(word.name, self.context):
            return Read(variable)
        if word.name in self.words:
            return Literal(word.name, Type.STRING)
        self.errors.append(self._unknown_word(word))
        return Literal(0, Type.ANY)

    def _unknown_word(self, word: Word) -> ExpressionError:
        name = word.name
        here = ", ".join((*available(self.context), *self.words))
        if name in FUNCTIONS:
            return ExpressionError(f"{name} is a function", f"write {FUNCTIONS[name].signature}", word.column)
        if name in NAMES:
            return ExpressionError(
                f"{name} is not available at {self.context.value}", f"available: {here}", word.column
            )
        likely = nearest(name, (*self.words, *available(self.context)))
        meant = f"did you mean {likely}?" if likely else f"write '{name}' in quotes for a text;"
        return ExpressionError(f"no variable or constant {name}", f"{meant} available: {here}", word.column)

    def _call(self, call: Call) -> Node:
        function = FUNCTIONS.get(call.name)
        if function is None:
            likely = nearest(call.name, FUNCTIONS)
            advice = (
                f"did you mean {FUNCTIONS[likely].signature}?"
                if likely
                else "the functions are listed in expressions.md"
            )
            self.errors.append(ExpressionError(f"no function {call.name}", advice, call.column))
        elif len(call.arguments) != len(function.parameters):
            wanted = len(function.parameters)
            self.errors.append(
                ExpressionError(
                    f"{call.name} takes {wanted} argument{'s' if wanted != 1 else ''}, not {len(call.arguments)}",
                    f"write {function.signature}",
                    call.column,
                )
            )
        else:
            return self._known_call(function, call)
        for argument in call.arguments:
            self.resolve(argument)
        return Literal(0, Type.ANY)

    def _known_call(self, function: Function, call: Call) -> Node:
        if function.name == "config_get":
            return self._config_value(call)
        arguments = tuple(self.resolve(argument) for argument in call.arguments)
        if function.name == "matches":
            return self._match(call, arguments[1])
        if function.name == "if_then":
            return Either(*arguments)
        if function.ask is None:
            return Apply(function, arguments)
        if function.names and isinstance(first := arguments[0], Literal):
            if isinstance(first.value, str):
                self.literals.append((function.names, first.value))
            elif first.type is not Type.ANY:
                self.errors.append(
                    ExpressionError(
                        f"{function.name} wants the name of a {function.names}", "write it in quotes", call.column
                    )
                )
        self.asked += 1
        return Ask(function, arguments, self.asked)

    def _match(self, call: Call, subject: Node) -> Node:
        pattern = call.arguments[0]
        if not isinstance(pattern, Literal) or pattern.type is not Type.STRING or pattern.written is None:
            self.errors.append(
                ExpressionError(
                    "the first argument of matches is not a text", "write the regular expression in quotes", call.column
                )
            )
            return Literal(0, Type.ANY)
        try:
            return Match(compile_pattern(pattern.written), subject)
        except BadValue as bad:
            self.errors.append(ExpressionError(bad.problem, bad.advice, call.column))
            return Literal(0, Type.ANY)

    def _config_value(self, call: Call) -> Node:
        key = call.arguments[0]
        if not isinstance(key, Literal) or not isinstance(key.value, str):
            self.errors.append(
                ExpressionError(
                    "config_get wants a key that is written out", "write config_get('server.hostname')", call.column
                )
            )
            return Literal(0, Type.ANY)
        try:
            value = config_value(self.environment.config_get(key.value))
        except LookupError:
            likely = nearest(key.value, self.environment.keys)
            advice = (
                f"did you mean {likely}?" if likely else "use the full name of a key, for example 'server.hostname'"
            )
            self.errors.append(ExpressionError(f"config_get: no key {key.value}", advice, call.column))
            return Literal(0, Type.ANY)
        return Literal(value, type_of(value))


def config_value(found: object) -> Value:
    """A configuration value as expressions see it: durations in milliseconds, nothing as the empty text."""
    if isinstance(found, bool):
        return int(found)
    if isinstance(found, (str, int, float)):
        return found
    if isinstance(found, timedelta):
        return found // timedelta(milliseconds=1)
    if isinstance(found, (list, tuple)):
        return tuple(config_value(element) for element in found)
    return "" if found is None else str(found)


def static_type(node: Node) -> Type:
    """All types the value of a resolved tree may have, as far as it shows at load."""
    match node:
        case Literal():
            return node.type
        case Read():
            return node.variable.type
        case Capture():
            return Type.STRING
        case Array():
            return Type.ARRAY
        case Logic() | Match():
            return Type.INTEGER
        case Unary():
            return Type.INTEGER if node.operator == "!" else Type.INTEGER | Type.FLOAT
        case Binary():
            return _binary_type(node)
        case Either():
            return static_type(node.yes) | static_type(node.no)
        case Apply():
            return _applied_type(node)
        case Ask():
            return node.function.returns
        case _:
            return Type.ANY


def _applied_type(node: Apply) -> Type:
    returns = node.function.returns
    if not node.function.maps:
        return returns
    first = static_type(node.arguments[0])
    if first == Type.ARRAY:
        return Type.ARRAY
    return returns | (first & Type.ARRAY)


def _binary_type(node: Binary) -> Type:
    if node.operator not in "+-*/":
        return Type.INTEGER
    if node.operator == "/":
        return Type.FLOAT
    left, right = static_type(node.left), static_type(node.right)
    if node.operator == "*":
        return Type.INTEGER | Type.FLOAT
    if node.operator == "-":
        if left == Type.ARRAY:
            return Type.ARRAY
        return Type.INTEGER | Type.FLOAT | (left & Type.ARRAY)
    if Type.ARRAY in (left, right):
        return Type.ARRAY
    # A sum has the type of either side: an empty text leaves the other as it is. Text wins over numbers.
    either = left | right
    if either & Type.DURATION:
        either |= Type.INTEGER
    if not either & Type.STRING and not either & Type.ARRAY:
        return Type.INTEGER | Type.FLOAT if either & Type.FLOAT else Type.INTEGER
    return either
