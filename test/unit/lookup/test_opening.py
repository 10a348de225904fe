import asyncio

import pytest
from support.configuration import settings
from support.lookup_stores import DEAD_STORE, in_place

from mailgate.lookup.opening import OWN, stores
from mailgate.lookup.store import SqlStore
from mailgate.mail.unknown import Unknown

REDIS = (
    '[store.r]\ntype = "redis"\nurls = "redis://me:pw@h:7000/3"\ntimeout = "3s"\n'
    'pool.max-connections = 5\npool.wait-timeout = "1s"\npool.recycle-timeout = "7s"\npool.create-timeout = "2s"\n'
)
POSTGRESQL = (
    '[store.p]\ntype = "postgresql"\nhost = "db.test"\nport = 5433\ndatabase = "mail"\nuser = "me"\npassword = "pw"\n'
    'options = "-c search_path=x"\ntimeout = "3s"\ntls.enable = true\n'
)
SQLITE = '[store.s]\ntype = "sqlite"\npath = "/d/s.sqlite"\ntimeout = "2s"\npool.max-connections = 1\n'
LIST = '[store.l]\ntype = "memory"\nvalues = ["a"]\n'
QUEUE = '[storage]\ndata = "q"\n[store.q]\ntype = "sqlite"\npath = "/q/queue.sqlite"\n'


def opened(text):
    """What is to be opened: id to connect and limits."""
    found = {}

    def keep(id, connect, limits):
        found[id] = connect, limits
        return in_place(id, connect, limits)

    return stores(settings(text), keep), found


def test_every_store_for_rules_and_no_other():
    made, found = opened(REDIS + POSTGRESQL + SQLITE + LIST + QUEUE)
    assert set(found) == {"r", "p", "s", OWN}
    assert made.find("q") is None
    assert made.find("l") is None
    assert made.find("nosuch") is None
    assert isinstance(made.find("s"), SqlStore)
    assert isinstance(made.find("p"), SqlStore)
    assert not isinstance(made.find("r"), SqlStore)


def test_the_default_store_is_a_file_beside_the_queue():
    _, found = opened(QUEUE)
    connect, _ = found[OWN]
    assert connect.args[0] == "/q/lookup.sqlite"


def test_the_default_store_by_its_key():
    made, found = opened(f'[storage]\nlookup = "r"\n{REDIS}')
    assert set(found) == {"r"}
    assert made.find("") is made.find("r")


def test_what_the_configuration_says_of_redis():
    _, found = opened(REDIS)
    connect, limits = found["r"]
    (address,) = connect.args
    assert (address.host, address.port, address.database, address.user) == ("h", 7000, 3, "me")
    assert address.password == "pw"
    assert connect.keywords == {"connect_seconds": 2.0, "seconds": 3.0, "any_certificate": False}
    assert limits == (5, 1.0, 3.0, 7.0)
    assert "pw" not in repr(address)


def test_what_the_configuration_says_of_postgresql():
    _, found = opened(POSTGRESQL)
    (server,) = found["p"][0].args
    assert server.parameters == {
        "host": "db.test",
        "port": 5433,
        "dbname": "mail",
        "user": "me",
        "password": "pw",
        "options": "-c statement_timeout=3000 -c search_path=x",
        "connect_timeout": 3,
        "tcp_user_timeout": 3000,
        "application_name": "mailgate",
        "client_encoding": "UTF8",
        "sslmode": "verify-full",
        "sslrootcert": "system",
    }
    assert "pw" not in repr(server)
    assert found["p"][1] == (10, 30.0, 3.0, 30.0)


@pytest.mark.parametrize(
    ("tls", "mode"),
    [
        ("", "disable"),
        ("tls.enable = false\n", "disable"),
        ("tls.enable = true\ntls.allow-invalid-certs = true\n", "require"),
    ],
)
def test_tls_to_postgresql(tls, mode):
    _, found = opened(f'[store.p]\ntype = "postgresql"\nhost = "h"\ndatabase = "d"\n{tls}')
    parameters = found["p"][0].args[0].parameters
    assert parameters["sslmode"] == mode
    assert "sslrootcert" not in parameters


def test_what_the_configuration_says_of_sqlite():
    _, found = opened(SQLITE)
    connect, limits = found["s"]
    assert connect.args == ("/d/s.sqlite", 2.0)
    assert limits[:3] == (1, 2.0, 2.0)


def test_nothing_is_connected_to_before_a_rule_asks():
    made, _ = opened(DEAD_STORE)
    assert asyncio.run(made.find("down").get("x")) == Unknown("store down", "connection refused")
