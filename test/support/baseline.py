"""The configurations most tests start from, and how a test changes some keys of one.

`B0` relays everything and checks nothing; `B1` has a memory directory and
takes mail for it only; `B2` is `B1` with logins. A test writes what it changes
as TOML: tables are merged, other values replaced.
"""

from __future__ import annotations

import re
import tomllib

B0 = """
[server]
hostname = "mx.test"

[session.ehlo]
reject-non-fqdn = false

[session.auth]
require = false
errors.wait = "5ms"

[session.rcpt]
directory = false
relay = true
errors.wait = "5ms"

[session.data.add-headers]
received = false
received-spf = false
auth-results = false
message-id = false
date = false
return-path = false

[auth]
iprev.verify = "disable"
spf.verify.ehlo = "disable"
spf.verify.mail-from = "disable"
dmarc.verify = "disable"

[spam-filter]
enable = false
"""

_B1 = """
[session.rcpt]
directory = "'local'"
relay = false
errors.wait = "5ms"

[storage]
directory = "local"

[directory."local"]
type = "memory"

[[directory."local".principals]]
name = "john"
secret = "secret"
email = "john@foobar.org"
email-list = ["sales@foobar.org"]

[[directory."local".principals]]
name = "jane"
secret = "p4ssw0rd"
email = "jane@foobar.org"
email-list = ["sales@foobar.org"]

[[directory."local".principals]]
name = "bill"
secret = "p4ssw0rd"
email = "bill@foobar.org"
email-list = ["sales@foobar.org"]

[[directory."local".principals]]
name = "mike"
secret = "p4ssw0rd"
email = "mike@foobar.org"
"""

_B2 = """
[session.auth]
directory = "'local'"
mechanisms = "[plain, login]"
"""

_LAYERS = {"B0": (B0,), "B1": (B0, _B1), "B2": (B0, _B1, _B2)}

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def merged(below: dict, above: dict) -> dict:
    """`below` with the keys of `above`: tables are merged, all else is replaced."""
    out = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merged(out[key], value)
        else:
            out[key] = value
    return out


def without(table: dict, path: str) -> dict:
    """`table` without the key at a dotted `path`."""
    first, _, rest = path.partition(".")
    out = dict(table)
    if not rest:
        del out[first]
    else:
        out[first] = without(out[first], rest)
    return out


def _key(text: str) -> str:
    return text if _BARE_KEY.fullmatch(text) else _value(text)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = "".join(
            f"\\u{ord(c):04x}" if c < " " or c == "\x7f" else "\\" + c if c in '"\\' else c for c in value
        )
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }"
    return str(value)


def toml_text(table: dict, prefix: str = "") -> str:
    """TOML for `table`, each table with its own header; read back it gives the same values."""
    plain = [f"{_key(key)} = {_value(value)}\n" for key, value in table.items() if not isinstance(value, dict)]
    text = "".join(plain)
    for key, value in table.items():
        if isinstance(value, dict):
            name = f"{prefix}{_key(key)}"
            inner = toml_text(value, name + ".")
            has_own_keys = any(not isinstance(item, dict) for item in value.values())
            text += f"\n[{name}]\n{inner}" if has_own_keys or not value else inner
    return text


def baseline(name: str = "B0", *changes: str, drop: tuple[str, ...] = ()) -> str:
    """The configuration `name` with `changes` (TOML texts, later ones win) and without the keys in `drop`."""
    table: dict = {}
    for layer in (*_LAYERS[name], *changes):
        table = merged(table, tomllib.loads(layer))
    for path in drop:
        table = without(table, path)
    return toml_text(table)
