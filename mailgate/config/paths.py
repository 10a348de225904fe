"""Where things are when the configuration does not say."""

from __future__ import annotations

import socket

DEFAULT_CONFIG = "/etc/mailgate/mailgate.toml"
DEFAULT_QUEUE = "/var/spool/mailgate/queue.sqlite"
DEFAULT_CONTROL = "/run/mailgate/control.sock"
MAILDROP = "maildrop"
"""The name of the directory beside the file of the queue."""


def system_hostname() -> str:
    """The name of this host; `localhost` where it has none that can stand in a mail address."""
    name = socket.gethostname().strip().rstrip(".")
    return name if name and all(c.isalnum() or c in "-._" for c in name) else "localhost"
