"""An SQLite database: the keys of rules in a table of their own, and whatever else is in it by SQL."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mailgate.expr.value import Value
from mailgate.lookup.sql import MOST_ROWS, TABLE, placed, result
from mailgate.lookup.store import StoreError, whole_number

# Instructions of SQLite's machine between two looks at the clock.
_STEPS = 10_000


class SqliteConnection:
    """One connection; made, used and closed on one thread."""

    def __init__(self, path: str, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        """Open the file, making it when it does not exist. No statement takes longer than `seconds`."""
        self._seconds = seconds
        self._now = now
        self._until = 0.0
        with self._told():
            self._database = sqlite3.connect(path, timeout=seconds, isolation_level=None)
            self._database.set_progress_handler(self._is_late, _STEPS)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._has_table = False

    def get(self, key: str) -> str | None:
        """The value of `key`; None when there is none."""
        with self._told():
            return self._value(key)

    def set(self, key: str, value: str) -> None:
        """Give `key` a value."""
        with self._told():
            self._table()
            self._put(key, value)

    def counter(self, key: str) -> int:
        """The counter `key`, 0 when there is none."""
        with self._told():
            return whole_number(self._value(key) or "0")

    def increase(self, key: str, by: int) -> int:
        """Add to the counter `key`; answers its new value."""
        with self._told():
            self._table()
            # Others, also of other processes, wait here: nothing gets between reading and writing.
            self._database.execute("BEGIN IMMEDIATE")
            try:
                number = whole_number(str(whole_number(self._value(key) or "0") + by))
                self._put(key, str(number))
                self._database.execute("COMMIT")
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            return number

    def query(self, statement: str, arguments: tuple[Value, ...]) -> Value:
        """Run one statement."""
        if any(isinstance(argument, tuple) for argument in arguments):
            raise StoreError("an array cannot be an argument of SQLite")
        written = placed(statement, len(arguments), lambda number: f"?{number}")
        with self._told():
            cursor = self._database.execute(written, arguments)
            if cursor.description is None:
                return max(cursor.rowcount, 0)
            rows = cursor.fetchmany(MOST_ROWS + 1)
            cursor.close()
            return result(rows)

    def is_usable(self) -> bool:
        """A file does not hang up."""
        return True

    def close(self) -> None:
        """Close the file."""
        try:
            self._database.close()
        except sqlite3.Error:
            pass

    def _value(self, key: str) -> str | None:
        if not self._has_table:
            found = self._database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (TABLE,)).fetchone()
            if found is None:
                return None
            self._has_table = True
        row = self._database.execute(f"SELECT value FROM {TABLE} WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def _put(self, key: str, value: str) -> None:
        self._database.execute(
            f"INSERT INTO {TABLE} (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, value),
        )

    def _table(self) -> None:
        if not self._has_table:
            self._database.execute(
                f"CREATE TABLE IF NOT EXISTS {TABLE} (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
            )
            self._has_table = True

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say what SQLite raises as `StoreError`, and begin to count the time."""
        self._until = self._now() + self._seconds
        try:
            yield
        except (sqlite3.Error, OverflowError, UnicodeError) as error:
            raise StoreError(str(error)) from None

    def _is_late(self) -> int:
        return self._now() > self._until
