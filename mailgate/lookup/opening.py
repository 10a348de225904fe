"""Stores as the configuration has them, connected to when a rule first asks."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from mailgate.config.schema.settings import Settings
from mailgate.config.schema.storage import (
    KeyStoreSettings,
    MemoryStoreSettings,
    PostgresqlStoreSettings,
    RedisStoreSettings,
    SqlitePoolSettings,
    SqliteStoreSettings,
)
from mailgate.lookup.connections import Connections, Database, Keys, Limits
from mailgate.lookup.postgresql import PostgresqlConnection, PostgresqlServer
from mailgate.lookup.redis import RedisConnection
from mailgate.lookup.sqlite import SqliteConnection
from mailgate.lookup.store import KeyConnection, KeyStore, Stores

C = TypeVar("C", bound=KeyConnection)

OWN = "lookup.sqlite"
"""The file of the default store, beside the queue, where the configuration names none."""

# Of SQLite files: there is nothing to connect to, and no time worth waiting for a connection.
_SQLITE_KEPT = 30.0


class OpenStore(Protocol):
    """Makes the connections of one store; nothing is connected to yet."""

    def __call__(self, id: str, connect: Callable[[], C], limits: Limits, /) -> Connections[C]:
        """`connect` blocks and raises `StoreError`; `id` names the store to operators."""
        ...


def stores(settings: Settings, opened: OpenStore) -> Stores:
    """Every store that holds keys, and the default one."""
    made: dict[str, KeyStore] = {
        id: _store(id, store, opened)
        for id, store in settings.store.items()
        if not isinstance(store, MemoryStoreSettings) and id != settings.storage.data
    }
    if settings.storage.lookup is not None:
        return Stores(made, made[settings.storage.lookup])
    path = os.path.join(os.path.dirname(settings.queue_file), OWN)
    return Stores(made, _sqlite(OWN, SqliteStoreSettings(path=path, pool=SqlitePoolSettings()), opened))


def _store(id: str, store: KeyStoreSettings, opened: OpenStore) -> KeyStore:
    if isinstance(store, SqliteStoreSettings):
        return _sqlite(id, store, opened)
    if isinstance(store, PostgresqlStoreSettings):
        return _postgresql(id, store, opened)
    return _redis(id, store, opened)


def _sqlite(id: str, store: SqliteStoreSettings, opened: OpenStore) -> KeyStore:
    seconds = store.timeout.total_seconds()
    limits = Limits(store.pool.max_connections, seconds, seconds, _SQLITE_KEPT)
    return Database(opened(id, partial(SqliteConnection, store.path, seconds), limits))


def _postgresql(id: str, store: PostgresqlStoreSettings, opened: OpenStore) -> KeyStore:
    server = PostgresqlServer(
        host=store.host,
        port=store.port,
        database=store.database,
        user=store.user,
        password=store.password,
        options=store.options,
        tls=store.tls.enable,
        any_certificate=store.tls.allow_invalid_certs,
        connect_seconds=store.pool.create_timeout.total_seconds(),
        seconds=store.timeout.total_seconds(),
    )
    return Database(opened(id, partial(PostgresqlConnection, server), _limits(store)))


def _redis(id: str, store: RedisStoreSettings, opened: OpenStore) -> KeyStore:
    connect = partial(
        RedisConnection,
        store.urls,
        connect_seconds=store.pool.create_timeout.total_seconds(),
        seconds=store.timeout.total_seconds(),
        any_certificate=store.tls.allow_invalid_certs,
    )
    return Keys(opened(id, connect, _limits(store)))


def _limits(store: PostgresqlStoreSettings | RedisStoreSettings) -> Limits:
    pool = store.pool
    return Limits(
        pool.max_connections,
        pool.wait_timeout.total_seconds(),
        store.timeout.total_seconds(),
        pool.recycle_timeout.total_seconds(),
    )
