"""A logger for events that are told for every message.

Twisted's own looks each level up in a sorted list of all levels, and hands the
fields from one call to the next by copying them; the event that comes out is
the same.
"""

from __future__ import annotations

from time import time

from twisted.logger import Logger, LogLevel

_INFO = LogLevel.info


class EventLog(Logger):
    """A `Logger` whose events cost less. Its levels are `LogLevel`'s; nobody asks whether they are."""

    def emit(self, level: LogLevel, format: str | None = None, **event: object) -> None:
        """Log an event; `event` are its fields."""
        self._tell(level, format, event)

    def info(self, format: str | None = None, **event: object) -> None:
        """Log an event at level info."""
        self._tell(_INFO, format, event)

    def _tell(self, level: LogLevel, format: str | None, event: dict[str, object]) -> None:
        event["log_logger"] = self
        event["log_level"] = level
        event["log_namespace"] = self.namespace
        event["log_source"] = None
        event["log_format"] = format
        event["log_time"] = time()
        self.observer(event)
