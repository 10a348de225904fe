"""What can be computed before anything is read: at load, and once more where some variables are known.

A folded tree says the same as the tree it was made from, in every scope. Only what
nobody needs to ask any more is left out: Kleene's `U & 0` is 0 without asking.
"""

from __future__ import annotations

from collections.abc import Mapping

from mailgate.expr.evaluate import Branch, Frame, Run, build, compiled
from mailgate.expr.node import Ask, Capture, Either, Literal, Logic, Match, Node, Read, children, walk, with_children
from mailgate.expr.value import Type, Value, type_of
from mailgate.mail.unknown import Unknown


def fold_branches(branches: tuple[Branch, ...], known: Mapping[str, Value]) -> tuple[Branch, ...]:
    """Compute what can be: values of `known` variables are put in, branches that cannot be reached fall away."""
    parts = [node for branch in branches for part in branch.nodes for node in walk(part)]
    captures = any(isinstance(node, Capture) for node in parts)
    folded: list[Branch] = []
    for branch in branches:
        condition = None if branch.condition is None else _fold(branch.condition, known, captures)
        if isinstance(condition, Literal):
            if not condition.value:
                continue
            condition = None
        folded.append(Branch(condition, _fold(branch.value, known, captures)))
        if condition is None:
            break
    kept = tuple(folded)
    if any(isinstance(node, (Read, Ask)) for branch in kept for part in branch.nodes for node in walk(part)):
        return kept
    value = _computed(build(kept))
    return kept if value is None else (Branch(None, value),)


def _computed(run: Run) -> Literal | None:
    result = run(Frame(None))
    # Without anything read, only a text too long for matches() is unknown.
    return None if isinstance(result, Unknown) else Literal(result, type_of(result))


def _fold(node: Node, known: Mapping[str, Value], captures: bool) -> Node:
    if isinstance(node, Literal):
        return node
    if isinstance(node, Read):
        if node.variable.name not in known:
            return node
        value = known[node.variable.name]
        return Literal(int(value) if isinstance(value, bool) else value, type_of(value))
    node = with_children(node, tuple(_fold(child, known, captures) for child in children(node)))
    if isinstance(node, Logic):
        return _fold_logic(node, captures)
    if isinstance(node, Either) and isinstance(node.condition, Literal):
        return node.yes if node.condition.value else node.no
    if isinstance(node, (Capture, Ask)) or (captures and isinstance(node, Match)):
        return node
    if all(isinstance(child, Literal) for child in children(node)):
        return _computed(compiled(node)) or node
    return node


def _fold_logic(node: Logic, captures: bool) -> Node:
    """A known side that decides does so wherever it stands: Kleene's `U & 0` is 0."""
    decides = node.operator == "|"
    literals = [operand for operand in node.operands if isinstance(operand, Literal)]
    others = tuple(operand for operand in node.operands if not isinstance(operand, Literal))
    decided = any(bool(literal.value) is decides for literal in literals)
    if not others:
        return Literal(int(decides if decided else not decides), Type.INTEGER)
    if not decided:
        return Logic(node.operator, others)
    if captures and any(isinstance(below, Match) for other in others for below in walk(other)):
        # Its captures may be used by what is around this node.
        return node
    return Literal(int(decides), Type.INTEGER)
