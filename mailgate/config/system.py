"""Defaults that come from the system or from other keys."""

from __future__ import annotations

import os
import socket

from mailgate.config.key import Derived, Effective

DEFAULT_QUEUE = "/var/spool/mailgate/queue.sqlite"
DEFAULT_CONTROL = "/run/mailgate/control.sock"


def _system_hostname(_: Effective) -> object:
    name = socket.gethostname().strip().rstrip(".")
    return name if name and all(c.isalnum() or c in "-._" for c in name) else "localhost"


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


SYSTEM_HOSTNAME = Derived("the system's host name", _system_hostname)
PARENT_DOMAIN = Derived("`server.hostname` without its first label, where at least two labels remain", _parent_domain)
SPOOL = _beside_queue("spool")
DECISIONS = _beside_queue("decisions")
