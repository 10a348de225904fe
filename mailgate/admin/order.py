"""A change of the queue as it goes through the control socket: what is ordered, about which recipients.

An order may be about any number of messages. It is carried out page by page,
each a request of its own, so that neither side holds more than a page, the
operator sees how far it has come, and whoever interrupts it stops it:

    {"action": "hold", "selection": {"domain": "example.org"}, "all": false, "reason": "..."}
    {"matched": 2000, "changed": 2310, "ids": [...], "held": 0, "unknown": [], "after": ID, "until": ID}

`after` is absent in the answer to the last page; the others are asked for with
the `after` and `until` of the page before. `until` is the newest message at the
beginning: an order never runs after the mail that comes in meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mailgate.queue.operate import Action, Order
from mailgate.queue.selection import Selection, as_document, is_text, of_document

COMMAND = "queue.change"
PAGE_MESSAGES = 2000
MAX_IDS = 2000
"""Ids that one request may name."""
_LAST = 2**63 - 1


class BadOrder(ValueError):
    """What was sent is no order; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One request: an order, whom it is about, and where it goes on."""

    order: Order
    selection: Selection
    everything: bool = False
    dry_run: bool = False
    after: int = -1
    until: int | None = None

    def arguments(self) -> dict[str, object]:
        """As it is sent."""
        order = self.order
        given: dict[str, object] = {
            "action": order.action.value,
            "selection": as_document(self.selection),
            "all": self.everything,
            "after": self.after,
            "dry_run": self.dry_run,
            "notify": order.notify,
            "reason": order.reason,
        }
        for name, value in (("at", order.at_ms), ("route", order.route), ("until", self.until)):
            if value is not None:
                given[name] = value
        return given


def read_page(given: Mapping[str, object], actor: str) -> Page:
    """The request somebody sent. Raises `BadOrder`."""
    try:
        action = Action(given.get("action"))
        selection = given.get("selection")
        if not isinstance(selection, dict):
            raise ValueError("selection is a table")
        page = Page(
            order=Order(
                action=action,
                at_ms=_number(given, "at"),
                route=_text(given, "route"),
                notify=given.get("notify") is True,
                actor=actor,
                reason=_text(given, "reason") or "",
            ),
            selection=of_document(selection),
            everything=given.get("all") is True,
            dry_run=given.get("dry_run") is True,
            after=-1 if given.get("after") is None else _number(given, "after") or 0,
            until=_number(given, "until"),
        )
    except ValueError as bad:
        raise BadOrder(str(bad)) from None
    if page.selection.is_everything and not page.everything:
        raise BadOrder("name messages by id or selector, or all of them with --all")
    return page


def _number(given: Mapping[str, object], name: str) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not -1 <= value <= _LAST:
        raise ValueError(f"{name} is a number")
    return value


def _text(given: Mapping[str, object], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} is a text")
    if value is not None and not is_text(value):
        raise ValueError(f"{name} is no UTF-8 text")
    return value
