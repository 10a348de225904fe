"""What the names of free-id tables may look like."""

from __future__ import annotations

from mailgate.config.kind import IP, Kind, Quoted, Unfit


def _id(value: Quoted) -> str:
    name = value.raw
    if not isinstance(name, str) or not name.strip() or any(c < " " or c == "\x7f" for c in name):
        raise Unfit(f"{value.text} is no usable name", "write a name without control characters")
    return name


def _queue_name(value: Quoted) -> str:
    name = _id(value)
    if len(name) > 64 or "/" in name:
        raise Unfit(f"{value.text} is no usable name", "a queue name has 1 to 64 characters and no slash")
    return name


ID = Kind("name", _id)
QUEUE_NAME = Kind("name", _queue_name)
IP_ID = Kind("IP address", IP.read)
