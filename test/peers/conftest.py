"""Real servers, one instance for the whole run."""

import pytest
from support.peers import Dovecot, Postfix
from support.unpacked_peers import Exim, OpenSmtpd


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


@pytest.fixture(scope="session")
def exim(authority):
    """Exim that takes mail for exim.lab.example."""
    server = Exim(authority)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def opensmtpd(authority):
    """OpenSMTPD that takes mail for smtpd.lab.example."""
    server = OpenSmtpd(authority)
    try:
        server.start()
        yield server
    finally:
        server.stop()
