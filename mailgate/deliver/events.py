"""How deliveries tell what they do: the port to the log."""

from __future__ import annotations

from typing import Protocol


class Emit(Protocol):
    """Takes one event by its name (`delivery.connect`) and fields; must not fail, wait or keep secrets."""

    def __call__(self, event: str, /, **fields: object) -> None:
        """Record one event. Every field's text form must be safe to print."""
        ...


def silent(event: str, /, **fields: object) -> None:
    """Tell nobody."""
