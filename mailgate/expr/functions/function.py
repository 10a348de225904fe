"""How a function of the expression language is declared."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from mailgate.expr.outside import Outside
from mailgate.expr.value import Result, Type, Value


@dataclass(frozen=True, slots=True)
class Function:
    """One function as operators know it, with what computes it.

    `apply` computes from known arguments, as many as there are `parameters`;
    `ask` asks outside. One of them is set; both are None for what the compiler
    itself understands (`matches`, `if_then`, `config_get`).
    """

    name: str
    parameters: tuple[str, ...]
    returns: Type
    doc: str
    apply: Callable[..., Value] | None = None
    ask: Callable[[Outside, tuple[Value, ...]], Coroutine[object, None, Result]] | None = None
    maps: bool = False
    """`apply` is given one element at a time when the first argument is an array."""
    names: str = ""
    """What the first argument names: `directory`, `store` (lists included), `key store` or `SQL store`."""

    @property
    def signature(self) -> str:
        """The call as it is written: `split(s, d)`."""
        return f"{self.name}({', '.join(self.parameters)})"


def mapped(apply: Callable[..., Value]) -> Callable[..., Value]:
    """The same function for a first argument that may be an array: it acts on each element."""

    def act(first: Value, *others: Value) -> Value:
        if isinstance(first, tuple):
            return tuple(act(element, *others) for element in first)
        return apply(first, *others)

    return act
