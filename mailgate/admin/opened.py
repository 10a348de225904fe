"""The queue as commands open it: for reading, with a status for everything that can go wrong."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from mailgate.admin.failure import Failed, Status
from mailgate.queue.inspect import connect_read_only
from mailgate.queue.store import StoreFailed

# The file itself could be opened: then it is what SQLite keeps beside it.
_PERMISSION = frozenset({"SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH", "SQLITE_READONLY_DIRECTORY"})


@contextmanager
def queue_at(path: str) -> Iterator[sqlite3.Connection]:
    """The queue, open for reading; what goes wrong with it inside the block becomes `Failed`."""
    try:
        with closing(connect_read_only(path)) as db:
            yield db
    except BrokenPipeError:
        # That is no trouble of the queue: whoever reads the output has seen enough.
        raise
    except FileNotFoundError as failure:
        if failure.filename not in (None, path):
            raise Failed(Status.NOT_NOW, f"{failure.filename}: {failure.strerror}") from None
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
