"""A Redis server: keys and counters are keys of its own, which other programs may share.

The doorway to `redis`, of which one connection is used as it is: its pool and
its retries are `connections.py` here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from mailgate.config.kind import RedisAddress
from mailgate.lookup.store import StoreError, whole_number


class RedisConnection:
    """One connection; used on one thread."""

    def __init__(
        self, server: RedisAddress, *, connect_seconds: float, seconds: float, any_certificate: bool = False
    ) -> None:
        """Connect and log in; no answer takes longer than `seconds`. Raises `StoreError`.

        With TLS and `any_certificate` the server may be whoever it shows itself to be.
        """
        with _told():
            self._client = redis.Redis(
                host=server.host,
                port=server.port,
                unix_socket_path=server.socket,
                db=server.database,
                username=server.user,
                password=server.password,
                ssl=server.tls,
                ssl_cert_reqs="none" if any_certificate else "required",
                ssl_check_hostname=not any_certificate,
                socket_timeout=seconds,
                socket_connect_timeout=min(connect_seconds, seconds),
                single_connection_client=True,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
                encoding_errors="surrogateescape",
            )

    def get(self, key: str) -> str | None:
        """The value of `key`; None when there is none."""
        with _told():
            found = self._client.get(key)
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else None

    def set(self, key: str, value: str) -> None:
        """Give `key` a value."""
        with _told():
            self._client.set(key, value)

    def counter(self, key: str) -> int:
        """The counter `key`, 0 when there is none."""
        return whole_number(self.get(key) or "0")

    def increase(self, key: str, by: int) -> int:
        """Add to the counter `key`; answers its new value."""
        with _told():
            found = self._client.incrby(key, by)
        if not isinstance(found, int):
            raise StoreError("the answer to INCRBY is no number")
        return found

    def is_usable(self) -> bool:
        """Whether the server has not hung up: a connection that nobody uses has nothing to say."""
        connection = self._client.connection
        try:
            return connection is not None and not connection.can_read(0)
        except (RedisError, OSError):
            return False

    def close(self) -> None:
        """Hang up."""
        try:
            self._client.close()
        except (RedisError, OSError):
            pass


@contextmanager
def _told() -> Iterator[None]:
    """Say what redis raises as `StoreError`, in one line."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise StoreError(" ".join(str(error).split()) or type(error).__name__) from None
