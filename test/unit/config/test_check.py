import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.configuration import LISTENER, refusal, refusals, settings, warnings

from mailgate.config.schema.queue import LocalRouteSettings, MxRouteSettings, RelayRouteSettings

PRINCIPAL = '[directory.d]\ntype = "memory"\n[[directory.d.principals]]\nname = "a"\nemail = "a@x.test"\n'


# --- names --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[queue.strategy]\nroute = \"'locl'\"\n", 'no route "locl"; did you mean "local"?'),
        ("[queue.strategy]\nschedule = \"'remot'\"\n", 'no schedule "remot"; did you mean "remote"?'),
        ("[queue.strategy]\nconnection = \"'defalt'\"\n", 'no connection strategy "defalt"; did you mean "default"?'),
        ("[queue.strategy]\ntls = \"'invalidtls'\"\n", 'no TLS strategy "invalidtls"; did you mean "invalid-tls"?'),
        ("[queue.schedule.a]\nqueue-name = 'repot'\n", 'no virtual queue "repot"; did you mean "report"?'),
        ("[session.rcpt]\ndirectory = \"'nosuch'\"\n", 'no directory "nosuch"; none is defined'),
        ("[session.rcpt]\ndirectory = 'nosuch'\n", 'no directory "nosuch"; none is defined'),
        ("[storage]\ndirectory = 'x'\n", 'no directory "x"; none is defined'),
        ("[storage]\ndata = 'x'\n", 'no store "x"; none is defined'),
        (
            "[session.mail]\nis-allowed = \"key_exists('blockeddomains', sender_domain)\"\n",
            'no list or store "blockeddomains"; did you mean "blocked-domains"?',
        ),
        (
            "[session.mail]\nis-allowed = \"is_local_domain('d', sender_domain)\"\n",
            'no directory "d"; none is defined',
        ),
    ],
)
def test_a_literal_name_that_nothing_defines_is_refused_with_the_nearest(text, told):
    found = refusal(text)
    assert found.startswith("t.toml:2: ")
    assert found.endswith(told)


def test_names_in_any_branch_are_resolved():
    told = refusal("[queue.strategy]\nroute = [ { if = 'retry_num > 0', then = \"'x'\" },\n{ else = \"'mx'\" } ]\n")
    assert 'queue.strategy.route: no route "x"' in told


def test_names_that_are_defined_or_built_in_resolve():
    settings(
        "[queue.strategy]\nroute = \"'hub'\"\nschedule = \"'dsn'\"\n[queue.route.hub]\ntype = 'mx'\n"
        "[queue.schedule.a]\nqueue-name = 'bulk'\n[queue.virtual.bulk]\nthreads-per-node = 1\n"
        "[session.rcpt]\ndirectory = \"'d'\"\n" + PRINCIPAL
    )


def test_a_list_is_no_store_for_the_queue_and_the_other_way_round():
    stores = "[store.l]\ntype = 'memory'\n[store.q]\ntype = 'sqlite'\npath = '/q'\n"
    assert 'name one of type "sqlite"' in refusal(f"[storage]\ndata = 'l'\n{stores}")
    rule = "[session.mail]\nis-allowed = \"key_exists('q', sender)\"\n"
    assert 'store "q" is that of the queue, and not for rules' in refusal(f"{rule}[storage]\ndata = 'q'\n{stores}")


STORES = (
    "[store.l]\ntype = 'memory'\n[store.r]\ntype = 'redis'\nurls = 'redis://h'\n"
    "[store.p]\ntype = 'postgresql'\nhost = 'h'\ndatabase = 'd'\n[store.s]\ntype = 'sqlite'\npath = '/s'\n"
)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("key_set('l', 'k', 'v')", 'the store "l" is a list, and a list does not change; defined are "p", "r", "s"'),
        (
            "counter_get('spam-traps', 'k')",
            '"spam-traps" is a list, and a list does not change; defined are "p", "r", "s"',
        ),
        ("counter_incr('x', 'k', 1)", 'no store for keys "x"; defined are "p", "r", "s"'),
        (
            "sql_query('r', 'SELECT 1', [])",
            'the store "r" is of type "redis", which knows no SQL; defined are "p", "s"',
        ),
        ("sql_query('l', 'SELECT 1', [])", 'the store "l" is a list, and a list does not change; defined are "p", "s"'),
        ("sql_query('', 'SELECT 1', [])", 'the default store "r" is of type "redis", which knows no SQL; name a store'),
    ],
)
def test_a_store_has_to_be_of_a_type_that_can_do_it(rule, told):
    text = f'[session.mail]\nis-allowed = "{rule}"\n[storage]\nlookup = "r"\n{STORES}'
    assert refusal(text) == f"t.toml:2: session.mail.is-allowed: {told}"


def test_stores_that_can_do_it():
    rules = [f"key_get('{id}', 'k') = ''" for id in "lrps"]
    rules += [f"key_set('{id}', 'k', 'v')" for id in ("", "r", "p", "s")]
    rules += [f"sql_query('{id}', 'SELECT 1', [])" for id in ("", "p", "s")]
    settings(f'[session.mail]\nis-allowed = "{" && ".join(rules)}"\n{STORES}')


@pytest.mark.parametrize(
    ("lookup", "told"),
    [
        ("x", 'no store "x"; defined are "p", "r", "s"'),
        ("l", 'the store "l" is a list, and a list does not change; defined are "p", "r", "s"'),
    ],
)
def test_the_default_store_has_to_keep_keys(lookup, told):
    assert refusal(f"[storage]\nlookup = '{lookup}'\n{STORES}") == f"t.toml:2: storage.lookup: {told}"


def test_the_store_of_the_queue_is_not_for_rules():
    queue = "[store.q]\ntype = 'sqlite'\npath = '/q'\n"
    told = refusal(f"[storage]\ndata = 'q'\nlookup = 'q'\n{queue}")
    assert told.startswith('t.toml:3: storage.lookup: the store "q" is that of the queue, and not for rules; ')
    told = refusal(f"[storage]\ndata = 'q'\n{queue}[store.k]\ntype = 'sqlite'\npath = '/./q'\n")
    assert told == "t.toml:8: store.k.path: the file is that of the queue; name another file"
    told = refusal("[store.k]\ntype = 'sqlite'\npath = '/var/spool/mailgate/queue.sqlite'\n")
    assert "the file is that of the queue" in told
    said = warnings(f"[storage]\ndata = 'q'\n{queue}timeout = '5s'\npool.max-connections = 2\n")
    assert [told.partition(": store.q.")[2] for told in said if ": store.q." in told] == [
        "timeout: the key has no effect on the store of the queue",
        "pool: the key has no effect on the store of the queue",
    ]


@pytest.mark.parametrize(
    ("urls", "told"),
    [
        ("localhost:6379", "the value is no address of a Redis server; "),
        ("http://h", "the value is no address of a Redis server; "),
        ("redis://", "the value is no address of a Redis server; "),
        ("unix://", "the value is no address of a Redis server; "),
        ("redis://h:port", "the value is no address of a Redis server; "),
        ("redis://h/mail", "the address names no database by its number; "),
        ("redis://h?timeout=3", "the address says timeout; write the keys of the store for that"),
    ],
)
def test_addresses_of_redis(urls, told):
    found = refusal(f"[store.r]\ntype = 'redis'\nurls = '{urls}'\n")
    assert found.startswith(f"t.toml:3: store.r.urls: {told}")


def test_what_is_wrong_with_an_address_shows_no_password():
    assert "hunter2" not in refusal("[store.r]\ntype = 'redis'\nurls = 'http://me:hunter2@h'\n")


@pytest.mark.spec("OUT-234")
@pytest.mark.parametrize("type", ["rocksdb", "fs", "s3", "mysql", "foundationdb", "azure"])
def test_stores_that_cannot_hold_the_queue_say_what_to_write(type):
    told = refusal(f"[storage]\ndata = 'q'\n[store.q]\ntype = '{type}'\n")
    assert told.startswith("t.toml:4: store.q.type: ")
    assert 'write "sqlite"' in told


@pytest.mark.spec("OUT-234")
@pytest.mark.parametrize(
    "store", ["type = 'redis'\nurls = 'redis://h'\n", "type = 'postgresql'\nhost = 'h'\ndatabase = 'd'\n"]
)
def test_a_store_for_rules_cannot_hold_the_queue(store):
    told = refusal(f"[storage]\ndata = 'q'\n[store.q]\n{store}")
    assert told == 't.toml:2: storage.data: the store "q" cannot hold the queue; name one of type "sqlite"'


@pytest.mark.spec("OUT-234")
def test_contents_have_no_store_of_their_own():
    told = refusal("[storage]\nblob = 'x'\n")
    assert told.startswith("t.toml:2: storage.blob: ")
    assert '"sqlite"' in told


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("route", "nosuch + 'x'", "no variable or constant nosuch"),
        ("route", "nosuch(rcpt)", "no function nosuch"),
        ("route", "len(rcpt, rcpt)", "takes 1 argument"),
        ("route", "['mx', 'local']", "is not the name of a route"),
        ("schedule", "authenticated_as", "authenticated_as"),
        ("route", "mx + 'x'", "mx is not available at RECIPIENT"),
        ("tls", "5m", "is not the name of a tls"),
    ],
)
def test_faulty_expressions_of_the_strategies_are_refused(key, value, says):
    told = refusal(f'[queue.strategy]\n{key} = "{value}"\n')
    assert told.startswith(f"t.toml:2: queue.strategy.{key}: ")
    assert says in told


# --- schedules and virtual queues ---------------------------------------------


@pytest.mark.spec("OUT-007")
def test_a_schedule_with_an_undefined_queue_names_key_and_queue():
    told = refusal("[queue.schedule.bulk]\nqueue-name = 'blk'\n[queue.virtual.bulk]\nthreads-per-node = 2\n")
    assert told == 't.toml:2: queue.schedule.bulk.queue-name: no virtual queue "blk"; did you mean "bulk"?'


@pytest.mark.spec("OUT-008")
def test_queue_names_have_1_to_64_characters_and_no_slash():
    for name in ("q", "q" * 64, "priority-mail", "a.b c"):
        assert name in settings(f"[queue.virtual.'{name}']\nthreads-per-node = 1\n").queue.virtual
    for name in ("", "q" * 65, "a/b", "a\\tb"):
        told = refusal(f'[queue.virtual."{name}"]\nthreads-per-node = 1\n')
        assert told.startswith("t.toml:1: queue.virtual.")


@pytest.mark.parametrize("threads", ["0", "-1", "true", "'many'"])
def test_a_virtual_queue_needs_a_number_of_threads(threads):
    assert refusal(f"[queue.virtual.a]\nthreads-per-node = {threads}\n").startswith("t.toml:2: ")
    assert "threads-per-node: the key is missing" in refusal("[queue.virtual.a]\n")


@pytest.mark.spec("OUT-012")
def test_one_interval_equals_a_list_of_one():
    found = settings("[queue.schedule.a]\nretry = '7m'\n[queue.schedule.b]\nretry = ['7m']\n").queue.schedule
    assert found["a"] == found["b"]
    assert found["a"].retry == (datetime.timedelta(minutes=7),)


@pytest.mark.spec("OUT-013")
def test_a_schedule_expires_one_way_after_three_days_unless_told():
    told = refusal("[queue.schedule.a]\nexpire = '1d'\nmax-attempts = 5\n")
    assert told.startswith("t.toml:3: queue.schedule.a.max-attempts: ")
    found = settings("[queue.schedule.a]\n[queue.schedule.b]\nmax-attempts = 5\n").queue.schedule
    assert found["a"].expire == datetime.timedelta(days=3)
    assert found["b"].expire is None


def test_expire_type_has_to_agree():
    settings(
        "[queue.schedule.a]\nexpire-type = 'ttl'\n[queue.schedule.b]\nexpire-type = 'attempts'\nmax-attempts = 1\n"
    )
    assert 'write "ttl"' in refusal("[queue.schedule.a]\nexpire-type = 'attempts'\n")


def test_short_intervals_count_as_one_second():
    found = settings("[queue.schedule.a]\nretry = ['5ms', '1500ms']\n").queue.schedule["a"]
    assert found.retry == (datetime.timedelta(seconds=1), datetime.timedelta(milliseconds=1500))


@pytest.mark.spec("OUT-004")
@pytest.mark.parametrize(
    "text",
    [
        "[queue.connection.slow.timeout]\ndata = '15m'\n",
        "[queue.connection.slow.timeout]\nrcpt-to = '15m'\n",
        "[queue.tls.slow.timeout]\ntls = '15m'\n",
        "[queue]\nstall = '10m'\n",
    ],
)
def test_no_attempt_is_stuck_while_it_may_still_wait_for_a_reply(text):
    told = refusal(text)
    assert "queue.stall: is not longer than queue." in told
    assert 'write more than "1' in told


def test_a_longer_stall_allows_longer_time_outs():
    settings("[queue]\nstall = '21m'\n[queue.connection.slow.timeout]\ndata = '20m'\n")


def test_a_schedule_of_a_built_in_name_replaces_it_wholly():
    found = settings("[queue.schedule.remote]\nretry = '9m'\n").queue.schedule
    assert found["remote"].queue_name == "default"
    assert found["remote"].notify == ()
    assert found["remote"].retry == (datetime.timedelta(minutes=9),)
    assert found["remote"].expire == datetime.timedelta(days=3)
    assert found["local"] == settings("").queue.schedule["local"]


def test_the_built_in_entries():
    queue = settings("").queue
    assert {name: one.threads_per_node for name, one in queue.virtual.items()} == {
        "default": 25,
        "local": 25,
        "remote": 50,
        "dsn": 5,
        "report": 5,
    }
    assert queue.schedule["dsn"].max_attempts == 10
    assert queue.schedule["report"].max_attempts == 8
    assert queue.schedule["default"].expire == datetime.timedelta(days=5)
    assert isinstance(queue.route["local"], LocalRouteSettings)
    assert isinstance(queue.route["mx"], MxRouteSettings)
    assert queue.tls["invalid-tls"].allow_invalid_certs
    assert not queue.tls["default"].allow_invalid_certs
    assert queue.connection["default"].timeout.data == datetime.timedelta(minutes=10)


# --- routes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maildir", "says"),
    [
        ("/srv/mail", "no placeholder"),
        ("srv/%{user}", "no absolute path"),
        ("/srv/%{usr}", "%{usr} is no placeholder"),
        ("/srv/%{user", "does not end"),
        ("/srv/../%{user}", "without .."),
        ("", "empty"),
        ("/srv/%{}/x", "no placeholder"),
    ],
)
def test_a_bad_maildir_template_is_refused(maildir, says):
    told = refusal(f'[queue.route.l]\ntype = "local"\nmaildir = "{maildir}"\n')
    assert told.startswith("t.toml:3: queue.route.l.maildir: ")
    assert says in told


def test_a_configured_local_route_needs_a_maildir():
    told = refusal('[queue.route.local]\ntype = "local"\n')
    assert told.startswith("t.toml:1: queue.route.local.maildir: the key is missing")
    assert settings("").queue.route["local"].maildir is None


def test_a_maildir_template_knows_its_fixed_part():
    route = settings('[queue.route.l]\ntype = "local"\nmaildir = "/srv/mail/x%{domain}/%{user}"\n').queue.route["l"]
    assert route.maildir.text == "/srv/mail/x%{domain}/%{user}"
    assert route.maildir.fixed == "/srv/mail"


def test_a_relay_logs_in_with_both_or_neither():
    relay = '[queue.route.r]\ntype = "relay"\naddress = "h.test"\n'
    assert refusal(relay + 'auth.username = "u"\n').startswith("t.toml:4: queue.route.r.auth.secret: ")
    assert refusal(relay + 'auth.secret = "s"\n').startswith("t.toml:4: queue.route.r.auth.username: ")
    route = settings(relay + 'auth = { username = "u", secret = "hunter2" }\ntls.implicit = false\n').queue.route["r"]
    assert isinstance(route, RelayRouteSettings)
    assert route.auth.secret == "hunter2"
    assert route.port == 25
    assert not route.tls.implicit
    assert "hunter2" not in repr(route)


def test_a_relay_needs_an_address():
    assert "queue.route.r.address: the key is missing" in refusal('[queue.route.r]\ntype = "relay"\n')


def test_local_mail_without_a_maildir_is_warned_of():
    text = LISTENER + PRINCIPAL + '[storage]\ndirectory = "d"\n'
    assert any("queue.route.local: " in line for line in warnings(text))
    assert not warnings(text + "[queue.strategy]\nroute = \"'mx'\"\n")
    assert not warnings(text + '[queue.route.local]\ntype = "local"\nmaildir = "/m/%{user}"\n')


# --- listeners ----------------------------------------------------------------


@pytest.mark.spec("IN-054")
@pytest.mark.parametrize("bind", ["nonsense", "mx.test:25", "127.0.0.1:0", "127.0.0.1:x", "[::1:25", "1.2.3:25", ""])
def test_a_listener_without_a_usable_address_is_refused(bind):
    told = refusal(f'[server.listener.a]\nprotocol = "smtp"\nbind = "{bind}"\n')
    assert told.startswith("t.toml:3: server.listener.a.bind: ")
    assert "write" in told


def test_a_listener_needs_an_address():
    assert "the list is empty" in refusal('[server.listener.a]\nprotocol = "smtp"\nbind = []\n')
    assert "bind: the key is missing" in refusal('[server.listener.a]\nprotocol = "smtp"\n')


@pytest.mark.spec("IN-055")
def test_listeners_of_other_protocols_are_left_out_and_unknown_ones_refused():
    other = '[server.listener.other]\nbind = "127.0.0.1:143"\nprotocol = "{}"\n'
    assert list(settings(LISTENER + other.format("imap")).server.listener) == ["smtp"]
    assert any(
        line.startswith("t.toml:7: server.listener.other: ") and "imap" in line
        for line in warnings(LISTENER + other.format("imap"))
    )
    told = refusal(LISTENER + other.format("smpt"))
    assert told.startswith("t.toml:9: server.listener.other.protocol: ")
    assert 'did you mean "smtp"?' in told


@pytest.mark.spec("IN-056")
def test_unknown_cipher_suites_are_refused():
    told = refusal(LISTENER + 'tls.disable-ciphers = ["NO_SUCH"]\n')
    assert told.startswith("t.toml:7: server.listener.smtp.tls.disable-ciphers: ")
    assert refusal(LISTENER + 'tls.disable-protocols = ["TLSv1.1"]\n').endswith(
        'is none of "TLSv1.2", "TLSv1.3"; did you mean "TLSv1.3"?'
    )
    assert refusal(LISTENER + 'tls.disable-ciphers = "TLS13_AES_256_GCM_SHA385"\n').endswith(
        'did you mean "TLS13_AES_256_GCM_SHA384"?'
    )
    suite = "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"
    found = settings(LISTENER + f'tls.disable-ciphers = "{suite}"\n').server.listener["smtp"].tls
    assert found.disable_ciphers == (suite,)


def test_an_address_can_be_listened_on_once():
    told = refusal(LISTENER + '[server.listener.b]\nprotocol = "lmtp"\nbind = ["127.0.0.1:1", "127.0.0.1:2525"]\n')
    assert told == "t.toml:9: server.listener.b.bind: 127.0.0.1:2525 is taken by server.listener.smtp"
    assert refusal('[server.listener.smtp]\nprotocol = "smtp"\nbind = ["[::1]:25",\n"[0::1]:25"]\n').startswith(
        "t.toml:4: server.listener.smtp.bind: [::1]:25 is taken"
    )


def test_no_listener_called_smtp_is_warned_of():
    text = LISTENER.replace("listener.smtp", "listener.in")
    assert any('no listener is called "smtp"' in line for line in warnings(text))
    assert not warnings(LISTENER)


def test_the_listener_of_what_sendmail_hands_in_is_nobodys():
    text = LISTENER.replace("listener.smtp", "listener.sendmail").replace(":25", ":26")
    assert '"sendmail" is the listener of what the program sendmail hands in' in refusal(text)
    assert not warnings(LISTENER + "[session.auth]\nmust-match-sender = \"listener != 'sendmail'\"\n")


# --- certificates, accounts, lists --------------------------------------------


def pem(name="a.test"):
    """A certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime(2026, 1, 1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), secret.decode()


def test_a_certificate_and_its_key_load_from_the_file_itself():
    certificate, key = pem()
    found = settings(f"[certificate.c]\ncert = '''\n{certificate}'''\nprivate-key = '''\n{key}'''\n")
    assert found.certificate["c"].cert == certificate
    assert "PRIVATE" not in repr(found)


def test_a_key_of_another_certificate_is_refused():
    told = refusal(f"[certificate.c]\ncert = '''\n{pem()[0]}'''\nprivate-key = '''\n{pem()[1]}'''\n")
    assert "certificate.c.private-key: the key does not belong to the certificate" in told


def test_one_certificate_is_the_default():
    certificate, key = pem()
    one = "[certificate.{}]\ncert = '''\n" + certificate + "'''\nprivate-key = '''\n" + key + "'''\ndefault = true\n"
    assert "certificate.b.default: certificate.a is the default already" in refusal(one.format("a") + one.format("b"))


def test_a_trust_file_has_to_hold_certificates(tmp_path):
    file = tmp_path / "ca.pem"
    text = f'[queue.tls.default]\ntrust-file = "{file}"\n'
    assert "cannot read" in refusal(text)
    file.write_text("x")
    assert "no certificate" in refusal(text)
    file.write_text(pem()[0])
    assert settings(text).queue.tls["default"].trust_file == str(file)


def test_accounts_have_names_of_their_own_and_whole_addresses():
    told = refusals(
        PRINCIPAL
        + '[[directory.d.principals]]\nname = "A"\nemail = ["@x.test", "nobody", "x@"]\nemail-list = "@x.test"\n'
    )
    assert len(told) == 4
    assert "directory.d.principals.0001.name: " in told[0]


def test_lists_are_tried(tmp_path):
    told = refusal('[store.l]\ntype = "memory"\nformat = "regex"\nvalues = ["a",\n"("]\n')
    assert told.startswith("t.toml:5: store.l.values: no regular expression")
    text = LISTENER + f'[store.l]\ntype = "memory"\nvalues = "file://{tmp_path}/none"\n'
    assert any("store.l.values: cannot read" in line for line in warnings(text))


def test_two_lists_have_two_names():
    told = refusal('[lookup]\nx = ["a"]\n[store.x]\ntype = "memory"\n')
    assert told == "t.toml:3: store.x: lookup.x has this name already; rename one of them"


@pytest.mark.spec("IN-078")
def test_a_list_that_is_named_in_full_has_to_be_there():
    told = refusal("[session.mail]\nis-allowed = \"key_exists('sx', 'y')\"\n")
    assert told.startswith("t.toml:")
    assert ': session.mail.is-allowed: no list or store "sx"; ' in told


def test_the_default_store_needs_no_name():
    assert settings("[session.mail]\nis-allowed = \"!key_exists('', 'y')\"\n")
