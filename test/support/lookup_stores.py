"""Stores for tests: their connections are used where they are asked."""

from functools import partial

from mailgate.lookup.opening import OWN
from mailgate.lookup.sqlite import SqliteConnection
from mailgate.lookup.store import StoreError
from mailgate.mail.unknown import Unknown

# Nothing listens on port 1.
DEAD_STORE = '[store."down"]\ntype = "redis"\nurls = "redis://127.0.0.1:1"\n'


class InPlace:
    """`Connections` without threads: one connection, used there and then."""

    def __init__(self, id, connect):
        self.id = id
        self.connect = connect
        self.connection = None
        self.uses = 0

    async def use(self, work):
        self.uses += 1
        try:
            if self.connection is None:
                self.connection = self.connect()
            return work(self.connection)
        except StoreError as error:
            self.connection = None
            return Unknown(f"store {self.id}", str(error))


def in_place(id, connect, limits):
    """Opens stores in place; mailgate's own is kept in memory, the store `down` is not there."""
    return InPlace(id, {OWN: partial(SqliteConnection, ":memory:", 10.0), "down": refused}.get(id, connect))


def refused():
    """Connects to a port where nothing listens."""
    raise StoreError("connection refused")
