"""How a command says that it could not do what it was asked."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Exit statuses of `mailgate`, those of sysexits.h where it has one."""

    OK = 0
    NOTHING = 1
    """Ids or selectors were given and nothing matched; warnings under `--strict`."""
    USAGE = 64
    DATA = 65
    """What was handed in cannot be used: no recipient, or a bad one."""
    UNREACHABLE = 69
    """The daemon is needed and cannot be reached."""
    SOFTWARE = 70
    """A mistake in mailgate itself."""
    INTERNAL = 70
    """mailgate found a fault of its own."""
    NOT_NOW = 75
    """The store or the record cannot be opened now."""
    PERMISSION = 77
    CONFIG = 78


class Failed(Exception):
    """Ends the command with a status and one message for the operator."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
