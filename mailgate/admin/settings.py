"""The configuration and the queue, as commands open them."""

from __future__ import annotations

import re
import sqlite3
import tomllib
from contextlib import AbstractContextManager

from mailgate.admin.failure import Failed, Status
from mailgate.admin.opened import queue_at
from mailgate.config.error import ConfigErrors
from mailgate.config.load import load
from mailgate.config.schema.settings import Settings
from mailgate.config.sources import written
from mailgate.config.system import DEFAULT_CONTROL

_MANAGEMENT = re.compile(r"(?ms)^\[management\].*?(?=^\[|\Z)|^management\.socket[ \t]*=[^\n]*$")


def settings_of(config_file: str) -> Settings:
    """The settings of the configuration file. Raises `Failed` with all that is wrong with it."""
    try:
        return load(config_file).settings
    except ConfigErrors as errors:
        raise Failed(Status.CONFIG, str(errors)) from None


def control_path(config_file: str) -> str:
    """Where the daemon of a configuration is reached, also when it is broken elsewhere: that is when one asks.

    The default where the file does not say. Raises `Failed` where only the whole configuration could tell.
    """
    tree = written(config_file).tree or _legible(config_file)
    management = tree.get("management")
    path = management.get("socket") if isinstance(management, dict) else None
    if not isinstance(path, str):
        return DEFAULT_CONTROL
    return settings_of(config_file).management.socket if "%{" in path else path


def _legible(config_file: str) -> dict[str, object]:
    """The table `management` of a file that is no TOML as a whole; nothing when it cannot be told."""
    try:
        with open(config_file, encoding="utf-8", errors="replace") as file:
            found = _MANAGEMENT.search(file.read())
        return tomllib.loads(found[0]) if found is not None else {}
    except (OSError, tomllib.TOMLDecodeError):
        return {}


def queue_of(settings: Settings) -> AbstractContextManager[sqlite3.Connection]:
    """The queue, open for reading; what goes wrong with it inside the block becomes `Failed`."""
    return queue_at(settings.queue_file)
