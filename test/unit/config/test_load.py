from datetime import timedelta

import pytest
from support.baseline import B0
from support.configuration import LISTENER, refusal, refusals, settings, warnings

from mailgate.config.error import ConfigErrors
from mailgate.config.kind import DnsServer, FreeSpace, SocketAddress
from mailgate.config.load import check_file, load, load_text
from mailgate.config.schema.storage import STANDARD_LISTS, MemoryStoreSettings


class Seen:
    """A scope with the variables a test gives it."""

    outside = None

    def __init__(self, **variables):
        self.__dict__.update(variables)

    def note(self, choice_key, place, reads, result):
        pass


def value(choice, **variables):
    """What a rule that asks nothing outside says."""
    coroutine = choice.value(Seen(**variables))
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    return stopped.value.value


# --- values -------------------------------------------------------------------


def test_an_empty_file_is_all_defaults():
    found = settings("")
    assert found.server.listener == {}
    assert found.server.max_connections == 8192
    assert value(found.session.timeout) == timedelta(minutes=5)
    assert value(found.session.duration) == timedelta(minutes=10)
    assert value(found.session.data.limits.size) == 104857600
    assert found.queue.inline_size == 262144
    assert found.queue.min_free == FreeSpace(268435456)
    assert found.queue_file == "/var/spool/mailgate/queue.sqlite"
    assert found.queue.spool == "/var/spool/mailgate/spool"
    assert found.decisions.path == "/var/spool/mailgate/decisions"
    assert found.decisions.max_size == 256 * 1024 * 1024
    assert found.decisions.max_age == timedelta(days=7)


def test_defaults_look_at_the_listener():
    session = settings("").session
    assert value(session.ehlo.reject_non_fqdn, listener="smtp") is True
    assert value(session.ehlo.reject_non_fqdn, listener="submission") is False
    assert value(session.auth.require, listener="smtp") is False
    assert value(session.auth.require, listener="lmtp") is True
    assert value(session.auth.directory, listener="smtp") is None
    assert value(session.auth.directory, listener="submission") == "*"
    assert value(session.auth.mechanisms, listener="submission", is_tls=1) == ("PLAIN", "LOGIN")
    assert value(session.auth.mechanisms, listener="submission", is_tls=0) == ()
    assert value(session.auth.mechanisms, listener="smtp", is_tls=1) == ()
    assert value(session.data.add_headers.received, listener="smtp") is True
    assert value(session.data.add_headers.message_id, listener="smtp") is False
    assert value(session.extensions.future_release, authenticated_as="jane") == timedelta(days=7)
    assert value(session.extensions.future_release, authenticated_as="") is None
    assert value(session.extensions.mt_priority, authenticated_as="jane") == "mixer"


@pytest.mark.spec("IN-015")
def test_a_comment_after_a_number_is_no_part_of_it():
    found = settings("[session]\ntransfer-limit = 262144000 # 250 MB\n")
    assert value(found.session.transfer_limit) == 262144000


@pytest.mark.spec("IN-013")
@pytest.mark.parametrize("written", ['"0s"', '"0"', "0.0", '"-1s"'])
def test_a_duration_of_zero_is_refused(written):
    told = refusals(f"[decisions]\nmax-age = {written}\n")
    assert told
    assert told[0].startswith("t.toml:2: decisions.max-age: ")
    if written == '"0s"':
        assert refusal('[session]\ntimeout = "0s"\n').startswith("t.toml:2: session.timeout: ")


@pytest.mark.parametrize(
    ("written", "octets"),
    [("1024", 1024), ('"10k"', 10240), ('"10 KB"', 10240), ('"1mb"', 1048576), ('"2G"', 2**31), ('"77"', 77)],
)
def test_sizes(written, octets):
    assert settings(f"[queue]\ninline-size = {written}\n").queue.inline_size == octets


@pytest.mark.parametrize(
    ("written", "milliseconds"),
    [('"5m"', 300_000), ('"500ms"', 500), ('" 1 h "', 3_600_000), ("250", 250), ('"250"', 250), ('"1d"', 86_400_000)],
)
def test_durations(written, milliseconds):
    assert settings(f"[queue]\nlease = {written}\n").queue.lease == timedelta(milliseconds=milliseconds)


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("queue.lease", "true"),
        ("queue.lease", '"5 apples"'),
        ("queue.lease", "nan"),
        ("queue.lease", "inf"),
        ("queue.lease", '"5m30s"'),
        ("queue.lease", "1979-05-27"),
        ("queue.inline-size", "-1"),
        ("queue.inline-size", "1.5"),
        ("queue.inline-size", '"1tb"'),
        ("queue.min-free", '"100%"'),
        ("queue.min-free", '"0%"'),
        ("resolver.attempts", "0"),
        ("resolver.attempts", "true"),
        ("resolver.custom", '"tcp://[::1"'),
        ("resolver.custom", '"127.0.0.1:99999"'),
        ("server.hostname", '"a b"'),
        ("server.hostname", '"-"'),
        ("server.hostname", "[]"),
        ("decisions.path", '""'),
        ("decisions.enable", "1"),
        ("queue.source-ip", "5"),
        ("session", "5"),
        ("server.listener", "[]"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_with_line_and_key(key, written):
    assert refusal(f"\n{key} = {written}\n").startswith(f"t.toml:2: {key}: ")


@pytest.mark.spec("IN-023")
def test_wrong_types_are_told_together_and_a_quoted_boolean_suggests_the_plain_one():
    told = refusals(
        '[server]\nmax-connections = "many"\n'
        '[server.listener.smtp]\nbind = "127.0.0.1:25"\nprotocol = "smtp"\ntls.enable = "true"\n'
    )
    assert len(told) == 2
    assert told[0].startswith("t.toml:2: server.max-connections: ")
    assert told[1].startswith("t.toml:6: server.listener.smtp.tls.enable: ")
    assert told[1].endswith("write true")


def test_one_value_stands_for_a_list_of_one():
    text = '[server.listener.a]\nprotocol = "SMTP"\nbind = "[::1]:25"\n'
    assert settings(text).server.listener["a"].bind == (SocketAddress("::1", 25),)


def test_an_address_alone_gets_the_port_of_its_protocol():
    text = '[server.listener.a]\nprotocol = "{}"\nbind = ["127.0.0.1", "::1"]\n'
    assert settings(text.format("smtp")).server.listener["a"].bind[1] == SocketAddress("::1", 25)
    assert settings(text.format("lmtp")).server.listener["a"].bind[0] == SocketAddress("127.0.0.1", 24)


def test_a_listener_falls_back_to_the_keys_of_the_server():
    found = settings(
        LISTENER
        + 'tls.timeout = "7s"\nsocket.backlog = 5\n'
        + '[server.tls]\ntimeout = "9s"\nignore-client-order = false\ndisable-protocols = "0x0303"\n'
        + '[server.socket]\nbacklog = 6\nttl = 64\nlinger = "2s"\n'
        + '[server.listener.other]\nbind = "127.0.0.1:2526"\nprotocol = "lmtp"\nmax-connections = 3\n'
    ).server
    smtp, other = found.listener["smtp"], found.listener["other"]
    assert smtp.tls.timeout == timedelta(seconds=7)
    assert other.tls.timeout == timedelta(seconds=9)
    assert not smtp.tls.ignore_client_order
    assert smtp.tls.disable_protocols == ("TLSv1.2",)
    assert (smtp.socket.backlog, other.socket.backlog) == (5, 6)
    assert smtp.socket.ttl == 64
    assert smtp.socket.linger == timedelta(seconds=2)
    assert (smtp.max_connections, other.max_connections) == (8192, 3)
    assert (
        settings(
            "server.max-connections = 9\n"
            + LISTENER.replace("[server]\n", "[server.tls]\n[server.socket]\n").replace('hostname = "mx.test"\n', "")
        )
        .server.listener["smtp"]
        .max_connections
        == 9
    )


def test_a_fault_in_an_inherited_key_is_told_once():
    assert len(refusals('[server.tls]\ntimeout = "x"\n' + LISTENER)) == 1


@pytest.mark.parametrize("written", ["false", "0", '""', '"never"', '"disable"'])
def test_an_optional_value_can_be_switched_off(written):
    text = f"[server.socket]\nlinger = {written}\n"
    assert settings(text).server.socket.linger is None


def test_dns_servers():
    text = '[resolver]\ntype = "custom"\ncustom = ["127.0.0.1", "tcp://[::1]:5353", "udp://9.9.9.9"]\n'
    assert settings(text).resolver.custom == (
        DnsServer("udp", "127.0.0.1", 53),
        DnsServer("tcp", "::1", 5353),
        DnsServer("udp", "9.9.9.9", 53),
    )
    assert "the key is missing" in refusal('[resolver]\ntype = "custom"\n')


def test_trusted_dns_servers():
    found = settings("").resolver
    assert (found.dnssec, [str(network) for network in found.trusted]) == ("trust-ad", ["127.0.0.0/8", "::1/128"])
    found = settings("[resolver]\ndnssec = 'off'\ntrusted = ['192.0.2.53', '2001:db8::/32']\n").resolver
    assert (found.dnssec, [str(network) for network in found.trusted]) == ("off", ["192.0.2.53/32", "2001:db8::/32"])
    assert settings("[resolver]\ntrusted = []\n").resolver.trusted == ()
    assert 'write "192.0.2.53" or "192.0.2.0/24"' in refusal("[resolver]\ntrusted = '192.0.2.53/24'\n")
    assert "no IP address or network" in refusal("[resolver]\ntrusted = ['localhost']\n")


def test_sizes_of_the_dns_cache():
    found = settings("[cache.dns]\nptr.size = '2mb'\n[cache.dns.txt]\nsize = 1000\n").cache.dns
    assert (found.txt.size, found.mx.size, found.ptr.size, found.tlsa.size) == (1000, 5 << 20, 2 << 20, 1 << 20)


def test_report_domain_is_the_host_name_without_its_first_label():
    assert settings('[server]\nhostname = "mx.example.org"\n').report.domain == "example.org"
    assert settings('[server]\nhostname = "mx.test"\n').report.domain == "mx.test"
    assert settings('[server]\nhostname = "localhost"\n').report.domain == "localhost"
    report = settings('[server]\nhostname = "mx.example.org"\n').report
    assert value(report.dsn.from_address) == "MAILER-DAEMON@example.org"
    assert value(report.submitter) == "mx.example.org"


def test_the_spool_and_the_decisions_are_beside_the_queue():
    found = settings('[storage]\ndata = "q.1"\n[store."q.1"]\ntype = "sqlite"\npath = "/data/q.sqlite"\n')
    assert found.queue_file == "/data/q.sqlite"
    assert found.queue.spool == "/data/spool"
    assert found.decisions.path == "/data/decisions"


def test_secrets_stay_out_of_what_repr_shows():
    found = settings('[directory.d]\ntype = "memory"\n[[directory.d.principals]]\nname = "a"\nsecret = "hunter2"\n')
    assert found.directory["d"].principals[0].secret == ("hunter2",)
    assert "hunter2" not in repr(found)


# --- expressions --------------------------------------------------------------


@pytest.mark.spec("IN-002")
def test_an_if_block_over_several_lines():
    found = settings(
        "[session.ehlo]\nreject-non-fqdn = [\n  { if = \"listener = 'smtp'\",\tthen = true }, # first\n\n"
        "  { else = false },\n]\n"
    )
    assert value(found.session.ehlo.reject_non_fqdn, listener="smtp") is True
    assert value(found.session.ehlo.reject_non_fqdn, listener="x") is False


@pytest.mark.spec("IN-010")
def test_an_if_block_without_else_is_refused():
    told = refusal('[session.mail]\nis-allowed = [ { if = "is_tls", then = true } ]\n')
    assert told.startswith("t.toml:2: session.mail.is-allowed: missing else")


@pytest.mark.spec("IN-011")
def test_two_else_elements_are_refused():
    told = refusal(
        '[session.mail]\nis-allowed = [ { if = "is_tls", then = true },\n{ else = true },\n{ else = false } ]\n'
    )
    assert told.startswith("t.toml:4: session.mail.is-allowed: multiple else")


@pytest.mark.spec("IN-012")
def test_if_without_then_is_refused():
    told = refusal('[session.mail]\nis-allowed = [ { if = "is_tls" }, { else = true } ]\n')
    assert told.startswith("t.toml:2: session.mail.is-allowed: missing then")


@pytest.mark.spec("IN-028")
def test_a_list_of_unlike_elements_and_a_string_in_an_if_block_are_refused():
    assert refusal('[lookup]\nx = ["a", 5]\n').startswith("t.toml:2: lookup.x: ")
    told = refusal("[session.mail]\nis-allowed = [ { if = \"is_tls\", then = true },\n{ else = true },\n'x' ]\n")
    assert told.startswith("t.toml:4: session.mail.is-allowed: ")


@pytest.mark.spec("IN-038")
@pytest.mark.parametrize(
    "elements",
    [
        "{ else = true }, { on-error = 'maybe' }",
        "{ else = true, on-error = 'accept' }",
        "{ else = true }, { on-error = 'accept' }, { on-error = 'accept' }",
    ],
)
def test_a_bad_on_error_is_refused(elements):
    told = refusals(f"[session.mail]\nis-allowed = [ {{ if = 'is_tls', then = true }}, {elements} ]\n")
    assert told
    assert all(line.startswith("t.toml:2: session.mail.is-allowed: ") for line in told)
    told = refusals("[session.mail]\nis-allowed = [ { if = 'is_tls', then = 1, on-error = 'accept' }, { else = 1 } ]\n")
    assert told
    assert all(line.startswith("t.toml:2: session.mail.is-allowed: ") for line in told)


@pytest.mark.spec("IN-032")
def test_three_ways_to_write_one_regular_expression():
    found = settings(
        "[session.data.add-headers]\n"
        "received = \"matches('^a\\\\.b$', listener)\"\n"
        "message-id = 'matches(\"^a\\.b$\", listener)'\n"
        "date = \"matches('^a[.]b$', listener)\"\n"
    ).session.data.add_headers
    for choice in (found.received, found.message_id, found.date):
        assert value(choice, listener="a.b") is True
        assert value(choice, listener="axb") is False


@pytest.mark.spec("IN-062")
def test_a_variable_that_is_not_there_yet_names_key_and_variable():
    told = refusal('[session.mail]\nis-allowed = "!is_empty(rcpt)"\n')
    assert told.startswith("t.toml:2: session.mail.is-allowed: rcpt is not available at MAIL")
    assert "available: " in told


@pytest.mark.spec("IN-063")
@pytest.mark.spec("IN-064")
@pytest.mark.spec("IN-065")
@pytest.mark.spec("IN-066")
@pytest.mark.spec("IN-081")
@pytest.mark.parametrize(
    ("key", "written", "says"),
    [
        ("session.mail.is-allowed", "nosuch(sender)", "nosuch"),
        ("session.rcpt.relay", "matches('(', rcpt)", "regular expression"),
        ("session.rcpt.relay", "len('a', 'b')", "takes 1 argument"),
        ("session.extensions.future-release", "[1, 2]", "duration"),
        ("session.connect.greeting", "config_get('no.such.key')", "no.such.key"),
    ],
)
def test_faulty_expressions_are_refused(key, written, says):
    table, _, name = key.rpartition(".")
    told = refusal(f'[{table}]\n{name} = "{written}"\n')
    assert told.startswith(f"t.toml:2: {key}: ")
    assert says in told


STRATEGIES = ("route", "schedule", "connection", "tls")


def strategy(key, written):
    """A rule of the queue: its TOML, and how an error about it begins."""
    if key == "match":
        return f'[[queue.quota]]\nmessages = 5\nmatch = "{written}"\n', "t.toml:3: queue.quota.0000.match: "
    return f'[queue.strategy]\n{key} = "{written}"\n', f"t.toml:2: queue.strategy.{key}: "


@pytest.mark.spec("OUT-223")
@pytest.mark.parametrize("key", [*STRATEGIES, "match"])
@pytest.mark.parametrize(
    ("written", "problem", "advice"),
    [
        ("rcpt_domian = 'x'", "no variable or constant rcpt_domian", "did you mean rcpt_domain?"),
        ("helo_domain = 'x'", "helo_domain is not available at ", "available: "),
        (
            "is_locl_domain('*', rcpt_domain)",
            "no function is_locl_domain",
            "did you mean is_local_domain(dir, domain)?",
        ),
        ("is_local_domain(rcpt)", "is_local_domain takes 2 arguments, not 1", "write is_local_domain(dir, domain)"),
        ("matches('(', rcpt)", "'(' is no regular expression", "check its brackets"),
        ("key_exists('nosuch', rcpt)", 'no list or store "nosuch"', "defined are "),
    ],
)
def test_a_faulty_rule_of_the_queue_is_refused(key, written, problem, advice):
    if key != "match":
        written = f"if_then({written}, 'default', 'default')"
    text, place = strategy(key, written)
    told = refusals(text)[0]
    assert told.startswith(place + problem)
    assert f"; {advice}" in told


@pytest.mark.spec("OUT-223")
@pytest.mark.parametrize("key", STRATEGIES)
@pytest.mark.parametrize("written", ["5", "1h", "['mx', 'local']", "rcpt_domain = 'x'", "size", "recipients"])
def test_a_strategy_that_gives_no_name_is_refused(key, written):
    text, place = strategy(key, written)
    told = refusal(text)
    assert told.startswith(place)
    assert " is not " in told


def test_a_key_that_is_none_is_told_each_time_it_is_asked_for():
    told = refusals("[session.connect]\ngreeting = \"config_get('no.key')\"\nhostname = \"config_get('no.key')\"\n")
    assert len(told) == 2


@pytest.mark.spec("IN-068")
def test_a_variable_may_be_written_with_a_dash():
    found = settings('[session.rcpt]\nrelay = "is_empty(authenticated-as)"\n')
    assert value(found.session.rcpt.relay, authenticated_as="") is True


@pytest.mark.spec("IN-274")
def test_a_misspelt_word_suggests_the_right_one():
    told = refusal('[session]\nbare-newline = "noramlize"\n')
    assert told.startswith("t.toml:2: session.bare-newline: ")
    assert "did you mean normalize?" in told


@pytest.mark.parametrize("word", ["oauthbearer", "xoauth2", "scram_sha_256"])
def test_mechanisms_of_later_versions_are_refused_by_name(word):
    told = refusal(
        f'[session.auth]\nmechanisms = [ {{ if = "is_tls", then = "[plain, {word}]" }}, {{ else = false }} ]\n'
    )
    assert f"session.auth.mechanisms: {word}: known, not supported by this version" in told
    assert "not supported" in refusal(f'[session.auth]\nmechanisms = ["{word}"]\n')


# --- keys ---------------------------------------------------------------------


@pytest.mark.spec("IN-022")
def test_an_unknown_key_suggests_the_nearest():
    assert refusal('\n[session]\ntiemout = "5m"\n') == (
        "t.toml:3: session.tiemout: unknown key; did you mean session.timeout?"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[sesion]\ntimeout = 5\n", "sesion: unknown key; did you mean session?"),
        ("[session]\nmax-recipients = 5\n", "did you mean session.rcpt.max-recipients?"),
        ("[session]\nis_allowed = true\n", "session.is_allowed: unknown key"),
        ("[auth]\niprve.verify = 'disable'\n", "auth.iprve: unknown key; did you mean auth.iprev?"),
        ("[spam-filter]\nenabled = false\n", "did you mean spam-filter.enable?"),
        ("[queue.route.x]\ntype = 'mx'\naddress = 'a.test'\n", "queue.route.x.address: unknown key"),
        ("[queue.route.x]\ntype = 'mx'\nconcurrency = 5\n", "queue.route.x.concurrency: unknown key"),
        ("[queue.route.x]\ntype = 'imap'\n", "queue.route.x.type: "),
        ("[queue.route.x]\nlimits.mx = 5\n", "queue.route.x.type: the key is missing"),
        ("[[queue.route.x]]\ntype = 'mx'\n", "write [queue.route.x]"),
        ("[directory.d]\ntype = 'memory'\nprincipals = { name = 'a' , x = 1}\n", "directory.d.principals.0000.x: "),
        ("[directory.d]\ntype = 'memory'\n[[directory.d.principals]]\n", "directory.d.principals.0000.name: "),
    ],
)
def test_what_is_wrong_with_a_table(text, says):
    told = "\n".join(refusals(text))
    assert says in told


@pytest.mark.spec("OUT-221")
def test_unknown_keys_of_the_queue_suggest_the_nearest_and_descriptions_are_taken():
    told = refusal('[queue.schedule.bulk]\nretyr = "5m"\n')
    assert told == "t.toml:2: queue.schedule.bulk.retyr: unknown key; did you mean queue.schedule.bulk.retry?"
    tables = {
        "queue.virtual.a": "threads-per-node = 1",
        "queue.schedule.a": "",
        "queue.route.a": 'type = "mx"',
        "queue.route.b": 'type = "relay"\naddress = "h.test"',
        "queue.connection.a": "",
        "queue.tls.a": "",
        'queue.source-ip."192.0.2.1"': "",
        "store.a": 'type = "memory"',
        "directory.a": 'type = "memory"',
    }
    settings("".join(f'[{table}]\n{keys}\ndescription = "for people"\n' for table, keys in tables.items()))
    assert "description" in refusal("[queue.virtual.a]\nthreads-per-node = 1\ndescription = 5\n")


def test_two_spellings_of_one_key_are_a_duplicate():
    told = refusal("[session.data.limits]\nmessages = 5\nmessage = 6\n")
    assert told.startswith("t.toml:3: session.data.limits.message: means the same as session.data.limits.messages")
    assert "line 2" in told


def test_older_spellings_that_are_taken():
    found = settings("[session.data.limits]\nmessage = 2\n[session.rcpt]\nsubaddressing = false\n").session
    assert value(found.data.limits.messages) == 2
    assert value(found.rcpt.sub_addressing) is False


def test_a_key_without_effect_is_warned_of():
    assert any(
        "session.auth.allow-plain-text: the key has no effect" in line
        for line in warnings("[session.auth]\nallow-plain-text = true\n")
    )


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[session.connect]\nscript = 'x'\n", "session.connect.script"),
        ("[sieve.trusted.scripts]\nx = 'keep;'\n", "sieve.trusted"),
        ("[session.milter.m]\nenable = true\nhostname = 'h'\nport = 1\n", "session.milter"),
        ("[[session.milter]]\nenable = true\n[[session.milter]]\n", "session.milter"),
        ("[session.data]\nspam-filter = true\n", "session.data.spam-filter"),
        ("[session.data.add-headers]\nauth-results = true\n", "session.data.add-headers.auth-results"),
        ("[session.data.add-headers]\nreceived-spf = 0\n", "session.data.add-headers.received-spf"),
        ("[auth.spf]\nverify.ehlo = 'relaxed'\n", "auth.spf.verify.ehlo"),
        ("[auth.dkim]\nsign = \"['rsa']\"\n", "auth.dkim.sign"),
        ("[signature.rsa]\nalgorithm = 'rsa-sha256'\n", "signature"),
        ("[queue.tls.default]\ndane = 'optional'\n", "queue.tls.default.dane"),
        ("[queue.tls.default]\nmta-sts = true\n", "queue.tls.default.mta-sts"),
        ("[[queue.limiter.inbound]]\nkey = 'remote_ip'\nrate = '5/1s'\n", "queue.limiter"),
        ("[server]\nblocked-ip = ['127.0.0.9']\n", "server.blocked-ip"),
        ("[server.proxy]\ntrusted-networks = '127.0.0.0/8'\n", "server.proxy.trusted-networks"),
        ("[server.auto-ban.auth]\nrate = '2/1d'\n", "server.auto-ban.auth.rate"),
        ("[management.http]\nbind = '127.0.0.1:80'\n", "management.http"),
        ("[tracer.log]\ntype = 'log'\n", "tracer"),
        ("workers = 2\n", "workers"),
        (
            "[queue.route.x]\ntype = 'local'\nmaildir = '/m/%{user}'\njunk-folder = 'Junk'\n",
            "queue.route.x.junk-folder",
        ),
        ("[store.q]\ntype = 'sqlite'\npath = '/q'\npurge.frequency = '1h'\n", "store.q.purge.frequency"),
        ("[http-lookup.x]\nenable = true\n", "http-lookup"),
        ("[report.dsn]\nsign = \"['rsa']\"\n", "report.dsn.sign"),
        ("[resolver]\npreserve-intermediates = true\n", "resolver.preserve-intermediates"),
    ],
)
def test_what_this_version_does_not_do_is_refused_by_its_name(text, key):
    told = refusal(text)
    assert told.split(": ")[1] == key
    assert told.split(": ")[2].partition(";")[0] == "known, not supported by this version"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[store.m]\ntype = 'mysql'\nhost = 'h'\n", "store.m.type"),
        ("[store.r]\ntype = 'redis'\nurls = 'redis://h'\nredis-type = 'cluster'\n", "store.r.redis-type"),
        ("[directory.d]\ntype = 'ldap'\nurl = 'ldap://h'\n", "directory.d.type"),
        ("[resolver]\ntype = 'quad9-tls'\n", "resolver.type"),
        ("[store.l]\ntype = 'memory'\nvalues = 'https://h/list'\n", "store.l.values"),
        ("[resolver]\ntype = 'custom'\ncustom = 'tls://9.9.9.9'\n", "resolver.custom"),
    ],
)
def test_values_of_later_versions_are_refused_by_their_name(text, key):
    told = refusals(text)[0]
    assert told.split(": ")[1] == key
    assert "known, not supported by this version" in told


@pytest.mark.parametrize(
    "text",
    [
        "[auth]\niprev.verify = 'disable'\nspf.verify.ehlo = false\nspf.verify.mail-from = \"'disable'\"\n"
        "dmarc.verify = 'none'\narc.verify = 'never'\ndkim.verify = 'disable'\ndkim.sign = false\narc.seal = ''\n",
        "[spam-filter]\nenable = false\ncard-is-ham.enable = false\n[session.data]\nspam-filter = false\n",
        "[session.data]\nscript = ''\nadd-headers = { received-spf = false, auth-results = false }\n",
        "[queue.tls.default]\ndane = 'disable'\nmta-sts = false\n",
        "[server]\nblocked-ip = []\nauto-ban.scan.rate = 'unlimited'\n[asn]\ntype = 'disabled'\n",
        "workers = 1\n[storage]\nlookup = ''\n[report.dsn]\nsign = []\n",
    ],
)
def test_what_this_version_does_not_do_may_be_switched_off(text):
    settings(text)


def test_the_baseline_of_the_acceptance_rows_loads():
    found = settings(B0 + LISTENER.replace("[server]\n", "").replace('hostname = "mx.test"\n', ""))
    assert value(found.session.rcpt.relay) is True
    assert value(found.session.auth.errors.wait) == timedelta(milliseconds=5)


@pytest.mark.spec("OUT-219")
@pytest.mark.parametrize(
    ("key", "now"),
    [
        ("queue.schedule.retry = ['2m']", "queue.schedule.<id>"),
        ("queue.schedule.notify = ['2m']", "queue.strategy.schedule"),
        ("queue.schedule.expire = '5d'", "queue.schedule.<id>"),
        ("queue.outbound.next-hop = false", "queue.strategy.route"),
        ("remote.lmtp.address = '127.0.0.1'", "queue.route.<id>"),
        ("remote.lmtp.port = 24", "queue.route.<id>"),
        ("remote.lmtp.protocol = 'lmtp'", "queue.route.<id>"),
        ("remote.lmtp.auth.username = 'x'", "queue.route.<id>"),
        ("remote.lmtp.tls.implicit = true", "queue.route.<id>"),
        ("queue.outbound.hostname = 'h'", "queue.connection.<id>.ehlo-hostname"),
        ("queue.outbound.source-ip.v4 = '192.0.2.1'", "queue.connection.<id>.source-ips"),
        ("queue.outbound.source-ip.v6 = []", "queue.connection.<id>.source-ips"),
        ("queue.outbound.ip-strategy = 'ipv4_only'", "queue.route.<id>.ip-lookup"),
        ("queue.outbound.limits.mx = 5", "queue.route.<id>.limits.mx"),
        ("queue.outbound.limits.multihomed = 5", "queue.route.<id>.limits.multihomed"),
        ("queue.outbound.tls.dane = 'require'", "queue.tls.<id>.dane"),
        ("queue.outbound.tls.mta-sts = 'require'", "queue.tls.<id>.mta-sts"),
        ("queue.outbound.tls.starttls = 'require'", "queue.tls.<id>.starttls"),
        ("queue.outbound.tls.allow-invalid-certs = true", "queue.tls.<id>.allow-invalid-certs"),
        ("queue.outbound.timeouts.connect = '5m'", "queue.connection.<id>.timeout"),
        ("queue.outbound.timeouts.tls = '5m'", "queue.tls.<id>.timeout.tls"),
        ("queue.outbound.timeouts.mta-sts = '5m'", "queue.tls.<id>.timeout.mta-sts"),
        ("queue.outbound.concurrency = 25", "queue.virtual.<id>.threads-per-node"),
        ("queue.threads.remote = 25", "queue.virtual.<id>.threads-per-node"),
        ("queue.threads.local = 25", "queue.virtual.<id>.threads-per-node"),
        ("[[queue.throttle]]\nkey = 'rcpt-domain'", "[[queue.limiter.outbound]]"),
        ("[[session.throttle]]\nkey = 'remote-ip'", "[[queue.limiter.inbound]]"),
        ("lookup.default.hostname = 'h'", "server.hostname"),
        ("lookup.default.domain = 'd'", "report.domain"),
    ],
)
def test_a_key_of_an_earlier_release_is_refused_with_its_new_name(key, now):
    told = refusal(f"{key}\n")
    assert told.startswith("t.toml:1: ")
    assert "the key is of an earlier release; " in told
    assert now in told


def test_a_schedule_may_be_called_like_an_older_key():
    assert settings('[queue.schedule.expire]\nexpire = "1d"\n').queue.schedule["expire"].expire == timedelta(days=1)


# --- examples of the manual ------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '[session]\ntimeout = "5m"\ntransfer-limit = 262144000 # 250 MB\nduration = "10m"\n',
        "[session.ehlo]\nrequire = true\n"
        "reject-non-fqdn = [ { if = \"listener = 'smtp'\", then = true },\n{ else = false } ]\n",
        "[session.data.limits]\nmessages = 10\nsize = 104857600\nreceived-headers = 50\n",
        '[session.extensions]\npipelining = true\nchunking = true\nrequiretls = true\nno-soliciting = ""\n'
        + "".join(
            f'{name} = [ {{ if = "!is_empty(authenticated_as)", then = {then}}},\n{{ else = false }} ]\n'
            for name, then in {
                "dsn": "true",
                "future-release": '"7d"',
                "deliver-by": '"15d"',
                "mt-priority": '"mixer"',
                "vrfy": "true",
                "expn": "true",
            }.items()
        ),
        '[server.listener."smtp"]\nbind = "[::]:25"\nprotocol = "smtp"\ngreeting = "Welcome!"\n',
        '[server.listener."submissions"]\nbind = ["[::]:465"]\nprotocol = "smtp"\ntls.implicit = true\n',
        '[server.listener."submission"]\nbind = ["[::]:587"]\nprotocol = "smtp"\n',
        '[server.listener."lmtp"]\nbind = ["[::]:24"]\nprotocol = "lmtp"\n',
    ],
)
def test_examples_load_as_they_are_printed(text):
    settings(text)


def test_an_example_with_features_of_later_versions_names_just_those():
    rule = "[ { if = \"listener = 'smtp'\", then = true },\n{ else = false } ]"
    names = ("received", "received-spf", "auth-results", "message-id", "date")
    told = refusals(
        "[session.data.add-headers]\n"
        + "".join(f"{name} = {rule}\n" for name in names)
        + "return-path = false\ndelivered-to = true\n"
    )
    assert told == [
        f"t.toml:{line}: session.data.add-headers.{name}: known, not supported by this version"
        for line, name in ((4, "received-spf"), (6, "auth-results"))
    ]


# --- lists --------------------------------------------------------------------


@pytest.mark.spec("IN-001")
def test_a_list_with_a_slash_in_its_name():
    found = settings(
        '[store."list/blocked-domains"]\ntype = "memory"\nformat = "list"\n'
        'values = ["mail.spammer.test", "mail.spammer.example"]\n'
    ).store["list/blocked-domains"]
    assert isinstance(found, MemoryStoreSettings)
    assert found.values == ("mail.spammer.test", "mail.spammer.example")


def test_lists_in_the_file_in_both_forms():
    found = settings(
        '[lookup]\nx = ["A.test", "b"]\none = "c"\n'
        '[lookup."d.e"]\n"example.com" = true\n"*.example.com" = true\n"k" = "v"\nn = 5\n'
    ).lookup
    assert found["x"].entries == {"a.test": "", "b": ""}
    assert found["one"].entries == {"c": ""}
    assert found["d.e"].entries == {"example.com": "", "*.example.com": "", "k": "v", "n": "5"}


@pytest.mark.spec("IN-027")
def test_an_entry_with_a_dot_has_to_be_quoted():
    told = refusal('[lookup."d"]\n"a" = true\na.test = true\n')
    assert told.startswith("t.toml:3: lookup.d: ") or "lookup.d" in told
    assert '"a.test" = true' in refusal('[lookup."d"]\na.test = true\n')
    assert refusal('[lookup."d"]\na.test = true\n').startswith("t.toml:2: lookup.d: ")


def test_lists_that_always_exist_are_empty_until_somebody_fills_them():
    assert all(settings("").lookup[name].entries == {} for name in STANDARD_LISTS)
    assert settings('[lookup]\nblocked-domains = ["a"]\n').lookup["blocked-domains"].entries == {"a": ""}
    text = '[store.blocked-domains]\ntype = "memory"\nvalues = "b"\n'
    assert "blocked-domains" not in settings(text).lookup


# --- reports ------------------------------------------------------------------


def test_everything_that_is_wrong_is_told_at_once_in_the_order_of_the_file():
    told = refusals(
        "[session]\ntiemout = '5m'\n[session.rcpt]\ndirectory = \"'nosuch'\"\nrelay = 'nosuch('\n"
        "[queue]\nlease = true\n[server.listener.smtp]\nbind = 'x'\n"
    )
    assert [line.split(": ")[:2] for line in told] == [
        ["t.toml:2", "session.tiemout"],
        ["t.toml:4", "session.rcpt.directory"],
        ["t.toml:5", "session.rcpt.relay"],
        ["t.toml:7", "queue.lease"],
        ["t.toml:8", "server.listener.smtp.protocol"],
        ["t.toml:9", "server.listener.smtp.bind"],
    ]


def test_a_rule_knows_where_it_is_written():
    choice = load_text("\n[session]\ntimeout = '1m'\n", "/etc/x.toml").settings.session.timeout
    assert choice.place == "/etc/x.toml:3"
    assert choice.key == "session.timeout"


def test_line_ends_of_other_systems_and_a_byte_order_mark_are_taken():
    assert refusal('\ufeff[session]\r\n\r\ntiemout = "5m"\r\n').startswith("t.toml:3: ")


def test_files_that_are_none(tmp_path):
    with pytest.raises(ConfigErrors, match="cannot be read: no such file"):
        load(str(tmp_path / "none.toml"))
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"[session]\n# \xff\n")
    assert [str(error) for error in check_file(str(bad)).errors] == [f"{bad}:2: not UTF-8 text; save the file as UTF-8"]


def test_checking_a_file_tells_errors_or_warnings(tmp_path):
    file = tmp_path / "m.toml"
    file.write_text("[session]\ntiemout = 1\nx = 2\n")
    assert len(check_file(str(file)).errors) == 2
    file.write_text("")
    checked = check_file(str(file))
    assert not checked.errors
    assert len(checked.warnings) == 1


def test_a_configuration_of_five_thousand_lines_loads():
    lists = "".join(f'[lookup.l{n}]\n"a{n}.test" = true\n"*.b{n}.test" = "v"\n' for n in range(700))
    routes = "".join(f'[queue.route.r{n}]\ntype = "relay"\naddress = "h{n}.test"\n\n' for n in range(300))
    rules = ",\n".join(f"{{ if = \"rcpt_domain = 'd{n}.test'\", then = \"'r{n}'\" }}" for n in range(300))
    people = "".join(
        f'[[directory.d.principals]]\nname = "p{n}"\nsecret = "s"\nemail = "p{n}@x.test"\n' for n in range(300)
    )
    text = (
        f"{LISTENER}\n{lists}{routes}[queue.strategy]\nroute = [\n{rules},\n{{ else = \"'mx'\" }} ]\n"
        f'[directory.d]\ntype = "memory"\n{people}'
    )
    assert text.count("\n") >= 4800
    found = settings(text)
    assert len(found.queue.route) == 302
    assert len(found.directory["d"].principals) == 300
