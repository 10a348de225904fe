"""The schema's version: made at the first start, brought up to date at later ones.

Each step is one script in one transaction with the new version number, so a
start that is killed half way begins again at the same step.
"""

from __future__ import annotations

import sqlite3
from importlib.resources import files

from mailgate.queue.place import StoreUnsuitable

# The script at index n leads from version n to n + 1.
SCRIPTS = ("schema.sql", "schema-2.sql")
VERSION = len(SCRIPTS)


def version(db: sqlite3.Connection) -> int:
    """The version of the schema in this file; 0 for an empty one."""
    if db.execute("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'flag'").fetchone() is None:
        return 0
    row = db.execute("SELECT value FROM flag WHERE name = 'schema'").fetchone()
    return int(row[0]) if row else 0


def migrate(db: sqlite3.Connection) -> None:
    """Bring the schema to this program's version. Raises `StoreUnsuitable` when it is a later program's."""
    found = version(db)
    if found > VERSION:
        raise StoreUnsuitable(f"the queue's tables have version {found}, this program knows up to {VERSION}")
    for step in range(found, VERSION):
        script = files("mailgate.queue").joinpath(SCRIPTS[step]).read_text("utf-8")
        mark = f"INSERT OR REPLACE INTO flag (name, value) VALUES ('schema', '{step + 1}');"
        try:
            db.executescript(f"BEGIN IMMEDIATE;\n{script}\n{mark}\nCOMMIT;")
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
