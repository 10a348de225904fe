"""One line for each event: time, level, event name, then `key=value` pairs.

    2026-11-20T11:00:00.123Z info queue.queue-message queueId=01a2... trace=k3v7... to=[a@b.test]

The rooms log through Twisted's logger with the fields of an event; this
observer is what writes them. A value with white space, quotes or an equals
sign in it is quoted as JSON; control characters cannot break a line. What
libraries log as a text becomes `log text=...`. Tracebacks follow indented.

While the reactor runs, lines of level info are written at the end of its turn,
together: made one after the other they cost half of what each costs by itself.
What is worse than info is written at once, after what waits.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from threading import RLock
from typing import Protocol

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.failure import Failure
from twisted.python.threadable import isInIOThread
from zope.interface import implementer

# What Twisted puts into every event beside ours.
_INTERNAL = frozenset(
    {
        "event",
        "log_format",
        "log_level",
        "log_logger",
        "log_namespace",
        "log_source",
        "log_system",
        "log_time",
        "log_failure",
        "log_text",
        "log_trace",
        "log_flattened",
        "log_io",
        "isError",
        "failure",
        "why",
        "message",
        "time",
        "system",
        "format",
        "logLevel",
        "printed",
        "log_legacy",
    }
)
# Printable ASCII without white space, quotes and the equals sign.
_is_plain = re.compile(r"[!#-<>-~]+").fullmatch


LOG_FILE = "MAILGATE_LOG_FILE"
"""The environment variable `tap.py` names the log file in; empty for standard output."""

# How long lines may still go to a file that was moved away.
_LOOK_SECONDS = 1.0
# As many octets wait, whole, for a file that cannot be written: what is written past its buffer can be cut in a line.
_BUFFER_OCTETS = 1024 * 1024
# The most events of a turn that wait for its end.
_WAITING = 500


class Sink(Protocol):
    """Where lines go."""

    def write(self, text: str, /) -> int:
        """Take a line."""
        ...

    def flush(self) -> None:
        """Hand on what was written."""
        ...


class ReopenedFile:
    """A log file that is begun anew when somebody has moved it away (logrotate): no signal is needed."""

    def __init__(self, path: str, now: Callable[[], float] = time.monotonic) -> None:
        """Raises `OSError` when it cannot be opened."""
        self._path = path
        self._now = now
        self._looked = now()
        self._open()

    def _open(self) -> None:
        # Readable for the group, as the other logs of a system are.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._file = os.fdopen(descriptor, "w", _BUFFER_OCTETS, encoding="utf-8", errors="backslashreplace")
        found = os.fstat(descriptor)
        self._is = (found.st_dev, found.st_ino)

    def write(self, text: str, /) -> int:
        """Append a line."""
        now = self._now()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._follow()
        return self._file.write(text)

    def _follow(self) -> None:
        try:
            found = os.stat(self._path)
            if (found.st_dev, found.st_ino) == self._is:
                return
        except FileNotFoundError:
            pass
        except OSError:
            return
        try:
            old = self._file
            self._open()
            old.close()
        except OSError:
            # The directory may be away for a moment: the old file goes on.
            return

    def flush(self) -> None:
        """Hand on what was written."""
        self._file.flush()


class Turn(Protocol):
    """What is going on while events are told."""

    def goes_on(self) -> bool:
        """True while whoever tells an event has more to do."""
        ...

    def at_its_end(self, call: Callable[[], None]) -> None:
        """Have something called then."""
        ...


class ReactorTurn:
    """A turn of the reactor, where one runs and is what this thread is for."""

    def goes_on(self) -> bool:
        """True on the thread of a running reactor."""
        # Importing it would choose the reactor, which is twistd's to do.
        reactor = sys.modules.get("twisted.internet.reactor")
        return reactor is not None and reactor.running and isInIOThread()

    def at_its_end(self, call: Callable[[], None]) -> None:
        """Have something called when the reactor is through with what is ready."""
        sys.modules["twisted.internet.reactor"].callLater(0, call)


def observer() -> LineObserver:
    """The observer twistd installs: standard output, or the file `LOG_FILE` names."""
    path = os.environ.get(LOG_FILE, "")
    return LineObserver(ReopenedFile(path) if path else sys.stdout, turn=ReactorTurn())


@implementer(ILogObserver)
class LineObserver:
    """Writes events to a text file, one line each."""

    def __init__(self, out: Sink, *, debug: bool = False, turn: Turn | None = None) -> None:
        """`debug` writes events of level debug too.

        With `turn`, events of level info are written at its end; their fields must stay as they are until then.
        """
        self._out = out
        self._debug = debug
        self._turn = turn
        self._waiting: list[LogEvent] = []
        # Other threads log as well.
        self._lock = RLock()
        self._second = -1
        self._stamp = ""

    def __call__(self, event: LogEvent) -> None:
        """Write one event."""
        level = event.get("log_level", LogLevel.info)
        if level is LogLevel.debug and not self._debug:
            return
        with self._lock:
            if level is not LogLevel.info or self._turn is None or not self._turn.goes_on():
                self._write_out(event)
                return
            if not self._waiting:
                self._turn.at_its_end(self._write_waiting)
            self._waiting.append(event)
            if len(self._waiting) >= _WAITING:
                self._write_out()

    def _write_waiting(self) -> None:
        with self._lock:
            try:
                self._write_out()
            except (OSError, ValueError):
                # A full disk, a pipe without a reader, a closed file. The reactor would log each turn's failure here.
                return

    def _write_out(self, *last: LogEvent) -> None:
        events, self._waiting = self._waiting, []
        events += last
        if not events:
            # They were written along with something worse.
            return
        line = self.line
        try:
            text = "".join([line(event, event.get("log_level", LogLevel.info).name) for event in events])
        except Exception:
            text = "".join([self._line_or_why(event) for event in events])
        self._out.write(text)
        self._out.flush()

    def _line_or_why(self, event: LogEvent) -> str:
        """One event, or that it cannot be shown: the others are worth more than it is."""
        try:
            return self.line(event, event.get("log_level", LogLevel.info).name)
        except Exception as error:
            said: LogEvent = {
                "log_time": time.time(),
                "log_format": "an event that cannot be shown: {error}",
                "log_namespace": event.get("log_namespace"),
                "error": type(error).__name__,
            }
            return self.line(said, LogLevel.error.name)

    def line(self, event: LogEvent, level: str) -> str:
        """One event as a line, newline included."""
        name = event.get("event")
        parts = [self._time(event.get("log_time", 0.0)), level, str(name) if name else "log"]
        if name is None:
            parts.append("text=" + value_text(formatEvent(event)))
            namespace = event.get("log_namespace")
            if namespace:
                parts.append("from=" + value_text(namespace))
        else:
            for key, value in event.items():
                if key not in _INTERNAL:
                    parts.append(f"{key}={value if type(value) is str and _is_plain(value) else value_text(value)}")
        text = " ".join(parts) + "\n"
        failure = event.get("log_failure") or event.get("failure")
        if isinstance(failure, Failure):
            text += "".join(f"    {_shown(row)}\n" for row in failure.getTraceback().splitlines())
        return text

    def _time(self, epoch_seconds: float) -> str:
        second = int(epoch_seconds)
        if second != self._second:
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._stamp}.{int((epoch_seconds - second) * 1000):03d}Z"


def value_text(value: object) -> str:
    """One value for a log line: plain where it can be, else in JSON's quotes."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return "[" + ",".join(value_text(each) for each in value) + "]"
    text = value if isinstance(value, str) else _text(value)
    if _is_plain(text):
        return text
    return json.dumps(text, ensure_ascii=True)


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception as error:
        # An event is worth more than one value in it.
        return f"{type(value).__name__} that cannot be shown: {type(error).__name__}"


def _shown(row: str) -> str:
    """A row of a traceback, which may quote anything a client has sent."""
    return row if row.isascii() and row.isprintable() else ascii(row)[1:-1]
