import sqlite3

import pytest

from mailgate.lookup.sqlite import SqliteConnection
from mailgate.lookup.store import StoreError


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "keys.sqlite")


@pytest.fixture
def store(path):
    made = SqliteConnection(path, 5.0)
    yield made
    made.close()


def test_keys(store):
    assert store.get("k") is None
    store.set("k", "v")
    assert store.get("k") == "v"
    store.set("k", "")
    assert store.get("k") == ""
    assert store.get("K") is None


def test_counters(store):
    assert store.counter("c") == 0
    assert [store.increase("c", by) for by in (1, 5, -2)] == [1, 6, 4]
    assert store.counter("c") == 4
    assert store.get("c") == "4"


def test_what_is_no_number_is_no_counter(store):
    store.set("k", "many")
    for ask in (lambda: store.counter("k"), lambda: store.increase("k", 1)):
        with pytest.raises(StoreError, match="no whole number"):
            ask()
    assert store.get("k") == "many"


def test_a_counter_stays_within_64_bits(store):
    store.increase("c", 2**63 - 1)
    with pytest.raises(StoreError, match="64 bits"):
        store.increase("c", 1)
    assert store.counter("c") == 2**63 - 1


def test_everybody_sees_the_same(store, path):
    store.increase("c", 1)
    other = SqliteConnection(path, 5.0)
    assert other.increase("c", 1) == 2
    assert store.counter("c") == 2
    other.close()


def test_nothing_is_made_by_looking(store, path):
    assert store.get("k") is None
    assert store.counter("c") == 0
    assert sqlite3.connect(path).execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def test_statements(store):
    assert store.query("CREATE TABLE t (a TEXT, b INTEGER)", ()) == 0
    assert store.query("INSERT INTO t VALUES (?, ?), ('y', NULL)", ("x", 1)) == 2
    assert store.query("SELECT b FROM t WHERE a = ?", ("x",)) == 1
    assert store.query("SELECT b FROM t WHERE a = $1", ("nobody",)) == ""
    assert store.query("SELECT a, b FROM t WHERE a = ?", ("y",)) == ("y", "")
    assert store.query("SELECT a FROM t ORDER BY a", ()) == (("x",), ("y",))
    assert store.query("UPDATE t SET b = 2", ()) == 2
    assert store.query("DELETE FROM t WHERE b = ? RETURNING a", (7,)) == ""


@pytest.mark.parametrize(
    ("statement", "arguments", "told"),
    [
        ("SELEKT 1", (), "syntax error"),
        ("SELECT * FROM nosuch", (), "no such table"),
        ("SELECT ?", (), "1 placeholders and 0 arguments"),
        ("SELECT ?", (("a",),), "an array"),
        ("SELECT ?", (2**64,), "too large"),
        ("SELECT 1; SELECT 2", (), "one statement"),
    ],
)
def test_a_statement_that_cannot_be_run(store, statement, arguments, told):
    with pytest.raises(StoreError, match=told):
        store.query(statement, arguments)


def test_a_statement_ends_when_its_time_is_up(path):
    moments = iter(range(1_000_000))
    store = SqliteConnection(path, 3.0, now=lambda: next(moments))
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(StoreError, match="interrupted"):
        store.query(endless, ())
    assert store.query("SELECT 1", ()) == 1
    store.close()


def test_a_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(StoreError, match="unable to open"):
        SqliteConnection(str(tmp_path / "nosuch" / "keys.sqlite"), 5.0)


def test_a_file_that_is_no_database(tmp_path):
    path = tmp_path / "keys.sqlite"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 20)
    with pytest.raises(StoreError, match="not a database"):
        SqliteConnection(str(path), 5.0)


def test_a_key_with_a_lone_surrogate_is_an_error_and_no_crash(store):
    with pytest.raises(StoreError):
        store.set("a\udcff", "v")
