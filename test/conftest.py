"""Fixtures that tests with real processes share."""

import pytest
from support.ca import Authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """A certificate authority for this run."""
    return Authority(tmp_path_factory.mktemp("ca"))
