"""Tokens to a tree, by precedence.

From what binds most: index and call, `!` and unary `-`, `* /`, `+ -`, `< <= > >=`,
`= !=`, `^`, `&`, `|`. Binary operators are left-associative. Chains of one of
`&` and `|` become one node.
"""

from __future__ import annotations

from mailgate.expr.error import ExpressionError
from mailgate.expr.node import Array, Binary, Call, Capture, Index, Literal, Logic, Node, Unary, Word, children
from mailgate.expr.token import Kind, Token, tokens
from mailgate.expr.value import Type

_PRECEDENCE = {
    "*": 7, "/": 7,
    "+": 6, "-": 6,
    ">": 5, ">=": 5, "<": 5, "<=": 5,
    "=": 4, "!=": 4,
    "^": 3,
    "&": 2,
    "|": 1,
}  # fmt: skip
_NEST = 40
"""Brackets, calls and unary operators within each other: the parser's own recursion."""
_DEEPEST = 100
"""Levels of the finished tree: what every later pass and the evaluation recurse over."""
_WRITTEN_OUT = {"and": "&&", "or": "||", "not": "!", "xor": "^", "is": "=", "eq": "=", "ne": "!=", "in": "contains()"}


def parse(written: str) -> Node:
    """The tree of an expression; raises `ExpressionError`, and nothing else, whatever the text."""
    parser = _Parser(tokens(written))
    node = parser.binary(1)
    parser.end()
    if _depth(node) > _DEEPEST:
        raise _too_deep(None)
    return node


def _too_deep(column: int | None) -> ExpressionError:
    return ExpressionError(
        "the expression is nested too deep", "split it into several conditions, or keep lists in a store", column
    )


def _depth(node: Node) -> int:
    """Levels of a tree, found without recursion."""
    depth, level = 0, [node]
    while level:
        depth += 1
        level = [child for parent in level for child in children(parent)]
    return depth


class _Parser:
    """Reads one expression; each method leaves `at` behind what it took."""

    def __init__(self, found: list[Token]) -> None:
        self.tokens = found
        self.at = 0
        self.nest = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def takes(self, text: str) -> bool:
        """Take an operator if it comes next."""
        token = self.next
        if token.kind is Kind.OPERATOR and token.text == text:
            self.at += 1
            return True
        return False

    def binary(self, least: int) -> Node:
        """Operands joined by operators of at least this precedence."""
        left = self.unary()
        while (token := self.next).kind is Kind.OPERATOR:
            precedence = _PRECEDENCE.get(token.text, 0)
            if precedence < least:
                break
            self.at += 1
            right = self.binary(precedence + 1)
            left = _joined(token.text, left, right)
        return left

    def unary(self) -> Node:
        token = self.next
        if token.kind is Kind.OPERATOR and token.text in "!-":
            self.at += 1
            self.deeper(token)
            operand = self.unary()
            self.nest -= 1
            return Unary(token.text, operand)
        return self.indexed()

    def indexed(self) -> Node:
        node = self.operand()
        while self.takes("["):
            opening = self.tokens[self.at - 1]
            self.deeper(opening)
            at = self.binary(1)
            self.nest -= 1
            self.close("]", opening)
            node = Index(node, at)
        return node

    def operand(self) -> Node:
        token = self.next
        self.at += 1
        match token.kind:
            case Kind.LITERAL:
                return Literal(token.value, token.type, token.written)
            case Kind.CAPTURE:
                return Capture(int(token.text[1:]))
            case Kind.WORD if token.text in ("true", "false"):
                return Literal(int(token.text == "true"), Type.INTEGER)
            case Kind.WORD:
                if self.takes("("):
                    return Call(token.text, self.listed(")"), token.column)
                return Word(token.text, token.column)
        if token.text == "(":
            self.deeper(token)
            node = self.binary(1)
            self.nest -= 1
            self.close(")", token)
            return node
        if token.text == "[":
            return Array(self.listed("]"))
        self.at -= 1
        raise ExpressionError(
            f"a value is missing before {token.shown}", "write a variable, a text in quotes, a number or a function",
            token.column,
        )  # fmt: skip

    def listed(self, closing: str) -> tuple[Node, ...]:
        """Values between commas, behind the opening bracket and up to its end."""
        opening = self.tokens[self.at - 1]
        found: list[Node] = []
        if self.takes(closing):
            return ()
        self.deeper(opening)
        while True:
            found.append(self.binary(1))
            if not self.takes(","):
                break
        self.nest -= 1
        self.close(closing, opening)
        return tuple(found)

    def deeper(self, token: Token) -> None:
        self.nest += 1
        if self.nest > _NEST:
            raise _too_deep(token.column)

    def close(self, closing: str, opening: Token) -> None:
        if not self.takes(closing):
            self.unexpected(f"{closing} is missing for the {opening.text} in column {opening.column}")

    def end(self) -> None:
        if self.next.kind is not Kind.END:
            self.unexpected("an operator is missing")

    def unexpected(self, problem: str) -> None:
        token = self.next
        advice = "join values with an operator" if token.kind is not Kind.END else "complete the expression"
        if token.kind is Kind.WORD and token.text.lower() in _WRITTEN_OUT:
            advice = f"write {_WRITTEN_OUT[token.text.lower()]}"
        elif token.text in (")", "]"):
            advice = f"remove {token.text}, or open it before"
        raise ExpressionError(f"{problem} before {token.shown}", advice, token.column)


def _joined(operator: str, left: Node, right: Node) -> Node:
    if operator not in "&|":
        return Binary(operator, left, right)
    if isinstance(left, Logic) and left.operator == operator:
        return Logic(operator, (*left.operands, right))
    return Logic(operator, (left, right))
