"""A rehearsed session: the answers are the table's, and a question without one is a failure."""

import json
import re

import pytest

from mailgate.admin.main import main

CONFIG = """
server.hostname = "mx.test"
server.listener.smtp = { bind = "127.0.0.1:25", protocol = "smtp" }
server.listener.in = { bind = "127.0.0.1:24", protocol = "lmtp" }
storage.directory = "local"
directory.local.type = "memory"
lookup.foes = ["foe.test"]
session.auth.require = false
session.mail.is-allowed = "!key_exists('foes', sender_domain) && remote_ip != '192.0.2.66'"
session.mail.rewrite = [ { if = "sender = 'old@a.test'", then = "'new@a.test'" }, { else = false } ]
session.rcpt.relay = "rcpt_domain = 'free.test' && is_empty(dns_query(sender_domain, 'txt'))"
session.rcpt.errors.wait = "1h"
queue.quota.all = { messages = 10, size = "1kb", enable = true }
"""

GIVEN = """
[default]
listener = "smtp"
helo = "c.test.example"
mail = "a@a.test"
rcpt = "jane@here.test"
message = "Subject: x\\n\\n.dot\\n"
answers.lists.foes = []
answers.directory.local = { domains = ["here.test"], addresses = ["jane@here.test"] }
[[test]]
name = "it"
"""


@pytest.fixture
def tried(tmp_path, capsys):
    """Plays one test; its part of the document, and the exit status."""
    config = tmp_path / "mailgate.toml"
    config.write_text(CONFIG)
    (tmp_path / "tests").mkdir()

    def try_it(text):
        (tmp_path / "tests" / "t.toml").write_text(GIVEN + text)
        status = main(["--config", str(config), "test", "--json"])
        document = json.loads(capsys.readouterr().out)
        return (document["tests"][0] if "tests" in document else document), status

    return try_it


def test_accepted_and_not_kept(tried):
    result, status = tried(
        'expect = { data = 250, queued = true, header = ["Received", "Return-Path", "Date", "Message-ID"] }'
    )
    assert status == 1
    assert result["differences"] == [
        {"what": "header", "expected": "Received, Return-Path, Date, Message-ID", "got": "Received, Return-Path"}
    ]
    assert tried('expect = { data = 250, queued = true, header = ["Received", "Return-Path"] }')[1] == 0


def test_a_question_without_an_answer_fails_the_test_whatever_was_expected(tried):
    result, status = tried('rcpt = "x@free.test"\nexpect.rcpt = "tempfail"')
    assert status == 1
    assert result["differences"] == []
    assert result["missing"] == [
        'the policy asked DNS for a.test TXT, the test has no answer for it: write answers.dns."a.test".txt'
    ]


@pytest.mark.parametrize(
    "answer, verdict",
    (("{ txt = [] }", "accept"), ('{ txt = ["x"] }', "reject"), ('"none"', "accept"), ('"unknown"', "tempfail")),
)
def test_dns_as_the_test_tells_it(tried, answer, verdict):
    result, status = tried(f'rcpt = "x@free.test"\nanswers.dns."a.test" = {answer}\nexpect.rcpt = "{verdict}"')
    assert status == 0, result


@pytest.mark.parametrize(
    "given, expect",
    (
        (
            'mail = "a@foe.test"\nanswers.lists.foes = "configured"',
            'mail = { code = 550, rule = "session.mail.is-allowed" }',
        ),
        (
            'answers.lists.foes = { unknown = "redis" }',
            'mail = { verdict = "tempfail", rule = "session.mail.is-allowed" }',
        ),
        ('peer = "192.0.2.66"\nanswers.lists.foes = { unknown = "redis" }', 'mail = "reject"'),
        ('mail = "old@a.test"', 'sender = "new@a.test"'),
        ('listener = "in"', "data = 250"),
        ("helo = false", 'mail = { code = 503, rule = "session.ehlo.require" }'),
        ('helo = "HELO c.test.example"', "ehlo = 250"),
        ('rcpt = ["no@here.test", "jane@here.test"]', 'rcpt = ["550 5.1.2", "250 2.1.5"]'),
        ('rcpt = "jane+x@here.test"', 'recipients = ["jane+x@here.test"]'),
        ('answers.directory.local = { unknown = "ldap" }', "rcpt = 451"),
        ("tls = true", "starttls = 220"),
    ),
)
def test_what_the_policy_says(tried, given, expect):
    result, status = tried(f"{given}\nexpect = {{ {expect} }}")
    assert status == 0, result


def test_what_is_not_reached_says_why(tried):
    result, status = tried('mail = "a@foe.test"\nanswers.lists.foes = "configured"\nexpect.data = "accept"')
    assert status == 1
    assert result["differences"][0]["got"] == "not reached: mail was answered 550"


def test_the_trail_has_rule_and_place(tried):
    result, _ = tried('mail = "a@foe.test"\nanswers.lists.foes = "configured"\nexpect.mail = 250')
    (said,) = (each for each in result["stages"] if each["stage"] == "mail")
    assert (said["rule"], said["place"].rpartition("/")[2]) == ("session.mail.is-allowed", "mailgate.toml:9")
    assert {"name": "sender_domain", "value": "foe.test"} in said["steps"][-1]["reads"]


def test_a_listener_nobody_has(tried):
    document, status = tried('listener = "nope"\nexpect.mail = 250')
    assert status == 78
    assert 't.toml:10: listener: no listener "nope"; defined are smtp, in' in document["error"]["message"]


def test_no_tests_and_no_configuration(tmp_path, capsys):
    config = tmp_path / "mailgate.toml"
    config.write_text(CONFIG)
    assert main(["--config", str(config), "test"]) == 64
    assert main(["--config", str(config), "test", str(tmp_path / "none.toml")]) == 64
    config.write_text("server.hostnam = 'x'")
    assert main(["--config", str(config), "test"]) == 78
    capsys.readouterr()


def test_for_people(tmp_path, capsys):
    config = tmp_path / "mailgate.toml"
    config.write_text(CONFIG)
    file = tmp_path / "one.toml"
    file.write_text(GIVEN + 'mail = "a@foe.test"\nanswers.lists.foes = ["foe.test"]\nexpect.mail = 250')
    assert main(["test", "--config", str(config), str(file)]) == 1
    out = capsys.readouterr().out
    assert f"failed  it  ({file}:10)\n" in out
    assert "    expected  250\n    got       550 5.7.1, reject, decided by session.mail.is-allowed\n" in out
    assert f"session.mail.is-allowed ({config}:9) -> 550 5.7.1 (sender-not-allowed)" in out
    assert out.endswith("1 test, 1 failed\n")


@pytest.mark.parametrize(
    "answer, verdict",
    (
        ('"full"', "tempfail"),
        ("{ messages = 10 }", "tempfail"),
        ("{ messages = 9 }", "accept"),
        ('{ size = "1kb" }', "tempfail"),
        ("{}", "accept"),
    ),
)
def test_a_quota_is_as_full_as_the_test_says(tried, answer, verdict):
    rule = ', rule = "queue.quota.all"' if verdict == "tempfail" else ""
    text = f'answers.quotas.all = {answer}\nexpect.data = {{ verdict = "{verdict}"{rule} }}\n'
    result, status = tried(f"{text}expect.queued = {str(verdict == 'accept').lower()}")
    assert status == 0, result


def test_nothing_is_in_the_queue_that_the_test_does_not_say(tried):
    assert tried("expect.data = 250")[1] == 0


def test_a_quota_that_nobody_configured_fails_the_test(tried):
    result, status = tried('answers.quotas.al = "full"\nexpect.data = 250')
    assert status == 1
    assert result["missing"] == ['answers.quotas.al: no quota "al" is configured']


def test_what_sendmail_hands_in_is_tried_as_the_user_who_does(tried):
    given = (
        'listener = "sendmail"\nlogin = "www-data"\nmail = "www-data@mx.test"\n'
        'rcpt = ["jane@here.test", "x@free.test"]\nanswers.dns."mx.test".txt = []\n'
    )
    result, status = tried(given + "expect = { mail = 250, rcpt = 250, data = 250, queued = true }")
    assert (result["differences"], status) == ([], 0)


def test_a_user_is_nobody_else_unless_the_rules_say_so(tried):
    given = 'listener = "sendmail"\nlogin = "www-data"\nmail = "shop@here.test"\n'
    result, status = tried(given + "expect = { mail = 501 }")
    assert (result["differences"], status) == ([], 0)


STORES = """
[store.shared]
type = "redis"
urls = "redis://192.0.2.1"
[store.db]
type = "postgresql"
host = "192.0.2.1"
database = "mail"
"""


@pytest.fixture
def with_rule(tmp_path, capsys):
    """Plays one test under a rule for MAIL; its part of the document."""

    def try_it(rule, text):
        config = tmp_path / "mailgate.toml"
        head = CONFIG.partition("session.mail.is-allowed")[0]
        config.write_text(f'{head}session.mail.is-allowed = "{rule}"\nsession.rcpt.relay = true\n{STORES}')
        (tmp_path / "tests").mkdir(exist_ok=True)
        (tmp_path / "tests" / "t.toml").write_text(GIVEN + text)
        main(["--config", str(config), "test", "--json"])
        return json.loads(capsys.readouterr().out)["tests"][0]

    return try_it


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("key_get('shared', sender) = 'v'", 'answers.lists.shared = { "a@a.test" = "v" }'),
        ("key_set('shared', 'k', 'x') & key_get('shared', 'K') = 'x'", "answers.lists.shared = {}"),
        ("counter_incr('', 'n', 2) = 7 & counter_get('', 'n') = 7", 'answers.lists."" = { n = "5" }'),
        ("sql_query('db', 'SELECT 1', [])", 'answers.sql.db = { "SELECT 1" = 1 }'),
        ("sql_query('db', '? ?', [sender, 2]) = [1, 'x']", 'answers.sql.db = { "? ?" = { "a@a.test, 2" = [1, "x"] } }'),
    ],
)
def test_stores_answer_from_the_table(with_rule, rule, text):
    result = with_rule(rule, f'{text}\nexpect.mail = "250 2.1.0"')
    assert result["differences"] == []
    assert "missing" not in result or result["missing"] == []


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("key_get('shared', sender) = 'v'", 'answers.lists.shared = { unknown = "redis" }'),
        ("key_set('shared', 'k', 'x')", 'answers.lists.shared = { unknown = "redis" }'),
        ("counter_incr('', 'n', 1) > 0", 'answers.lists."" = { n = "many" }'),
        ("sql_query('db', 'SELECT 1', [])", 'answers.sql.db = "unknown"'),
        ("sql_query('db', 'SELECT 1', [])", 'answers.sql.db = { unknown = "postgresql" }'),
    ],
)
def test_stores_that_do_not_answer(with_rule, rule, text):
    assert with_rule(rule, f'{text}\nexpect.mail = "451 4.4.3"')["differences"] == []


@pytest.mark.parametrize(
    ("rule", "missing"),
    [
        ("key_get('shared', sender) = 'v'", "list shared for a@a.test, .*: write answers.lists.shared"),
        ("key_set('', 'k', 'x')", 'the default store to keep k, .*: write answers.lists.""'),
        ("counter_incr('shared', 'n', 1) > 0", "list shared for n, .*: write answers.lists.shared"),
        ("sql_query('db', 'S ?', sender)", r'store db for S \? with a@a.test, .*: write answers.sql."db"."S \?"'),
    ],
)
def test_a_question_to_a_store_without_an_answer(with_rule, rule, missing):
    (told,) = with_rule(rule, 'expect.mail = "451 4.4.3"')["missing"]
    assert re.fullmatch(f"the policy asked {missing}", told), told
