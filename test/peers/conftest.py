"""Real servers, one instance for the whole run."""

import pytest
from support.peers import Dovecot, Postfix


@pytest.fixture(scope="session")
def postfix(authority):
    """Postfix that takes mail for lab.example."""
    server = Postfix(authority)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def dovecot(authority):
    """Dovecot's LMTP server for lab.example."""
    server = Dovecot(authority)
    try:
        server.start()
        yield server
    finally:
        server.stop()
