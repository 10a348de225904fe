"""A PostgreSQL database: the keys of rules in a table of their own, and whatever else is in it by SQL.

The doorway to `psycopg`. Statements are sent with their arguments beside them,
never put together as text; each is a transaction of its own.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg
from psycopg.conninfo import make_conninfo

from mailgate.expr.value import Value
from mailgate.lookup.sql import MOST_ROWS, TABLE, placed, result
from mailgate.lookup.store import StoreError, whole_number

_UNDEFINED_TABLE = psycopg.errors.UndefinedTable
_MADE_MEANWHILE = (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable)


@dataclass(frozen=True, slots=True)
class PostgresqlServer:
    """Where a database is, and who asks it."""

    host: str
    port: int
    database: str
    user: str | None
    password: str | None = field(repr=False)
    options: str | None
    tls: bool
    any_certificate: bool
    """With TLS, whoever the server shows itself to be."""
    connect_seconds: float
    seconds: float
    """No statement takes longer."""

    @property
    def parameters(self) -> dict[str, str | int]:
        """As libpq wants to have it."""
        milliseconds = max(int(self.seconds * 1000), 1)
        given: dict[str, str | int | None] = {
            "host": self.host,
            "port": self.port,
            "dbname": self.database,
            "user": self.user,
            "password": self.password,
            "options": f"-c statement_timeout={milliseconds} {self.options or ''}".strip(),
            "connect_timeout": max(int(min(self.connect_seconds, self.seconds)), 2),
            "tcp_user_timeout": milliseconds,
            "application_name": "mailgate",
            "client_encoding": "UTF8",
            "sslmode": "disable" if not self.tls else "require" if self.any_certificate else "verify-full",
            "sslrootcert": "system" if self.tls and not self.any_certificate else None,
        }
        return {name: value for name, value in given.items() if value is not None}


class PostgresqlConnection:
    """One connection; used on one thread."""

    def __init__(self, server: PostgresqlServer) -> None:
        """Connect and log in. Raises `StoreError`."""
        with _told(server.password):
            self._connection = psycopg.connect(
                make_conninfo("", **server.parameters), autocommit=True, cursor_factory=psycopg.RawCursor
            )
        self._password = server.password

    def get(self, key: str) -> str | None:
        """The value of `key`; None when there is none."""
        try:
            with _told(self._password, _UNDEFINED_TABLE):
                row = self._row(f"SELECT value FROM {TABLE} WHERE key = $1", key)
        except _UNDEFINED_TABLE:
            return None
        return None if row is None else str(row[0])

    def set(self, key: str, value: str) -> None:
        """Give `key` a value."""
        self._change("excluded.value", key, value)

    def counter(self, key: str) -> int:
        """The counter `key`, 0 when there is none."""
        return whole_number(self.get(key) or "0")

    def increase(self, key: str, by: int) -> int:
        """Add to the counter `key`; answers its new value."""
        return whole_number(self._change(f"({TABLE}.value::bigint + excluded.value::bigint)::text", key, str(by)))

    def query(self, statement: str, arguments: tuple[Value, ...]) -> Value:
        """Run one statement."""
        written = placed(statement, len(arguments), lambda number: f"${number}")
        with _told(self._password), self._connection.cursor() as cursor:
            cursor.execute(written.encode(), [_argument(argument) for argument in arguments])
            if cursor.nextset():
                # PostgreSQL itself says so where there are arguments.
                raise StoreError("more than one statement")
            if cursor.description is None:
                return max(cursor.rowcount, 0)
            return result(cursor.fetchmany(MOST_ROWS + 1))

    def is_usable(self) -> bool:
        """Whether the server has not hung up: a connection that nobody uses has nothing to say."""
        if self._connection.closed:
            return False
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Hang up."""
        try:
            self._connection.close()
        except psycopg.Error:
            pass

    def _change(self, value: str, key: str, given: str) -> str:
        statement = (
            f"INSERT INTO {TABLE} (key, value) VALUES ($1, $2) "
            f"ON CONFLICT (key) DO UPDATE SET value = {value} RETURNING value"
        )
        try:
            with _told(self._password, _UNDEFINED_TABLE):
                row = self._row(statement, key, given)
        except _UNDEFINED_TABLE:
            self._make_table()
            with _told(self._password):
                row = self._row(statement, key, given)
        return "" if row is None else str(row[0])

    def _make_table(self) -> None:
        try:
            with _told(self._password, *_MADE_MEANWHILE):
                self._connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {TABLE} (key text PRIMARY KEY, value text NOT NULL)".encode()
                )
        except _MADE_MEANWHILE:
            # PostgreSQL looks first and makes it then: of two at once one is told that it exists after all.
            return

    def _row(self, statement: str, *arguments: str) -> tuple[object, ...] | None:
        return self._connection.execute(statement.encode(), arguments).fetchone()


def _argument(argument: Value) -> object:
    return list(map(_argument, argument)) if isinstance(argument, tuple) else argument


@contextmanager
def _told(password: str | None, *but: type[Exception]) -> Iterator[None]:
    """Say what psycopg raises as `StoreError`, in one line and without the password."""
    try:
        yield
    except but:
        raise
    except (psycopg.Error, UnicodeError, ValueError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise StoreError(told.replace(password, "...") if password else told) from None
