"""The configuration and the queue, as commands open them."""

from __future__ import annotations

import re
import sqlite3
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager

from mailgate.admin.failure import Failed, Status
from mailgate.config.error import ConfigErrors
from mailgate.config.load import load
from mailgate.config.schema.settings import Settings
from mailgate.config.sources import written
from mailgate.config.system import DEFAULT_CONTROL
from mailgate.queue.inspect import connect_read_only
from mailgate.queue.store import StoreFailed

_MANAGEMENT = re.compile(r"(?ms)^\[management\].*?(?=^\[|\Z)|^management\.socket[ \t]*=[^\n]*$")

# The file itself could be opened: then it is what SQLite keeps beside it.
_PERMISSION = frozenset({"SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH", "SQLITE_READONLY_DIRECTORY"})


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


@contextmanager
def queue_of(settings: Settings) -> Iterator[sqlite3.Connection]:
    """The queue, open for reading; what goes wrong with it inside the block becomes `Failed`."""
    path = settings.queue_file
    try:
        with closing(connect_read_only(path)) as db:
            yield db
    except FileNotFoundError:
        raise Failed(Status.NOT_NOW, f"there is no queue at {path}") from None
    except PermissionError as failure:
        raise Failed(Status.PERMISSION, f"no permission to read {failure.filename or path}") from None
    except OSError as failure:
        raise Failed(Status.NOT_NOW, f"{failure.filename or path}: {failure.strerror}") from None
    except sqlite3.Error as failure:
        if getattr(failure, "sqlite_errorname", "") in _PERMISSION:
            raise Failed(Status.PERMISSION, f"no permission for the files beside {path}") from None
        raise Failed(Status.NOT_NOW, f"the queue {path} cannot be read: {failure}") from None
    except StoreFailed as failure:
        raise Failed(Status.NOT_NOW, str(failure)) from None
