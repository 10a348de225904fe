"""The whole configuration as one frozen object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mailgate.config.key import entries, table, tables, variants
from mailgate.config.schema.cache import CacheSettings
from mailgate.config.schema.certificate import CertificateSettings
from mailgate.config.schema.decisions import DecisionsSettings
from mailgate.config.schema.directory import DirectorySettings, MemoryDirectorySettings
from mailgate.config.schema.management import ManagementSettings
from mailgate.config.schema.names import ID
from mailgate.config.schema.queue import QueueSettings
from mailgate.config.schema.report import ReportSettings
from mailgate.config.schema.resolver import ResolverSettings
from mailgate.config.schema.server import ServerSettings
from mailgate.config.schema.session import SessionSettings
from mailgate.config.schema.storage import (
    LOOKUP,
    LookupSettings,
    MemoryStoreSettings,
    PostgresqlStoreSettings,
    RedisStoreSettings,
    SqliteStoreSettings,
    StorageSettings,
    StoreSettings,
)
from mailgate.config.schema.unsupported import DIRECTORY_TYPES, STORE_TYPES
from mailgate.config.system import DEFAULT_QUEUE


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One generation of the configuration: checked as a whole, never changed."""

    server: ServerSettings = table(ServerSettings)
    certificate: Mapping[str, CertificateSettings] = tables(CertificateSettings, id=ID)
    storage: StorageSettings = table(StorageSettings)
    store: Mapping[str, StoreSettings] = variants(
        {
            "sqlite": SqliteStoreSettings,
            "postgresql": PostgresqlStoreSettings,
            "redis": RedisStoreSettings,
            "memory": MemoryStoreSettings,
        },
        id=ID,
        refused=STORE_TYPES,
    )
    lookup: Mapping[str, LookupSettings] = entries(
        LOOKUP,
        doc='A list that expressions ask with `key_exists` and `key_get`: `name = ["a", "b"]`, or a table with '
        '`"a" = true` and `"key" = "value"`. Keys may hold the wildcards `*` and `?`.',
    )
    directory: Mapping[str, DirectorySettings] = variants(
        {"memory": MemoryDirectorySettings}, id=ID, refused=DIRECTORY_TYPES
    )
    session: SessionSettings = table(SessionSettings)
    queue: QueueSettings = table(QueueSettings)
    resolver: ResolverSettings = table(ResolverSettings)
    cache: CacheSettings = table(CacheSettings)
    report: ReportSettings = table(ReportSettings)
    decisions: DecisionsSettings = table(DecisionsSettings)
    management: ManagementSettings = table(ManagementSettings)

    @property
    def queue_file(self) -> str:
        """The SQLite file of the queue."""
        store = self.store.get(self.storage.data) if self.storage.data is not None else None
        return store.path if isinstance(store, SqliteStoreSettings) else DEFAULT_QUEUE
