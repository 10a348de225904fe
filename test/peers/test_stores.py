"""Rules that ask Redis and PostgreSQL as they are: by mailgate's own connections, and through a whole daemon."""

import smtplib
import socket
import threading
import time

import pytest
from support.configuration import settings
from support.daemon import Gateway
from support.expressions import VALUE, Facts, compiled
from support.ports import free_port
from support.store_servers import PASSWORD, PostgresqlServer, RedisServer
from twisted.internet.defer import Deferred
from twisted.internet.selectreactor import SelectReactor

from mailgate.lookup.lists import Lists
from mailgate.lookup.opening import stores
from mailgate.lookup.outside import Answers, Directories
from mailgate.lookup.postgresql import PostgresqlConnection
from mailgate.lookup.redis import RedisConnection
from mailgate.lookup.store import StoreError
from mailgate.mail.unknown import Unknown
from mailgate.service.build import threaded

pytestmark = [pytest.mark.peer("redis", "postgresql")]


@pytest.fixture(scope="module")
def redis():
    """One Redis; whoever kills it starts it again."""
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def postgresql():
    """One PostgreSQL; whoever kills it starts it again."""
    server = PostgresqlServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(params=["redis", "postgresql"])
def server(request):
    """Either of them."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def fresh(server):
    """The table of it as the store `s`, with nothing in it."""
    if isinstance(server, RedisServer):
        connection(server, RedisConnection)._client.flushall()
    else:
        server.run("DROP TABLE IF EXISTS mailgate_keys")
    return table(server)


def table(server, **more):
    keys = {"timeout": "'5s'", **more}
    if isinstance(server, RedisServer):
        keys = {"type": "'redis'", "urls": f"'{server.url}'", **keys}
    else:
        keys = {"type": "'postgresql'", "host": "'127.0.0.1'", "port": server.port, "database": "'mail'", **keys}
        keys = {**keys, "user": "'mailgate'", "password": f"'{PASSWORD}'"}
    return "[store.s]\n" + "".join(f"{name} = {value}\n" for name, value in keys.items())


def connection(server, kind, **more):
    """What the configuration comes to: a connection that blocks."""
    found = {}
    stores(settings(table(server, **more)), lambda id, connect, limits: found.setdefault(id, connect))
    made = found["s"]()
    assert isinstance(made, kind)
    return made


@pytest.fixture(scope="module")
def reactor():
    """A reactor of our own, turned by hand: the one of the process is left alone."""
    return SelectReactor()


@pytest.fixture
def ask(reactor):
    """Evaluates a rule of the configuration given."""

    def value(rule, configuration, seconds=20):
        async def no_dns(name, type):
            return Unknown("dns", "not here")

        opened = stores(settings(configuration), threaded(reactor))
        asked = Answers(Directories([]), Lists([]), no_dns, None, opened)
        found = []
        for each in [rule] if isinstance(rule, str) else rule:
            Deferred.fromCoroutine(compiled(each, VALUE).value(Facts(asked, sender="a@b.test"))).addBoth(found.append)
        end = time.monotonic() + seconds
        while len(found) < (1 if isinstance(rule, str) else len(rule)):
            assert time.monotonic() < end, "no answer"
            reactor.iterate(0.02)
        return found[0] if isinstance(rule, str) else found

    return value


@pytest.mark.spec("IN-058")
def test_the_vectors(ask, fresh):
    hello = "key_get('s','hello') + '-' + key_exists('s','hello') + '-' + key_set('s','hello','world') + '-' + "
    hello += "key_get('s','hello') + '-' + key_exists('s','hello')"
    assert ask(hello, fresh) == "-0-1-world-1"
    count = "counter_get('s','c') + '-' + counter_incr('s','c',1) + '-' + counter_incr('s','c',1) + '-' + "
    count += "counter_get('s','c')"
    assert ask(count, fresh) == "0-1-2-2"


def test_counters_of_many_at_a_time(ask, fresh):
    # Each waits for those before it: a busy machine needs its time for that.
    patient = fresh.replace("timeout = '5s'", "timeout = '60s'\npool.wait-timeout = '60s'")
    found = ask(["counter_incr('s', 'n', 1)"] * 200, patient, seconds=120)
    assert sorted(found, key=str) == sorted(range(1, 201), key=str)


def test_values_are_kept_as_they_are(ask, fresh):
    assert ask("key_set('s', 'Käse', 'é ? %s $1 \\' ' + sender)", fresh) == 1
    assert ask("key_get('s', 'Käse')", fresh) == "é ? %s $1 ' a@b.test"
    assert ask("key_exists('s', 'käse')", fresh) == 0


def test_what_is_no_number_is_no_counter(ask, fresh):
    ask("key_set('s', 'k', 'many')", fresh)
    for rule in ("counter_get('s', 'k')", "counter_incr('s', 'k', 1)"):
        assert ask(rule, fresh).dependency == "store s"
    assert ask("key_get('s', 'k')", fresh) == "many"


def test_a_server_that_goes_and_comes_back(server, reactor):
    opened = stores(settings(table(server)), threaded(reactor)).find("s")

    def run(coroutine):
        found = []
        Deferred.fromCoroutine(coroutine).addBoth(found.append)
        end = time.monotonic() + 20
        while not found:
            assert time.monotonic() < end, "no answer"
            reactor.iterate(0.02)
        return found[0]

    assert run(opened.set("here", "yes")) is None
    server.kill()
    down = run(opened.get("here"))
    assert isinstance(down, Unknown)
    assert down.dependency == "store s"
    assert PASSWORD not in down.reason
    server.start()
    # The connection that was lost is not the one that is asked.
    assert run(opened.get("here")) in (None, "yes")


def test_a_wrong_password_is_unknown_and_not_told(ask, server):
    wrong = table(server).replace(PASSWORD, "hunter2")
    found = ask("key_exists('s', 'x')", wrong)
    assert found.dependency == "store s"
    assert found.reason
    assert "hunter2" not in found.reason


def test_a_server_that_does_not_answer_is_unknown_in_time(ask, server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        configuration = table(server, timeout="'300ms'").replace(str(server.port), str(port))
        found = ask("key_exists('s', 'x')", configuration)
    assert found.dependency == "store s"


def test_redis_by_its_unix_socket(redis, ask):
    configuration = f"[store.s]\ntype = 'redis'\nurls = 'unix://:{PASSWORD}@{redis.socket}?db=2'\n"
    assert ask("counter_incr('s', 'by-socket', 3)", configuration) == 3
    assert ask("counter_get('s', 'by-socket')", table(redis)) == 0


# --- PostgreSQL in SQL ------------------------------------------------------------------------------------


def test_statements(ask, postgresql):
    postgresql.run("DROP TABLE IF EXISTS friends; CREATE TABLE friends (address text, level int, tags text[])")
    here = table(postgresql)
    add = "sql_query('s', 'INSERT INTO friends VALUES (?, ?, ?)', ['a@b.test', 3, ['x', 'y']])"
    assert ask(add, here) == 1
    assert ask("sql_query('s', 'SELECT level FROM friends WHERE address = ?', sender)", here) == 3
    assert ask("sql_query('s', 'SELECT level FROM friends WHERE address = $1', 'no@b.test')", here) == ""
    assert ask("sql_query('s', 'SELECT address, level FROM friends', [])", here) == ("a@b.test", 3)
    assert ask("sql_query('s', 'SELECT tags FROM friends', [])", here) == ("x", "y")
    injected = "sql_query('s', 'SELECT level FROM friends WHERE address = ?', '\\' OR 1 = 1 --')"
    assert ask(injected, here) == ""
    assert ask("sql_query('s', 'SELECT n FROM generate_series(1, 3) AS n', [])", here) == ((1,), (2,), (3,))
    assert ask("sql_query('s', 'UPDATE friends SET level = level + 1', [])", here) == 1


@pytest.mark.parametrize(
    "statement", ["SELEKT 1", "SELECT * FROM nosuch", "SELECT 1/0", "SELECT 1; SELECT 2", "SELECT pg_sleep(30)"]
)
def test_what_cannot_be_answered_is_unknown(ask, postgresql, statement):
    found = ask(f"sql_query('s', '{statement}', [])", table(postgresql, timeout="'500ms'"))
    assert isinstance(found, Unknown)
    assert "\n" not in found.reason


def test_a_slow_statement_does_not_keep_others_waiting(ask, postgresql):
    here = table(postgresql, timeout="'5s'", **{"pool.max-connections": 2})
    slow, *quick = ask(["sql_query('s', 'SELECT pg_sleep(1)', [])", *(["sql_query('s', 'SELECT 1', [])"] * 20)], here)
    # Answers come in the order in which they are there.
    assert slow == 1
    assert quick.count(1) == 19


def test_the_server_is_shown_to_be_the_one_that_is_meant(postgresql):
    with pytest.raises(StoreError):
        connection(postgresql, PostgresqlConnection, **{"tls.enable": "true"})


# --- through a daemon ---------------------------------------------------------------------------------------


def mail(gateway, sender="a@client.test"):
    with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=30) as client:
        client.ehlo("mx.client.test")
        code, text = client.mail(sender)
        return code, text.decode()


@pytest.mark.spec("IN-074")
def test_a_daemon_whose_store_goes_and_comes_back(tmp_path, server):
    rule = "[session.mail]\nis-allowed = \"counter_incr('s', remote_ip, 1) > 0 | sender_domain = 'client.test'\"\n"
    gateway = Gateway(tmp_path, base="B0", changes=(table(server), rule))
    with gateway:
        assert mail(gateway, "a@x.test")[0] == 250
        server.kill()
        try:
            assert mail(gateway, "a@client.test")[0] == 250
            code, text = mail(gateway, "a@x.test")
            assert (code, text[:5]) == (451, "4.4.3")
            assert "store" not in text.lower()
            gateway.wait_log("store s")
            assert "policy.unknown" in gateway.log_text()
        finally:
            server.start()
        assert mail(gateway, "a@x.test")[0] == 250
    assert PASSWORD not in gateway.log_text()
    shown = gateway.command("config", "show", "--effective").stdout
    assert "store.s" in shown
    assert PASSWORD not in shown


def test_a_dead_store_never_keeps_the_reactor(tmp_path):
    port = free_port()
    store = f"[store.down]\ntype = 'redis'\nurls = 'redis://127.0.0.1:{port}'\ntimeout = '2s'\n"
    rule = "[session.mail]\nis-allowed = \"key_exists('down', 'x')\"\n"
    gateway = Gateway(tmp_path, base="B0", changes=(store, rule))
    # It takes connections and says nothing.
    with socket.create_server(("127.0.0.1", port)), gateway:
        codes = []
        waiting = [threading.Thread(target=lambda: codes.append(mail(gateway)[0])) for _ in range(5)]
        for thread in waiting:
            thread.start()
        with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=30) as client:
            assert client.noop()[0] == 250
        assert codes == []
        for thread in waiting:
            thread.join(30)
        assert codes == [451] * 5
