"""The files the package installs and `make run` starts: they load, and a slip in them never goes unnoticed."""

import random
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailgate.config.error import ConfigErrors
from mailgate.config.load import load_text
from mailgate.config.write import WriteError, toml_text
from mailgate.net.selfsigned import write_self_signed

ETC = Path(__file__).parents[3] / "etc"
INSTALLED = (ETC / "mailgate.toml").read_text(encoding="utf-8")
DEVELOPMENT = (ETC / "mailgate-dev.toml").read_text(encoding="utf-8")
ENVIRON = {"MAILGATE_HOME": "/srv/mailgate", "JANE_SECRET": "x", "SMARTHOST_SECRET": "y"}
# Settings that are commented out begin with `#` and no space.
UNCOMMENTED = re.sub(r"(?m)^#(?=[a-z\[])", "", INSTALLED)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """The paths of a certificate and its key."""
    directory = tmp_path_factory.mktemp("tls")
    cert, key = directory / "cert.pem", directory / "key.pem"
    write_self_signed(cert, key, "localhost")
    return cert, key


@pytest.fixture(scope="module")
def placed(certificate):
    """Puts the paths of a real certificate into a shipped text."""
    cert, key = certificate

    def place(text):
        for shipped in ("var/tls/cert.pem", "/etc/mailgate/tls/fullchain.pem"):
            text = text.replace(shipped, str(cert))
        for shipped in ("var/tls/key.pem", "/etc/mailgate/tls/privkey.pem"):
            text = text.replace(shipped, str(key))
        return text

    return place


def test_the_installed_file_loads_without_a_warning():
    loaded = load_text(INSTALLED, "mailgate.toml", {})
    assert loaded.warnings == ()
    assert set(loaded.settings.server.listener) == {"smtp", "submission", "submissions"}


def test_the_installed_file_is_no_open_relay_and_says_what_the_defaults_say():
    shipped, default = load_text(INSTALLED, "mailgate.toml", {}).settings, load_text("", "", {}).settings
    assert shipped.session.rcpt.relay.variables == default.session.rcpt.relay.variables == ("authenticated_as",)
    assert shipped.queue.connection == default.queue.connection
    # The step that does without TLS, where it does not work, is the installed file's alone.
    assert shipped.queue.tls.keys() - default.queue.tls.keys() == {"in-clear"}
    assert all(shipped.queue.tls[name] == entry for name, entry in default.queue.tls.items())
    assert shipped.queue.virtual == default.queue.virtual
    assert shipped.queue.schedule["dsn"] == default.queue.schedule["dsn"]
    assert shipped.resolver == default.resolver
    assert shipped.decisions == default.decisions
    assert (shipped.queue.inline_size, shipped.queue.spool, shipped.queue.min_free, shipped.queue.lease) == (
        default.queue.inline_size,
        default.queue.spool,
        default.queue.min_free,
        default.queue.lease,
    )


def test_what_is_commented_out_loads_too(placed):
    loaded = load_text(placed(UNCOMMENTED), "mailgate.toml", ENVIRON)
    assert [warning.text for warning in loaded.warnings] == [
        "cannot read /etc/mailgate/partners: what the list holds is unknown"
    ]
    assert "lmtp" in loaded.settings.server.listener
    assert "smarthost" in loaded.settings.queue.route


def test_every_supported_section_is_shown():
    tree = tomllib.loads(UNCOMMENTED)
    found = load_text("", "", {}).settings
    assert set(found.__slots__) <= set(tree)
    assert set(found.session.__slots__) <= {name.replace("-", "_") for name in tree["session"]}
    assert set(found.queue.__slots__) <= {name.replace("-", "_") for name in tree["queue"]}


def test_the_development_file_loads(placed):
    loaded = load_text(placed(DEVELOPMENT), "mailgate-dev.toml", ENVIRON)
    found = loaded.settings
    assert loaded.warnings == ()
    for id, listener in found.server.listener.items():
        assert [address.host for address in listener.bind] == ["127.0.0.1", "::1"], id
    assert {id: one.bind[0].port for id, one in found.server.listener.items()} == {
        "smtp": 2525,
        "submission": 2587,
        "submissions": 2465,
        "lmtp": 2424,
    }
    assert found.queue.route["local"].maildir.fixed == "/srv/mailgate/var/mail"
    assert found.queue_file == "var/queue.sqlite"


# --- slips of the pen -----------------------------------------------------------

# What one token may be: a key or table name, a word of an expression, a value, a bracket or quote.
_KEY = re.compile(r"(?:^|[{,] *)(?:[a-z-]+\.)?([a-z][a-z-]+)(?= *=)", re.MULTILINE)
_HEADER = re.compile(
    r"^\[+(server|session|queue|resolver|report|decisions)(?:\.(tls|socket|connect|ehlo|auth|mail|rcpt|data|"
    r"extensions|strategy|dsn)(?:\.(limits|add-headers))?)?\]+$",
    re.MULTILINE,
)
_EXPRESSION_WORD = re.compile(
    r"\b(is_empty|key_exists|is_local_domain|starts_with|config_get|authenticated_as|sender_domain|rcpt_domain|"
    r"retry_num|last_error|source|plain|login|mixer|is_tls|listener)\b(?=[^=\n]*[\")])"
)
_WORD = re.compile(r'(?<== ")(smtp|lmtp|local|mx|relay|sqlite|memory|optional|ipv4_then_ipv6|system)(?=")')
_NAME = re.compile(r"(?<=\"')(local|mx|dsn|report|remote|default|invalid-tls|reject)(?='\")")
_BARE = re.compile(r"(?<== )(true|false|\d+)\b")
_UNIT = re.compile(r'(?<=\d)(mb|ms|[dhms])(?=")')
_MARK = re.compile(r"[\[\]{}\"'=,]")


def slips(text, picks):
    """One-token changes of the text, each with the line it is made in; drawn by `picks`."""
    tokens = []
    for kind, pattern in {
        "name": (_KEY, _HEADER, _EXPRESSION_WORD, _WORD, _NAME, _BARE, _UNIT),
        "mark": (_MARK,),
    }.items():
        for one in pattern:
            for match in one.finditer(text):
                for group in range(1, (one.groups or 0) + 1):
                    if match[group]:
                        tokens.append((kind, match.start(group), match.end(group)))
                if not one.groups:
                    tokens.append((kind, match.start(), match.end()))
    comments = [(match.start(), match.end()) for match in re.finditer(r"(?m)(?:^|(?<= ))#.*$", text)]
    tokens = [token for token in tokens if not any(start <= token[1] < end for start, end in comments)]
    while True:
        kind, start, end = picks.choice(tokens)
        token = text[start:end]
        if kind == "mark":
            changed = ""
        else:
            at = picks.randrange(len(token))
            changed = picks.choice(
                [
                    token[:at] + token[at + 1 :] if len(token) > 1 else "y",
                    token[:at] + "q" + token[at:],
                    token[:at] + "q" + token[at + 1 :],
                    token + "z",
                    token[:at] + token[at : at + 2][::-1] + token[at + 2 :],
                ]
            )
        if changed != token and not (token.isdigit() and changed.isdigit()):
            yield text[:start] + changed + text[end:], text.count("\n", 0, start) + 1, (token, changed)


# Spellings that mean the same: `==` and `=`, `&&` and `&`, `||` and `|`, `256mb` and `256m`.
_SPELLINGS = re.compile(r"(?<=[=&|])[=&|]|(?<=\dm)b(?=\")")


def say_the_same(one, other):
    """Whether two texts that load have the same values in them."""
    return tomllib.loads(_SPELLINGS.sub("", one)) == tomllib.loads(_SPELLINGS.sub("", other))


def fault(text, environ):
    """What the loader raises for a text, None where it loads."""
    try:
        load_text(text, "m.toml", environ)
    except ConfigErrors as wrong:
        return wrong
    return None


@pytest.mark.parametrize("shipped", ["installed", "uncommented", "development"])
def test_a_slip_is_refused_with_its_place_or_changes_nothing(shipped, placed):
    text = placed({"installed": INSTALLED, "uncommented": UNCOMMENTED, "development": DEVELOPMENT}[shipped])
    made = slips(text, random.Random(20))
    far = []
    for _ in range(170):
        changed, line, slip = next(made)
        wrong = fault(changed, ENVIRON)
        if wrong is None:
            assert say_the_same(text, changed), (slip, line)
            continue
        assert wrong.errors
        for told in wrong.report().splitlines():
            assert re.match(r"m\.toml:\d+: \S", told), told
        assert all(error.key or "not TOML" in error.problem for error in wrong.errors), (slip, line)
        # A header that is lost makes keys of the table before; a string that does not end
        # is noticed where the next one begins. Whatever is told stands close by.
        if not any(abs(error.line - line) <= 3 for error in wrong.errors):
            far.append((slip, line, wrong.report()))
    assert len(far) <= 17, far


_PIECES = sorted(set(re.findall(r"[a-z-]+|\s+|[^\sa-z]", INSTALLED)))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(_PIECES), max_size=60))
def test_no_text_of_its_own_words_makes_the_loader_fail(pieces):
    wrong = fault("".join(pieces), {})
    assert wrong is None or wrong.report()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(UNCOMMENTED)), st.integers(0, 40), st.text(max_size=8))
def test_no_damage_to_the_file_makes_the_loader_fail(at, length, inserted):
    damaged = UNCOMMENTED[:at] + inserted + UNCOMMENTED[at + length :]
    wrong = fault(damaged, ENVIRON)
    assert wrong is None or wrong.report()


_TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([piece for piece in _PIECES if piece[0].isalpha()]), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(tree=_TREES, key=st.sampled_from(sorted(set(re.findall(r"(?m)^\[+([a-z.-]+)\]", UNCOMMENTED)))))
def test_no_value_makes_the_loader_fail(tree, key):
    values = tree
    for name in reversed(key.split(".")):
        values = {name: values}
    try:
        text = toml_text(values)
    except WriteError:
        return
    wrong = fault(text, {})
    assert wrong is None or wrong.report()
