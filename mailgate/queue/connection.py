"""How every process of a store opens its database."""

from __future__ import annotations

import os
import sqlite3

BUSY_SECONDS = 10.0
# Contents are most of what is written: large pages take them in a quarter of the steps.
_NEW_FILE = ("page_size = 16384", "auto_vacuum = INCREMENTAL")
_LOG_KEPT_OCTETS = 64 * 1024 * 1024


def connect(path: str, *, write: bool) -> sqlite3.Connection:
    """Open a connection as every process of the store does. Raises `sqlite3.Error`."""
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, cached_statements=256)
    try:
        # Deleted octets need not be overwritten: whoever reads the file may read the mail in it.
        for setting in (
            # Of an empty file only: later it would be a write, and without effect.
            *(_NEW_FILE if write and not os.path.getsize(path) else ()),
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            "secure_delete = OFF",
            "temp_store = MEMORY",
            "wal_autocheckpoint = 0",
            f"journal_size_limit = {_LOG_KEPT_OCTETS}",
            f"query_only = {'OFF' if write else 'ON'}",
        ):
            db.execute(f"PRAGMA {setting}").fetchall()
    except sqlite3.Error:
        db.close()
        raise
    return db
