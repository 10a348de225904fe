"""The TOML blocks of the documents mailgate takes its keys from: `MAILGATE_SEEDS` names their folder.

They are other people's text and no part of this repository. Each block loads,
or what keeps it from loading is refused by name as not supported.
"""

import os
import re
import tomllib
from pathlib import Path

import pytest
from support.configuration import LISTENER

from mailgate.config.error import ConfigErrors
from mailgate.config.load import load_text
from mailgate.config.schema.unsupported import REFUSAL
from mailgate.config.write import toml_text

FOLDER = Path(os.environ.get("MAILGATE_SEEDS", Path(__file__).resolve().parents[4] / "shared" / "seeds"))

_STARTS = re.compile(r"\[\[?[a-z][^\s]*\]\]?\s*$")
_GOES_ON = re.compile(r"""\[\[?[a-z][^\s]*\]\]?\s*$|["a-z][^\s=]* = |\s*\{ .*\}|\s*[\]#]|\s*$""")

# What the documents show and this version does not do.
REFUSED = {
    "session.connect.script",
    "session.ehlo.script",
    "session.data.script",
    "session.data.spam-filter",
    "session.data.add-headers.received-spf",
    "session.data.add-headers.auth-results",
    "sieve.trusted",
    "sieve.trusted.scripts",
}


def blocks(text):
    """The TOML in a document: from a table header on, as long as lines are TOML."""
    block, in_string = [], False
    for line in [*text.splitlines(), "The end."]:
        if block and (in_string or _GOES_ON.match(line)):
            block.append(line)
        elif block:
            yield "\n".join(block) + "\n"
            block = []
        elif _STARTS.match(line):
            block = [line]
        if block and line.count("'''") % 2:
            in_string = not in_string


def examples():
    """Every block as a parameter of a test."""
    if not FOLDER.is_dir():
        return [pytest.param("", marks=pytest.mark.skip(f"no documents: {FOLDER}; set MAILGATE_SEEDS"))]
    found = [
        pytest.param(block, id=f"{path.stem}-{number}")
        for path in sorted(FOLDER.glob("*.txt"))
        for number, block in enumerate(blocks(path.read_text(encoding="utf-8")))
    ]
    return found or [pytest.param("", marks=pytest.mark.skip(f"no documents in {FOLDER}"))]


def without(tree, path):
    """A tree without one key."""
    name, *rest = path
    below = {key: value for key, value in tree.items() if key != name}
    return {**below, name: without(tree[name], rest)} if rest else below


@pytest.mark.parametrize("block", examples())
def test_an_example_loads_or_is_refused_by_name(block):
    text = block if "[server.listener" in block else f"{block}\n{LISTENER}"
    try:
        load_text(text, "t.toml", {})
    except ConfigErrors as wrong:
        errors = wrong.errors
    else:
        return
    tree = tomllib.loads(text)
    for error in errors:
        assert error.problem == REFUSAL, error
        assert any(error.key == key or error.key.startswith(f"{key}.") for key in REFUSED), error
        tree = without(tree, error.key.split("."))
    load_text(toml_text(tree), "t.toml", {})


def test_every_document_has_examples():
    found = examples()
    if found[0].marks:
        pytest.skip(found[0].marks[0].args[0])
    assert len(found) == 14
