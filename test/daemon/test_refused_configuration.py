"""A configuration with errors ends the start, and the report says what to write."""

import datetime
import re

import pytest
from support.daemon import Gateway
from support.ports import is_listening

from mailgate.config.key import (
    KeyDeclaration,
    RuleDeclaration,
    TableDeclaration,
    TablesDeclaration,
    layout,
)
from mailgate.config.schema.settings import Settings

# No key takes a date.
WRONG = datetime.date(1979, 5, 27)


def wrong_everywhere(settings, path=()):
    """The path of each key below `settings`, and a table in which all of them are wrong."""
    paths, table = [], {}
    for entry in layout(settings):
        name = entry.name
        match entry.declaration:
            case KeyDeclaration() | RuleDeclaration():
                paths.append((*path, name))
                table[name] = WRONG
            case TableDeclaration(type=inner):
                below, table[name] = wrong_everywhere(inner, (*path, name))
                paths += below
            case TablesDeclaration() as many:
                table[name] = {}
                for word, inner in many.variants.items():
                    id = "192.0.2.1" if name == "source-ip" else f"x-{word}"
                    below, made = wrong_everywhere(inner, (*path, name, id))
                    paths += below
                    table[name][id] = made | ({"type": word} if word else {})
    return paths, table


def lines(table, path=()):
    """TOML for a table of tables."""
    plain = {name: value for name, value in table.items() if not isinstance(value, dict)}
    if plain:
        yield f"[{'.'.join(_quoted(name) for name in path)}]"
        for name, value in plain.items():
            yield f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value}"
    for name, value in table.items():
        if isinstance(value, dict):
            yield from lines(value, (*path, name))


def _quoted(name):
    return f'"{name}"' if "." in name else name


@pytest.mark.spec("OUT-215")
def test_an_error_in_any_key_ends_the_start(tmp_path):
    paths, table = wrong_everywhere(Settings)
    of_delivery = [path for path in paths if path[0] in ("queue", "report", "resolver")]
    assert len(of_delivery) > 50
    gateway = Gateway(tmp_path)
    own = {"server": {"listener": {"smtp": {"bind": f"127.0.0.1:{gateway.port('smtp')}", "protocol": "smtp"}}}}
    wrong = {name: table[name] for name in ("queue", "report", "resolver")}
    own["server"]["shutdown-grace"] = WRONG
    text = "\n".join(lines(own | wrong))
    gateway.config.write_text(text + "\n")

    gateway.start(ready=False)
    assert gateway.wait_end() == 78
    assert not is_listening(gateway.port("smtp"))

    told = {}
    for number, path, problem in re.findall(
        rf"{re.escape(str(gateway.config))}:(\d+): (\S+): (.*)", gateway.log_text()
    ):
        told[path] = (int(number), problem)
    for path in [*of_delivery, ("server", "shutdown-grace")]:
        number, problem = told[".".join(_quoted(name) for name in path)]
        assert text.splitlines()[number - 1].startswith(f"{path[-1]} = 1979")
        assert re.search("; (write|put it into quotes)", problem), (path, problem)
