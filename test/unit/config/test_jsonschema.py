import json
import re
import tomllib
from pathlib import Path

import pytest
from support.baseline import B0
from support.json_schema import KEYWORDS, faults, keywords

from mailgate.config.effective import all_keys
from mailgate.config.error import ConfigErrors
from mailgate.config.jsonschema import schema, text
from mailgate.config.load import load_text
from mailgate.config.schema.settings import Settings
from mailgate.config.schema.unsupported import UNSUPPORTED
from mailgate.config.show import effective

ETC = Path(__file__).parents[3] / "etc"
WHOLE = json.loads(text())


def wrong(toml):
    """What an editor would underline."""
    return faults(tomllib.loads(toml), WHOLE, WHOLE)


@pytest.mark.parametrize("path", sorted(ETC.glob("*.toml")), ids=lambda path: path.name)
def test_shipped_files_fit(path):
    shipped = path.read_text(encoding="utf-8")
    assert wrong(shipped) == []
    assert wrong(re.sub(r"(?m)^#(?=[a-z\[])", "", shipped)) == []


def test_the_effective_configuration_fits():
    assert wrong(effective(load_text("", "t.toml", {})).text(False)) == []
    assert wrong(B0) == []


def test_every_pattern_is_one_and_only_known_words_are_used():
    assert set(keywords(WHOLE)) <= KEYWORDS
    for pattern in set(re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', text())):
        re.compile(json.loads(pattern))


def leads(node, names):
    """Whether the schema has a key."""
    if not names:
        return True
    for below in (node, *node.get("anyOf", ())):
        inner = below.get("properties", {}).get(names[0]) or below.get("additionalProperties") or below.get("items")
        if isinstance(inner, dict) and leads(inner, names[1:]):
            return True
        if isinstance(below.get("items"), dict) and leads(below["items"], names):
            return True
    return False


def test_every_key_is_in_it():
    for key in all_keys(Settings):
        assert leads(WHOLE, key.split(".")), key


@pytest.mark.parametrize(
    "toml",
    [
        '[session]\ntiemout = "5m"\n',
        '[server]\nmax-connections = "many"\n',
        "[server]\nmax-connections = 0\n",
        '[server.tls]\nenable = "true"\n',
        "[queue.route.x]\nport = 25\n",
        '[queue.route.x]\ntype = "mx"\naddress = "h"\n',
        '[queue.route.x]\ntype = "relay"\n',
        '[session.ehlo]\nrequire = [ { iff = "true", then = true } ]\n',
        "[session.data]\nspam-filter = true\n",
        '[queue.route.x]\ntype = "local"\nmaildir = "/m/%{user}"\njunk-folder = "Junk"\n',
        'x = ["a", 5]\n',
        "[lookup]\nx = [5]\n",
        "[decisions]\nmax-age = 0\n",
    ],
)
def test_what_it_can_see_it_refuses(toml):
    assert wrong(toml)
    with pytest.raises(ConfigErrors):
        load_text(toml, "t.toml", {})


@pytest.mark.parametrize(
    "toml",
    [
        '[decisions]\nmax-age = " 1 h "\nmax-size = "10 KB"\nenable = true\n',
        "[decisions]\nmax-age = 5000.5\nmax-size = 1\n",
        '[resolver]\nattempts = "%{env:N}%"\ntype = "SYSTEM"\n',
        '[server.listener.a]\nprotocol = "SMTP"\nbind = "[::1]:25"\ndescription = "x"\n',
        '[server.socket]\nlinger = "never"\n',
        '[queue]\nmin-free = "5%"\n',
        '[queue.route.x]\ntype = "Relay"\naddress = "h.test"\n',
        '[queue.tls.x]\nstarttls = false\ndane = "disable"\n',
        "[session.data]\nspam-filter = false\n",
        "[session.auth]\nallow-plain-text = false\n",
        '[session.auth]\nmechanisms = ["plain", "login"]\n',
        "[session.rcpt]\nsubaddressing = true\n",
        '[lookup]\na = "x"\nb = ["y"]\nc = { "x.test" = true, "k" = "v", "n" = 1 }\n',
        '[directory.d]\ntype = "memory"\nprincipals = { name = "x", secret = "y" }\n',
    ],
)
def test_whatever_loads_fits(toml):
    assert load_text(toml, "t.toml", {"N": "3"})
    assert wrong(toml) == []


def test_what_may_only_be_switched_off_is_in_it_with_its_values():
    whole = schema()
    for one in UNSUPPORTED:
        if one.off:
            assert leads(whole, list(one.pattern.parts)), one.pattern.text
