"""Fixtures that tests with real processes share."""

import hypothesis
import pytest
from support.ca import Authority

# Tests never time anything: a machine may be busy.
hypothesis.settings.register_profile("mailgate", deadline=None)
hypothesis.settings.load_profile("mailgate")


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """A certificate authority for this run."""
    return Authority(tmp_path_factory.mktemp("ca"))
