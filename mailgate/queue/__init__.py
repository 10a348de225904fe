"""Messages at rest: one SQLite file, one writer thread, spool files."""
