import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from mailgate.config import show as module
from mailgate.config.load import load_text, load_texts
from mailgate.config.show import configured, effective
from mailgate.config.sources import Source
from mailgate.expr.choice import Choice

ETC = Path(__file__).parents[3] / "etc"
UNCOMMENTED = re.sub(r"(?m)^#(?=[a-z\[])", "", (ETC / "mailgate.toml").read_text(encoding="utf-8"))
# The certificate of the shipped text is not there, and its key would be a secret.
SHIPPED = re.sub(r"(?ms)^\[certificate\.main\].*?(?=^\[|^# ---)", "", UNCOMMENTED)
ENVIRON = {"JANE_SECRET": "jane's password", "SMARTHOST_SECRET": "a long one", "HOME_DIR": "/data/of/mail"}

RICH = """
[server]
hostname = "mx.test"
tls.timeout = "9s"
[server.listener.smtp]
bind = "127.0.0.1:2525"
protocol = "smtp"
[server.listener.imap]
bind = "127.0.0.1:143"
protocol = "imap"
[storage]
data = "q"
directory = "d"
[store.q]
type = "sqlite"
path = "%{env:HOME_DIR}%/queue.sqlite"
description = "where mail waits"
[store."l/1.2"]
type = "memory"
format = "regex"
values = ['^a\\.b$', "c\\\\x41d", "e\\u0007"]
[lookup]
one = ["a"]
two = { "x.test" = true, "y" = "z" }
[directory.d]
type = "memory"
[[directory.d.principals]]
name = "jane"
secret = ["%{env:JANE_SECRET}%", "written out"]
email = "jane@foobar.org"
[[directory.d.principals]]
name = "joe"
[queue.route.relay]
type = "relay"
address = "out.test"
auth = { username = "%{cfg:server.hostname}%", secret = "hunter2" }
[queue.schedule.mine]
queue-name = "remote"
[queue.source-ip."2001:DB8::1"]
ehlo-hostname = "six.test"
[session.rcpt]
subaddressing = false
rewrite = [ { if = "matches('^(.+)\\\\.x$', rcpt)", then = "$1" }, { else = false } ]
[session.mail]
is-allowed = [ { if = "key_exists('one', sender)", then = false }, { on-error = "accept" }, { else = true } ]
"""


def plain(value):
    """Settings as values that can be compared: no places, and rules without the spelling of their key."""
    if isinstance(value, Choice):
        return (value.is_constant, value._fixed, repr(value._branches), value.on_error, value.literals)
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.compare}
    if hasattr(value, "items"):
        return {name: plain(inner) for name, inner in value.items()}
    return value


@pytest.mark.parametrize("text", ["", RICH, SHIPPED, (ETC / "mailgate.toml").read_text(encoding="utf-8")])
@pytest.mark.parametrize("shown", [effective, configured])
def test_what_is_shown_loads_to_the_same_settings(text, shown):
    secrets = re.compile(r"written out|hunter2")
    before = load_text(text, "t.toml", ENVIRON)
    again = load_text(shown(before).text(with_origins=True), "t.toml", ENVIRON)
    redacted = load_text(secrets.sub("[secret]", text), "t.toml", ENVIRON)
    assert plain(again.settings) == plain(redacted.settings)


@pytest.mark.parametrize("shown", [effective, configured])
@pytest.mark.parametrize("with_origins", [True, False])
def test_no_secret_is_shown(shown, with_origins):
    text = shown(load_text(RICH, "t.toml", ENVIRON)).text(with_origins)
    for secret in (*ENVIRON.values(), "written out", "hunter2"):
        assert secret not in text
    assert 'secret = ["%{env:JANE_SECRET}%", "[secret]"]' in text
    assert 'path = "%{env:HOME_DIR}%/queue.sqlite"' in text


def test_what_follows_from_a_secret_is_named_and_not_shown():
    text = effective(load_text(RICH, "t.toml", ENVIRON)).text(False)
    values = tomllib.loads(text)
    assert "path" not in values["decisions"]
    assert "spool" not in values["queue"]
    assert "# decisions.path: follows from a value that a macro inserted\n" in text
    assert "# queue.route.local: built-in, has no maildir: mail it gets is delayed\n" in text


def test_defaults_are_shown_with_what_they_come_to():
    values = effective(load_text(RICH, "t.toml", ENVIRON)).values
    assert values["server"]["listener"]["smtp"]["tls"]["timeout"] == "9s"
    assert "imap" not in values["server"]["listener"]
    assert values["queue"]["schedule"]["mine"]["expire"] == "3d"
    assert "expire" not in values["queue"]["schedule"]["dsn"]
    assert values["queue"]["tls"]["invalid-tls"]["allow-invalid-certs"] is True
    assert values["lookup"]["trusted-domains"] == []
    assert values["report"]["domain"] == "mx.test"
    assert values["session"]["rcpt"]["sub-addressing"] is False
    assert set(values) >= {"server", "session", "queue", "resolver", "report", "decisions"}


def test_without_defaults_only_what_the_files_say():
    assert configured(load_text("", "t.toml", {})).values == {}
    values = configured(load_text(RICH, "t.toml", ENVIRON)).values
    assert values["store"]["q"]["description"] == "where mail waits"
    assert values["server"]["listener"]["imap"]["protocol"] == "imap"
    assert values["queue"].keys() == {"route", "schedule", "source-ip"}


def test_every_key_says_where_it_comes_from():
    sources = [
        Source("a.toml", '[server]\nhostname = "mx.test"\ntls.timeout = "9s"\n[directory.d]\ntype = "memory"\n'),
        Source("conf.d/b.toml", '[server.listener.smtp]\nbind = "[::1]:25"\nprotocol = "smtp"\n'),
        Source("conf.d/c.toml", '\n[[directory.d.principals]]\nname = "x"\n'),
    ]
    shown = effective(load_texts(sources, {}))
    lines = shown.text(with_origins=True).splitlines()
    for line in (
        'hostname = "mx.test"  # a.toml:2',
        'protocol = "smtp"  # conf.d/b.toml:3',
        'timeout = "9s"  # server.tls.timeout, a.toml:3',
        "max-connections = 8192  # server.max-connections, built-in",
        'name = "x"  # conf.d/c.toml:3',
        'class = "individual"  # built-in',
        "reject-non-fqdn = \"listener = 'smtp'\"  # built-in",
        "route = [  # built-in",
    ):
        assert line in lines
    for line in lines:
        if re.match(r"[a-z-]+ = ", line):
            assert re.search(r"  # (.*, )?(built-in|[a-z./]+:\d+)$", line), line


def test_a_key_or_table_by_itself():
    shown = effective(load_text(RICH, "t.toml", ENVIRON))
    assert shown.below("server.hostname").values == {"server": {"hostname": "mx.test"}}
    assert shown.below("store.l/1.2.format").values == {"store": {"l/1.2": {"format": "regex"}}}
    assert shown.below("decisions").left_out.keys() == {("decisions", "path")}
    assert shown.below("decisions.path") is None


@pytest.mark.parametrize(
    ("milliseconds", "text"), [(86_400_000 * 3, "3d"), (5_400_000, "90m"), (1500, "1500ms"), (60_000, "1m")]
)
def test_a_duration_is_told_in_the_largest_unit_that_fits(milliseconds, text):
    assert module._completed(module.timedelta(milliseconds=milliseconds)) == text


@pytest.mark.parametrize(
    ("urls", "told"),
    [
        ("redis://h:7000/3", "redis://h:7000/3"),
        ("redis://me:hunter2@h", "redis://me:***@h"),
        ("redis://:hunt@er2@h", "redis://:***@h"),
        ("unix://:hunter2@/run/redis.sock?db=2", "unix://:***@/run/redis.sock?db=2"),
        ("redis://:%{env:JANE_SECRET}%@h", "redis://:***@h"),
        ("%{env:URL}%", "%{env:URL}%"),
    ],
)
@pytest.mark.parametrize("shown", [configured, effective])
def test_of_an_address_all_but_the_password_is_shown(shown, urls, told):
    environ = {"JANE_SECRET": "hunter2", "URL": "redis://:hunter2@h"}
    loaded = load_text(f'[store.r]\ntype = "redis"\nurls = "{urls}"\n', "t.toml", environ)
    text = shown(loaded).text(with_origins=False)
    assert f'urls = "{told}"' in text
    again = load_text(text, "again.toml", environ).settings.store["r"]
    assert again.urls._replace(password=None) == loaded.settings.store["r"].urls._replace(password=None)
