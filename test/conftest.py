"""Fixtures that tests with real processes share."""

import hypothesis
import pytest
from hypothesis import settings
from support.ca import Authority

# No test is about speed: a machine that is busy elsewhere is no failure.
settings.register_profile("mailgate", deadline=None)
settings.load_profile("mailgate")

# Tests never time anything: a machine may be busy.
hypothesis.settings.register_profile("mailgate", deadline=None)
hypothesis.settings.load_profile("mailgate")


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """A certificate authority for this run."""
    return Authority(tmp_path_factory.mktemp("ca"))
