"""The tree of an expression.

The parser builds `Word` and `Call` for what it cannot know; `expr/resolve.py` puts
the nodes of the second part in their place. Nodes are frozen: folding builds new
ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from mailgate.expr.functions.function import Function
from mailgate.expr.regex import Pattern
from mailgate.expr.scope import Variable
from mailgate.expr.value import Type, Value

# --- from the parser ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Literal:
    """A value that is written, or was computed when the configuration was loaded."""

    value: Value
    type: Type
    written: str | None = None
    """A text as it stands between its quotes (regular expressions are taken from it), a duration with its unit."""


@dataclass(frozen=True, slots=True)
class Word:
    """An identifier: a variable or a constant."""

    name: str
    column: int


@dataclass(frozen=True, slots=True)
class Call:
    """A function by its name, not yet looked up."""

    name: str
    arguments: tuple[Node, ...]
    column: int


@dataclass(frozen=True, slots=True)
class Capture:
    """`$1`: a group of the last `matches` of the condition."""

    group: int


@dataclass(frozen=True, slots=True)
class Array:
    """`[a, b]`."""

    elements: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """`base[at]`."""

    base: Node
    at: Node


@dataclass(frozen=True, slots=True)
class Unary:
    """`!` or `-`."""

    operator: str
    operand: Node


@dataclass(frozen=True, slots=True)
class Binary:
    """Arithmetic, comparison or exclusive or, by its canonical spelling."""

    operator: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Logic:
    """A chain of one of `&` and `|`, at least two operands."""

    operator: str
    operands: tuple[Node, ...]


# --- after resolution -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Read:
    """A variable of the scope."""

    variable: Variable


@dataclass(frozen=True, slots=True)
class Apply:
    """A function that computes its value from its arguments."""

    function: Function
    arguments: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """`matches('pattern', subject)`."""

    pattern: Pattern
    subject: Node


@dataclass(frozen=True, slots=True)
class Either:
    """`if_then(condition, yes, no)`."""

    condition: Node
    yes: Node
    no: Node


@dataclass(frozen=True, slots=True)
class Ask:
    """A function that asks something outside; `site` tells the calls of one choice apart."""

    function: Function
    arguments: tuple[Node, ...]
    site: int


Node = Literal | Word | Call | Capture | Array | Index | Unary | Binary | Logic | Read | Apply | Match | Either | Ask


def children(node: Node) -> tuple[Node, ...]:
    """The nodes directly below, in the order of evaluation."""
    match node:
        case Call() | Apply() | Ask():
            return node.arguments
        case Array():
            return node.elements
        case Logic():
            return node.operands
        case Index():
            return (node.base, node.at)
        case Unary():
            return (node.operand,)
        case Binary():
            return (node.left, node.right)
        case Match():
            return (node.subject,)
        case Either():
            return (node.condition, node.yes, node.no)
        case _:
            return ()


def with_children(node: Node, below: tuple[Node, ...]) -> Node:
    """The same node over other nodes, as many as `children` gives."""
    match node:
        case Call():
            return Call(node.name, below, node.column)
        case Apply():
            return Apply(node.function, below)
        case Ask():
            return Ask(node.function, below, node.site)
        case Array():
            return Array(below)
        case Logic():
            return Logic(node.operator, below)
        case Index():
            return Index(*below)
        case Unary():
            return Unary(node.operator, *below)
        case Binary():
            return Binary(node.operator, *below)
        case Match():
            return Match(node.pattern, *below)
        case Either():
            return Either(*below)
        case _:
            return node


def walk(node: Node) -> list[Node]:
    """The node and all below it, parents first."""
    found = [node]
    for child in children(node):
        found += walk(child)
    return found
