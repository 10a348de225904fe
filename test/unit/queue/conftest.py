import pytest
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
