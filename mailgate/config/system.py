"""Defaults that come from the system or from other keys."""

from __future__ import annotations

import os

from mailgate.config.key import Derived, Effective
from mailgate.config.paths import DEFAULT_CONTROL, DEFAULT_QUEUE, MAILDROP, system_hostname

__all__ = ["DECISIONS", "DEFAULT_CONTROL", "DEFAULT_QUEUE", "DROP", "PARENT_DOMAIN", "SPOOL", "SYSTEM_HOSTNAME"]


def _parent_domain(effective: Effective) -> object:
    """The host name without its first label, where at least two labels remain."""
    name = str(effective("server.hostname"))
    parent = name.partition(".")[2]
    return parent if "." in parent else name


def queue_file(effective: Effective) -> str:
    """The SQLite file of the queue: the store that `storage.data` names."""
    store = effective("storage.data")
    path = effective(f"store.{store}.path") if isinstance(store, str) and store else None
    return path if isinstance(path, str) else DEFAULT_QUEUE


def _beside_queue(name: str) -> Derived:
    return Derived(
        f"`{name}` beside the SQLite file of the queue",
        lambda effective: os.path.join(os.path.dirname(queue_file(effective)), name),
    )


SYSTEM_HOSTNAME = Derived("the system's host name", lambda _: system_hostname())
PARENT_DOMAIN = Derived("`server.hostname` without its first label, where at least two labels remain", _parent_domain)
SPOOL = _beside_queue("spool")
DROP = _beside_queue(MAILDROP)
DECISIONS = _beside_queue("decisions")
