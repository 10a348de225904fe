import pytest
from support.queue_tables import QueueTables
from support.sqlite_store import Stores


@pytest.fixture
def stores(tmp_path):
    """Stores on disk in a directory of this test."""
    stores = Stores(tmp_path)
    yield stores
    stores.close()


@pytest.fixture
def store(stores):
    """One open store."""
    return stores.open()


@pytest.fixture
def run(stores):
    """Wait for something of a store."""
    return stores.reactor.run


@pytest.fixture
def tables(tmp_path):
    """The tables alone."""
    tables = QueueTables(tmp_path)
    yield tables
    tables.db.close()
