"""`cache.*`: how much of what DNS answered is kept."""

from __future__ import annotations

from dataclasses import dataclass

from mailgate.config.key import key, table
from mailgate.config.kind import SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class LargeCacheSettings:
    """Answers of one record type, each kept as long as its TTL says."""

    size: int = key(SIZE, default="5mb", unit="bytes", doc="Memory for answers; the least used go when it is full.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallCacheSettings:
    """Answers of one record type, each kept as long as its TTL says."""

    size: int = key(SIZE, default="1mb", unit="bytes", doc="Memory for answers; the least used go when it is full.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsCacheSettings:
    """Answers of DNS, by record type."""

    mx: LargeCacheSettings = table(LargeCacheSettings)
    ipv4: LargeCacheSettings = table(LargeCacheSettings)
    ipv6: LargeCacheSettings = table(LargeCacheSettings)
    txt: LargeCacheSettings = table(LargeCacheSettings)
    ptr: SmallCacheSettings = table(SmallCacheSettings)
    tlsa: SmallCacheSettings = table(SmallCacheSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """What is kept in memory."""

    dns: DnsCacheSettings = table(DnsCacheSettings)
