"""How deliveries tell what they do: event names with fields, into the log."""

from __future__ import annotations

from typing import Protocol

from twisted.logger import LogLevel

from mailgate.net.log import EventLog

_log = EventLog(namespace="mailgate.deliver")

_LEVELS = {
    "queue.content-not-found": LogLevel.error,
    "delivery.internal-error": LogLevel.error,
    "delivery.in-doubt": LogLevel.warn,
    "delivery.auth-in-clear": LogLevel.warn,
    "delivery.auth": LogLevel.debug,
    "delivery.connection-reused": LogLevel.debug,
}


class Emit(Protocol):
    """Takes one event by its name (`delivery.connect`) and fields; must not fail, wait or keep secrets."""

    def __call__(self, event: str, /, **fields: object) -> None:
        """Record one event. Every field's text form must be safe to print."""
        ...


def log(event: str, /, **fields: object) -> None:
    """Write an event to the log; fields that are None are left out."""
    told = {name: value for name, value in fields.items() if value is not None}
    _log.emit(_LEVELS.get(event, LogLevel.info), "{event}", event=event, **told)
